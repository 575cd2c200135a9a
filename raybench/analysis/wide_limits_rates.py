"""The best learning rate against width in each parametrization (Yang et al. 2022, fig. 1).

The loss that is compared is that of fresh rows: a small training set is fitted to about 0 at many
learning rates (see `width_sweep`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from raybench.analysis import style
from raybench.analysis.figure import Claim, Tables, Verdict
from raybench.analysis.rows import ENDED, Missing, arms, groups, observed, with_intervals
from raybench.analysis.wide_limits_study import numbers, study
from raybench.stats import argmin_draws, argmin_interval, percentile_interval

SOURCE = "Yang et al. 2022 (arXiv:2203.03466), fig. 1"
OCTAVES = 1.0
"""How far muP's best learning rate may move: one step of the grid."""


def data_rates(tables: Tables) -> pd.DataFrame:
    """Return one row a run: its final loss, its width's best rate, and its arm's shift."""
    keys = {"arm": "label.arm", "width": "config.model.width", "lr": "config.optimizer.lr"}
    runs = study(tables, "rates")
    values = {"loss": "summary.test.loss", "train_loss": "summary.train.loss"}
    frame = numbers(observed(runs, keys, values), "width", "lr")
    frame = with_intervals(frame, tuple(keys), ("loss",))
    for _, arm in frame.groupby("arm", sort=False):
        draws: dict[float, np.ndarray] = {}
        found: dict[float, float] = {}
        for width, cell in arms(arm, "width"):
            curves = _curves(cell)
            grid = [float(lr) for lr in curves.columns]
            best = argmin_interval(curves.to_numpy(), grid)
            found[width] = best.mean
            draws[width] = argmin_draws(curves.to_numpy(), grid)
            columns = {"best": best.mean, "best_low": best.low, "best_high": best.high}
            columns["at_edge"] = float(best.mean in (grid[0], grid[-1]))
            for name, value in columns.items():
                frame.loc[cell.index, name] = value
        for name, value in _shift(found, draws, arm["seed"].nunique()).items():
            frame.loc[arm.index, name] = value
    return frame


def _curves(cell: pd.DataFrame) -> pd.DataFrame:
    # [seeds, learning rates]: infinite where a run diverged, nan where there is none.
    loss = cell["loss"].where(cell["status"].isin(ENDED))
    values = loss.mask(cell["status"] == "diverged", np.inf)
    return cell.assign(value=values).pivot_table(
        index="seed", columns="lr", values="value", aggfunc="mean", dropna=False
    )


def _shift(
    found: dict[float, float], draws: dict[float, np.ndarray], seeds: int
) -> dict[str, float]:
    """Return octaves that the best rate moves from the narrowest to the widest network."""
    narrow, wide = min(found), max(found)
    if narrow == wide:
        return dict.fromkeys(("shift", "shift_low", "shift_high"), np.nan)
    moved = float(np.log2(found[wide] / found[narrow]))
    if seeds < 2:
        return {"shift": moved, "shift_low": np.nan, "shift_high": np.nan}
    interval = percentile_interval(moved, np.log2(draws[wide] / draws[narrow]), seeds)
    return {"shift": moved, "shift_low": interval.low, "shift_high": interval.high}


def draw_rates(frame: pd.DataFrame) -> Picture:
    """Draw loss against learning rate for each arm, and the best rate against width."""
    names = sorted(frame["arm"].unique(), reverse=True)
    picture, [row] = style.canvas(1, len(names) + 1, height=2.8)
    for axes, name in zip(row, names, strict=False):
        _draw_losses(axes, frame[frame["arm"] == name])
        axes.set(title=style.text(name), xlabel="learning rate")
        axes.set_ylim(frame["loss_mean"].min() * 0.8, frame["loss_mean"].max() * 1.2)
    row[0].set_ylabel("final test loss")
    row[0].legend(title="width", fontsize=6)
    last = row[-1]
    for name in names:
        _draw_best(last, str(name), groups(frame[frame["arm"] == name], ("width",)))
    style.log_widths(last, frame["width"].tolist())
    style.log_axis(last, "y", base=2)
    last.set(title="best learning rate", xlabel="width")
    last.legend(loc="lower left", fontsize=6)
    return picture


def _draw_losses(axes: Axes, arm: pd.DataFrame) -> None:
    for width, runs in arms(arm, "width"):
        means = groups(runs, ("lr",))
        line = style.scale_colour(width, 64, 1024)
        low, high = means["loss_low"], means["loss_high"]
        axes.fill_between(means["lr"], low, high, color=line, alpha=0.18, lw=0)
        axes.plot(means["lr"], means["loss_mean"], color=line, lw=1.1, label=f"{width:g}")
        best = means.dropna(subset=["loss_mean"]).sort_values("loss_mean").head(1)
        axes.plot(best["lr"], best["loss_mean"], ls="", marker="o", ms=5, color=line,
                  mec=style.INK, mew=0.8, zorder=5)  # fmt: skip
    style.log_axis(axes, "x", base=2)
    style.log_axis(axes, "y")


def _draw_best(axes: Axes, name: str, means: pd.DataFrame) -> None:
    first, line, shape = means.iloc[0], style.colour(name), style.marker(name)
    below = (means["best"] - means["best_low"]).fillna(0)
    above = (means["best_high"] - means["best"]).fillna(0)
    label = style.text(name)
    if not np.isnan(first["shift"]):
        label += f": {_octaves(first)}"
    axes.errorbar(means["width"], means["best"], yerr=[below, above], color=line, marker=shape,
                  ms=4.5, capsize=2, lw=1.3, elinewidth=0.9, label=label)  # fmt: skip
    edge = means[means["at_edge"] > 0]
    axes.plot(edge["width"], edge["best"], ls="", marker=shape, ms=4.5, color=line, mfc="white")


def _octaves(row: pd.Series) -> str:
    low, high = row["shift_low"], row["shift_high"]
    bounds = "" if np.isnan(low) else f" [{low:+g}, {high:+g}]"
    return f"{row['shift']:+g}{bounds} octaves"


def _shift_of(frame: pd.DataFrame, name: str) -> pd.Series:
    arm = frame[frame["arm"] == name]
    if arm.empty or arm["shift_low"].isna().any():
        raise Missing(f"no runs of {name} at two widths with two seeds")
    return arm.iloc[0]


def check_stays(frame: pd.DataFrame) -> Verdict:
    """Check that muP's best learning rate stays, and say where the standard one goes."""
    row = _shift_of(frame, "mup")
    other = _octaves(_shift_of(frame, "standard"))
    passed = bool(max(abs(row["shift_low"]), abs(row["shift_high"])) <= OCTAVES)
    measured = f"{_octaves(row)}; standard: {other}"
    return Verdict(measured, f"interval within {OCTAVES:g} octave of 0", passed)


def check_moves(frame: pd.DataFrame) -> Verdict:
    """Check that the standard parametrization's best rate falls, by more than a grid step."""
    row = _shift_of(frame, "standard")
    passed = bool(row["shift_high"] <= -2 * OCTAVES)
    return Verdict(_octaves(row), f"interval at or below {-2 * OCTAVES:g} octaves", passed)


def rate_claims() -> tuple[Claim, ...]:
    """Return what the paper says about learning rates and width."""
    return (
        Claim(
            "muP's best learning rate stays",
            "From the narrowest to the widest network the best learning rate of Adam moves by at "
            f"most {OCTAVES:g} octave, a step of the grid, in muP, with its interval.",
            SOURCE,
            check_stays,
        ),
        Claim(
            "the standard one falls",
            "In the standard parametrization it falls by two octaves or more, with its interval.",
            SOURCE,
            check_moves,
        ),
    )
