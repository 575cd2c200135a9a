"""How many seeds it takes to tell two methods apart: the power of the paired t-test."""

from __future__ import annotations

import math

import scipy

MOST = 1_000_000
"""More seeds than this are as good as never."""


def paired_power(effect: float, seeds: int, alpha: float = 0.05) -> float:
    """Return the power of the two-sided paired t-test.

    Cohen 1988 ("Statistical power analysis for the behavioral sciences", ch. 2), by the noncentral
    t distribution with seeds - 1 degrees of freedom and noncentrality effect * sqrt(seeds).

    Args:
        effect: mean of the differences over their standard deviation.
        seeds: pairs.
        alpha: level of the test.
    """
    if seeds < 2:
        return 0.0
    critical = float(scipy.stats.t.ppf(1.0 - alpha / 2.0, seeds - 1))
    shift = abs(effect) * math.sqrt(seeds)
    if shift > critical + 12.0:  # scipy's noncentral t gives nan far out, where power is 1
        return 1.0
    above = float(scipy.stats.nct.sf(critical, seeds - 1, shift))
    return above + float(scipy.stats.nct.cdf(-critical, seeds - 1, shift))


def seeds_needed(effect: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return how many pairs give the paired t-test this power; infinite above a million.

    Args:
        effect: mean of the differences over their standard deviation.
        power: probability that a difference of this size is found.
        alpha: level of the two-sided test.
    """
    if math.isnan(effect):
        return math.nan
    if effect == 0.0:
        return math.inf
    high = 2
    while paired_power(effect, high, alpha) < power:
        high *= 2
        if high > MOST:
            return math.inf
    low = max(high // 2, 1)
    while high - low > 1:
        middle = (low + high) // 2
        if paired_power(effect, middle, alpha) < power:
            low = middle
        else:
            high = middle
    return float(high)
