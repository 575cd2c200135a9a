"""What random search finds with how many trials, and how it depends on the learning rate."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from raybench.analysis import style
from raybench.analysis.figure import Figure, Tables
from raybench.analysis.looks import legend, looks, panels
from raybench.analysis.rows import ENDED, Missing, need
from raybench.analysis.scores import CONSTANT, lost_note, scored
from raybench.stats import expected_best

POINTS = 40
"""At most so many numbers of trials in a curve, spread evenly on a logarithmic scale."""
EDGE = 1000.0
"""What is more times the best score than this is drawn here."""


def searched(tables: Tables) -> pd.DataFrame:
    """Return the trials of the search (not of its refinement), constant schedule, with `lr`."""
    frame = scored(tables)
    if (frame["phase"] == "rung").any():
        raise Missing("trials that are all trained to the end; halving stopped some")
    trials = frame[(frame["phase"] == "search")]
    constant = trials[trials["schedule"] == CONSTANT]
    trials = trials if constant.empty else constant
    if trials["valid"].isna().all():
        raise Missing("no trials of a search with a validation score")
    if "config.optimizer.lr" in tables.runs.columns:
        runs = tables.runs.drop_duplicates("run_id")
        rates = pd.to_numeric(runs["config.optimizer.lr"], errors="coerce").astype(float)
        by_run = pd.Series(rates.to_numpy(), index=runs["run_id"].astype(str))
        trials = trials.assign(lr=trials["run_id"].map(by_run))
    return trials


def data_curves(tables: Tables) -> pd.DataFrame:
    """Return the expected best validation score after k trials, and the pick's test score.

    One row for each problem, optimizer and number of `trials` k: valid and test with `_low` and
    `_high`, `valid_n` (trials there are). Dodge et al. 2019 (arXiv:1909.03004).
    """
    trials = searched(tables)
    rows: list[dict[str, object]] = []
    for (problem, optimizer, metric), arm in trials.groupby(["problem", "optimizer", "metric"]):
        scores = arm.dropna(subset=["valid"])
        if len(scores) < 2:
            continue
        budgets = _budgets(len(scores))
        found = {"valid": expected_best(scores["valid"].to_numpy(), budgets)}
        if scores["test"].notna().all():
            found["test"] = expected_best(
                scores["valid"].to_numpy(), budgets, scores["test"].to_numpy()
            )
        for place, k in enumerate(budgets):
            row: dict[str, object] = {
                "problem": problem,
                "optimizer": optimizer,
                "metric": metric,
                "trials": k,
            }
            for split, intervals in found.items():
                interval = intervals[place]
                row[split] = interval.mean
                row[f"{split}_low"], row[f"{split}_high"] = interval.low, interval.high
            rows.append({**row, "valid_n": len(scores), "interval": found["valid"][place].method})
    if not rows:
        raise Missing("no arm with 2 trials or more")
    table = pd.DataFrame(rows)
    table.attrs["over"] = "trials"
    table.attrs["note"] = lost_note(trials)
    return table


def _budgets(trials: int) -> list[int]:
    return sorted({round(k) for k in np.geomspace(1, trials, min(trials, POINTS))})


def draw_curves(frame: pd.DataFrame) -> Picture:
    """Draw expected best scores against the number of trials: test where it is known."""
    problems = sorted(frame["problem"].unique())
    shown = looks(sorted(frame["optimizer"].unique()))
    picture, axes = panels(len(problems), 2.6, across=3, width=9.0)
    for cell, problem in zip(axes, problems, strict=True):
        here = frame[frame["problem"] == problem]
        tested = "test" in here.columns and here["test"].notna().any()
        value = "test" if tested else "valid"
        for name, look in shown.items():
            arm = here[here["optimizer"] == name].sort_values("trials")
            if arm.empty:
                continue
            band = (arm["trials"], arm[f"{value}_low"], arm[f"{value}_high"])
            cell.fill_between(*band, color=look.colour, alpha=0.07, lw=0)
            cell.plot(arm["trials"], arm[value], color=look.colour, ls=look.dash, lw=1.1)
        style.log_axis(cell, "x")
        _near_best(cell, here[value])
        split = "test" if tested else "validation"
        cell.set_title(style.text(problem, 24))
        cell.set(xlabel="random trials", ylabel=f"expected {split} {here['metric'].iloc[0]}")
    legend(picture, shown)
    return picture


def _near_best(axes: Axes, values: pd.Series) -> None:
    # One trial often gives next to nothing: show from the best to what half of all points reach.
    finite = values[np.isfinite(values)]
    if finite.empty:
        return
    low, high = float(finite.min()), float(finite.quantile(0.9))
    if low > 0 and high / low > 3:
        axes.set_ylim(low * 0.9, high * 1.1)
        style.log_axis(axes, "y")
    elif high > low:
        axes.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def data_sensitivity(tables: Tables) -> pd.DataFrame:
    """Return one row a trial: learning rate, validation score, and that over the problem's best.

    `times_best` is the score over the lowest score of any trial on the problem; `chosen` marks the
    lowest of each optimizer; `outcome` is the run's status.
    """
    trials = searched(tables)
    need(trials, "lr")
    trials = trials[trials["lr"] > 0]
    if trials.empty:
        raise Missing("no learning rates")
    done = trials["valid"].where(trials["status"].isin(ENDED))
    best = done.groupby(trials["problem"]).transform("min")
    lowest = done.groupby([trials["problem"], trials["optimizer"]]).transform("min")
    table = trials[["problem", "optimizer", "metric", "study", "trial", "lr"]].assign(
        outcome=trials["status"],
        valid=done,
        times_best=(done / best).where(best > 0),
        chosen=(done == lowest) & done.notna(),
    )
    counts = trials["status"].value_counts()
    lost = ", ".join(f"{counts[s]} {s}" for s in ("diverged", "failed", "skipped") if s in counts)
    table.attrs["note"] = f"{len(trials)} trials" + (f", {lost}." if lost else ".")
    return table.reset_index(drop=True)


def draw_sensitivity(frame: pd.DataFrame) -> Picture:
    """Draw a panel an optimizer, problems in colours."""
    names = sorted(frame["optimizer"].unique())
    shown = looks(sorted(frame["problem"].unique()))
    picture, axes = panels(len(names), 1.5 if len(names) > 5 else 2.6, across=5, width=9.0)
    low, high = frame["lr"].min(), frame["lr"].max()
    top = min(frame["times_best"].replace(np.inf, np.nan).max(), EDGE)
    for cell, name in zip(axes, names, strict=True):
        arm = frame[frame["optimizer"] == name]
        for level, (problem, look) in enumerate(shown.items()):
            _draw_trials(cell, arm[arm["problem"] == problem], look.colour, look.marker, level)
        cell.set_xlim(low / 1.5, high * 1.5)
        if top > 1:
            cell.set_ylim(0.9, top * 2.5)
        style.log_axis(cell, "x")
        style.log_axis(cell, "y")
        cell.set_title(style.text(name, 20), fontsize=7.5)
        spec = cell.get_subplotspec()
        if spec is not None and not spec.is_first_col():
            cell.tick_params(labelleft=False, labelright=False)
    picture.supxlabel("learning rate", fontsize=8)
    picture.supylabel("validation score, times the problem's best", fontsize=8)
    legend(picture, shown, points=True)
    return picture


def _draw_trials(axes: Axes, rows: pd.DataFrame, colour: str, marker: str, level: int) -> None:
    heights = rows["times_best"].clip(upper=EDGE)
    axes.plot(rows["lr"], heights, ls="", marker=marker, ms=2.2, color=colour, alpha=0.6, mew=0)
    best = rows[rows["chosen"]]
    axes.plot(
        best["lr"],
        best["times_best"],
        ls="",
        marker="*",
        ms=7,
        color=colour,
        mec=style.INK,
        mew=0.5,
    )
    lost = rows.loc[rows["outcome"] == "diverged", "lr"]
    axes.plot(
        lost,
        np.full(len(lost), 0.97 - 0.035 * level),
        ls="",
        marker="x",
        ms=2.8,
        mew=0.7,
        color=colour,
        transform=axes.get_xaxis_transform(),
    )


FIGURES: dict[str, Figure] = {
    "tuning_curves": Figure(
        "Expected score of the best of k random trials",
        "Chosen by validation score; drawn is the expected test score of the choice (validation "
        "score where no trial was tested), in closed form over the empirical distribution of "
        "trials (Dodge et al. 2019, arXiv:1909.03004). Constant schedule.",
        data_curves,
        draw_curves,
    ),
    "sensitivity": Figure(
        "Validation score of every trial against its learning rate",
        "Other hyperparameters vary too. Star: the best trial; crosses at the top: diverged; "
        f"scores above {EDGE:g} times the best are drawn there.",
        data_sensitivity,
        draw_sensitivity,
    ),
}
