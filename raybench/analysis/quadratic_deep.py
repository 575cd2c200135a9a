"""Whether the published quadratic is reproduced to the digit: P1 of Schmidt et al. 2021.

The problem is deterministic before the first step, and almost so after the last: what differs
between runs is the (fixed) order of batches. Published numbers are those of the result files of
arXiv:2007.01547; the spreads over batch orders come from an independent simulation of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import MaxNLocator

from raybench.analysis import style
from raybench.analysis.figure import Claim, Figure, Tables, Verdict
from raybench.analysis.looks import names
from raybench.analysis.rows import Missing
from raybench.analysis.scores import CONSTANT, ONE_SHOT, scored

PROBLEM = "quadratic_deep"
START = {"valid": 353.81277, "test": 353.44677}
"""Losses before the first step; published: 353.8127659388951 and 353.44676426478793."""
TOLERANCE = 1e-6
"""Relative; the published numbers are sums in float32."""
REACH = 3.0
"""Standard deviations."""
SOURCE = "result files of Schmidt et al. 2021 (arXiv:2007.01547), one-shot, constant schedule"


@dataclass(frozen=True)
class Published:
    """A published final test loss.

    Attributes:
        loss: of the published run.
        mean: over fixed batch orders, by simulation.
        std: over fixed batch orders.
    """

    loss: float
    mean: float
    std: float


PUBLISHED = {
    "sgd": Published(87.29281507219586, 87.37, 0.10),
    "momentum": Published(87.36469, 87.51, 0.14),
    "adam": Published(106.63946642194476, 106.71, 0.04),
}


def data_quadratic(tables: Tables) -> pd.DataFrame:
    """Return one row a one-shot run with a constant schedule: losses before and after.

    Columns: optimizer, seed, outcome, valid_start, test_start (nan where not recorded), test, and
    published, spread_mean, spread_std of the optimizers that have them.
    """
    runs = scored(tables)
    runs = runs[
        (runs["problem"] == PROBLEM) & (runs["budget"] == ONE_SHOT) & (runs["schedule"] == CONSTANT)
    ]
    if runs.empty:
        raise Missing(f"no one-shot runs of {PROBLEM} with a constant schedule")
    table = runs[["run_id", "optimizer", "seed", "status", "test"]].rename(
        columns={"status": "outcome"}
    )
    for split in START:
        table[f"{split}_start"] = table["run_id"].map(_start(tables.metrics, split))
    for name, part in (("published", "loss"), ("spread_mean", "mean"), ("spread_std", "std")):
        table[name] = table["optimizer"].map({o: getattr(p, part) for o, p in PUBLISHED.items()})
    lost = int((table["outcome"] == "diverged").sum())
    table.attrs["note"] = f"{len(table)} runs" + (f", {lost} diverged." if lost else ".")
    return table.reset_index(drop=True)


def _start(metrics: pd.DataFrame, split: str) -> pd.Series:
    if "step" not in metrics.columns:
        return pd.Series(dtype=float)
    first = metrics[
        (metrics["step"] == 0) & (metrics["split"] == split) & (metrics["metric"] == "loss")
    ].drop_duplicates("run_id")
    return pd.Series(first["value"].to_numpy(dtype=float), index=first["run_id"].astype(str))


def draw_quadratic(frame: pd.DataFrame) -> Picture:
    """Draw final losses of all optimizers, and one panel for each that was published."""
    finite = frame[np.isfinite(frame["test"])]
    order = list(finite.groupby("optimizer")["test"].median().sort_values().index)
    known = [name for name in PUBLISHED if name in order]
    picture, [row] = style.canvas(1, 1 + len(known), 9.0, 0.9 + 0.17 * max(len(order), 8))
    paint = style.colours(order)
    for place, name in enumerate(order):
        arm = finite[finite["optimizer"] == name]
        row[0].plot(
            arm["test"], [place] * len(arm), ls="", marker="o", ms=3, color=paint[name], alpha=0.5
        )
    names(row[0], order)
    row[0].set(xlabel="final test loss", title="all")
    if len(finite) and finite["test"].min() > 0 and finite["test"].max() > 400:
        style.log_axis(row[0], "x")
    for axes, name in zip(row[1:], known, strict=True):
        _draw_known(axes, name, finite[finite["optimizer"] == name], paint[name])
    return picture


def _draw_known(axes: Axes, name: str, arm: pd.DataFrame, colour: str) -> None:
    told = PUBLISHED[name]
    low, high = told.mean - REACH * told.std, told.mean + REACH * told.std
    axes.axvspan(low, high, color="#DDDDDD", lw=0, label="batch orders")
    axes.axvline(told.loss, color=style.INK, lw=1.0, ls="--", label="published")
    seeds = arm.sort_values("seed")["test"]
    axes.plot(seeds, range(len(seeds)), ls="", marker="o", ms=3.2, color=colour, label="own seeds")
    axes.axvline(seeds.mean(), color=colour, lw=1.0)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.set(xlabel="final test loss", title=style.text(name, 20), ylim=(len(seeds) * 1.55, -1))
    axes.legend(loc="lower center", fontsize=6, frameon=True, framealpha=1.0, edgecolor="none")


def check_start(frame: pd.DataFrame) -> Verdict:
    """Check the losses before the first step, of every run."""
    said, worst = [], 0.0
    for split, expected in START.items():
        values = frame[f"{split}_start"].dropna()
        if values.empty:
            raise Missing(f"no {split} loss at step 0")
        off = (values - expected).abs() / expected
        said.append(f"{split} {values.to_numpy()[off.to_numpy().argmax()]:.9g}")
        worst = max(worst, float(off.max()))
    threshold = f"valid 353.81277 and test 353.44677 within {TOLERANCE:g} (relative)"
    return Verdict(f"{', '.join(said)} (off by {worst:.1e})", threshold, worst <= TOLERANCE)


def check_final(optimizer: str) -> Callable[[pd.DataFrame], Verdict]:
    """Return the check of an optimizer's final test loss."""
    known = PUBLISHED[optimizer]

    def check(frame: pd.DataFrame) -> Verdict:
        losses = frame.loc[frame["optimizer"] == optimizer, "test"].dropna()
        if len(losses) < 2:
            raise Missing(f"fewer than 2 seeds of {optimizer}")
        mean = float(losses.mean())
        std = float(losses.std(ddof=1)) if math.isfinite(mean) else math.nan
        near = abs(known.loss - mean) <= REACH * std
        within = abs(mean - known.mean) <= REACH * known.std
        threshold = (
            f"{known.loss:.2f} within {REACH:g} standard deviations of the mean, and the mean "
            f"within {REACH:g} of {known.mean:.2f} ± {known.std:.2f}"
        )
        return Verdict(
            f"{mean:.3f} ± {std:.3f} over {len(losses)} seeds", threshold, near and within
        )

    return check


CLAIMS = (
    Claim(
        "P1 starts as published",
        f"Every run of {PROBLEM} has the published validation and test loss before its first step.",
        SOURCE,
        check_start,
    ),
    *(
        Claim(
            f"P1 {optimizer} ends as published",
            f"The published final test loss of {optimizer} lies within {REACH:g} standard "
            f"deviations (over own seeds, each with a fixed batch order) of the own mean, and the "
            f"own mean within {REACH:g} standard deviations of what fixed batch orders give.",
            SOURCE,
            check_final(optimizer),
        )
        for optimizer in PUBLISHED
    ),
)

FIGURES: dict[str, Figure] = {
    "quadratic_deep": Figure(
        "The published quadratic: final test losses beside the published ones",
        "One-shot, constant schedule. Points: own seeds; coloured line: their mean; dashed: the "
        f"published run; grey: {REACH:g} standard deviations around what random fixed batch "
        "orders give.",
        data_quadratic,
        draw_quadratic,
        CLAIMS,
    ),
}
