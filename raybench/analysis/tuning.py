"""What a random search over hyperparameters found: sensitivity and the table of winners."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from raybench.analysis import style
from raybench.analysis.figure import Tables
from raybench.analysis.rows import Missing, first_present, need, observed

WITHIN = 1.1
"""A trial counts as good up to this many times the best validation loss."""
SELECT = ("summary.valid.loss", "summary.valid.error")


def phase(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the runs of the search or of the confirmation."""
    need(runs, "label.phase")
    found = runs[runs["label.phase"] == name]
    if found.empty:
        raise Missing(f"no runs with label.phase {name!r}")
    return found


def arm_keys(runs: pd.DataFrame) -> dict[str, str]:
    """Return the columns that tell problems and optimizers apart."""
    return {
        "problem": first_present(runs, ("label.problem", "config.data.name")),
        "optimizer": first_present(runs, ("label.optimizer", "config.optimizer.name")),
    }


def data_search(tables: Tables) -> pd.DataFrame:
    """Return one row a run of the search: learning rate, validation loss, whether it was chosen.

    The chosen trial has the lowest mean over its seeds; a trial that lost a seed is not chosen.
    """
    runs = _numbered(phase(tables.runs, "search"))
    need(runs, "config.optimizer.lr")
    keys = {**arm_keys(runs), "trial": "label.trial", "lr": "config.optimizer.lr"}
    frame = observed(runs, keys, {"loss": first_present(runs, SELECT)})
    frame["lr"] = pd.to_numeric(frame["lr"], errors="coerce").astype(float)
    scores = frame.assign(loss=frame["loss"].fillna(np.inf))
    mean = scores.groupby(["problem", "optimizer", "trial"])["loss"].transform("mean")
    best = mean.groupby([frame["problem"], frame["optimizer"]]).transform("min")
    frame["chosen"] = np.isfinite(mean) & (mean == best)
    return frame


def _numbered(runs: pd.DataFrame) -> pd.DataFrame:
    # Where the store does not number trials, each run is one.
    if "label.trial" in runs.columns:
        return runs
    return runs.assign(**{"label.trial": range(len(runs))})


def draw_search(frame: pd.DataFrame) -> Picture:
    """Draw validation loss against learning rate: problems in rows, optimizers in columns."""
    problems, names = sorted(frame["problem"].unique()), sorted(frame["optimizer"].unique())
    height = 0.5 + 1.25 * len(problems)
    picture, grid = style.canvas(len(problems), len(names), style.PAGE, height)
    for row, problem in zip(grid, problems, strict=True):
        here = frame[frame["problem"] == problem]
        for axes, name in zip(row, names, strict=True):
            axes.sharey(row[0])
            axes.sharex(grid[0][row.index(axes)])
            _draw_trials(axes, here[here["optimizer"] == name], style.colour(str(name)))
            axes.tick_params(labelleft=axes is row[0], labelbottom=row is grid[-1])
        row[0].set_ylabel(style.text(problem, 18))
        for axes in row:
            style.log_axis(axes, "x")
            style.log_axis(axes, "y")
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(style.text(name, 14))
    picture.supxlabel("learning rate", fontsize=8)
    picture.supylabel("validation loss", fontsize=8)
    return picture


def _draw_trials(axes: Axes, trials: pd.DataFrame, colour: str) -> None:
    axes.plot(
        trials["lr"], trials["loss"], ls="", marker="o", ms=2.8, color=colour, alpha=0.65, mew=0
    )
    chosen = trials[trials["chosen"]]
    axes.plot(
        chosen["lr"], chosen["loss"], ls="", marker="*", ms=8, color=colour, mec=style.INK, mew=0.5
    )
    lost = trials.loc[trials["status"] == "diverged", "lr"]
    axes.plot(
        lost,
        np.full(len(lost), 0.95),
        ls="",
        marker="x",
        ms=3.2,
        mew=0.8,
        color=colour,
        transform=axes.get_xaxis_transform(),
    )


def data_table(tables: Tables) -> pd.DataFrame:
    """Return one row for each problem and optimizer: trials, losses, the chosen settings."""
    trials = data_search(tables)
    searched = _numbered(phase(tables.runs, "search"))
    prefix = "config.optimizer."
    settings = [c for c in searched.columns if c.startswith(prefix) and c != f"{prefix}name"]
    keys = arm_keys(searched)
    rows: list[dict[str, object]] = []
    for (problem, optimizer), arm in trials.groupby(["problem", "optimizer"]):
        own = searched[
            (searched[keys["problem"]] == problem) & (searched[keys["optimizer"]] == optimizer)
        ]
        best = arm["loss"].min()
        chosen = own[own["label.trial"].isin(arm.loc[arm["chosen"], "trial"].tolist())]
        rows.append(
            {
                "problem": problem,
                "optimizer": optimizer,
                "runs": len(arm),
                "diverged": int((arm["status"] == "diverged").sum()),
                "failed": int((arm["status"] == "failed").sum()),
                "best_loss": best,
                "median_loss": arm["loss"].median(),
                "near_best": float((arm["loss"] <= WITHIN * best).sum() / len(arm)),
                "chosen": _settings(chosen.head(1), own, settings),
            }
        )
    return pd.DataFrame(rows)


def _settings(winner: pd.DataFrame, own: pd.DataFrame, columns: list[str]) -> str:
    # Only what the search of this optimizer varied.
    varied = [column for column in columns if own[column].nunique() > 1]
    if winner.empty:
        return ""
    parts = [f"{c.removeprefix('config.optimizer.')} {_short(winner[c].iloc[0])}" for c in varied]
    return ", ".join(parts)


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, int | float | np.floating) else str(value)


_COLUMNS = (
    ("optimizer", "optimizer", 0.15, "left"),
    ("runs", "runs", 0.35, "right"),
    ("diverged", "diverged", 0.44, "right"),
    ("best_loss", "best", 0.53, "right"),
    ("median_loss", "median", 0.62, "right"),
    ("near_best", "near best", 0.73, "right"),
    ("chosen", "chosen", 0.76, "left"),
)


def draw_table(frame: pd.DataFrame) -> Picture:
    """Draw the table of the search."""
    lines = len(frame) + 1
    picture, [[axes]] = style.canvas(width=style.PAGE, height=0.16 * lines + 0.2)
    axes.set(xlim=(0, 1), ylim=(lines - 0.4, -0.6))
    axes.axis("off")
    axes.text(0.0, 0, "problem", va="center", fontsize=7, fontweight="bold")
    for _, head, x, side in _COLUMNS:
        axes.text(x, 0, head, ha=side, va="center", fontsize=7, fontweight="bold")
    seen = None
    for line, row in enumerate(frame.to_dict("records"), 1):
        if row["problem"] != seen:
            axes.axhline(line - 0.5, color=style.FAINT, lw=0.5)
            axes.text(0.0, line, style.text(row["problem"], 20), va="center", fontsize=7)
            seen = row["problem"]
        for key, _, x, side in _COLUMNS:
            axes.text(x, line, _cell(key, row[key]), ha=side, va="center", fontsize=7)
    return picture


def _cell(key: str, value: object) -> str:
    if isinstance(value, float):
        if np.isnan(value):
            return "–"
        return f"{value:.0%}" if key == "near_best" else f"{value:.3g}"
    return style.text(value, 36)
