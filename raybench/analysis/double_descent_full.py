"""Figures of the suite `double-descent`, in the order of the paper."""

from __future__ import annotations

from raybench.analysis import (
    complexity,
    descent_epoch,
    descent_features,
    descent_model,
    descent_sample,
)
from raybench.analysis.figure import Figure

FIGURES: dict[str, Figure] = {
    **descent_model.FIGURES,
    **descent_epoch.FIGURES,
    **descent_sample.FIGURES,
    **descent_features.FIGURES,
    **complexity.FIGURES,
}
