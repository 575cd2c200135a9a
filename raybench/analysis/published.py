"""Scores of this benchmark beside the published ones, cell by cell."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture

from raybench.analysis import style
from raybench.analysis.figure import Figure, Tables
from raybench.analysis.looks import AXIS, legend, looks, panels
from raybench.analysis.quadratic_deep import PROBLEM
from raybench.analysis.rows import Missing
from raybench.analysis.scores import CELL, finals, lost_note, means, score_runs

KEYS = [*CELL, "metric"]


def data_published(tables: Tables) -> pd.DataFrame:
    """Return one row for each cell that both have: own and published mean, std and n.

    Columns: problem, optimizer, budget, schedule, metric, own_mean, own_std, own_n,
    published_mean, published_std, published_n, difference (own - published) and `deviations`:
    the difference over the pooled standard deviation of a single run (nan where one is not known).
    """
    if tables.reference.empty:
        raise Missing("no published results: import them first (raybench import deepobs FOLDER)")
    # Scored together, a published run that diverged and has no curve here counts for what
    # untrained networks of the same problem score here.
    both = pd.concat([tables.runs, tables.reference], ignore_index=True)
    frame = finals(score_runs(both, tables.metrics))
    published = frame["run_id"].isin(set(tables.reference["run_id"].astype(str)))
    own_runs, other_runs = frame[~published], frame[published]
    own, other = _cells(own_runs, "own"), _cells(other_runs, "published")
    table = own.merge(other, on=KEYS)
    if table.empty:
        raise Missing("no problem, optimizer, budget and schedule that both have")
    table["difference"] = table["own_mean"] - table["published_mean"]
    pooled = np.sqrt((table["own_std"] ** 2 + table["published_std"] ** 2) / 2.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        table["deviations"] = (table["difference"] / pooled).where(pooled > 0)
    table.attrs["note"] = (
        f"Own: {lost_note(own_runs)} Published: {lost_note(other_runs)} "
        f"{len(table)} of {len(own)} cells are in both."
    )
    if (table["problem"] == PROBLEM).any():
        table.attrs["note"] += (
            f" The matrix of the published {PROBLEM} changed with each run of a process, so that "
            "its tuned cells are of other problems."
        )
    return table


def _cells(runs: pd.DataFrame, whose: str) -> pd.DataFrame:
    table = means(runs).dropna(subset=["mean"])[[*KEYS, "mean", "std", "n"]]
    return table.rename(columns={name: f"{whose}_{name}" for name in ("mean", "std", "n")})


def draw_published(frame: pd.DataFrame) -> Picture:
    """Draw own means against published ones, a panel a problem, with the diagonal."""
    problems = sorted(frame["problem"].unique())
    shown = looks(sorted(frame["optimizer"].unique()))
    picture, axes = panels(len(problems), 2.9, across=3, width=9.0)
    for cell, problem in zip(axes, problems, strict=True):
        here = frame[frame["problem"] == problem]
        here = here[np.isfinite(here["own_mean"]) & np.isfinite(here["published_mean"])]
        for name, look in shown.items():
            arm = here[here["optimizer"] == name]
            cell.errorbar(
                arm["published_mean"],
                arm["own_mean"],
                xerr=arm["published_std"].fillna(0.0),
                yerr=arm["own_std"].fillna(0.0),
                ls="",
                marker=look.marker,
                ms=3.6,
                color=look.colour,
                elinewidth=0.7,
                alpha=0.85,
            )
        values = here[["own_mean", "published_mean"]].to_numpy(dtype=float)
        if values.size and values.min() > 0 and values.max() / values.min() > 10:
            style.log_axis(cell, "x")
            style.log_axis(cell, "y")
        if values.size:
            ends = [values.min(), values.max()]
            cell.plot(ends, ends, color=style.FAINT, lw=0.7, zorder=0)
        metric = AXIS[str(frame.loc[frame["problem"] == problem, "metric"].iloc[0])]
        cell.set(xlabel=f"published {metric}", ylabel=f"own {metric}")
        cell.set_title(style.text(problem, 24))
    legend(picture, shown, points=True)
    return picture


FIGURES: dict[str, Figure] = {
    "published": Figure(
        "Scores beside the published ones",
        "A point a cell (optimizer, budget and schedule): mean over seeds, bars one standard "
        "deviation; on the grey line both agree.",
        data_published,
        draw_published,
    ),
}
