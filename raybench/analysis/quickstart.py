"""Figures of the suite `quickstart`."""

from __future__ import annotations

from raybench.analysis.double_descent import FIGURES

__all__ = ["FIGURES"]
