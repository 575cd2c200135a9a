"""Whether the seeds suffice: are neighbours in the ranking told apart, and how many more it takes.

Pairs share seeds, so what a seed does to both (its data order, its initial weights) cancels.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from raybench.analysis import style
from raybench.analysis.figure import Figure, Tables
from raybench.analysis.looks import panels
from raybench.analysis.rows import Missing
from raybench.analysis.scores import largest, lost_note, scored
from raybench.stats import holm, paired_difference, seeds_needed, signed_rank

POWER = 0.8
ALPHA = 0.05


def data_separation(tables: Tables) -> pd.DataFrame:
    """Return one row for each problem and pair of neighbours in its ranking by mean score.

    Columns: problem, metric, better, worse, place (of the better), difference (worse - better)
    with difference_low and difference_high (BCa over paired seeds) and difference_n, `effect`
    (mean over standard deviation of the differences), p_holm (Wilcoxon's signed-rank test,
    corrected by Holm over the problem's pairs), separated (the interval is above 0), needed
    (seeds for a power of 80 % of the paired t-test at level 5 %, if the effect is as measured),
    more (needed less what there is, at least 0), verdict.
    """
    runs = largest(scored(tables))
    rows: list[dict[str, object]] = []
    for (problem, metric), here in runs.groupby(["problem", "metric"]):
        finite = here[np.isfinite(here["test"])]
        seeds = finite.pivot_table(index="seed", columns="optimizer", values="test", aggfunc="mean")
        order = seeds.mean().sort_values(kind="stable").index
        pairs = [_pair(seeds, str(a), str(b)) for a, b in pairwise(order)]
        corrected = holm([float(str(pair["p_holm"])) for pair in pairs])
        for place, (pair, p) in enumerate(zip(pairs, corrected, strict=True), 1):
            rows.append({"problem": problem, "metric": metric, "place": place, **pair, "p_holm": p})
    if not rows:
        raise Missing("no problem with scores of 2 optimizers")
    table = pd.DataFrame(rows)
    apart = int(table["separated"].sum())
    table.attrs["note"] = (
        f"Budget {runs['budget'].iloc[0]!r}. {apart} of {len(table)} pairs are told apart. "
        f"{lost_note(runs)}"
    )
    return table


def _pair(seeds: pd.DataFrame, better: str, worse: str) -> dict[str, object]:
    both = seeds[[better, worse]].dropna().to_numpy(dtype=float)
    gap = paired_difference(both[:, 1], both[:, 0])
    spread = float((both[:, 1] - both[:, 0]).std(ddof=1)) if len(both) > 1 else math.nan
    if math.isnan(spread):
        effect = math.nan
    elif spread > 1e-12 * abs(gap.mean):
        effect = gap.mean / spread
    else:
        effect = math.inf if gap.mean else 0.0
    needed = 2.0 if math.isinf(effect) else seeds_needed(effect, POWER, ALPHA)
    separated = bool(gap.bounded and gap.low > 0)
    more = max(needed - len(both), 0.0)
    return {
        "better": better,
        "worse": worse,
        "difference": gap.mean,
        "difference_low": gap.low,
        "difference_high": gap.high,
        "difference_n": gap.n,
        "interval": gap.method,
        "effect": effect,
        "p_holm": signed_rank(both[:, 1], both[:, 0]) if len(both) else 1.0,
        "separated": separated,
        "needed": needed,
        "more": more,
        "verdict": _verdict(better, worse, len(both), separated, more),
    }


def _verdict(better: str, worse: str, n: int, separated: bool, more: float) -> str:
    if separated:
        return "separated"
    said = f"these {n} seeds cannot separate {better} and {worse}"
    if math.isnan(more):
        return f"{said}; how many would cannot be told from one"
    if math.isinf(more):
        return f"{said}; nor would a million"
    return f"{said}; about {max(more, 1):.0f} more would"


def draw_separation(frame: pd.DataFrame) -> Picture:
    """Draw the paired difference of each pair of neighbours, a panel a problem."""
    problems = sorted(frame["problem"].unique())
    rows = int(frame.groupby("problem").size().max())
    across = 3 if len(problems) <= 3 else 2
    width = 3.1 * min(across, len(problems)) + 0.5
    picture, axes = panels(len(problems), 0.9 + 0.2 * rows, across, width)
    for cell, problem in zip(axes, problems, strict=True):
        here = frame[frame["problem"] == problem].sort_values("place")
        _draw_pairs(cell, here)
        unit = "test error" if here["metric"].iloc[0] == "error" else "test loss"
        cell.set(xlabel=f"paired difference of {unit}")
        cell.set_title(style.text(problem, 24))
    return picture


def _draw_pairs(axes: Axes, here: pd.DataFrame) -> None:
    for place, row in enumerate(here.to_dict("records")):
        colour = "#0072B2" if row["separated"] else "#D55E00"
        axes.hlines(place, row["difference_low"], row["difference_high"], color=colour, lw=1.6)
        shape = "o" if row["separated"] else "s"
        axes.plot(row["difference"], place, marker=shape, ms=3.6, color=colour)
        axes.text(
            1.01,
            place,
            "" if row["separated"] else _more(float(row["more"])),
            transform=axes.get_yaxis_transform(),
            fontsize=6,
            va="center",
            color=colour,
        )
    axes.axvline(0, color=style.INK, lw=0.7)
    pairs = zip(here["better"], here["worse"], strict=True)
    labels = [f"{style.text(a, 13)} < {style.text(b, 13)}" for a, b in pairs]
    axes.set_yticks(range(len(labels)), labels, fontsize=6)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    spread = here["difference_high"].abs().dropna()
    if len(spread) > 3 and spread.max() > 30 * spread.median() > 0:
        axes.set_xscale("symlog", linthresh=float(spread.median()))


def _more(count: float) -> str:
    return "?" if math.isnan(count) else "never" if math.isinf(count) else f"+{max(count, 1):.0f}"


FIGURES: dict[str, Figure] = {
    "seed_sufficiency": Figure(
        "Do the seeds tell neighbours in the ranking apart?",
        "Mean difference over shared seeds, with intervals. Blue: the interval is above 0; orange: "
        "it is not, with the number of further seeds at which the paired t-test would find a "
        f"difference of the measured size with {POWER:.0%} power at level {ALPHA:.0%}. Neighbours "
        "are chosen by the same seeds, which favours separation. Constant schedule.",
        data_separation,
        draw_separation,
    ),
}
