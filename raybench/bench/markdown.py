"""Rows as a dated table for `benchmarks/RESULTS.md`: measured on what, and under which load."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raybench.session import environment


def load() -> str:
    """Return how many processes wanted a core over the last minute; empty if not known."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""


def table(rows: Sequence[Mapping[str, Any]], load: str) -> str:
    """Return rows as a table under a line with date, commit, hardware, versions and load.

    Args:
        rows: with the same keys.
        load: of the machine while they were measured.
    """
    about = environment()
    found = ", ".join(
        f"{name} {version}" for name, version in json.loads(about["versions"]).items()
    )
    line = (
        f"{dt.datetime.now(dt.UTC).date()}, commit {about['git'] or 'unknown'}, "
        f"{about['machine']}{_processor()}, {found}, load {load}:"
    )
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([_cell(row[name]) for name in names] for row in rows)]
    return "\n".join(["", line, "", *(f"| {' | '.join(cells)} |" for cells in lines), ""])


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    for row in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        if row.startswith("model name"):
            return f" {row.partition(':')[2].strip()}"
    return ""


def _cell(value: object) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
