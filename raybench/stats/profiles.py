"""How fast methods reach a target, over problems: time to target and performance profiles.

Dolan and More 2002 ("Benchmarking optimization software with performance profiles", Mathematical
Programming 91), scored as MLCommons AlgoPerf does (Dahl et al. 2023, "Benchmarking neural network
training algorithms", arXiv:2306.07179, section 4).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raybench.stats.intervals import (
    LEVEL,
    RESAMPLES,
    Floats,
    Interval,
    percentile_interval,
    resample,
)

MAX_RATIO = 4.0
"""Up to how many times the fastest method's time AlgoPerf's profile goes."""


def first_times(
    run: ArrayLike, time: ArrayLike, score: ArrayLike, target: ArrayLike, runs: int
) -> Floats:
    """Return when each run first scores at or below its target: [runs]; infinite if never.

    Nothing is interpolated between measurements.

    Args:
        run: [n] whole numbers below `runs`: which run a measurement is of.
        time: [n], in any order.
        score: [n], lower is better.
        target: [n], or one for all.
        runs: how many runs there are.
    """
    owner = np.asarray(run, dtype=np.int64)
    met = np.asarray(score, dtype=np.float64) <= np.asarray(target, dtype=np.float64)
    first = np.full(runs, np.inf)
    np.minimum.at(first, owner[met], np.asarray(time, dtype=np.float64)[met])
    return first


def performance_ratios(times: ArrayLike) -> Floats:
    """Return each time over the fastest on its problem: [..., methods, problems].

    A problem that no method solves is infinite for all. A time of 0 (the untrained network meets
    the target) is the fastest: 1 for those that have it, infinite for the others.

    Args:
        times: [..., methods, problems], infinite where the target was missed.
    """
    table = np.asarray(times, dtype=np.float64)
    fastest = table.min(axis=-2, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.where(table == fastest, 1.0, table / fastest)
    result: Floats = np.where(np.isfinite(table), ratios, np.inf)
    return result


def performance_profile(ratios: ArrayLike, at: ArrayLike) -> Floats:
    """Return the share of problems solved within `at` times the fastest: [methods, points].

    Args:
        ratios: [methods, problems].
        at: [points], from 1.
    """
    within = np.asarray(ratios, dtype=np.float64)[:, :, None] <= np.asarray(at, dtype=np.float64)
    shares: Floats = within.mean(axis=1)
    return shares


def profile_score(ratios: ArrayLike, most: float = MAX_RATIO) -> Floats:
    """Return AlgoPerf's score: the mean height of the profile from 1 to `most`, in [0, 1].

    The integral of the steps is exact: a problem solved within r adds (most - r) / (most - 1).

    Args:
        ratios: [..., methods, problems].
        most: the right end of the profile.
    """
    table = np.asarray(ratios, dtype=np.float64)
    scores: Floats = (np.clip(most - table, 0.0, None) / (most - 1.0)).mean(axis=-1)
    return scores


def profile_scores(
    times: ArrayLike,
    most: float = MAX_RATIO,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Return each method's score with a percentile bootstrap interval over studies.

    A method's time on a problem is the median over studies; studies are resampled within each
    problem, for all methods together. The target is taken as given.

    Args:
        times: [methods, problems, studies], infinite where missed, nan where there is no study.
        most: the right end of the profile.
        level: coverage that is aimed at.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    table = np.asarray(times, dtype=np.float64)
    scores = profile_score(performance_ratios(median_times(table)), most)
    studies = table.shape[2]
    if studies < 2:
        return [
            Interval(float(s), math.nan, math.nan, studies, "no interval: one study")
            for s in scores
        ]
    rng = np.random.default_rng(seed)
    medians = np.stack(
        [
            median_times(table[:, problem][:, _draws(rng, table[:, problem], resamples)])
            for problem in range(table.shape[1])
        ],
        axis=-1,
    )
    boot = profile_score(performance_ratios(medians.swapaxes(0, 1)), most)
    return [
        percentile_interval(float(score), draws, studies, level)
        for score, draws in zip(scores, boot.T, strict=True)
    ]


def _draws(rng: np.random.Generator, problem: Floats, resamples: int) -> NDArray[np.int64]:
    # Out of the studies that any method has on this problem.
    there = np.flatnonzero(~np.isnan(problem).all(axis=0))
    if not there.size:
        return np.zeros((resamples, 1), dtype=np.int64)
    chosen: NDArray[np.int64] = there[resample(rng, resamples, there.size)]
    return chosen


def median_times(times: ArrayLike) -> Floats:
    """Return the median over the last axis: nan does not count, nothing at all is infinite."""
    table = np.sort(np.asarray(times, dtype=np.float64), axis=-1)  # nan comes last
    count = (~np.isnan(table)).sum(axis=-1)[..., None]
    lower = np.take_along_axis(table, np.maximum((count - 1) // 2, 0), axis=-1)
    upper = np.take_along_axis(table, np.minimum(count // 2, table.shape[-1] - 1), axis=-1)
    medians: Floats = np.where(count > 0, (lower + upper) / 2.0, np.inf)[..., 0]
    return medians
