"""Statistics over seeds: intervals, ranks and where a curve is lowest.

Every resampling draws from a generator made of an explicit `seed`: the same table gives the same
numbers. Lower scores are better throughout. Pure numpy and scipy.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

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
        low, high = stats.t.interval(level, sample.size - 1, mean, stats.sem(sample))
        return Interval(mean, float(low), float(high), sample.size, f"{name} t interval")
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
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
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
    rows = _draws(rng, resamples, left.size)
    columns = _draws(rng, resamples, right.size)
    boot = wins[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2))
    return _percentiles(float(wins.mean()), boot, left.size + right.size, level)


def mean_ranks(
    scores: ArrayLike, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> list[Interval]:
    """Return the mean rank of each method with a percentile bootstrap interval over seeds.

    Methods are ranked (1 is best, ties share) inside each block of one problem and one seed, as
    in Friedman's test (1937; Demsar 2006, JMLR 7), then averaged over seeds and problems. Seeds
    are resampled within each problem, all methods together (the stratified bootstrap of Agarwal
    et al. 2021). Infinite scores rank last; a block with a nan (a run that is missing) is left out.

    Args:
        scores: [methods, problems, seeds], lower is better.
        level: coverage that is aimed at.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    table = np.asarray(scores, dtype=np.float64)
    blocks: list[Floats] = []
    for problem in range(table.shape[1]):
        whole = table[:, problem, ~np.isnan(table[:, problem]).any(axis=0)]
        if whole.shape[1]:
            blocks.append(stats.rankdata(whole, axis=0))
    if not blocks:
        empty = Interval(math.nan, math.nan, math.nan, 0, "no interval: no whole block")
        return [empty] * table.shape[0]
    rng = np.random.default_rng(seed)
    boot = np.mean([_resampled_means(block, rng, resamples) for block in blocks], axis=0)
    means = np.mean([block.mean(axis=1) for block in blocks], axis=0)
    n = sum(block.shape[1] for block in blocks)
    if max(block.shape[1] for block in blocks) < 2:
        return [Interval(float(m), math.nan, math.nan, n, "no interval: one seed") for m in means]
    return [_percentiles(float(m), draws, n, level) for m, draws in zip(means, boot.T, strict=True)]


def _resampled_means(block: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    # [methods, seeds] -> [resamples, methods]
    draws = _draws(rng, resamples, block.shape[1])
    means: Floats = block[:, draws].mean(axis=2).T
    return means


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
    draws = _draws(np.random.default_rng(seed), resamples, table.shape[0])
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
    return _percentiles(best, draws, table.shape[0], level, discrete=True)


def slope(x: ArrayLike, y: ArrayLike) -> Floats:
    """Return the least-squares slope of log y on log x, over the last axis of `y`."""
    log_x: Floats = np.log(np.asarray(x, dtype=np.float64))
    log_y: Floats = np.log(np.asarray(y, dtype=np.float64))
    centred: Floats = log_x - log_x.mean()
    slopes: Floats = np.asarray((log_y * centred).sum(axis=-1) / (centred**2).sum())
    return slopes


def percentile_interval(
    estimate: float, draws: ArrayLike, n: int, level: float = LEVEL
) -> Interval:
    """Return the percentile interval of bootstrap `draws` around an estimate from `n` values."""
    return _percentiles(estimate, np.asarray(draws, dtype=np.float64), n, level)


def _percentiles(
    estimate: float, draws: Floats, n: int, level: float, *, discrete: bool = False
) -> Interval:
    tail = (1.0 - level) / 2.0
    kind: Literal["inverted_cdf", "linear"] = "inverted_cdf" if discrete else "linear"
    low, high = np.quantile(draws, [tail, 1.0 - tail], method=kind)
    return Interval(estimate, float(low), float(high), n, f"{_percent(level)} percentile bootstrap")


def _draws(rng: np.random.Generator, resamples: int, size: int) -> NDArray[np.int64]:
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
