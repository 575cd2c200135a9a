"""What tuning, another optimizer or a schedule gains over an untuned run.

Schmidt et al. 2021 (arXiv:2007.01547), figs. 2 and 3. The design of both figures and the direction
of what they show are taken from a description of the paper, not from its text; the numbers that it
gives for median gains were not available.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Picture
from matplotlib.patches import Rectangle

from raybench.analysis import style
from raybench.analysis.figure import Claim, Figure, Tables, Verdict
from raybench.analysis.looks import panels
from raybench.analysis.rows import Missing
from raybench.analysis.scores import (
    CONSTANT,
    ONE_SHOT,
    finals,
    lost_note,
    means,
    ordered,
    scored,
    tuned_budgets,
)
from raybench.stats import median_interval

CAP = 3.0
"""The colour scale of the heat map ends here (as in fig. 2)."""
UNIT = {"error": "percentage points of error", "loss": "per cent of the loss"}
FIG2 = "Schmidt et al. 2021 (arXiv:2007.01547), fig. 2 (design, unverified)"
FIG3 = "Schmidt et al. 2021 (arXiv:2007.01547), fig. 3 (direction only; its text was not at hand)"


def data_switch(tables: Tables) -> pd.DataFrame:
    """Return the gain of each tuned optimizer over each untuned one, for each problem.

    One row for each problem, `untuned` and `tuned` optimizer: both means, `gain` (positive is
    better; in percentage points of error, or in per cent of the untuned loss) and its Welch
    standard error `gain_se` in the same unit. Constant schedule, smallest tuned budget.
    """
    final = finals(scored(tables))
    final = final[final["schedule"] == CONSTANT]
    budgets = tuned_budgets(final)
    if not budgets or not (final["budget"] == ONE_SHOT).any():
        raise Missing("no one-shot and tuned runs with a constant schedule")
    cells = means(final[final["budget"].isin([ONE_SHOT, budgets[0]])])
    columns = ["problem", "metric", "optimizer", "mean", "std", "n"]
    before = cells.loc[cells["budget"] == ONE_SHOT, columns]
    after = cells.loc[cells["budget"] != ONE_SHOT, columns]
    table = before.merge(after, on=["problem", "metric"], suffixes=("_untuned", "_tuned"))
    table = table.rename(columns={"optimizer_untuned": "untuned", "optimizer_tuned": "tuned"})
    if table.empty:
        raise Missing("no problem with both one-shot and tuned runs")
    unit = np.where(table["metric"] == "error", 1.0, table["mean_untuned"].abs())
    with np.errstate(invalid="ignore", divide="ignore"):
        table["gain"] = 100.0 * (table["mean_untuned"] - table["mean_tuned"]) / unit
        error = sum(table[f"std_{arm}"] ** 2 / table[f"n_{arm}"] for arm in ("untuned", "tuned"))
        table["gain_se"] = 100.0 * np.sqrt(error) / unit
    table["budget"] = budgets[0]
    used = final[final["budget"].isin([ONE_SHOT, budgets[0]])]
    table.attrs["note"] = f"Tuned: budget {budgets[0]!r}. {lost_note(used)}"
    return table


def draw_switch(frame: pd.DataFrame) -> Picture:
    """Draw one matrix a problem: untuned optimizers in rows, tuned ones in columns."""
    problems = sorted(frame["problem"].unique())
    names = sorted({*frame["untuned"], *frame["tuned"]})
    picture, axes = panels(len(problems), 3.3, across=3, width=9.0)
    scale = Normalize(-CAP, CAP)
    for cell, problem in zip(axes, problems, strict=True):
        here = frame[frame["problem"] == problem]
        _matrix(cell, here, names, scale)
        spec = cell.get_subplotspec()
        first = spec is None or spec.is_first_col()
        cell.set_yticks(range(len(names)), [style.text(n, 18) for n in names] if first else [])
        cell.set_title(f"{style.text(problem, 22)} ({'pp' if _is_error(here) else '%'})")
    picture.supylabel("untuned (one-shot)", fontsize=8)
    picture.supxlabel("tuned", fontsize=8)
    bar = picture.colorbar(
        ScalarMappable(scale, colormaps["PuOr"]), ax=axes, extend="both", shrink=0.8, pad=0.01
    )
    bar.set_label("gain (positive: better)")
    bar.outline.set_visible(False)
    return picture


def _is_error(rows: pd.DataFrame) -> bool:
    return bool((rows["metric"] == "error").any())


def _matrix(axes: Axes, here: pd.DataFrame, names: list[str], scale: Normalize) -> None:
    grid = here.pivot(index="untuned", columns="tuned", values="gain")
    values = grid.reindex(index=names, columns=names).to_numpy(dtype=float)
    shown = np.ma.masked_invalid(np.where(np.isinf(values), np.sign(values) * 2 * CAP, values))
    axes.set_facecolor("#DDDDDD")
    axes.grid(visible=False)
    axes.imshow(shown, cmap="PuOr", norm=scale, aspect="equal", interpolation="nearest")
    for i in range(len(names)):
        for ink, width in (("white", 1.4), (style.INK, 0.6)):
            frame = Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, ec=ink, lw=width, zorder=3)
            axes.add_patch(frame)
    ticks = [style.text(name, 14) for name in names]
    axes.set_xticks(range(len(names)), ticks, rotation=90)
    axes.tick_params(length=0, labelsize=6)


def data_gains(tables: Tables) -> pd.DataFrame:
    """Return the relative gain of each budget and schedule over (one-shot, constant).

    One row for each problem, optimizer, budget and schedule: mean, base (the mean untuned with a
    constant schedule) and `gain` in per cent of the base; then over all problems and optimizers
    of the combination `median`, `quarter`, `three_quarters` and the interval of the median.
    """
    final = finals(scored(tables))
    cells = means(final)
    is_base = (cells["budget"] == ONE_SHOT) & (cells["schedule"] == CONSTANT)
    base = cells.loc[is_base, ["problem", "optimizer", "mean"]].rename(columns={"mean": "base"})
    table = cells.merge(base.dropna(), on=["problem", "optimizer"]).dropna(subset=["mean"])
    if table[["budget", "schedule"]].drop_duplicates().shape[0] < 2:
        raise Missing("no one-shot runs with a constant schedule beside tuned or scheduled runs")
    with np.errstate(invalid="ignore", divide="ignore"):
        gain = 100.0 * (table["base"] - table["mean"]) / table["base"].abs()
    table["gain"] = gain.where(table["base"] != table["mean"], 0.0)
    table = table.dropna(subset=["gain"])
    combination = table.groupby(["budget", "schedule"])["gain"]
    found = {key: median_interval(values.to_numpy()) for key, values in combination}
    key = pd.MultiIndex.from_frame(table[["budget", "schedule"]])
    for column, part in (("median", "mean"), ("median_low", "low"), ("median_high", "high")):
        table[column] = key.map({k: getattr(i, part) for k, i in found.items()})
    table["median_n"] = key.map({k: i.n for k, i in found.items()})
    table["quarter"] = combination.transform(lambda v: v.quantile(0.25))
    table["three_quarters"] = combination.transform(lambda v: v.quantile(0.75))
    table.attrs["note"] = lost_note(final)
    return table


def combinations(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the pairs of budget and schedule that there are, schedules within budgets."""
    there = set(frame[["budget", "schedule"]].itertuples(index=False, name=None))
    budgets, schedules = ordered("budget", frame["budget"]), ordered("schedule", frame["schedule"])
    return [(b, s) for b in budgets for s in schedules if (b, s) in there]


def draw_gains(frame: pd.DataFrame) -> Picture:
    """Draw a grey line for each optimizer and problem, and the median over them with its band."""
    places = {pair: place for place, pair in enumerate(combinations(frame))}
    picture, [[axes]] = style.canvas(width=style.PAGE, height=3.2)
    frame = frame.assign(
        place=[places[pair] for pair in zip(frame["budget"], frame["schedule"], strict=True)]
    ).sort_values("place")
    for _, line in frame.groupby(["problem", "optimizer"]):
        axes.plot(line["place"], line["gain"], color="#9A9A9A", lw=0.5, alpha=0.55, zorder=1)
    middle = frame.drop_duplicates("place")
    paint = "#D55E00"
    band = (middle["place"], middle["quarter"], middle["three_quarters"])
    axes.fill_between(*band, color=paint, alpha=0.25, lw=0, label="middle half", zorder=2)
    axes.plot(middle["place"], middle["median"], color=paint, marker="o", label="median", zorder=3)
    axes.plot([], [], color="#9A9A9A", lw=0.8, label="one optimizer on one problem")
    axes.axhline(0, color=style.INK, lw=0.6)
    axes.set_yscale("symlog", linthresh=1.0)
    ticks = (-1000, -100, -10, -1, 0, 1, 10, 100)
    low, high = frame["gain"].min(), frame["gain"].max()
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_ylim(max(low * 1.3, -2000) if low < -1 else -2, max(high * 1.3, 2))
    axes.set_xticks(
        range(len(places)),
        [f"{style.text(b, 12)}\n{style.text(s, 16)}" for b, s in places],
        rotation=40 if len(places) > 6 else 0,
        ha="right" if len(places) > 6 else "center",
    )
    axes.set_ylabel("gain over one-shot, constant (%)")
    axes.legend(loc="lower right")
    return picture


def check_tuning(frame: pd.DataFrame) -> Verdict:
    """Check that tuning gains in the median, with the constant schedule, at the largest budget."""
    budgets = tuned_budgets(frame[frame["schedule"] == CONSTANT])
    if not budgets:
        raise Missing("no tuned runs with a constant schedule")
    return _positive(frame, [(budgets[-1], CONSTANT)])


def check_schedules(frame: pd.DataFrame) -> Verdict:
    """Check that both schedules gain in the median over untuned runs."""
    wanted = [(ONE_SHOT, "cosine"), (ONE_SHOT, "trapezoidal")]
    there = combinations(frame)
    absent = [schedule for budget, schedule in wanted if (budget, schedule) not in there]
    if absent:
        raise Missing(f"no one-shot runs with schedule {' and '.join(absent)}")
    return _positive(frame, wanted)


def _positive(frame: pd.DataFrame, pairs: list[tuple[str, str]]) -> Verdict:
    rows = frame.drop_duplicates(["budget", "schedule"]).set_index(["budget", "schedule"])
    problems = frame.groupby(["budget", "schedule"])["problem"].nunique()
    if min(problems[pair] for pair in pairs) < 2:
        raise Missing("fewer than 2 problems, and the paper's medians are over eight")
    said, lows = [], []
    for pair in pairs:
        row = rows.loc[[pair]].iloc[0]
        said.append(
            f"{pair[0]}, {pair[1]}: {row['median']:.3g} % "
            f"[{row['median_low']:.3g}, {row['median_high']:.3g}], {row['median_n']:g} arms on "
            f"{problems[pair]} problems"
        )
        lows.append(float(row["median_low"]))
    if any(np.isnan(low) for low in lows):
        raise Missing("fewer than 2 optimizers and problems")
    return Verdict("; ".join(said), "interval of the median above 0", min(lows) > 0)


CLAIMS = (
    Claim(
        "tuning helps",
        "With a constant schedule, the median gain of tuning at the largest budget over one-shot "
        "runs, over optimizers and problems, is positive with its interval.",
        FIG3,
        check_tuning,
    ),
    Claim(
        "untuned schedules help",
        "For one-shot runs, the median gains of the cosine and of the trapezoidal schedule over "
        "the constant one are positive with their intervals.",
        FIG3,
        check_schedules,
    ),
)

FIGURES: dict[str, Figure] = {
    "gain_of_switching": Figure(
        "What is gained by going from an untuned optimizer to a tuned one",
        "Row: the optimizer that is left, with its defaults; column: the one that is taken, tuned. "
        f"Gains of means over seeds, {UNIT['error']} (pp) or {UNIT['loss']} (%), colours capped "
        f"at {CAP:g}; framed: the same optimizer; grey: no runs. Constant schedule.",
        data_switch,
        draw_switch,
    ),
    "gains": Figure(
        "What tuning and schedules gain over one-shot runs with a constant schedule",
        "Relative gain of the mean score over seeds (positive: better); linear between -1 and 1, "
        "logarithmic beyond. The CSV has percentile bootstrap intervals of the medians, over "
        "pairs of an optimizer and a problem.",
        data_gains,
        draw_gains,
        CLAIMS,
    ),
}
