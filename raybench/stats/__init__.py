"""Statistics over seeds: intervals, ranks, tests, profiles, and how many seeds it takes.

Every resampling draws from a generator made of an explicit `seed`: the same table gives the same
numbers. Lower scores are better throughout. Pure numpy and scipy.
"""

from raybench.stats.intervals import (
    LEVEL,
    RESAMPLES,
    Floats,
    Interval,
    argmin_draws,
    argmin_interval,
    deviation_interval,
    iqm,
    mean_interval,
    median_interval,
    paired_difference,
    percentile_interval,
    probability_of_improvement,
    slope,
)
from raybench.stats.power import paired_power, seeds_needed
from raybench.stats.profiles import (
    MAX_RATIO,
    first_times,
    median_times,
    performance_profile,
    performance_ratios,
    profile_score,
    profile_scores,
)
from raybench.stats.ranks import (
    Friedman,
    cliques,
    friedman,
    holm,
    mean_ranks,
    nemenyi_difference,
    signed_rank,
)
from raybench.stats.selection import expected_best, selection_weights

__all__ = [
    "LEVEL",
    "MAX_RATIO",
    "RESAMPLES",
    "Floats",
    "Friedman",
    "Interval",
    "argmin_draws",
    "argmin_interval",
    "cliques",
    "deviation_interval",
    "expected_best",
    "first_times",
    "friedman",
    "holm",
    "iqm",
    "mean_interval",
    "mean_ranks",
    "median_interval",
    "median_times",
    "nemenyi_difference",
    "paired_difference",
    "paired_power",
    "percentile_interval",
    "performance_profile",
    "performance_ratios",
    "probability_of_improvement",
    "profile_score",
    "profile_scores",
    "seeds_needed",
    "selection_weights",
    "signed_rank",
    "slope",
]
