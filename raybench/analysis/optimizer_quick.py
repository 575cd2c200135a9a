"""Figures of the suite `optimizer-quick`: optimizers tuned by random search, then run again.

Schmidt et al. 2021, "Descending through a crowded valley" (arXiv:2007.01547). The claims are in
`contest`, what the search found in `tuning`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from raybench.analysis import style
from raybench.analysis.contest import CLAIMS
from raybench.analysis.curves import quartiles
from raybench.analysis.figure import Figure, Tables
from raybench.analysis.looks import AXIS
from raybench.analysis.ranking import ranks
from raybench.analysis.rows import Missing, need, observed, with_intervals
from raybench.analysis.tuning import (
    WITHIN,
    arm_keys,
    data_search,
    data_table,
    draw_search,
    draw_table,
    phase,
)


def data_ranking(tables: Tables) -> pd.DataFrame:
    """Return one row a confirmation run, with means of each arm and ranks of each optimizer."""
    runs = phase(tables.runs, "confirm")
    values = {"error": "summary.test.error", "loss": "summary.test.loss"}
    frame = observed(runs, arm_keys(runs), values)
    classes = frame.groupby("problem")["error"].transform(lambda e: e.notna().any())
    frame["metric"] = np.where(classes.astype(bool), "error", "loss")
    frame["score"] = frame["error"].where(classes.astype(bool), frame["loss"])
    if frame["score"].isna().all():
        raise Missing("no test error or test loss of finished runs")
    frame = with_intervals(frame, ("problem", "optimizer"), ("score",))
    return frame.merge(ranks(frame), on="optimizer", how="left")


def draw_ranking(frame: pd.DataFrame) -> Picture:
    """Draw mean ranks, and final scores on each problem, optimizers in rows."""
    ranks = frame.drop_duplicates("optimizer").sort_values("rank_mean", kind="stable")
    order = [str(name) for name in ranks["optimizer"]]
    paint = style.colours(order)
    problems = sorted(frame["problem"].unique())
    picture, [row] = style.canvas(1, 1 + len(problems), style.PAGE, 0.9 + 0.24 * len(order))
    for place, name in enumerate(order):
        _dot(row[0], place, ranks[ranks["optimizer"] == name], "rank", paint[name])
    row[0].set(xlabel="mean rank (1 is best)", title="all problems")
    row[0].set_yticks(range(len(order)), [style.text(name, 16) for name in order])
    row[0].set_ylim(len(order) - 0.4, -0.6)
    for axes, problem in zip(row[1:], problems, strict=True):
        axes.sharey(row[0])
        axes.tick_params(labelleft=False, left=False)
        _draw_problem(axes, frame[frame["problem"] == problem], paint)
        axes.set_title(style.text(problem, 20))
    return picture


def _draw_problem(axes: Axes, frame: pd.DataFrame, paint: dict[str, str]) -> None:
    for place, (name, colour) in enumerate(paint.items()):
        arm = frame[frame["optimizer"] == name]
        places = np.full(len(arm), place)
        axes.plot(arm["score"], places, ls="", marker="o", ms=2.4, mew=0, color=colour, alpha=0.35)
        _dot(axes, place, arm.head(1), "score", colour)
        lost = int((arm["status"] == "diverged").sum())
        if lost:
            axes.text(
                1.0,
                place,
                f"{lost} diverged",
                ha="right",
                va="bottom",
                fontsize=6,
                color=style.FAINT,
                transform=axes.get_yaxis_transform(),
            )
    axes.set_xlabel(AXIS[str(frame["metric"].iloc[0])])
    score = frame["score"].dropna()
    if len(score) and score.min() > 0 and score.max() / score.min() > 10:
        style.log_axis(axes, "x")


def _dot(axes: Axes, place: int, row: pd.DataFrame, value: str, colour: str) -> None:
    axes.hlines([place] * len(row), row[f"{value}_low"], row[f"{value}_high"], color=colour, lw=1.6)
    where = [place] * len(row)
    axes.plot(row[f"{value}_mean"], where, marker="o", ms=4.2, mec="white", mew=0.5, color=colour)


def data_curves(tables: Tables) -> pd.DataFrame:
    """Return the median and the middle half of the test score at each recorded step."""
    runs = phase(tables.runs, "confirm")
    keys = arm_keys(runs)
    need(tables.metrics, "run_id", "step", "split", "metric", "value")
    tags = pd.DataFrame({"run_id": runs["run_id"], **{k: runs[c] for k, c in keys.items()}})
    test = tables.metrics[tables.metrics["split"] == "test"]
    long = test[test["metric"].isin(list(AXIS))].merge(tags, on="run_id")
    if long.empty:
        raise Missing("no test metrics of the confirmation runs")
    classes = set(long.loc[long["metric"] == "error", "problem"])
    wanted = np.where(long["problem"].isin(list(classes)), "error", "loss")
    long = long[long["metric"].astype(str) == wanted]
    long = long.assign(metric=long["metric"].astype(str))
    table = quartiles(long, ("problem", "metric", "optimizer", "step"))
    lost = int((runs["status"] == "diverged").sum())
    table.attrs["note"] = f"{lost} of {len(runs)} runs diverged; they end before." if lost else ""
    return table


def draw_curves(frame: pd.DataFrame) -> Picture:
    """Draw learning curves: a panel a problem, a line an optimizer."""
    problems = sorted(frame["problem"].unique())
    picture, [row] = style.canvas(1, len(problems), style.PAGE, 2.5)
    paint = style.colours(sorted(str(name) for name in frame["optimizer"].unique()))
    for axes, problem in zip(row, problems, strict=True):
        here = frame[(frame["problem"] == problem) & (frame["step"] > 0)]
        for name, colour in paint.items():
            arm = here[here["optimizer"] == name].sort_values("step")
            band = (arm["step"], arm["quarter"], arm["three_quarters"])
            axes.fill_between(*band, color=colour, alpha=0.15, lw=0)
            axes.plot(arm["step"], arm["median"], color=colour)
        style.log_axis(axes, "x")
        if (here["median"] > 0).all():
            style.log_axis(axes, "y")
        metric = str(frame.loc[frame["problem"] == problem, "metric"].iloc[0])
        axes.set(title=style.text(problem, 20), xlabel="step", ylabel=AXIS[metric])
    handles = [Line2D([], [], color=c, label=style.text(name, 16)) for name, c in paint.items()]
    picture.legend(handles=handles, loc="outside right center")
    return picture


FIGURES: dict[str, Figure] = {
    "ranking": Figure(
        "Optimizers by mean rank, and their final scores on each problem",
        "Tuned on validation loss, run again on fresh seeds. Left: rank inside each problem and "
        "seed, averaged, with percentile bootstrap intervals over seeds; a diverged run ranks "
        "last. Others: mean over the seeds that finished, with intervals; pale: single runs.",
        data_ranking,
        draw_ranking,
        CLAIMS,
    ),
    "learning_curves": Figure(
        "Learning curves of the tuned optimizers",
        "Confirmation runs: median over seeds, with the middle half as a band.",
        data_curves,
        draw_curves,
    ),
    "sensitivity": Figure(
        "Validation loss of every trial of the search against its learning rate",
        "Other hyperparameters vary too. Star: the chosen trial; crosses at the top: diverged.",
        data_search,
        draw_search,
    ),
    "tuning": Figure(
        "What the search found",
        f"Best and median validation loss; near best: share of the runs within {WITHIN - 1:.0%} of "
        "the best; chosen: what the search varied, in the chosen trial.",
        data_table,
        draw_table,
    ),
}
