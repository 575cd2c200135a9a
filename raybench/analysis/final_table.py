"""The table of a benchmark: mean and standard deviation over seeds in each of its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture

from raybench.analysis import style
from raybench.analysis.figure import Figure, Tables
from raybench.analysis.scores import CONSTANT, finals, lost_note, means, ordered, scored

MOST_COLUMNS = 16
"""So many fit into the picture; the files have all."""


def data_final(tables: Tables) -> pd.DataFrame:
    """Return one row for each problem, optimizer, budget and schedule.

    Columns: those, metric, mean, std (n - 1), n (runs with a score), diverged, failed, and `best`:
    whether the mean is the lowest of its problem, budget and schedule.
    """
    final = finals(scored(tables))
    table = means(final)
    lowest = table.groupby(["problem", "budget", "schedule"])["mean"].transform("min")
    table["best"] = table["mean"].notna() & (table["mean"] == lowest)
    table.attrs["note"] = lost_note(final)
    return table


def columns_of(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the pairs of budget and schedule that there are, in order."""
    there = set(frame[["budget", "schedule"]].itertuples(index=False, name=None))
    budgets, schedules = ordered("budget", frame["budget"]), ordered("schedule", frame["schedule"])
    return [(b, s) for b in budgets for s in schedules if (b, s) in there]


def cell_text(mean: float, std: float, metric: str, plus_minus: str) -> str:
    """Return a score as it is printed: errors in per cent, digits as the deviation allows."""
    if np.isnan(mean):
        return "–"
    if not np.isfinite(mean):
        return "inf"
    scale = 100.0 if metric == "error" else 1.0
    value, spread = scale * mean, scale * std
    reach = spread if np.isfinite(spread) and spread > 0 else abs(value) / 1000.0
    digits = int(np.clip(1 - np.floor(np.log10(reach)), 0, 6)) if reach > 0 else 2
    digits = min(digits, 2) if metric == "error" else digits
    if abs(value) >= 1e6:
        return f"{value:.2e}"
    if np.isnan(spread):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f}{plus_minus}{spread:.{digits}f}"


def markdown(frame: pd.DataFrame) -> str:
    """Return one Markdown table a problem: optimizers in rows, budgets and schedules in columns."""
    parts: list[str] = []
    for problem, here in frame.groupby("problem"):
        pairs, grid = _grid(here, " ± ", "**", "**")
        head = ["optimizer", *(f"{budget}, {schedule}" for budget, schedule in pairs)]
        lines = [_row(head), _row(["---"] + ["---:"] * len(pairs))]
        lines += [_row([_pipe(name), *cells]) for name, cells in grid.items()]
        parts.append(f"### {_pipe(str(problem))} ({_unit(here)})\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _pipe(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def latex(frame: pd.DataFrame) -> str:
    """Return one LaTeX table a problem, for the package booktabs."""
    parts: list[str] = []
    for problem, here in frame.groupby("problem"):
        pairs, grid = _grid(here, r" \pm ", r"\mathbf{", "}")
        head = ["optimizer", *(_tex(f"{budget}, {schedule}") for budget, schedule in pairs)]
        body = [
            " & ".join([_tex(name), *(_math(cell) for cell in cells)]) + r" \\"
            for name, cells in grid.items()
        ]
        parts += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(str(problem))}: {_tex(_unit(here))}, mean $\pm$ standard "
            r"deviation over seeds.}",
            rf"\begin{{tabular}}{{l{'r' * len(pairs)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    return "\n".join(parts)


_TEX = {c: rf"\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in " ".join(text.split()))


def _math(cell: str) -> str:
    plain = cell.replace("inf", r"\infty")
    return cell if cell == "–" else f"${plain}$"


def _unit(here: pd.DataFrame) -> str:
    return "test error, %" if here["metric"].iloc[0] == "error" else "test loss"


def _grid(
    here: pd.DataFrame, plus_minus: str, before: str, after: str
) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
    # Optimizer to its cells, one for each pair of budget and schedule; the best is set off.
    pairs = columns_of(here)
    texts: dict[tuple[str, str, str], str] = {}
    for row in here.to_dict("records"):
        text = cell_text(row["mean"], row["std"], str(row["metric"]), plus_minus)
        key = (str(row["optimizer"]), str(row["budget"]), str(row["schedule"]))
        texts[key] = f"{before}{text}{after}" if row["best"] else text
    names = sorted(here["optimizer"].unique())
    return pairs, {name: [texts.get((name, *pair), "–") for pair in pairs] for name in names}


def texts(frame: pd.DataFrame) -> Mapping[str, str]:
    """Return the table as Markdown and as LaTeX, by file suffix."""
    return {"md": markdown(frame), "tex": latex(frame)}


def draw_final(frame: pd.DataFrame) -> Picture:
    """Draw the table: optimizers in rows, problems and budgets in columns, one schedule."""
    schedules = ordered("schedule", frame["schedule"])
    schedule = CONSTANT if CONSTANT in schedules else schedules[0]
    shown = frame[frame["schedule"] == schedule]
    columns = _drawn(shown)
    names = sorted(shown["optimizer"].unique())
    width = 1.3 + 0.92 * len(columns)
    picture, [[axes]] = style.canvas(width=max(width, 4.0), height=0.17 * (len(names) + 4) + 0.1)
    axes.axis("off")
    axes.set(xlim=(-1.3 / 0.92, len(columns)), ylim=(len(names) - 0.4, -3.2))
    left = -1.3 / 0.92
    by_key = {(r["problem"], r["budget"], r["optimizer"]): r for r in shown.to_dict("records")}
    seen = None
    for x, (problem, budget) in enumerate(columns):
        if problem != seen:
            room = 15 * sum(1 for other, _ in columns if other == problem)
            title = style.text(problem, min(room, 30))
            axes.text(x + 0.1, -2.4, title, fontsize=6.5, fontweight="bold", va="center")
            axes.axvline(x + 0.02, color=style.FAINT, lw=0.4)
            seen = problem
        axes.text(x + 0.96, -1.4, style.text(budget, 12), fontsize=6.5, ha="right", va="center")
        for y, name in enumerate(names):
            row = by_key.get((problem, budget, name))
            if row is not None:
                text = cell_text(row["mean"], row["std"], str(row["metric"]), " ± ")
                weight = "bold" if row["best"] else "normal"
                axes.text(
                    x + 0.96, y, text, fontsize=5.6, ha="right", va="center", fontweight=weight
                )
    axes.axhline(-0.8, color=style.INK, lw=0.6)
    for y, name in enumerate(names):
        axes.text(left, y, style.text(name, 20), fontsize=6.5, va="center")
    axes.text(left, -1.4, f"schedule: {style.text(schedule, 14)}", fontsize=6, va="center")
    return picture


def _drawn(shown: pd.DataFrame) -> list[tuple[str, str]]:
    # All budgets if they fit, or else the first and the last.
    budgets = ordered("budget", shown["budget"])
    problems = sorted(shown["problem"].unique())
    if len(budgets) * len(problems) > MOST_COLUMNS and len(budgets) > 2:
        budgets = [budgets[0], budgets[-1]]
    there = set(shown[["problem", "budget"]].itertuples(index=False, name=None))
    return [(p, b) for p in problems for b in budgets if (p, b) in there]


FIGURES: dict[str, Figure] = {
    "final_table": Figure(
        "Test scores of every cell of the benchmark",
        "Mean ± standard deviation over seeds, test errors in %, test losses as they are; bold: "
        "the lowest mean of its column. The CSV, Markdown and LaTeX files have every schedule and "
        "budget.",
        data_final,
        draw_final,
        tables=texts,
    ),
}
