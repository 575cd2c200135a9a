"""What Hastie et al. 2019 and Belkin et al. 2018 claim about least squares past the threshold.

Away from the peak means |gamma - 1| > 0.2. At p in {n - 1, n, n + 1} the mean risk is infinite:
medians are compared there, and no interval is asked to cover it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import pandas as pd

from raybench.analysis import theory
from raybench.analysis.figure import Claim, Verdict
from raybench.analysis.rows import Missing, arms, close, groups
from raybench.stats import paired_difference

AWAY: Final = 0.2
"""Points with |gamma - 1| over this are away from the peak."""
RELATIVE: Final = 0.05
"""Largest relative error of a mean there."""
COVERAGE: Final = 0.85
"""Least share of 95 % intervals that contain the exact mean."""
RISE: Final = 0.03
"""Largest fall under an earlier value, as a share of it, of a curve that never falls."""
PEAK_MARGIN: Final = 0.2
"""Least height of the peak of test error over either side."""
REMOVED: Final = 0.5
"""Share of the peak's height that ridge takes away."""

HASTIE: Final = "Hastie et al. 2019 (arXiv:1903.08560)"
BELKIN: Final = "Belkin et al. 2018 (arXiv:1812.11118), fig. 2; " + HASTIE + ", section 8"


def _means(frame: pd.DataFrame) -> pd.DataFrame:
    means = groups(frame, ("study", "signal", "decay", "p"))
    return means.dropna(subset=["risk_mean"])


def _away(means: pd.DataFrame) -> pd.DataFrame:
    found = means[(means["gamma"] - 1).abs() > AWAY]
    if found.empty:
        raise Missing(f"no points with |gamma - 1| > {AWAY:g}")
    return found


def _highest(rows: pd.DataFrame, value: str, sign: int = 1) -> pd.Series:
    """Return the row with the largest value; with sign -1 that with the smallest."""
    return rows.iloc[int(np.argmax(sign * rows[value].to_numpy(dtype=float)))]


def _top(curve: pd.Series) -> float:
    """Return where a curve over numbers is largest."""
    return float(curve.index.to_numpy(dtype=float)[int(np.argmax(curve.to_numpy(dtype=float)))])


def agreement(value: str, expected: str, study: str = "") -> Callable[[pd.DataFrame], Verdict]:
    """Return the check that means are within `RELATIVE` of theory away from the peak."""

    def check(frame: pd.DataFrame) -> Verdict:
        rows = frame[frame["study"] == study] if study else frame
        points = _away(_means(rows)).dropna(subset=[expected])
        if points.empty:
            raise Missing(f"no points of {study or 'the study'} away from gamma = 1")
        error = (points[f"{value}_mean"] / points[expected] - 1).to_numpy(dtype=float)
        worst = int(np.abs(error).argmax())
        at = points.iloc[worst]
        measured = (
            f"worst {error[worst]:+.1%} at gamma {at['gamma']:g}, signal {at['signal']:g}; "
            f"{len(points)} points, {points[f'{value}_n'].min()} seeds"
        )
        return Verdict(measured, f"under {RELATIVE:.0%}", bool(abs(error[worst]) < RELATIVE))

    return check


def check_coverage(frame: pd.DataFrame) -> Verdict:
    """Check that intervals contain the exact mean at finite n, everywhere that it is finite."""
    points = _means(frame).dropna(subset=["risk_exact", "risk_low", "risk_high"])
    # Before the peak the error does not depend on the signal: such points are one observation.
    ratio = (points["risk_mean"] / points["risk_exact"]).round(4)
    points = points.assign(ratio=ratio).drop_duplicates(["p", "ratio"])
    if len(points) < 5:
        raise Missing("fewer than 5 points with an interval")
    inside = points["risk_exact"].between(points["risk_low"], points["risk_high"])
    share = float(inside.mean())
    measured = f"{share:.1%}: {int(inside.sum())} of {len(points)} points"
    return Verdict(measured, f"at least {COVERAGE:.0%}", share >= COVERAGE)


def check_peak(frame: pd.DataFrame) -> Verdict:
    """Check that median risk is greatest at gamma = 1, for each signal."""
    found: list[str] = []
    passed = True
    for signal, arm in arms(_means(frame), "signal"):
        if (arm["gamma"] < 1).sum() < 2 or (arm["gamma"] > 1).sum() < 2:
            raise Missing("fewer than 2 points on a side of gamma = 1")
        top = _highest(arm, "risk_median")
        passed &= abs(top["p"] - top["n"]) <= 1
        found.append(f"signal {signal:g}: p = {top['p']:g}, median {top['risk_median']:.3g}")
    return Verdict("; ".join(found), "p within 1 of n", bool(passed))


def check_descent(frame: pd.DataFrame) -> Verdict:
    """Check where risk is least right of the peak: at gamma*, and only for SNR > 1."""
    found: list[str] = []
    passed = True
    for signal, arm in arms(_means(frame), "signal"):
        model = theory.Model(signal, float(arm["noise"].iloc[0]) ** 2)
        right = arm[arm["gamma"] > 1].sort_values("gamma").reset_index(drop=True)
        if len(right) < 3:
            raise Missing("fewer than 3 points right of gamma = 1")
        place = int(right["risk_mean"].to_numpy(dtype=float).argmin())
        best, at = theory.best_ratio(model), right["gamma"]
        # The nearest points of the grid on either side of gamma*.
        after = int(at.searchsorted(best))
        near = {min(max(after + step, 0), len(at) - 1) for step in (-1, 0)}
        deep = bool(right["risk_high"][place] < signal)
        passed &= place in near and (deep if best < at.max() else not deep)
        relation = "below" if deep else "not below"
        found.append(f"signal {signal:g}: gamma {at[place]:g}, {relation} the null risk")
    threshold = "nearest grid points of gamma*; below the null risk for SNR > 1 only"
    return Verdict("; ".join(found), threshold, bool(passed))


def check_sides(frame: pd.DataFrame) -> Verdict:
    """Check on which side of the peak the least risk is, for each decay."""
    found: list[str] = []
    passed = True
    for decay, arm in arms(_means(frame), "decay"):
        signal, noise = float(arm["signal"].iloc[0]), float(arm["noise"].iloc[0]) ** 2
        expected = theory.ridgeless(arm["gamma"], theory.Model(signal, noise, decay))
        should = bool(arm["gamma"].to_numpy()[int(np.argmin(expected))] > 1)
        if len(set((arm["gamma"] > 1).tolist())) < 2:
            raise Missing("points on one side of gamma = 1 only")
        best = _highest(arm, "risk_mean", -1)
        rest = _highest(arm[(arm["gamma"] > 1) != should], "risk_mean", -1)
        clear = bool(best["risk_high"] < rest["risk_low"])
        passed &= bool(best["gamma"] > 1) == should and clear
        found.append(
            f"a = {decay:g}: {best['risk_mean']:.3f} at gamma {best['gamma']:g}, other side "
            f"{rest['risk_mean']:.3f}"
        )
    return Verdict(
        "; ".join(found), "the side of the closed form's minimum, intervals apart", bool(passed)
    )


def check_monotone(frame: pd.DataFrame) -> Verdict:
    """Check that risk with the best ridge never falls as gamma grows."""
    found: list[str] = []
    worst = 0.0
    for signal, arm in arms(_means(frame[frame["study"] == "ridge"]), "signal"):
        curve = arm.sort_values("gamma")["risk_mean"].to_numpy(dtype=float)
        if len(curve) < 3:
            raise Missing("fewer than 3 points with ridge")
        fall = float(np.max(1 - curve / np.maximum.accumulate(curve)))
        worst = max(worst, fall)
        found.append(f"signal {signal:g}: largest fall {fall:.2%}")
    return Verdict("; ".join(found), f"under {RISE:.0%}", worst < RISE)


def check_below(frame: pd.DataFrame) -> Verdict:
    """Check that the best ridge is better than least norm at every gamma, paired over seeds."""
    lowest, total = np.inf, 0
    where = ""
    for (signal, p), arm in frame.groupby(["signal", "p"]):
        seeds = arm.pivot_table(index="seed", columns="study", values="risk").dropna()
        if seeds.shape[1] < 2 or len(seeds) < 2:
            continue
        gap = np.log(seeds["isotropic"]) - np.log(seeds["ridge"])
        low = paired_difference(gap, np.zeros(len(gap))).low
        total += 1
        if low < lowest:
            lowest, where = float(low), f"signal {signal:g}, p = {p:g}"
    if not total:
        raise Missing("no gamma with both ridge and least norm")
    measured = f"least: a factor of at least {np.exp(lowest):.4f} ({where}); {total} points"
    return Verdict(measured, "every interval of the ratio above 1", lowest > 0)


def main_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the number of training rows at which ridge and noise vary."""
    varied = frame.groupby("n")["ridge"].nunique()
    if varied.empty or varied.max() < 2:
        raise Missing("no number of rows with and without ridge")
    return frame[frame["n"] == _top(varied)]


def ridgeless_features(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the minimum-norm rows at the level of label noise that every number of rows has."""
    rows = frame[frame["ridge"] == 0]
    shared = rows.groupby("label_noise")["n"].nunique()
    if shared.empty:
        raise Missing("no minimum-norm runs")
    return rows[close(rows["label_noise"], _top(shared))]


def check_shift(frame: pd.DataFrame) -> Verdict:
    """Check that mean test error is greatest at N = n for each n, well above both sides."""
    found: list[str] = []
    passed, seen = True, 0
    for n, arm in arms(ridgeless_features(frame), "n"):
        curve = arm.groupby("features")["test_error"].mean().dropna().sort_index()
        if n not in curve.index or curve.index[0] == n or curve.index[-1] == n:
            continue
        top, seen = _top(curve), seen + 1
        left, right = curve[curve.index < n].min(), curve.iloc[-1]
        passed &= top == n and curve.max() - max(left, right) >= PEAK_MARGIN
        found.append(f"n = {n:g}: {left:.1%}, peak {curve.max():.1%} at N = {top:g}, {right:.1%}")
    if seen < 2:
        raise Missing("fewer than 2 numbers of rows with features on both sides")
    return Verdict("; ".join(found), f"at N = n, {PEAK_MARGIN:.0%} over both sides", bool(passed))


def check_removed(frame: pd.DataFrame) -> Verdict:
    """Check that ridge takes away most of the peak's height over the widest fit."""
    rows = main_rows(frame)
    noise = float(rows.loc[rows["ridge"] > 0, "label_noise"].iloc[0])
    rows = rows[close(rows["label_noise"], noise)]
    n, end = float(rows["n"].iloc[0]), float(rows["features"].max())
    heights: dict[bool, pd.Series] = {}
    for tuned in (False, True):
        part = rows[(rows["ridge"] > 0) == tuned]
        seeds = part.pivot_table(index="seed", columns="features", values="test_error")
        if n not in seeds or end == n:
            raise Missing("no fit with as many features as rows, or none wider")
        heights[tuned] = (seeds[n] - seeds[end]).dropna()
    both = pd.concat(heights, axis=1).dropna()
    gain = paired_difference((1 - REMOVED) * both[False], both[True])
    measured = (
        f"height over N = {end:g}: {both[False].mean():.1%}, with ridge {both[True].mean():.1%}"
    )
    return Verdict(measured, f"more than {REMOVED:.0%} gone, with interval", bool(gain.low > 0))


def check_wide(frame: pd.DataFrame) -> Verdict:
    """Check that without label noise the widest fit is better than any before the threshold."""
    rows = main_rows(frame)
    rows = rows[(rows["ridge"] == 0) & close(rows["label_noise"], 0.0)]
    if rows.empty:
        raise Missing("no minimum-norm runs without label noise")
    n, end = float(rows["n"].iloc[0]), float(rows["features"].max())
    seeds = rows.pivot_table(index="seed", columns="features", values="test_error").dropna()
    under = -seeds[[width for width in seeds.columns if float(width) < n]].mean()
    if under.empty or end <= n or len(seeds) < 2:
        raise Missing("no fits on both sides of N = n")
    best = _top(under)
    gap = paired_difference(seeds[best], seeds[end])
    measured = f"N = {best:g}: {seeds[best].mean():.1%}; N = {end:g}: {seeds[end].mean():.1%}"
    return Verdict(measured, "lower past the peak, paired interval", bool(gap.low > 0))


def check_norm_peak(frame: pd.DataFrame) -> Verdict:
    """Check that the norm of the coefficients is greatest at N = n."""
    rows = main_rows(frame)
    found, passed = [], True
    for noise, arm in arms(rows[rows["ridge"] == 0], "label_noise"):
        curve = arm.groupby("features")["norm"].median().dropna()
        top = _top(curve)
        passed &= top == float(arm["n"].iloc[0])
        found.append(
            f"{noise:.0%} noise: N = {top:g}, {curve.max() / curve.iloc[-1]:.0f} times the end"
        )
    return Verdict("; ".join(found), "N = n", bool(passed))


_COVERS = Claim(
    "intervals cover the exact mean",
    f"Of the 95 % intervals of mean risk at p not in {{n - 1, n, n + 1}}, at least {COVERAGE:.0%} "
    "contain the exact mean at this n. Points of several signals that coincide, as they do before "
    "the peak, count once.",
    f"{HASTIE}, section 3 and 5",
    check_coverage,
)

ISOTROPIC: Final = (
    Claim(
        "risk follows the closed form",
        f"Where |gamma - 1| > {AWAY:g}, mean risk is within {RELATIVE:.0%} of its exact mean, on "
        "both sides of the peak and for each signal-to-noise ratio.",
        f"{HASTIE}, fig. 2 and section 3",
        agreement("risk", "risk_exact"),
    ),
    _COVERS,
    Claim(
        "peak at gamma = 1",
        "Median risk is greatest at p within 1 of n.",
        f"{HASTIE}, fig. 2",
        check_peak,
    ),
    Claim(
        "second descent below the null risk for SNR > 1",
        "Right of the peak mean risk is least at a grid point next to gamma* = sqrt(SNR) / "
        "(sqrt(SNR) - 1), and below the null risk |beta|^2, interval included; at SNR 1 it is "
        "least at the largest gamma and not below.",
        f"{HASTIE}, section 3 and fig. 2",
        check_descent,
    ),
)

MISSPECIFIED: Final = (
    Claim(
        "misspecified risk follows the closed form",
        f"Where |gamma - 1| > {AWAY:g}, mean risk is within {RELATIVE:.0%} of its exact mean for "
        "each decay a.",
        f"{HASTIE}, section 5",
        agreement("risk", "risk_exact"),
    ),
    _COVERS,
    Claim(
        "slow decay favours overparametrization",
        "The least mean risk is on the side of gamma = 1 on which the closed form has its minimum "
        "over the same grid (past the peak for slow decay, before it for fast), with intervals "
        "apart from the best of the other side.",
        f"{HASTIE}, section 5",
        check_sides,
    ),
)

RIDGE: Final = (
    Claim(
        "ridge follows its limit",
        f"Where |gamma - 1| > {AWAY:g}, mean risk with the best ridge is within {RELATIVE:.0%} of "
        "its asymptotic form.",
        f"{HASTIE}, section 6",
        agreement("risk", "risk_limit", "ridge"),
    ),
    Claim(
        "no peak with the best ridge",
        f"Mean risk with the best ridge never falls by {RISE:.0%} or more under its value at a "
        "smaller gamma.",
        f"{HASTIE}, section 6",
        check_monotone,
    ),
    Claim(
        "ridge is better everywhere",
        "At each gamma the best ridge has the lower risk: the interval of the mean log ratio, "
        "paired over seeds, is above 0.",
        f"{HASTIE}, section 6",
        check_below,
    ),
)

NORM: Final = (
    Claim(
        "norm follows the closed form",
        f"Where |gamma - 1| > {AWAY:g}, the mean of |b|^2 is within {RELATIVE:.0%} of its exact "
        "mean.",
        f"{HASTIE}, section 3",
        agreement("norm", "norm_exact"),
    ),
)

SHIFT: Final = (
    Claim(
        "peak at N = n for each n",
        "Mean test error is greatest at as many features as rows, for each number of rows, and "
        f"there at least {PEAK_MARGIN:.0%} over its minimum on the left and over the widest fit.",
        BELKIN,
        check_shift,
    ),
)

FEATURES: Final = (
    Claim(
        "ridge removes the peak",
        f"Ridge takes away more than {REMOVED:.0%} of the height of test error at N = n over the "
        "widest fit, paired over seeds.",
        BELKIN,
        check_removed,
    ),
    Claim(
        "the widest fit is best",
        "Without label noise test error of the widest minimum-norm fit is under that of the best "
        "fit with fewer features than rows, paired over seeds.",
        BELKIN,
        check_wide,
    ),
    Claim(
        "the norm peaks at N = n",
        "The median norm of the minimum-norm coefficients is greatest at as many features as rows.",
        BELKIN,
        check_norm_peak,
    ),
)
