"""Figures of the suite `double-descent-width`."""

from __future__ import annotations

from raybench.analysis.double_descent import FIGURES

__all__ = ["FIGURES"]
