"""Suites: a YAML file becomes a checked `Suite`, and a `Suite` becomes runs."""

from raybench.suite.expand import Planned, Suite
from raybench.suite.load import load
from raybench.suite.sections import Limits, Resources, Tune
from raybench.suite.source import Source, parse, parse_value, read

__all__ = [
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
