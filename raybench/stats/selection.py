"""What a search is expected to find: the best of k random trials."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from raybench.stats.intervals import (
    LEVEL,
    RESAMPLES,
    Floats,
    Interval,
    percentile_interval,
    resample,
)


def selection_weights(trials: int, budgets: Sequence[int]) -> Floats:
    """Return how probably the i-th best of `trials` values is the best of k: [budgets, trials].

    The k values are drawn from the empirical distribution, with replacement (Dodge et al. 2019,
    "Show your work", arXiv:1909.03004, eq. 6, turned to the lowest value):
    ((n - i) / n)^k - ((n - i - 1) / n)^k for i = 0 ... n - 1.
    """
    if trials < 1 or any(k < 1 for k in budgets):
        raise ValueError(f"trials and budgets begin at 1, not {trials} and {list(budgets)}")
    left = np.arange(trials, -1, -1, dtype=np.float64) / trials
    tails = left[None, :] ** np.asarray(budgets, dtype=np.float64)[:, None]
    weights: Floats = tails[:, :-1] - tails[:, 1:]
    return weights


def expected_best(
    values: ArrayLike,
    budgets: Sequence[int],
    reported: ArrayLike | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Interval]:
    """Return the expected score of the best of k random trials, for each k of `budgets`.

    Dodge et al. 2019 (arXiv:1909.03004), in closed form over the empirical distribution, with a
    percentile bootstrap over trials.

    Args:
        values: [trials], what the best is chosen by, lower is better; no nan.
        budgets: numbers of trials k.
        reported: [trials], what is reported of the chosen trial, such as its test score; None for
            `values` themselves.
        level: coverage that is aimed at.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    chosen = np.asarray(values, dtype=np.float64).ravel()
    shown = chosen if reported is None else np.asarray(reported, dtype=np.float64).ravel()
    if np.isnan(chosen).any() or shown.shape != chosen.shape:
        raise ValueError(
            f"each trial needs one value and one reported score: {int(np.isnan(chosen).sum())} of "
            f"{chosen.size} values are missing, {shown.size} scores are reported"
        )
    weights = selection_weights(chosen.size, budgets)
    order = np.argsort(chosen, kind="stable")
    means = _weighted(weights, shown[order])
    # A resample's order is that of the places its trials have among all.
    draws = np.sort(resample(np.random.default_rng(seed), resamples, chosen.size), axis=1)
    boot = _weighted(weights, shown[order][draws])
    return [
        percentile_interval(float(mean), column, chosen.size, level)
        for mean, column in zip(means, boot.T, strict=True)
    ]


def _weighted(weights: Floats, ordered: Floats) -> Floats:
    # [..., trials] -> [..., budgets]; an infinite value that is never chosen does not count.
    finite = np.isfinite(ordered)
    total: Floats = np.where(finite, ordered, 0.0) @ weights.T
    lost = (~finite).astype(np.float64) @ weights.T
    result: Floats = np.where(lost > 0, np.inf, total)
    return result
