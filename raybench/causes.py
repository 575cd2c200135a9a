"""Why runs did not end as done: the same cause with other numbers is one cause."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pandas as pd

# Sizes, addresses and ids differ from run to run; names (float32) and places (train.py:12) do not.
_NUMBERS: Final = re.compile(
    r"\b0x[0-9a-f]+\b|\b[0-9a-f]{16}\b|(?<![\w:.])-?\d+(?:[.,]\d+|x\d+)*(?:e[+-]?\d+)?"
)


@dataclass(frozen=True)
class Failure:
    """Runs that ended the same way.

    Attributes:
        status: diverged, failed or skipped.
        reason: the cause they share.
        count: how many.
        run_ids: some of them.
    """

    status: str
    reason: str
    count: int
    run_ids: tuple[str, ...] = ()


def cause(reason: str) -> str:
    """Return what runs with this reason share: its last line, without the numbers that differ."""
    lines = reason.strip().splitlines()
    return _NUMBERS.sub("…", lines[-1].strip())[:300] if lines else ""


def failures(runs: pd.DataFrame, examples: int = 3) -> list[Failure]:
    """Return the runs that are not done, grouped by status and cause, the most frequent first."""
    lost = runs[~runs["status"].astype(str).isin(["done", "stopped"])]
    said = lost["reason"].fillna("").astype(str) if "reason" in lost else lost["status"].map(str)
    known = {reason: cause(reason) for reason in said.unique()}
    groups = lost["run_id"].astype(str).groupby([lost["status"].astype(str), said.map(known)])
    found = [
        Failure(str(status), str(shared) or "no reason given", len(ids), tuple(ids.head(examples)))
        for (status, shared), ids in groups
    ]
    return sorted(found, key=lambda group: (-group.count, group.status, group.reason))
