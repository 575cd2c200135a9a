"""Random features fitted by least norm: the peak at N = n, and what ridge makes of it.

Nakkiran et al. 2019, "Deep double descent" (arXiv:1912.02292), figures 14 and 15; Belkin et al.
2018 (arXiv:1812.11118), figure 2. Here the interpolation threshold is known exactly: N features fit
any n rows from N = n on.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from raybench.analysis import style
from raybench.analysis.descent_runs import (
    MARGIN,
    PAPER,
    arm_of,
    band,
    heat,
    highest,
    hues,
    lowest,
    paired,
    runs_of,
    seeds_by,
    shown,
)
from raybench.analysis.figure import Claim, Figure, Tables, Verdict
from raybench.analysis.rows import Missing, arms, close, groups, observed, with_intervals

SLICE = 300.0
"""The n of the figure over N, and the N of the figure over n: the nearest there is."""
REMOVED = 0.5
"""A bump of less than this share of the ridgeless one counts as removed."""
FAR = (0.34, 3.0)
"""Shares of the threshold that both sides of the peak are read at, or the nearest outside."""
_KEYS = {
    "label_noise": "config.data.label_noise",
    "n": "config.data.train",
    "width": "config.features.width",
    "ridge": "config.ridge",
}


def data(tables: Tables) -> pd.DataFrame:
    """Return one row a run of the study `random_features`, with means and intervals."""
    values = {
        "test_error": "summary.test.error",
        "train_error": "summary.train.error",
        "train_loss": "summary.train.loss",
        "weight_norm": "summary.model.weight_norm",
    }
    frame = observed(runs_of(tables, "random_features"), _KEYS, values)
    for key in _KEYS:
        frame[key] = pd.to_numeric(frame[key], errors="coerce").astype(float)
    by = ("label_noise", "ridge", "n", "width")
    return with_intervals(frame, by, ("test_error", "weight_norm"))


def draw_slices(frame: pd.DataFrame) -> Picture:
    """Draw test error over N for one n: without and with ridge; and over n for one N."""
    picture, [row] = style.canvas(1, 3, width=10.2, height=2.9)
    n, width = _nearest(frame, "n"), _nearest(frame, "width")
    means = groups(frame, ("label_noise", "ridge", "n", "width"))
    over_width, over_n = means[close(means["n"], n)], means[close(means["width"], width)]
    for ridge, arm in arms(means, "ridge"):
        for noise, _ in arms(arm, "label_noise"):
            hue = style.noise_colour(noise)
            for axes, part, along, value in (
                (row[0], over_width, "width", "test_error"),
                (row[1], over_width, "width", "weight_norm"),
                (row[2], over_n, "n", "test_error"),
            ):
                line = _at(part, {"ridge": ridge, "label_noise": noise})
                label = f"{style.percent(noise)}, {'ridge' if ridge else 'least norm'}"
                _line(axes, line, along, value, hue, label, dashed=ridge > 0)
    for axes, along, at in ((row[0], "width", n), (row[1], "width", n), (row[2], "n", width)):
        axes.axvline(at, color=style.FAINT, lw=0.9, ls=":", zorder=0)
        style.log_axis(axes, "x")
        axes.set(xlabel="features N" if along == "width" else "number of samples n")
    row[0].set(title=f"n = {n:g}", ylabel="test error")
    row[1].set(title=f"n = {n:g}", ylabel="norm of the weights")
    row[2].set(title=f"N = {width:g}", ylabel="test error")
    style.log_axis(row[1], "y")
    for axes in (row[0], row[2]):
        style.percent_axis(axes)
    row[2].legend(title="label noise")
    return picture


def _line(
    axes: Axes,
    means: pd.DataFrame,
    along: str,
    value: str,
    hue: str,
    label: str,
    *,
    dashed: bool,
) -> None:
    if not dashed:
        band(axes, means, along, value, hue, label)
        return
    axes.plot(means[along], means[f"{value}_mean"], color=hue, ls=(0, (3, 1.5)), label=label)


def draw_map(frame: pd.DataFrame) -> Picture:
    """Draw test error over N and n as a heat map, and over N with a line for each n."""
    picture, [[left, right]] = style.canvas(1, 2, width=style.PAGE + 0.4, height=3.0)
    arm = _plain(frame)
    means = groups(arm, ("n", "width"))
    table = means.pivot_table(index="n", columns="width", values="test_error_mean")
    heat(left, table)
    ends = [
        max(table.index.min(), table.columns.min()),
        min(table.index.max(), table.columns.max()),
    ]
    left.plot(ends, ends, color="#00A0A0", ls="--", lw=1.2)
    left.set(xlabel="features N", ylabel="number of samples n", title="test error")
    colours = hues([n for n, _ in arms(means, "n")])
    for n, line in arms(means, "n"):
        band(right, line, "width", "test_error", colours[n], f"{n:g}")
        right.plot(
            n,
            0.0,
            marker="^",
            ms=5,
            color=colours[n],
            mec="white",
            mew=0.6,
            clip_on=False,
            zorder=5,
        )
    style.log_axis(right, "x")
    style.percent_axis(right)
    right.set(xlabel="features N", title="test error", ylim=(0, None))
    right.legend(title="n", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return picture


def _nearest(frame: pd.DataFrame, column: str) -> float:
    values = np.array([value for value, _ in arms(frame, column)])
    return float(values[np.abs(np.log(values / SLICE)).argmin()])


def _at(frame: pd.DataFrame, where: Mapping[str, float]) -> pd.DataFrame:
    for column, value in where.items():
        frame = frame[close(frame[column], value)]
    return frame


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    return arm_of(frame, ridge=0.0, label_noise=float(frame["label_noise"].max()))


def check_peak(frame: pd.DataFrame) -> Verdict:
    """Check that test error is highest at N = n for each n, with and without noise."""
    found = []
    for noise, arm in arms(arm_of(frame, ridge=0.0), "label_noise"):
        for n, rows in arms(arm, "n"):
            table = seeds_by(rows, "width")
            widths = table.columns.to_numpy(dtype=float)
            if not (n in widths and widths[0] < n < widths[-1]):
                continue
            # Fewer features than a third of n fit nothing: their error is no peak.
            found.append((noise, n, highest(table.loc[:, widths >= n / 3])))
    if not found:
        raise Missing("no n with N on both sides")
    off = [f"N = {at:g} for n = {n:g}, {p:.0%}" for p, n, at in found if at != n]
    measured = f"{len(found) - len(off)} of {len(found)} curves; " + ("; ".join(off) or "none off")
    return Verdict(measured, "all", not off)


def check_ridge(frame: pd.DataFrame) -> Verdict:
    """Check that ridge takes the bump away, at the n of the slice and the highest noise."""
    n = _nearest(frame, "n")
    noise = float(frame["label_noise"].max())
    ridges = [r for r, _ in arms(frame, "ridge") if r > 0]
    if not ridges:
        raise Missing("no runs with ridge")
    bumps = {
        ridge: _bump(seeds_by(arm_of(frame, label_noise=noise, n=n, ridge=ridge), "width"), n)
        for ridge in (0.0, ridges[0])
    }
    measured = ", ".join(f"{bump:.1%} at ridge {ridge:g}" for ridge, bump in bumps.items())
    passed = bumps[0.0] >= MARGIN and bumps[ridges[0]] < REMOVED * bumps[0.0]
    threshold = f"under {REMOVED:g} of the ridgeless one, which is at least {MARGIN:.0%}"
    return Verdict(f"bump {measured}", threshold, bool(passed))


def _bump(table: pd.DataFrame, n: float) -> float:
    # Height of the mean at N = n over the higher of its two sides.
    left, right = _sides(table, n)
    mean = table.mean()
    return float(mean[n] - max(mean[left], mean[right]))


def _sides(table: pd.DataFrame, at: float) -> tuple[float, float]:
    points = table.columns.to_numpy(dtype=float)
    below, above = points[points <= FAR[0] * at], points[points >= FAR[1] * at]
    if at not in points or not len(below) or not len(above):
        raise Missing(f"no points at {at:g} and far from it on both sides")
    return float(below[-1]), float(above[0])


def check_samples(frame: pd.DataFrame) -> Verdict:
    """Check that at fixed N test error peaks over n at n = N."""
    width = _nearest(frame, "width")
    arm = arm_of(_plain(frame), width=width)
    table = seeds_by(arm, "n")
    left, right = _sides(table, width)
    gaps = {at: paired(table, width, at) for at in (left, right)}
    top = highest(table)
    words = ", ".join(f"{shown(gap)} over n = {at:g}" for at, gap in gaps.items())
    passed = top == width and all(g.mean >= MARGIN and g.low > 0 for g in gaps.values())
    return Verdict(
        f"N = {width:g}: highest at n = {top:g}, {words}",
        f"highest at n = N, sides at least {MARGIN:.0%} with intervals above 0",
        bool(passed),
    )


def check_wide(frame: pd.DataFrame) -> Verdict:
    """Check that without noise the widest fit is better than the best narrow one."""
    n = _nearest(frame, "n")
    table = seeds_by(arm_of(frame, label_noise=0.0, ridge=0.0, n=n), "width")
    widths = table.columns.to_numpy(dtype=float)
    if widths[0] >= n:
        raise Missing(f"no fewer features than n = {n:g}")
    best, widest = lowest(table.loc[:, widths < n]), float(widths[-1])
    gap = paired(table, best, widest)
    measured = f"N = {widest:g} is {shown(gap)} better than N = {best:g}"
    return Verdict(measured, "interval above 0", bool(gap.low > 0))


_SOURCE = f"{PAPER}, fig. 14 and 15"

FIGURES: dict[str, Figure] = {
    "random_features": Figure(
        "Random features: the peak stands where there are as many as samples",
        "Features relu(W x) fitted by least norm (solid, with intervals) and by ridge regression "
        "(dashed). Dotted: N = n, the interpolation threshold. Test error over N and over n, and "
        "the norm of the weights. (Nakkiran et al. 2019, figures 14 and 15; Belkin et al. 2018, "
        "figure 2.)",
        data,
        draw_slices,
        (
            Claim(
                "ridge removes the peak",
                "At the highest label noise the height of mean test error at N = n over both sides "
                f"(N at most {FAR[0]:g} n and at least {FAR[1]:g} n) is with ridge less than "
                f"{REMOVED:g} of that without.",
                f"{_SOURCE} and section 5; Nakkiran et al. 2021 (arXiv:2003.01897)",
                check_ridge,
            ),
            Claim(
                "over samples the peak is at n = N",
                "At fixed N test error over the number of samples is highest at n = N, and lower "
                "with a third and with three times as many, paired over seeds.",
                f"{PAPER}, fig. 15",
                check_samples,
            ),
            Claim(
                "wide beats narrow",
                "Without label noise the largest number of features has a lower test error than "
                "the best number under n, paired over seeds.",
                f"Belkin et al. 2018 (arXiv:1812.11118), fig. 2; {_SOURCE}",
                check_wide,
            ),
        ),
    ),
    "features_by_samples": Figure(
        "The peak of random features moves with the number of samples",
        "Mean test error of the least-norm fit at the highest label noise. Dashed line and "
        "triangles: N = n, the interpolation threshold. (Nakkiran et al. 2019, figure 14.)",
        data,
        draw_map,
        (
            Claim(
                "the peak is at N = n",
                "For each n mean test error over N, from N = n / 3 on, is highest at N = n, "
                "without and with label noise.",
                f"{_SOURCE}; Belkin et al. 2018 (arXiv:1812.11118), fig. 2",
                check_peak,
            ),
        ),
    ),
}
