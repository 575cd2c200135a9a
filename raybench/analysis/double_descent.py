"""Test error against width, with and without label noise.

Nakkiran et al. 2019, "Deep double descent" (arXiv:1912.02292). The claims are in `peak`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from raybench.analysis import style
from raybench.analysis.figure import Figure, Tables
from raybench.analysis.peak import CLAIMS
from raybench.analysis.rows import Missing, arms, groups, need, observed, with_intervals

EPS = 0.10
"""Train error under which a network counts as fitting (Nakkiran et al., section 4)."""

CLASSES = {
    "digits": 10,
    "mnist": 10,
    "fashion_mnist": 10,
    "cifar10": 10,
    "svhn": 10,
    "cifar100": 100,
}
"""Outputs of a network on each data set."""


def data(tables: Tables) -> pd.DataFrame:
    """Return one row a run, with means and intervals of each width and level of noise."""
    runs = tables.runs
    need(runs, "summary.test.error", "config.model.width", "config.data.train", "num_params")
    if "config.data.label_noise" not in runs.columns:
        runs = runs.assign(**{"config.data.label_noise": 0.0})
    keys = {
        "label_noise": "config.data.label_noise",
        "width": "config.model.width",
        "num_params": "num_params",
        "n": "config.data.train",
        "data": "config.data.name",
    }
    values = {
        "test_error": "summary.test.error",
        "train_error": "summary.train.error",
        "test_loss": "summary.test.loss",
    }
    frame = observed(runs, keys, values)
    for column in ("label_noise", "width", "num_params", "n"):
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(float)
    frame["targets"] = frame["n"] * frame["data"].map(CLASSES).astype(float)
    # A run that failed before it built its network has the size of its neighbours.
    frame["num_params"] = frame.groupby("width")["num_params"].transform("max")
    return with_intervals(frame, ("label_noise", "width"), tuple(values))


def data_loss(tables: Tables) -> pd.DataFrame:
    """Return the same rows, if test loss was recorded."""
    need(tables.runs, "summary.test.loss")
    frame = data(tables)
    if frame["test_loss"].isna().all():
        raise Missing("no finished run has a test loss")
    return frame


def draw_error(frame: pd.DataFrame) -> Picture:
    """Draw test and train error against width."""
    picture, [[axes]] = style.canvas(width=4.6, height=3.1)
    means = groups(frame, ("label_noise", "width"))
    for noise, arm in arms(means, "label_noise"):
        line = style.noise_colour(noise)
        axes.fill_between(
            arm["width"],
            arm["test_error_low"],
            arm["test_error_high"],
            color=line,
            alpha=0.18,
            lw=0,
        )
        axes.plot(arm["width"], arm["test_error_mean"], color=line, marker="o")
        axes.plot(arm["width"], arm["train_error_mean"], color=line, ls=(0, (3, 1.5)), lw=1.0)
    style.log_widths(axes, means["width"].tolist())
    style.percent_axis(axes)
    axes.set(xlabel="width", ylabel="classification error", ylim=(0, None))
    _mark_thresholds(axes, means)
    _legend(axes, means)
    return picture


def draw_loss(frame: pd.DataFrame) -> Picture:
    """Draw test loss against the number of parameters."""
    picture, [[axes]] = style.canvas(width=4.6, height=2.9)
    means = groups(frame, ("label_noise", "width"))
    for noise, arm in arms(means, "label_noise"):
        line = style.noise_colour(noise)
        axes.fill_between(
            arm["num_params"],
            arm["test_loss_low"],
            arm["test_loss_high"],
            color=line,
            alpha=0.18,
            lw=0,
        )
        axes.plot(
            arm["num_params"],
            arm["test_loss_mean"],
            color=line,
            marker="o",
            label=style.percent(noise),
        )
    style.log_axis(axes, "x")
    style.log_axis(axes, "y")
    axes.set(xlabel="number of parameters", ylabel="test loss")
    targets = means["targets"].dropna().unique()
    if len(targets) == 1:
        axes.axvline(targets[0], color=style.FAINT, lw=0.8, ls=":")
        _say(axes, targets[0], "$n\\,K$")
    axes.legend(title="label noise")
    return picture


def _mark_thresholds(axes: Axes, means: pd.DataFrame) -> None:
    for noise, arm in arms(means, "label_noise"):
        fits = arm[arm["train_error_mean"] < EPS]
        if len(fits) and len(fits) < len(arm):
            axes.plot(
                fits["width"].iloc[0],
                0.0,
                marker="^",
                ms=6,
                clip_on=False,
                zorder=5,
                color=style.noise_colour(noise),
                mec="white",
                mew=0.6,
            )
    width = _width_of_count(means)
    if width is not None:
        axes.axvline(width, color=style.FAINT, lw=0.8, ls=":")
        _say(axes, width, "$n\\,K$ parameters")


def _width_of_count(means: pd.DataFrame) -> float | None:
    # Where n K lies between the parameter counts of the widths that were run.
    sizes = means.drop_duplicates("width").dropna(subset=["num_params", "targets"])
    if len(sizes) < 2 or sizes["targets"].nunique() != 1:
        return None
    counts, target = sizes["num_params"].to_numpy(dtype=float), float(sizes["targets"].iloc[0])
    if not counts.min() <= target <= counts.max():
        return None
    widths = np.log(sizes["width"].to_numpy(dtype=float))
    return float(np.exp(np.interp(np.log(target), np.log(counts), widths)))


def _say(axes: Axes, x: float, words: str) -> None:
    axes.annotate(
        words,
        (x, 0.03),
        xycoords=("data", "axes fraction"),
        xytext=(2, 0),
        fontsize=6.5,
        textcoords="offset points",
        va="bottom",
        color=style.FAINT,
        rotation=90,
        ha="left",
    )


def _legend(axes: Axes, means: pd.DataFrame) -> None:
    noises = sorted(means["label_noise"].unique())
    lines = [
        Line2D([], [], color=style.noise_colour(p), marker="o", label=style.percent(p))
        for p in noises
    ]
    first = axes.legend(handles=lines, title="label noise", loc="upper right")
    axes.add_artist(first)
    kinds = [
        Line2D([], [], color=style.INK, marker="o", label="test"),
        Line2D([], [], color=style.INK, ls=(0, (3, 1.5)), lw=1.0, label="train"),
        Line2D(
            [],
            [],
            color=style.INK,
            ls="",
            marker="^",
            ms=5,
            label=f"train under {style.percent(EPS)}",
        ),
    ]
    axes.legend(handles=kinds, loc="upper right", bbox_to_anchor=(0.8, 1.0))


FIGURES: dict[str, Figure] = {
    "error_by_width": Figure(
        "Test error peaks where the network begins to fit its noisy labels",
        "Solid: test error on clean labels; dashed: train error on the labels trained on. Bands: "
        f"intervals of the mean. Triangles: first width with mean train error under {EPS:.0%} (the "
        "effective model complexity reaches n). Dotted: as many parameters as rows times classes.",
        data,
        draw_error,
        CLAIMS,
    ),
    "loss_by_size": Figure(
        "Test loss against the number of parameters",
        "Mean test loss with intervals. Dotted: n rows times K classes.",
        data_loss,
        draw_loss,
    ),
}
