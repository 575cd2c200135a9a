"""Figures of networks that become Gaussian processes (Lee et al. 2018, arXiv:1711.00165).

One net's kernel against the recursion of the infinite one, the moments of its outputs, and
regression with that kernel.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from raybench.analysis import style
from raybench.analysis.figure import Claim, Figure, Tables, Verdict
from raybench.analysis.rows import Missing, arms, groups, observed, with_intervals
from raybench.analysis.wide_limits_study import numbers, slopes_within, study, with_exponents

SOURCE = "Lee et al. 2018 (arXiv:1711.00165)"
HALF = (-0.6, -0.4)
"""Exponents that count as N^-1/2."""
WIDE = 256
"""From this width on outputs are held against the limit: tanh and erf nets of finite width have
kernels whose mean is off by the order of 1 / width."""
ERRORS = 4.0
"""Standard errors that a mean may be away from what it must be."""
ROWS, ACCURACY, CORRELATION = 1000, 0.98, 0.8


def data_kernel(tables: Tables) -> pd.DataFrame:
    """Return one row a run: error of one net's kernel, moments of outputs, and exponents."""
    keys = {
        "activation": "config.activation",
        "depth": "config.depth",
        "width": "config.width",
    }
    values = {
        name: f"summary.model.{column}"
        for name, column in (("error", "kernel_error"), ("second", "second"), ("fourth", "fourth"))
    }
    frame = numbers(observed(study(tables, "one_kernel"), keys, values), "depth", "width")
    frame = with_intervals(frame, tuple(keys), tuple(values))
    return with_exponents(frame, ("activation", "depth"), ("error",))


def draw_kernel(frame: pd.DataFrame) -> Picture:
    """Draw the kernel's error against width: a panel an activation, a line a depth."""
    names = sorted(frame["activation"].unique())
    picture, [row] = style.canvas(1, len(names), height=2.7)
    low, high = float(frame["depth"].min()), float(frame["depth"].max())
    for axes, name in zip(row, names, strict=True):
        arm = frame[frame["activation"] == name]
        for depth, runs in arms(arm, "depth"):
            means = groups(runs, ("width",))
            _band(axes, means, "width", "error", _depth_colour(depth, low, high))
        _guide(axes, arm)
        style.log_widths(axes, frame["width"].tolist())
        style.log_axis(axes, "y")
        slopes = arm["error_slope"]
        axes.set(title=name, xlabel="width N")
        axes.text(
            0.03,
            0.04,
            f"slopes {slopes.min():.2f} to {slopes.max():.2f}",
            transform=axes.transAxes,
            fontsize=7,
        )
    row[0].set_ylabel("relative error of one net's kernel")
    handles = [
        Line2D([], [], color=_depth_colour(d, low, high), marker="o", label=f"{d:g}")
        for d, _ in arms(frame, "depth")
    ]
    handles.append(Line2D([], [], color=style.FAINT, ls=":", label="$N^{-1/2}$"))
    picture.legend(handles=handles, title="hidden layers", loc="outside right center")
    return picture


def draw_moments(frame: pd.DataFrame) -> Picture:
    """Draw the second and the fourth moment of the outputs, over those of the limit."""
    names = sorted(frame["activation"].unique())
    picture, grid = style.canvas(2, len(names), height=4.0)
    low, high = float(frame["depth"].min()), float(frame["depth"].max())
    labels = {"second": "$f^2$ over the limit's", "fourth": "$f^4$ over the limit's"}
    for row, (value, label) in zip(grid, labels.items(), strict=True):
        for axes, name in zip(row, names, strict=True):
            for depth, runs in arms(frame[frame["activation"] == name], "depth"):
                means = groups(runs, ("width",))
                _band(axes, means, "width", value, _depth_colour(depth, low, high))
            axes.axhline(1.0, color=style.FAINT, lw=0.8, ls=":")
            style.log_widths(axes, frame["width"].tolist())
            axes.set(title=name if value == "second" else "", ylim=(0, None))
        row[0].set_ylabel(label)
    for axes in grid[-1]:
        axes.set_xlabel("width N")
    handles = [
        Line2D([], [], color=_depth_colour(d, low, high), marker="o", label=f"{d:g}")
        for d, _ in arms(frame, "depth")
    ]
    picture.legend(handles=handles, title="hidden layers", loc="outside right center")
    return picture


def data_regression(tables: Tables) -> pd.DataFrame:
    """Return one row a run: accuracy of regression with the limit's kernel."""
    runs = study(tables, "regression")
    keys = {
        "activation": "config.activation",
        "depth": "config.depth",
        "rows": "config.data.train",
        "weight_variance": "config.weight_variance",
        "bias_variance": "config.bias_variance",
    }
    if "label.data" in runs.columns and runs["label.data"].notna().any():
        keys["data"] = "label.data"
    values = {
        "error": "summary.test.error",
        "mse": "summary.test.mse",
        "correlation": "summary.test.variance_correlation",
    }
    frame = observed(runs, keys, values)
    frame = numbers(frame, "depth", "rows", "weight_variance", "bias_variance")
    frame = frame.assign(accuracy=1 - frame["error"])
    return with_intervals(frame, tuple(keys), ("accuracy", "correlation"))


def draw_regression(frame: pd.DataFrame) -> Picture:
    """Draw accuracy, and how well variance predicts error, against the number of rows."""
    picture, [[left, right]] = style.canvas(1, 2, height=2.8)
    names = [_kernel_name(key) for key, _ in _kernels(frame)]
    palette = style.colours(names)
    for name, (_, runs) in zip(names, _kernels(frame), strict=True):
        means = groups(runs, ("rows",))
        for axes, value in ((left, "accuracy"), (right, "correlation")):
            _band(axes, means, "rows", value, palette[name], style.text(name))
    left.axhline(ACCURACY, color=style.FAINT, lw=0.8, ls=":")
    right.axhline(CORRELATION, color=style.FAINT, lw=0.8, ls=":")
    for axes in (left, right):
        style.log_widths(axes, frame["rows"].tolist())
        axes.set_xlabel("training rows n")
    style.percent_axis(left)
    left.set_ylabel("test accuracy")
    right.set_ylabel("correlation of variance and error")
    if len(names) <= 12:
        left.legend(title="activation, hidden layers", loc="lower right")
    return picture


def _kernels(frame: pd.DataFrame) -> list[tuple[tuple[object, ...], pd.DataFrame]]:
    by = [c for c in ("data", "activation", "depth") if c in frame.columns]
    by += [c for c in ("weight_variance", "bias_variance") if frame[c].nunique() > 1]
    return [(tuple(key), rows) for key, rows in frame.groupby(by, sort=True)]


def _kernel_name(key: tuple[object, ...]) -> str:
    return " ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in key)


def _band(
    axes: Axes, means: pd.DataFrame, x: str, value: str, line: str, label: str | None = None
) -> None:
    low, high = means[f"{value}_low"], means[f"{value}_high"]
    axes.fill_between(means[x], low, high, color=line, alpha=0.18, lw=0)
    axes.plot(means[x], means[f"{value}_mean"], color=line, marker="o", ms=2.5, label=label)


def _guide(axes: Axes, arm: pd.DataFrame) -> None:
    """Draw a line of slope -1/2 under the lowest curve."""
    ends = np.array([arm["width"].min(), arm["width"].max()])
    start = arm.loc[arm["width"] == ends[0], "error_mean"].min() * 0.75
    if np.isfinite(start):
        axes.plot(ends, start * (ends / ends[0]) ** -0.5, color=style.FAINT, ls=":", lw=0.9)


def _depth_colour(depth: float, low: float, high: float) -> str:
    return style.scale_colour(2 ** (depth - low), 1.0, max(2 ** (high - low), 2.0))


def check_half(frame: pd.DataFrame) -> Verdict:
    """Check that each curve falls as N^-1/2."""
    return slopes_within(frame, "error_slope", *HALF)


def check_second(frame: pd.DataFrame) -> Verdict:
    """Check the variance of wide nets' outputs, pooled over widths."""
    wide = frame[(frame["width"] >= WIDE) & frame["second"].notna()]
    if wide.empty:
        raise Missing(f"no runs at widths from {WIDE} on")
    cells = wide.groupby(["activation", "depth"])["second"].agg(["mean", "sem", "size"])
    if (cells["size"] < 5).any():
        raise Missing("fewer than five wide runs of a curve")
    away = ((cells["mean"] - 1) / cells["sem"]).abs().max()
    return Verdict(f"{away:.2f} at most", f"{ERRORS:g} standard errors", bool(away <= ERRORS))


def check_accuracy(frame: pd.DataFrame) -> Verdict:
    """Check the mean accuracy of each kernel at n = 1,000."""
    at = frame[frame["rows"] == ROWS]["accuracy_mean"].dropna()
    if at.empty:
        raise Missing(f"no runs with {ROWS:,} rows")
    return Verdict(f"{at.min():.4f} to {at.max():.4f}", f">= {ACCURACY}", at.min() >= ACCURACY)


def check_variance(frame: pd.DataFrame) -> Verdict:
    """Check that predicted variance goes with error at n = 1,000."""
    at = frame[frame["rows"] == ROWS]["correlation_mean"].dropna()
    if at.empty:
        raise Missing(f"no runs with {ROWS:,} rows and enough test rows")
    return Verdict(
        f"{at.min():.3f} to {at.max():.3f}", f">= {CORRELATION:g}", at.min() >= CORRELATION
    )


FIGURES: dict[str, Figure] = {
    "kernel_by_width": Figure(
        "The kernel of one network approaches that of the infinite one",
        "Relative Frobenius error of the kernel of one net's last hidden layer against the "
        "recursion, a mean over nets and inputs. Bands: intervals. Dotted: slope -1/2.",
        data_kernel,
        draw_kernel,
        (
            Claim(
                "one net's kernel converges as N^-1/2",
                "For each activation and depth the log-log slope of the relative kernel error over "
                f"width is between {HALF[0]:g} and {HALF[1]:g}.",
                f"{SOURCE}, section 2.2 (the limit) and fig. 1 (width)",
                check_half,
            ),
        ),
    ),
    "outputs_by_width": Figure(
        "Moments of the outputs approach those of the Gaussian process",
        "Means over nets and inputs of f^2 / K and f^4 / (3 K^2), K the recursion's variance: 1 in "
        "the limit (dotted). Bands: intervals.",
        data_kernel,
        draw_moments,
        (
            Claim(
                "outputs have the recursion's variance",
                f"Over all runs from width {WIDE} on, the mean of f^2 / K is within "
                f"{ERRORS:g} standard errors of 1 for each activation and depth.",
                f"{SOURCE}, section 2.2",
                check_second,
            ),
        ),
    ),
    "regression": Figure(
        "Regression with the kernel of the infinite network",
        "Left: test accuracy against training rows, by activation and hidden layers. Right: "
        "correlation of predicted variance with squared error over bins of 100 test rows. Bands: "
        "intervals; dotted: what is claimed.",
        data_regression,
        draw_regression,
        (
            Claim(
                "the Gaussian process classifies well",
                f"With {ROWS:,} training rows each kernel's mean test accuracy on digits is at "
                f"least {ACCURACY}.",
                f"{SOURCE}, table 1 and fig. 1",
                check_accuracy,
            ),
            Claim(
                "its variance predicts its error",
                f"With {ROWS:,} training rows mean predicted variance and mean squared error of "
                f"bins of 100 test rows correlate at {CORRELATION:g} or more for each kernel.",
                f"{SOURCE}, fig. 3",
                check_variance,
            ),
        ),
    ),
}
