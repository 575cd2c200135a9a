"""Figures of the suite `wide-limits`: what wide networks tend to, before and in training."""

from raybench.analysis import nngp, wide_limits_correlators, wide_limits_training
from raybench.analysis.figure import Figure

FIGURES: dict[str, Figure] = {
    **nngp.FIGURES,
    **wide_limits_correlators.FIGURES,
    **wide_limits_training.FIGURES,
}
