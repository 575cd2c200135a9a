"""Figures and claims: one module for each suite that has its own, `generic` for the others."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raybench.errors import MissingError

if TYPE_CHECKING:
    from raybench.analysis.figure import Figure

GROUP = "raybench.figures"
"""Entry points: suite name to a module with FIGURES, or to such a mapping."""

MODULES = {
    "quickstart": "quickstart",
    "double-descent-width": "double_descent_width",
    "width-sweep": "width_sweep",
    "optimizer-quick": "optimizer_quick",
    "ridgeless": "ridgeless",
    "random-labels": "random_labels",
    "double-descent": "double_descent_full",
    "wide-limits": "wide_limits",
    "crowded-valley": "crowded_valley",
}
"""Suite name to the module under `raybench.analysis` with its FIGURES."""


def figures_for(suite: str) -> dict[str, Figure]:
    """Return the figures of a suite by name: its own, a plug-in's, or the generic ones."""
    name = suite.replace("_", "-")
    if name in MODULES:
        return _of(importlib.import_module(f"raybench.analysis.{MODULES[name]}"), suite)
    points = {point.name.replace("_", "-"): point for point in _points()}
    if name in points:
        try:
            found = points[name].load()
        except ImportError as error:
            raise MissingError(
                f"the figures of {suite!r} ({points[name].value}) cannot be imported: {error}"
            ) from error
        return _of(found, suite)
    return _of(importlib.import_module("raybench.analysis.generic"), suite)


def _points() -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=GROUP)


def _of(found: Any, suite: str) -> dict[str, Figure]:
    figures = getattr(found, "FIGURES", found)
    if not isinstance(figures, Mapping):
        raise MissingError(f"the figures of {suite!r} are no mapping from name to Figure")
    return dict(figures)
