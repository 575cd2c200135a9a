"""Figures of the suite `width-sweep`: where the best learning rate goes as a network widens.

In the standard parametrization the best learning rate falls with width, because an update of the
same size in each weight changes the outputs of a wide layer more (Yang and Hu 2021, "Feature
learning in infinite-width neural networks", arXiv:2011.14522; Yang et al. 2022, "Tensor programs
V", arXiv:2203.03466, fig. 1). Theory gives 1 / width for Adam in the limit of large width.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from raybench.analysis import style
from raybench.analysis.figure import Claim, Figure, Tables, Verdict
from raybench.analysis.rows import (
    ENDED,
    Missing,
    arms,
    first_present,
    groups,
    need,
    observed,
    with_intervals,
)
from raybench.stats import argmin_draws, argmin_interval, percentile_interval, slope

NARROW = 16
"""Width that the widest network is held against."""
FACTOR = 4.0
"""How far the best learning rate of the widest network must stand below that of the narrow one."""
MAX_SLOPE = -0.2
"""Log-log slope that counts as a fall: a factor of two while the width grows 32-fold."""
OPTIMIZER = "adam"
LOSSES = ("summary.test.loss", "summary.valid.loss", "summary.train.loss")
"""What is minimized, the first that was recorded. Yang et al. 2022, fig. 1 has the train loss of
one epoch over a large set, where no row is seen twice. A small set is seen many times: its train
loss falls to about 0 at many learning rates, and loss on fresh rows is what compares."""
SOURCE = "Yang et al. 2022 (arXiv:2203.03466), fig. 1; Yang and Hu 2021 (arXiv:2011.14522)"


def data_losses(tables: Tables) -> pd.DataFrame:
    """Return one row a run, with the final loss and its mean at each learning rate."""
    runs = tables.runs
    arm = first_present(runs, ("label.optimizer", "config.optimizer.name"))
    loss = first_present(runs, LOSSES)
    need(runs, "config.model.width", "config.optimizer.lr")
    keys = {"optimizer": arm, "width": "config.model.width", "lr": "config.optimizer.lr"}
    frame = observed(runs, keys, {"loss": loss})
    frame = frame.assign(
        optimizer=frame["optimizer"].astype(str),
        width=pd.to_numeric(frame["width"], errors="coerce").astype(float),
        lr=pd.to_numeric(frame["lr"], errors="coerce").astype(float),
        split=loss.split(".")[1],
    )
    return with_intervals(frame, ("optimizer", "width", "lr"), ("loss",))


def data_optima(tables: Tables) -> pd.DataFrame:
    """Return the best learning rate of each width, with intervals, and its slope over widths."""
    losses = data_losses(tables)
    rows: list[dict[str, object]] = []
    for optimizer, arm in losses.groupby("optimizer"):
        found: list[dict[str, object]] = []
        draws = []
        for width, cell in arms(arm, "width"):
            curves = _curves(cell)
            if not np.isfinite(curves.to_numpy()).any():
                continue
            grid = [float(lr) for lr in curves.columns]
            best = argmin_interval(curves.to_numpy(), grid)
            draws.append(argmin_draws(curves.to_numpy(), grid))
            found.append(
                {
                    "optimizer": optimizer,
                    "width": width,
                    "best_lr": best.mean,
                    "best_lr_low": best.low,
                    "best_lr_high": best.high,
                    "best_lr_n": best.n,
                    "at_edge": best.mean in (grid[0], grid[-1]),
                    "interval": best.method,
                }
            )
        rows += [{**row, **_over_widths(found, np.array(draws))} for row in found]
    if not rows:
        raise Missing("no finished runs")
    table = pd.DataFrame(rows)
    counts = losses["status"].value_counts()
    lost = [f"{counts[s]} {s}" for s in ("diverged", "failed", "skipped") if counts.get(s, 0)]
    table.attrs["note"] = f"Of {len(losses)} runs {', '.join(lost)}." if lost else ""
    return table


def _curves(cell: pd.DataFrame) -> pd.DataFrame:
    # [seeds, learning rates]: infinite where a run diverged, nan where there is none.
    loss = cell["loss"].where(cell["status"].isin(ENDED))
    values = loss.mask(cell["status"] == "diverged", np.inf)
    return cell.assign(value=values).pivot_table(
        index="seed", columns="lr", values="value", aggfunc="mean", dropna=False
    )


def _over_widths(found: list[dict[str, object]], draws: np.ndarray) -> dict[str, float]:
    # `draws` are [widths, resamples]; seeds are resampled alike at each width.
    widths = np.array([row["width"] for row in found], dtype=float)
    best = np.array([row["best_lr"] for row in found], dtype=float)
    names = ("slope", "slope_low", "slope_high", "fall", "fall_low", "fall_high")
    if len(widths) < 2 or NARROW not in widths:
        return dict.fromkeys(names, np.nan)
    narrow = int(np.flatnonzero(widths == NARROW)[0])
    n = int(str(found[0]["best_lr_n"]))
    rise = percentile_interval(float(slope(widths, best)), slope(widths, draws.T), n)
    fall = percentile_interval(best[narrow] / best[-1], draws[narrow] / draws[-1], n)
    return dict(
        zip(names, (rise.mean, rise.low, rise.high, fall.mean, fall.low, fall.high), strict=True)
    )


def draw_losses(frame: pd.DataFrame) -> Picture:
    """Draw final loss against learning rate: a panel an optimizer, a line a width."""
    names = sorted(frame["optimizer"].unique())
    picture, [row] = style.canvas(1, len(names), width=min(1.2 + 2.9 * len(names), 10), height=2.9)
    for axes, name in zip(row, names, strict=True):
        arm = frame[frame["optimizer"] == name]
        for width, runs in arms(arm, "width"):
            _draw_width(axes, width, groups(runs, ("lr",)))
        _mark_lost(axes, arm)
        style.log_axis(axes, "x", base=2)
        style.log_axis(axes, "y")
        axes.set(title=style.text(name), xlabel="learning rate")
    row[0].set_ylabel(f"final {frame['split'].iloc[0]} loss")
    handles = [
        Line2D([], [], color=style.scale_colour(w), marker="o", label=f"{w:g}")
        for w, _ in arms(frame, "width")
    ]
    picture.legend(handles=handles, title="width", loc="outside right center")
    return picture


def _draw_width(axes: Axes, width: float, means: pd.DataFrame) -> None:
    line = style.scale_colour(width)
    axes.fill_between(
        means["lr"], means["loss_low"], means["loss_high"], color=line, alpha=0.18, lw=0
    )
    axes.plot(means["lr"], means["loss_mean"], color=line, marker="o", ms=2.0, lw=1.1)
    done = means.dropna(subset=["loss_mean"]).sort_values("loss_mean").head(1)
    axes.plot(
        done["lr"],
        done["loss_mean"],
        ls="",
        marker="o",
        ms=5.5,
        color=line,
        mec=style.INK,
        mew=0.8,
        zorder=5,
    )


def _mark_lost(axes: Axes, arm: pd.DataFrame) -> None:
    lost = arm[arm["status"] == "diverged"].drop_duplicates(["width", "lr"])
    for height, (width, runs) in enumerate(arms(lost, "width")):
        axes.plot(
            runs["lr"],
            np.full(len(runs), 0.985 - 0.03 * height),
            ls="",
            marker="x",
            ms=3,
            mew=0.8,
            transform=axes.get_xaxis_transform(),
            color=style.scale_colour(width),
        )


def draw_optima(frame: pd.DataFrame) -> Picture:
    """Draw the best learning rate against width, a line an optimizer."""
    picture, [[axes]] = style.canvas(width=4.4, height=3.0)
    for name, arm in frame.groupby("optimizer"):
        line = style.colour(str(name))
        below, above = arm["best_lr"] - arm["best_lr_low"], arm["best_lr_high"] - arm["best_lr"]
        shape = style.marker(str(name))
        axes.errorbar(
            arm["width"],
            arm["best_lr"],
            yerr=[below.fillna(0), above.fillna(0)],
            color=line,
            marker=shape,
            ms=4.5,
            capsize=2,
            lw=1.3,
            elinewidth=0.9,
            label=_named(arm),
        )
        edge = arm[arm["at_edge"]]
        axes.plot(
            edge["width"], edge["best_lr"], ls="", marker=shape, ms=4.5, color=line, mfc="white"
        )
    style.log_widths(axes, frame["width"].tolist())
    style.log_axis(axes, "y", base=2)
    axes.set(xlabel="width", ylabel="best learning rate")
    axes.legend()
    return picture


def _named(arm: pd.DataFrame) -> str:
    first = arm.iloc[0]
    name = style.text(first["optimizer"])
    if np.isnan(first["slope"]):
        return name
    return (
        f"{name}: slope {first['slope']:.2f} [{first['slope_low']:.2f}, {first['slope_high']:.2f}]"
    )


def _adam(frame: pd.DataFrame) -> pd.DataFrame:
    arm = frame[frame["optimizer"] == OPTIMIZER].sort_values("width")
    if arm.empty or arm["width"].max() <= NARROW or arm["fall"].isna().any():
        raise Missing(f"no {OPTIMIZER} runs at width {NARROW} and at wider networks")
    return arm


def check_fall(frame: pd.DataFrame) -> Verdict:
    """Check how far the best learning rate falls from the narrow to the widest network."""
    widest = _adam(frame).iloc[-1]
    measured = (
        f"{widest['fall']:.3g} [{widest['fall_low']:.3g}, {widest['fall_high']:.3g}] times below, "
        f"at width {widest['width']:g}"
    )
    threshold = f"interval at or above {FACTOR:g} times"
    return Verdict(measured, threshold, bool(widest["fall_low"] >= FACTOR))


def check_slope(frame: pd.DataFrame) -> Verdict:
    """Check that the best learning rate falls as a power of the width."""
    first = _adam(frame).iloc[0]
    measured = f"slope {first['slope']:.2f} [{first['slope_low']:.2f}, {first['slope_high']:.2f}]"
    return Verdict(measured, f"interval below {MAX_SLOPE:g}", bool(first["slope_high"] < MAX_SLOPE))


CLAIMS = (
    Claim(
        "the best learning rate falls",
        f"With {OPTIMIZER} in the standard parametrization the best learning rate of the widest "
        f"network is at least {FACTOR:g} times below that of width {NARROW}, with its interval.",
        SOURCE,
        check_fall,
    ),
    Claim(
        "it falls as a power of the width",
        f"The log-log slope of {OPTIMIZER}'s best learning rate over width is below "
        f"{MAX_SLOPE:g}, with its interval (theory: -1 for wide networks).",
        SOURCE,
        check_slope,
    ),
)

FIGURES: dict[str, Figure] = {
    "loss_by_learning_rate": Figure(
        "Final loss against learning rate, for each width",
        "Mean loss with intervals; ringed: the best learning rate of each width; crosses at the "
        "top: learning rates with diverged runs.",
        data_losses,
        draw_losses,
    ),
    "best_learning_rate": Figure(
        "The best learning rate against width",
        "Where mean final loss is lowest, and the slope on logarithmic axes, with intervals; a "
        "diverged run makes its learning rate infinitely bad. Hollow: at the end of the grid, so "
        "only a bound.",
        data_optima,
        draw_optima,
        CLAIMS,
    ),
}
