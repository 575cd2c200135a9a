"""Time to target and performance profiles, for any store with problems and optimizers.

As MLCommons AlgoPerf scores (Dahl et al. 2023, arXiv:2306.07179, section 4; Kasimbeg et al. 2025,
arXiv:2502.15015): on each problem, the time until the validation score first reaches a target, the
median over studies; then the share of problems that a method solves within a multiple of the
fastest method's time. Differences: time is counted in epochs (or in the seconds of a run's share
of its group), and the targets come from the runs at hand instead of a list.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from raybench.analysis import style
from raybench.analysis.curves import long_metrics
from raybench.analysis.figure import Figure, Tables
from raybench.analysis.looks import legend, looks, names, panels
from raybench.analysis.rows import Missing
from raybench.analysis.scores import CONSTANT, largest, scored
from raybench.stats import (
    MAX_RATIO,
    Floats,
    first_times,
    median_times,
    performance_profile,
    performance_ratios,
    profile_scores,
)

BASELINES = ("adamw", "adam", "nadamw", "nadam", "nesterov", "nag", "momentum", "sgd")
"""Whose best arm sets the target: AlgoPerf has AdamW, NadamW, Nesterov and heavy ball."""
TRIALS = ("search", "refine")
UNITS = {"epochs": "epochs", "seconds": "seconds"}


def data_times(tables: Tables, unit: str = "epochs") -> pd.DataFrame:
    """Return one row for each problem, optimizer and study: when the target was first reached.

    Where a search was repeated in several studies, a study's time is the least over its trials;
    else each seed of the largest budget (or of the one-shot runs) is a study. Columns: problem,
    optimizer, study, target, baseline (whose median sets it), `time` (infinite if missed),
    `median` over studies, `ratio` to the fastest median, and of the optimizer `score` with
    score_low, score_high and score_n.
    """
    frame = scored(tables)
    runs, kind = _studies(frame)
    tags = ["run_id", "metric", "problem", "optimizer", "study"]
    long = long_metrics(tables.metrics, runs[tags].drop_duplicates(), "valid")
    if long.empty:
        raise Missing("no validation metrics of these runs")
    targets = _targets(long)
    long = long.merge(targets, on="problem")
    own = long.groupby(["run_id", "study", "problem", "optimizer"], sort=False)
    time = long["epoch"] if unit == "epochs" else _seconds(long, tables.runs)
    reached = first_times(own.ngroup(), time, long["value"], long["target"], own.ngroups)
    keys = own.size().reset_index()[["problem", "optimizer", "study"]].assign(time=reached)
    arms = ["problem", "optimizer", "study"]
    table = keys.groupby(arms).agg(time=("time", "min")).reset_index()
    table = _with_scores(_missing_studies(table).merge(targets, on="problem"))
    missed = int(np.isinf(table.drop_duplicates(["problem", "optimizer"])["median"]).sum())
    count = table.drop_duplicates(["problem", "optimizer"]).shape[0]
    source = f"Budget {runs['budget'].iloc[0]!r}; e" if kind == "seed" else "E"
    table.attrs["note"] = (
        f"{source}ach {kind} is a study. {missed} of {count} arms miss their target in half "
        "of the studies or more."
    )
    return table


def _studies(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    trials = frame[frame["phase"].isin(TRIALS) & (frame["schedule"] == CONSTANT)]
    if trials["study"].nunique() > 1:
        return trials, "repeated search"
    runs = largest(frame)
    return runs.assign(study=runs["seed"]), "seed"


def _targets(long: pd.DataFrame) -> pd.DataFrame:
    # Of each problem: the lowest median over studies of the best validation score of a baseline.
    # Of an even number of studies the upper of both middle ones: more than half then reach it.
    best = long.groupby(["problem", "optimizer", "study"]).agg(target=("value", "min"))
    best = best.reset_index()
    base = best[best["optimizer"].isin(BASELINES)]
    rest = best[~best["problem"].isin(base["problem"].unique())]
    arms = pd.concat([base, rest]).groupby(["problem", "optimizer"])["target"]
    medians = arms.quantile(0.5, interpolation="higher").reset_index()
    lowest = medians.loc[medians.groupby("problem")["target"].idxmin()]
    return lowest.rename(columns={"optimizer": "baseline"})[["problem", "baseline", "target"]]


def _seconds(long: pd.DataFrame, runs: pd.DataFrame) -> pd.Series:
    if not {"wall_s", "steps"} <= set(runs.columns):
        raise Missing("no column wall_s or steps")
    once = runs.assign(run_id=runs["run_id"].astype(str)).drop_duplicates("run_id")
    per_step = (once["wall_s"] / once["steps"].where(once["steps"] > 0)).to_numpy(dtype=float)
    pace = pd.Series(per_step, index=once["run_id"])
    seconds = long["step"] * long["run_id"].map(pace)
    if seconds.isna().all():
        raise Missing("no run has a duration")
    return seconds.fillna(np.inf)


def _missing_studies(table: pd.DataFrame) -> pd.DataFrame:
    # A study whose runs recorded nothing (diverged at once, failed) has missed the target.
    whole = (
        table[["problem", "study"]]
        .drop_duplicates()
        .merge(table[["problem", "optimizer"]].drop_duplicates(), on="problem")
    )
    found = whole.merge(table, on=["problem", "optimizer", "study"], how="left")
    return found.assign(time=found["time"].fillna(np.inf))


def _with_scores(table: pd.DataFrame) -> pd.DataFrame:
    methods, problems = (sorted(table[c].unique()) for c in ("optimizer", "problem"))
    times = _cube(table, methods, problems)
    medians = median_times(times)
    index = pd.MultiIndex.from_product([methods, problems], names=["optimizer", "problem"])
    cells = pd.DataFrame({"median": medians.ravel()}, index=index)
    cells["ratio"] = performance_ratios(medians).ravel()
    scores = profile_scores(times)
    arms = pd.DataFrame(
        {
            "optimizer": methods,
            "score": [s.mean for s in scores],
            "score_low": [s.low for s in scores],
            "score_high": [s.high for s in scores],
            "score_n": [s.n for s in scores],
            "interval": [s.method for s in scores],
        }
    )
    return table.merge(cells.reset_index(), on=["optimizer", "problem"]).merge(arms, on="optimizer")


def _cube(table: pd.DataFrame, methods: list[str], problems: list[str]) -> Floats:
    # [methods, problems, studies]; an optimizer without runs on a problem has missed its target.
    place = table.groupby("problem")["study"].rank(method="dense").astype(int) - 1
    cube = np.full((len(methods), len(problems), int(place.max()) + 1), np.nan)
    rows = table["optimizer"].map({name: i for i, name in enumerate(methods)})
    columns = table["problem"].map({name: i for i, name in enumerate(problems)})
    cube[rows, columns, place] = table["time"]
    return cube


def draw_profile(frame: pd.DataFrame) -> Picture:
    """Draw the profiles, and the scores with their intervals."""
    arms = frame.drop_duplicates("optimizer").sort_values("score", ascending=False, kind="stable")
    order = [str(name) for name in arms["optimizer"]]
    shown = looks(order)
    picture, [[left, right]] = style.canvas(1, 2, 9.0, max(1.0 + 0.18 * len(order), 2.8))
    cells = frame.drop_duplicates(["problem", "optimizer"])
    ratios = cells.pivot(index="optimizer", columns="problem", values="ratio").fillna(np.inf)
    at = np.unique([1.0, MAX_RATIO, *ratios.to_numpy()[ratios.to_numpy() <= MAX_RATIO]])
    heights = performance_profile(ratios.loc[order].to_numpy(dtype=float), at)
    for name, height in zip(order, heights, strict=True):
        look = shown[name]
        left.step(at, height, where="post", color=look.colour, ls=look.dash, lw=1.2)
    left.set(xlim=(1, MAX_RATIO), ylim=(-0.03, 1.03), xlabel="times the fastest optimizer's time")
    left.set_ylabel("share of problems solved")
    for place, row in enumerate(arms.to_dict("records")):
        colour = shown[str(row["optimizer"])].colour
        right.hlines(place, row["score_low"], row["score_high"], color=colour, lw=1.8)
        right.plot(row["score"], place, marker="o", ms=4.2, mec="white", mew=0.5, color=colour)
    names(right, order)
    right.set(xlim=(-0.02, 1.02), xlabel="score: mean height of the profile")
    legend(picture, shown)
    return picture


def draw_times(frame: pd.DataFrame, unit: str = "epochs") -> Picture:
    """Draw the time to target on each problem, optimizers in rows; crosses missed it."""
    problems = sorted(frame["problem"].unique())
    order = list(
        frame.drop_duplicates("optimizer").sort_values("score", ascending=False)["optimizer"]
    )
    paint = style.colours(order)
    picture, axes = panels(len(problems), max(1.0 + 0.18 * len(order), 2.2), width=9.0)
    for cell, problem in zip(axes, problems, strict=True):
        here = frame[frame["problem"] == problem]
        for place, name in enumerate(order):
            _draw_arm(cell, place, here[here["optimizer"] == name], paint[name])
        spec = cell.get_subplotspec()
        names(cell, order)
        if spec is not None and not spec.is_first_col():
            cell.tick_params(labelleft=False)
        finite = here["time"][np.isfinite(here["time"]) & (here["time"] > 0)]
        if len(finite) and finite.max() / finite.min() > 10:
            style.log_axis(cell, "x")
        first = here.iloc[0]
        cell.set_title(style.text(problem, 24))
        cell.set_xlabel(f"{UNITS[unit]} to {first['target']:.4g}\n(by {first['baseline']})")
    return picture


def _draw_arm(axes: Axes, place: int, arm: pd.DataFrame, colour: str) -> None:
    finite = arm["time"][np.isfinite(arm["time"])]
    axes.plot(finite, [place] * len(finite), ls="", marker="o", ms=2.4, color=colour, alpha=0.35)
    missed = len(arm) - len(finite)
    if missed:
        axes.text(
            1.02,
            place,
            f"× {missed}",
            ha="left",
            va="center",
            fontsize=6,
            color=style.FAINT,
            transform=axes.get_yaxis_transform(),
        )
    if len(arm) and np.isfinite(arm["median"].iloc[0]):
        axes.plot(arm["median"].iloc[0], place, marker="|", ms=8, mew=1.6, color=colour)


PROFILE = (
    "Left: share of problems on which an optimizer reaches the target within so many times the "
    "time of the fastest one. Right: mean height of that line up to "
    f"{MAX_RATIO:g} (AlgoPerf's score), with percentile bootstrap intervals over studies, targets "
    "held fixed. Time: median over studies of the first measurement at or below the target, the "
    "lowest median (over studies) of a baseline's best validation score. "
)
TIMES = "Points: studies; bar: their median; × n: studies that miss the target. "

FIGURES: dict[str, Figure] = {
    "performance_profile": Figure(
        "Performance profile over problems: epochs to a validation target",
        PROFILE,
        data_times,
        draw_profile,
    ),
    "time_to_target": Figure("Epochs to the validation target", TIMES, data_times, draw_times),
    "performance_profile_seconds": Figure(
        "Performance profile over problems: seconds to a validation target",
        PROFILE + "Seconds are a run's share of the time of its group, so that they compare only "
        "runs of one machine and of like group sizes.",
        partial(data_times, unit="seconds"),
        draw_profile,
    ),
}
