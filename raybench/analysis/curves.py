"""Learning curves: the median over seeds and the middle half, for each problem and optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from raybench.analysis import style
from raybench.analysis.figure import Figure, Tables
from raybench.analysis.looks import AXIS, Look, legend, looks, panels
from raybench.analysis.rows import Missing, need
from raybench.analysis.scores import largest, scored

SPLITS = ("test", "valid")


def long_metrics(metrics: pd.DataFrame, tags: pd.DataFrame, split: str) -> pd.DataFrame:
    """Return the measurements of `split` with their runs' tags: the metric that `tags` names.

    Args:
        metrics: run_id, step, epoch, split, metric, value.
        tags: run_id, metric (error or loss) and what else the rows are to carry; a run with
            several label sets has several rows.
        split: train, valid or test.
    """
    need(metrics, "run_id", "step", "epoch", "split", "metric", "value")
    wanted = tags["metric"].unique().tolist()
    there = metrics[(metrics["split"] == split) & metrics["metric"].isin(wanted)]
    there = there[["run_id", "step", "epoch", "metric", "value"]]
    plain = there.assign(run_id=there["run_id"].astype(str), metric=there["metric"].astype(str))
    return plain.merge(tags, on=["run_id", "metric"])


def quartiles(long: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return quarter, median, three_quarters and the count (`runs`) of `value` in each group."""
    groups = long.groupby(list(by), observed=True)["value"]
    table = groups.quantile(np.array([0.25, 0.5, 0.75])).unstack().reset_index()
    table = table.rename(columns={0.25: "quarter", 0.5: "median", 0.75: "three_quarters"})
    table["runs"] = groups.size().to_numpy()
    return table


def data_curves(tables: Tables) -> pd.DataFrame:
    """Return the median and the middle half of the test score after each recorded epoch."""
    runs = largest(scored(tables))
    tags = runs[["run_id", "metric", "problem", "optimizer"]].drop_duplicates()
    for split in SPLITS:
        long = long_metrics(tables.metrics, tags, split)
        if not long.empty:
            break
    else:
        raise Missing("no test or validation metrics of these runs")
    table = quartiles(long, ("problem", "metric", "optimizer", "epoch"))
    table["split"] = split
    lost = int((runs["status"] == "diverged").sum())
    note = f"Budget {runs['budget'].iloc[0]!r}."
    note += f" {lost} of {len(runs)} runs diverged; their curves end before." if lost else ""
    table.attrs["note"] = note
    return table


def draw_curves(frame: pd.DataFrame) -> Picture:
    """Draw a panel a problem, a line an optimizer."""
    problems = sorted(frame["problem"].unique())
    shown = looks(sorted(frame["optimizer"].unique()))
    picture, axes = panels(len(problems), 2.6, across=3, width=9.0)
    for cell, problem in zip(axes, problems, strict=True):
        here = frame[(frame["problem"] == problem) & (frame["epoch"] > 0)]
        _draw_problem(cell, here, shown)
        metric = str(frame.loc[frame["problem"] == problem, "metric"].iloc[0])
        label = AXIS[metric].replace("test", str(frame["split"].iloc[0]))
        cell.set(title=style.text(problem, 24), xlabel="epoch", ylabel=label)
    legend(picture, shown)
    return picture


def _draw_problem(axes: Axes, here: pd.DataFrame, shown: Mapping[str, Look]) -> None:
    for name, look in shown.items():
        arm = here[here["optimizer"] == name].sort_values("epoch")
        band = (arm["epoch"], arm["quarter"], arm["three_quarters"])
        axes.fill_between(*band, color=look.colour, alpha=0.12, lw=0)
        axes.plot(arm["epoch"], arm["median"], color=look.colour, ls=look.dash, lw=1.0)
    if here.empty:
        return
    style.log_axis(axes, "x")
    middle = here["median"]
    if middle.min() > 0:
        # An optimizer on its way to divergence must not flatten all others.
        top = float(middle.quantile(0.98))
        axes.set_ylim(float(here["quarter"].min()) * 0.95, top * 1.1)
        style.log_axis(axes, "y")


FIGURES: dict[str, Figure] = {
    "learning_curves": Figure(
        "Learning curves",
        "Median over seeds, with the middle half as a band; constant schedule.",
        data_curves,
        draw_curves,
    ),
}
