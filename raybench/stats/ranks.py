"""Which methods are told apart over many problems: mean ranks and tests on ranks.

Demsar 2006 ("Statistical comparisons of classifiers over multiple data sets", JMLR 7): ranks in
blocks, Friedman's test over all methods, Nemenyi's critical difference between any two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike

from raybench.stats.intervals import (
    LEVEL,
    RESAMPLES,
    Floats,
    Interval,
    percentile_interval,
    resample,
)


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
            blocks.append(scipy.stats.rankdata(whole, axis=0))
    if not blocks:
        empty = Interval(math.nan, math.nan, math.nan, 0, "no interval: no whole block")
        return [empty] * table.shape[0]
    rng = np.random.default_rng(seed)
    boot = np.mean([_resampled_means(block, rng, resamples) for block in blocks], axis=0)
    means = np.mean([block.mean(axis=1) for block in blocks], axis=0)
    n = sum(block.shape[1] for block in blocks)
    if max(block.shape[1] for block in blocks) < 2:
        return [Interval(float(m), math.nan, math.nan, n, "no interval: one seed") for m in means]
    return [
        percentile_interval(float(m), draws, n, level)
        for m, draws in zip(means, boot.T, strict=True)
    ]


def _resampled_means(block: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    # [methods, seeds] -> [resamples, methods]
    draws = resample(rng, resamples, block.shape[1])
    means: Floats = block[:, draws].mean(axis=2).T
    return means


@dataclass(frozen=True)
class Friedman:
    """Friedman's test that all methods have the same ranks.

    Attributes:
        ranks: mean rank of each method, 1 is best.
        statistic: chi-squared with (methods - 1) degrees of freedom, corrected for ties.
        p_value: of that statistic.
        f_statistic: the less conservative form of Iman and Davenport 1980; infinite where all
            blocks agree.
        f_p_value: of that statistic.
        blocks: how many blocks it rests on.
    """

    ranks: tuple[float, ...]
    statistic: float
    p_value: float
    f_statistic: float
    f_p_value: float
    blocks: int


def friedman(scores: ArrayLike) -> Friedman:
    """Return Friedman's test (1937) with the correction of Iman and Davenport (1980).

    Demsar 2006, section 3.2.2. Infinite scores rank last.

    Args:
        scores: [methods, blocks], lower is better, without nan.

    Raises:
        ValueError: fewer than 2 methods or 2 blocks, or a score is missing.
    """
    table = np.asarray(scores, dtype=np.float64)
    k, n = table.shape
    if k < 2 or n < 2 or np.isnan(table).any():
        raise ValueError(
            f"Friedman's test needs whole blocks, at least 2, of at least 2 methods; given {k} "
            f"methods in {n} blocks with {int(np.isnan(table).sum())} missing: leave those out"
        )
    ranks = scipy.stats.rankdata(table, axis=0)
    means = ranks.mean(axis=1)
    ties = sum(float((counts**3 - counts).sum()) for counts in map(_repeats, table.T))
    spread = 1.0 - ties / (n * k * (k * k - 1))
    if spread <= 0:
        return Friedman(tuple(means.tolist()), 0.0, 1.0, 0.0, 1.0, n)
    plain = 12 * n / (k * (k + 1)) * float((means**2).sum()) - 3 * n * (k + 1)
    chi2 = max(plain, 0.0) / spread
    rest = n * (k - 1) - chi2
    f = (n - 1) * chi2 / rest if rest > 1e-9 * chi2 else math.inf
    f_p = float(scipy.stats.f.sf(f, k - 1, (k - 1) * (n - 1)))
    return Friedman(tuple(means.tolist()), chi2, float(scipy.stats.chi2.sf(chi2, k - 1)), f, f_p, n)


def _repeats(column: Floats) -> Floats:
    return np.unique(column, return_counts=True)[1].astype(np.float64)


def nemenyi_difference(methods: int, blocks: int, alpha: float = 0.05) -> float:
    """Return by how much two mean ranks must differ: Nemenyi's critical difference.

    Demsar 2006, section 3.2.2: q_alpha sqrt(k (k + 1) / (6 N)), where q_alpha is the studentized
    range over infinitely many degrees of freedom divided by the square root of 2.
    """
    if methods < 2 or blocks < 1:
        raise ValueError(f"a difference needs 2 methods and 1 block, not {methods} and {blocks}")
    q = float(scipy.stats.studentized_range.ppf(1.0 - alpha, methods, np.inf)) / math.sqrt(2.0)
    return q * math.sqrt(methods * (methods + 1) / (6.0 * blocks))


def cliques(ranks: Sequence[float], difference: float) -> list[tuple[int, ...]]:
    """Return the largest sets of methods whose mean ranks differ by less than `difference`.

    These are the bars of a critical-difference diagram (Demsar 2006, fig. 1): two or more methods
    each, as positions in `ranks`, best first; no set lies within another.
    """
    order = sorted(range(len(ranks)), key=lambda place: (ranks[place], place))
    found: list[tuple[int, ...]] = []
    reach = 0
    for start, first in enumerate(order):
        end = start
        while end < len(order) and ranks[order[end]] - ranks[first] < difference:
            end += 1
        if end > max(reach, start + 1):
            found.append(tuple(order[start:end]))
        reach = max(reach, end)
    return found


def signed_rank(a: ArrayLike, b: ArrayLike) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test (1945) on pairs.

    Exact where the pairs allow it (no ties, few pairs; scipy's `auto`), else the normal
    approximation. Pairs with a nan are left out; without any difference it is 1.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"pairs need equal shapes, not {left.shape} and {right.shape}")
    # Two infinite scores are a tie.
    with np.errstate(invalid="ignore"):
        difference = np.where(left == right, 0.0, left - right)
    difference = difference[~np.isnan(difference)]
    if not difference.any():
        return 1.0
    return float(scipy.stats.wilcoxon(difference).pvalue)


def holm(p_values: ArrayLike) -> Floats:
    """Return p-values corrected for being many: Holm's step-down method (1979).

    The chance of any false rejection stays below the level at which they are read.
    """
    given = np.asarray(p_values, dtype=np.float64).ravel()
    order = np.argsort(given, kind="stable")
    raised = given[order] * np.arange(given.size, 0, -1)
    corrected = np.empty_like(given)
    corrected[order] = np.minimum(np.maximum.accumulate(raised), 1.0)
    return corrected
