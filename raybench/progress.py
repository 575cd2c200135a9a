"""What executors report of batches as their runs are stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass
class Progress:
    """What has happened to a batch since the last report.

    Attributes:
        batch_id: which batch.
        statuses: how many of its runs have newly been stored, by status.
        reasons: why runs failed, by first line.
        finished: whether the batch has ended.
        broken: why it ended, or began again, before all of its runs had a row; else empty.
        excused: whether it broke through no fault of its runs: its node was lost. If it has not
            ended, it begins again by itself.
        waiting: what it waits for, if it has not begun because no node has room for it.
        unstored: why the store did not take its rows, which ends the suite; else empty.
        lanes: how its runs were fused.
        share: of the time that the whole phase is expected to take, how much is behind; the
            session fills it in.
    """

    batch_id: str
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    finished: bool = False
    broken: str = ""
    excused: bool = False
    waiting: str = ""
    unstored: str = ""
    lanes: int = 1
    share: float = 0.0

    def plain(self) -> dict[str, Any]:
        """Return it as what JSON can hold, to cross to the driver."""
        counts = {"statuses": dict(self.statuses), "reasons": dict(self.reasons)}
        return {**vars(self), **counts}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Progress:
        """Return what `plain` was made of; other keys are passed over."""
        values = {each.name: plain[each.name] for each in fields(cls)}
        counts = {name: Counter(values[name]) for name in ("statuses", "reasons")}
        return cls(**{**values, **counts})
