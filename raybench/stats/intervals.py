"""Intervals over seeds: of means, of differences, of where a curve is lowest."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy  # its parts are imported when used: scipy.stats takes half a second
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Method = Literal["bootstrap", "t"]

LEVEL = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean (or another estimate) with bounds.

    Attributes:
        mean: the estimate.
        low: lower bound; nan where the values allow none.
        high: upper bound; nan where the values allow none.
        n: how many values it rests on.
        method: how the bounds were made, in words fit for a caption.
    """

    mean: float
    low: float
    high: float
    n: int
    method: str

    @property
    def bounded(self) -> bool:
        """Return whether there are bounds at all."""
        return not (math.isnan(self.low) or math.isnan(self.high))


def mean_interval(
    values: ArrayLike,
    level: float = LEVEL,
    method: Method = "bootstrap",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the mean of independent values with an interval.

    `bootstrap` is the bias-corrected and accelerated interval of Efron 1987 ("Better bootstrap
    confidence intervals", JASA 82), by `scipy.stats.bootstrap`; `t` is Student's.
    One value has no interval: its bounds are nan and `method` says so. Equal values give an
    interval of width zero.

    Args:
        values: finite numbers, one a seed; diverged runs are the caller's to count.
        level: coverage that is aimed at.
        method: bootstrap or t.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    sample = np.asarray(values, dtype=np.float64).ravel()
    if not np.isfinite(sample).all():
        raise ValueError("an interval needs finite values; leave diverged runs out and count them")
    if sample.size < 2:
        mean = float(sample[0]) if sample.size else math.nan
        return Interval(mean, math.nan, math.nan, sample.size, "no interval: one seed")
    mean = float(sample.mean())
    name = _percent(level)
    if np.ptp(sample) == 0.0:
        return Interval(mean, mean, mean, sample.size, f"{name} interval of equal values")
    if method == "t":
        quantile = float(scipy.special.stdtrit(sample.size - 1, (1.0 + level) / 2.0))
        half = quantile * float(sample.std(ddof=1)) / math.sqrt(sample.size)
        return Interval(mean, mean - half, mean + half, sample.size, f"{name} t interval")
    kind = "BCa"
    low, high = _bootstrap_mean(sample, level, kind, resamples, seed)
    if not (math.isfinite(low) and math.isfinite(high)):
        kind = "percentile"  # BCa is undefined where the jackknife has no spread
        low, high = _bootstrap_mean(sample, level, kind, resamples, seed)
    return Interval(mean, low, high, sample.size, f"{name} {kind} bootstrap")


def _bootstrap_mean(
    sample: Floats, level: float, kind: str, resamples: int, seed: int
) -> tuple[float, float]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        result = scipy.stats.bootstrap(
            (sample,),
            np.mean,
            confidence_level=level,
            n_resamples=resamples,
            method=kind,
            rng=np.random.default_rng(seed),
        )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def iqm(values: ArrayLike) -> float:
    """Return the interquartile mean: the mean of the middle half.

    Agarwal et al. 2021 ("Deep RL at the edge of the statistical precipice", arXiv:2108.13264).
    A quarter of the values, rounded down, is cut at each end.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean()) if ordered.size else math.nan


def median_interval(
    values: ArrayLike, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return the median with a percentile bootstrap interval (Efron and Tibshirani 1993, ch. 13).

    Args:
        values: numbers without nan; infinite ones are larger than any other.
        level: coverage that is aimed at.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    sample = np.asarray(values, dtype=np.float64).ravel()
    if sample.size < 2:
        median = float(sample[0]) if sample.size else math.nan
        return Interval(median, math.nan, math.nan, sample.size, "no interval: one value")
    draws = resample(np.random.default_rng(seed), resamples, sample.size)
    medians = np.median(sample[draws], axis=1)
    return percentile_interval(float(np.median(sample)), medians, sample.size, level)


def deviation_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Return the standard deviation (n - 1) with its chi-squared interval for normal values.

    How far a spread over 10 seeds can be trusted: its upper bound is 1.8 times the estimate.
    """
    sample = np.asarray(values, dtype=np.float64).ravel()
    if sample.size < 2:
        return Interval(math.nan, math.nan, math.nan, sample.size, "no interval: one seed")
    free = sample.size - 1
    deviation = float(sample.std(ddof=1))
    tail = (1.0 - level) / 2.0
    low, high = np.sqrt(free / scipy.stats.chi2.ppf([1.0 - tail, tail], free))
    name = f"{_percent(level)} chi-squared interval"
    return Interval(deviation, deviation * float(low), deviation * float(high), sample.size, name)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the mean of `a - b`, paired by position (the seed), with its BCa interval.

    The paired bootstrap of Efron and Tibshirani 1993 (ch. 8): pairs are resampled, so what a seed
    does to both arms (its data, its initial weights) cancels.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"pairs need equal shapes, not {left.shape} and {right.shape}")
    return mean_interval(left - right, level, "bootstrap", resamples, seed)


def probability_of_improvement(
    a: ArrayLike,
    b: ArrayLike,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the probability that a run of `a` scores lower than one of `b`; ties count half.

    Mann and Whitney's U over its maximum (1947), as in Agarwal et al. 2021 (arXiv:2108.13264),
    with a percentile bootstrap over both samples. Infinite scores (diverged runs) are worst.
    """
    left, right = np.asarray(a, dtype=np.float64).ravel(), np.asarray(b, dtype=np.float64).ravel()
    wins = (left[:, None] < right) + 0.5 * (left[:, None] == right)
    rng = np.random.default_rng(seed)
    rows = resample(rng, resamples, left.size)
    columns = resample(rng, resamples, right.size)
    boot = wins[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2))
    return percentile_interval(float(wins.mean()), boot, left.size + right.size, level)


def argmin_draws(
    curves: ArrayLike, grid: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """Return where the mean curve is lowest in each bootstrap sample of seeds: [resamples].

    Curves with the same number of seeds and the same `seed` are resampled alike, so draws of
    several conditions with shared seeds are paired.

    Args:
        curves: [seeds, points]; infinite where a run diverged, nan where it is missing.
        grid: the location of each point.
        resamples: number of bootstrap samples.
        seed: of the bootstrap.
    """
    table = np.asarray(curves, dtype=np.float64)
    draws = resample(np.random.default_rng(seed), resamples, table.shape[0])
    lowest = _mean_curve(table[draws], axis=1).argmin(axis=-1)
    locations: Floats = np.asarray(grid, dtype=np.float64)[lowest]
    return locations


def argmin_interval(
    curves: ArrayLike,
    grid: Sequence[float],
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return where the mean over seeds is lowest, with a percentile bootstrap interval.

    The percentile method of Efron and Tibshirani 1993 (ch. 13), which respects that the location
    is a point of the grid. Arguments as in `argmin_draws`.
    """
    table = np.asarray(curves, dtype=np.float64)
    best = float(np.asarray(grid, dtype=np.float64)[_mean_curve(table, axis=0).argmin()])
    if table.shape[0] < 2:
        return Interval(best, math.nan, math.nan, table.shape[0], "no interval: one seed")
    draws = argmin_draws(table, grid, resamples, seed)
    return percentile_interval(best, draws, table.shape[0], level, discrete=True)


def slope(x: ArrayLike, y: ArrayLike) -> Floats:
    """Return the least-squares slope of log y on log x, over the last axis of `y`."""
    log_x: Floats = np.log(np.asarray(x, dtype=np.float64))
    log_y: Floats = np.log(np.asarray(y, dtype=np.float64))
    centred: Floats = log_x - log_x.mean()
    slopes: Floats = np.asarray((log_y * centred).sum(axis=-1) / (centred**2).sum())
    return slopes


def percentile_interval(
    estimate: float, draws: ArrayLike, n: int, level: float = LEVEL, *, discrete: bool = False
) -> Interval:
    """Return the percentile interval of bootstrap `draws` around an estimate from `n` values.

    With `discrete` the bounds are among the draws, as for points of a grid; so they are where a
    draw is infinite, which has no place between two others.
    """
    tail = (1.0 - level) / 2.0
    values = np.asarray(draws, dtype=np.float64)
    among = discrete or not np.isfinite(values).all()
    kind: Literal["inverted_cdf", "linear"] = "inverted_cdf" if among else "linear"
    low, high = np.quantile(values, [tail, 1.0 - tail], method=kind)
    return Interval(estimate, float(low), float(high), n, f"{_percent(level)} percentile bootstrap")


def resample(rng: np.random.Generator, resamples: int, size: int) -> NDArray[np.int64]:
    """Return which of `size` values each bootstrap sample holds: [resamples, size]."""
    return rng.integers(0, size, (resamples, size))


def _mean_curve(table: Floats, axis: int) -> Floats:
    # A point where no seed has a value is never the lowest.
    there = ~np.isnan(table)
    count = there.sum(axis=axis)
    total = np.where(there, table, 0.0).sum(axis=axis)
    means: Floats = np.where(count > 0, total / np.maximum(count, 1), np.inf)
    return means


def _percent(level: float) -> str:
    return f"{100 * level:g} %"
