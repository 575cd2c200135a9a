"""All problems at once: parallel coordinates, an axis a problem and a line an optimizer.

The design is that of Schmidt et al. 2021 (arXiv:2007.01547), fig. 4.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from raybench.analysis import style
from raybench.analysis.figure import Figure, Tables
from raybench.analysis.looks import AXIS, Look, looks
from raybench.analysis.rows import Missing
from raybench.analysis.scores import (
    CONSTANT,
    ONE_SHOT,
    finals,
    largest,
    lost_note,
    means,
    scored,
)

SPREAD = "adam"
"""Whose standard deviation is drawn."""
REFERENCES = ("adam", "adabound")
"""Whose untuned scores are marked, beside the tuned ones."""


def data_parallel(tables: Tables) -> pd.DataFrame:
    """Return the mean score of each arm, and where it lies on its problem's axis.

    `place` is 1 at the best mean of the whole benchmark (any budget and schedule) and 0 at the
    upper fence of the optimizers' means (third quartile + 1.5 interquartile ranges, or the worst
    mean if that is nearer); what is worse is clipped to 0. Rows of `role` line are the largest
    budget, those of role untuned the one-shot marks.
    """
    all_finals = finals(scored(tables))
    runs = largest(all_finals)
    lines = means(runs).assign(role="line")
    if lines["problem"].nunique() < 2:
        raise Missing("parallel coordinates need scores on at least 2 problems")
    marks = means(all_finals).assign(role="untuned")
    untuned = (marks["budget"] == ONE_SHOT) & (marks["schedule"] == CONSTANT)
    marks = marks[untuned & marks["optimizer"].isin(REFERENCES)]
    if (runs["budget"] == ONE_SHOT).all():
        marks = marks.iloc[:0]
    best = means(all_finals).groupby("problem")["mean"].min()
    worst = lines.groupby("problem")["mean"].agg(_fence)
    table = pd.concat([lines, marks], ignore_index=True)
    table["best"], table["worst"] = table["problem"].map(best), table["problem"].map(worst)
    width = (table["worst"] - table["best"]).where(lambda gap: gap > 0, 1.0)
    table["place"] = ((table["worst"] - table["mean"]) / width).clip(0.0, 1.0)
    table["place_std"] = table["std"] / width
    table["clipped"] = table["mean"] > table["worst"]
    table.attrs["note"] = f"Budget {runs['budget'].iloc[0]!r}. {lost_note(runs)}"
    return table


def _fence(means_of_problem: pd.Series) -> float:
    finite = means_of_problem[np.isfinite(means_of_problem)]
    if finite.empty:
        return np.nan
    low, high = finite.quantile(0.25), finite.quantile(0.75)
    return float(min(high + 1.5 * (high - low), finite.max()))


def draw_parallel(frame: pd.DataFrame) -> Picture:
    """Draw the lines, the deviation of Adam and the untuned marks."""
    lines = frame[frame["role"] == "line"]
    problems = sorted(lines["problem"].unique())
    shown = looks(sorted(lines["optimizer"].unique()))
    width = min(max(1.3 * len(problems) + 2.2, 5.5), 11.0)
    picture, [[axes]] = style.canvas(width=width, height=3.6)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    for x, problem in enumerate(problems):
        _draw_axis(axes, x, lines[lines["problem"] == problem].iloc[0], x == len(problems) - 1)
    for name, look in shown.items():
        _draw_line(axes, name, look, frame[frame["optimizer"] == name], problems)
    axes.set_xticks(range(len(problems)), [style.text(p, 16) for p in problems])
    axes.tick_params(axis="x", length=0, pad=10)
    axes.tick_params(axis="y", left=False, labelleft=False)
    axes.set(xlim=(-0.15, len(problems) - 0.55), ylim=(-0.07, 1.07))
    handles = [
        Line2D([], [], color=look.colour, ls=look.dash, label=style.text(name, 20))
        for name, look in shown.items()
    ]
    handles += [
        Line2D([], [], color=shown[n].colour, ls="", marker="*", ms=7, label=f"{n}, untuned")
        for n in REFERENCES
        if n in shown and (frame.loc[frame["role"] == "untuned", "optimizer"] == n).any()
    ]
    picture.legend(handles=handles, loc="outside right upper", handlelength=2.4)
    return picture


def _draw_axis(axes: Axes, x: int, row: pd.Series, last: bool) -> None:
    axes.plot([x, x], [0, 1], color=style.INK, lw=0.8, zorder=1)
    for height in (0.0, 0.5, 1.0):
        value = row["worst"] + height * (row["best"] - row["worst"])
        axes.plot([x, x + 0.02], [height] * 2, color=style.INK, lw=0.8, zorder=1)
        label = f"{100 * value:.3g} %" if row["metric"] == "error" else f"{value:.4g}"
        axes.annotate(
            label,
            (x, height),
            xytext=(3, 5 if height == 1.0 else -5 if height == 0.0 else 0),
            textcoords="offset points",
            fontsize=6,
            va="center",
            zorder=5,
            bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.7},
        )


def _draw_line(axes: Axes, name: str, look: Look, rows: pd.DataFrame, problems: list[str]) -> None:
    by = rows[rows["role"] == "line"].set_index("problem").reindex(problems)
    places = np.arange(len(problems))
    heavy = name == SPREAD
    axes.plot(
        places,
        by["place"],
        color=look.colour,
        ls=look.dash,
        lw=2.0 if heavy else 1.0,
        marker="o",
        ms=2.2,
        zorder=4 if heavy else 2,
    )
    if heavy:
        axes.errorbar(
            places,
            by["place"],
            yerr=by["place_std"].fillna(0.0),
            ls="",
            color=look.colour,
            capsize=2.5,
            elinewidth=1.0,
            zorder=4,
        )
    untuned = rows[(rows["role"] == "untuned") & rows["problem"].isin(problems)]
    where = [problems.index(p) for p in untuned["problem"]]
    axes.plot(where, untuned["place"], ls="", marker="*", ms=7, color=look.colour, zorder=5)


FIGURES: dict[str, Figure] = {
    "parallel_coordinates": Figure(
        "Mean test score of each optimizer on each problem",
        f"Upper end of an axis: the best mean of the whole benchmark ({AXIS['error']} or "
        f"{AXIS['loss']}); lower end: the upper fence of the optimizers' means, what is worse is "
        f"drawn there. Bars: one standard deviation over seeds for {SPREAD}; stars: untuned. "
        "Constant schedule.",
        data_parallel,
        draw_parallel,
    ),
}
