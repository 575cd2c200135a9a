"""Suites: a YAML file becomes a checked `Suite`, and a `Suite` becomes runs."""

from raybench.suite.expand import Planned, Suite
from raybench.suite.load import load
from raybench.suite.sections import Checkpoint, Limits, Resources, Tune
from raybench.suite.source import Source, parse, parse_value, read

__all__ = [
    "Checkpoint",
    "Limits",
    "Planned",
    "Resources",
    "Source",
    "Suite",
    "Tune",
    "load",
    "parse",
    "parse_value",
    "read",
]
