"""What the runs of a group record: metrics, arrays and divergence, without waiting for a device.

A procedure writes vectors with one number per lane; they are read back once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from raybench.checkpoints import Saves
from raybench.lanes import Lanes
from raybench.spec import Spec, Steps


class Times(Spec):
    """When to record; the untrained network and the end are always recorded.

    Set one of the fields; with none, only the start and the end are recorded.
    """

    log: int | None = Field(default=None, ge=1)
    """About this many times, equally spaced on a logarithmic scale of steps."""
    linear: int | None = Field(default=None, ge=1)
    """This many times, equally spaced."""
    every: Steps | None = None
    """Each time this much has been trained."""

    def steps(self, total: int, epoch: int) -> list[int]:
        """Return the steps to record at, from 0 to `total`, with `epoch` steps in an epoch."""
        inner: set[int] = set()
        if self.log and total > 0:
            inner |= {round(total ** (i / self.log)) for i in range(self.log)}
        if self.linear:
            inner |= {round(total * i / self.linear) for i in range(1, self.linear)}
        if self.every:
            inner |= set(range(0, total, max(self.every.resolve(epoch), 1)))
        return sorted(inner | {0, total})


@dataclass(frozen=True)
class Metric:
    """One number of one run."""

    step: int
    epoch: float
    split: str
    name: str
    value: float


@dataclass(frozen=True)
class Array:
    """An array of one run, as a list of numbers with its shape."""

    step: int
    name: str
    shape: list[int]
    values: list[float]


@dataclass
class Account:
    """What one run of a group has to show.

    Attributes:
        steps: to where it was trained.
        diverged_at: the first step whose loss was not finite, or None.
        stopped: why it was stopped before its end; empty if it was not.
        metrics: up to the step before it diverged, or the one at which it was stopped.
    """

    steps: int = 0
    diverged_at: int | None = None
    stopped: str = ""
    metrics: list[Metric] = field(default_factory=list)
    arrays: list[Array] = field(default_factory=list)
    facts: dict[str, int | float | str] = field(default_factory=dict)


_Members = tuple[int, ...]
_WATCHED = 512  # losses that are looked at together; each look waits for the device


class Recorder:
    """Collects what a group of K runs measures.

    Lanes that have left the group (`Lanes.narrow`) keep what they had: `lanes.members` says whose
    numbers a vector holds.

    Args:
        lanes: the runs' lanes.
        saves: the group's checkpoints; None to write none.

    Attributes:
        saves: see above. A procedure that knows nothing of them begins at the start each time.
    """

    def __init__(self, lanes: Lanes, saves: Saves | None = None) -> None:
        self.saves = saves
        self.ranks = lanes.ranks
        self._lanes = lanes
        self._diverged: list[int | None] = [None] * lanes.size
        self._losses: list[tuple[int, Tensor]] = []
        self._stopped: list[tuple[int, str] | None] = [None] * lanes.size
        self._metrics: list[tuple[_Members, int, float, str, str, Tensor]] = []
        self._arrays: list[tuple[_Members, int, str, Tensor]] = []
        self._facts: list[dict[str, int | float | str]] = [{} for _ in range(lanes.size)]
        self._steps = 0

    def watch(self, step: int, loss: Tensor) -> None:
        """Note the lanes whose loss at `step` is not finite: they have diverged."""
        self._losses.append((step, loss.detach()))
        self.reach(step)
        if len(self._losses) >= _WATCHED:
            self._look()

    def stop(self, step: int, reasons: Mapping[int, str]) -> None:
        """Note that the lanes at these places stop at `step`; one that had ended stays as it is."""
        for place, reason in reasons.items():
            lane = self._lanes.members[place]
            if self._diverged[lane] is None and self._stopped[lane] is None:
                self._stopped[lane] = (step, reason)

    def left(self) -> list[int]:
        """Return the places of the lanes that have neither diverged nor stopped.

        Waits for the device, and must be asked before lanes are narrowed.
        """
        self._look()
        return [
            place
            for place, lane in enumerate(self._lanes.members)
            if self._diverged[lane] is None and self._stopped[lane] is None
        ]

    def latest(self, step: int) -> dict[str, Tensor]:
        """Return what has been measured at `step` by `split/metric`, a vector of lanes each."""
        found: dict[str, Tensor] = {}
        for _, at, _, split, name, value in reversed(self._metrics):
            if at != step:
                break
            found[f"{split}/{name}"] = value
        return found

    def _look(self) -> None:
        """Find the first step of each lane whose loss is not finite, in all losses at once."""
        if not self._losses:
            return
        finite = torch.stack([self._lanes.columns(loss) for _, loss in self._losses]).isfinite()
        if not bool(finite.all()):
            for lane, column in zip(self._lanes.members, finite.T.tolist(), strict=True):
                ended = self._diverged[lane] is not None or self._stopped[lane] is not None
                if not ended and False in column:
                    self._diverged[lane] = self._losses[column.index(False)][0]
        self._losses.clear()

    def reach(self, step: int) -> None:
        """Note that training has come to `step`."""
        self._steps = max(self._steps, step)

    def write(self, step: int, epoch: float, split: str, values: Mapping[str, Tensor]) -> None:
        """Record scalars of each run, [K] when stacked, measured at `step`."""
        members = self._lanes.members
        for name, value in values.items():
            column = self._lanes.columns(value).detach()
            self._metrics.append((members, step, epoch, split, name, column))
        self.reach(step)

    def array(self, step: int, name: str, value: Tensor) -> None:
        """Record an array of each run, [K, ...] when stacked."""
        column = self._lanes.columns(value).detach()
        self._arrays.append((self._lanes.members, step, name, column))

    def fact(self, name: str, value: float | str | Sequence[int | float | str]) -> None:
        """Set a column of the `runs` table: one value for all lanes, or one for each."""
        each = value if isinstance(value, list | tuple) else [value] * self._lanes.size
        for lane, own in zip(self._lanes.members, each, strict=True):
            self._facts[lane][name] = own

    def plain(self) -> dict[str, Any]:
        """Return what has been recorded so far, to be stored. Waits for the device."""
        self._look()
        metrics = []
        for members, entries in groupby(self._metrics, key=lambda entry: entry[0]):
            own = list(entries)
            table = torch.stack([entry[-1].double() for entry in own]).cpu()
            metrics.append((members, [entry[1:-1] for entry in own], table))
        return {
            "members": self._lanes.members,
            "diverged": self._diverged,
            "stopped": self._stopped,
            "facts": self._facts,
            "metrics": metrics,
            "arrays": [(*entry, value.cpu()) for *entry, value in self._arrays],
        }

    def restore(self, plain: Mapping[str, Any], places: Sequence[int]) -> None:
        """Go on from what `plain` returned, of lanes of which these were those at `places`."""
        device = self._lanes.device

        def left(members: _Members) -> tuple[_Members, list[int]]:
            own = [(k, members.index(p)) for k, p in enumerate(places) if p in members]
            return tuple(k for k, _ in own), [row for _, row in own]

        self._diverged = [plain["diverged"][place] for place in places]
        self._stopped = [plain["stopped"][place] for place in places]
        self._facts = [plain["facts"][place] for place in places]
        for members, heads, table in plain["metrics"]:
            own, rows = left(members)
            columns = table[:, rows].to(device)
            self._metrics += [(own, *head, c) for head, c in zip(heads, columns, strict=True)]
        for members, step, name, value in plain["arrays"]:
            own, rows = left(members)
            self._arrays.append((own, step, name, value[rows].to(device)))

    def accounts(self) -> list[Account]:
        """Return what each lane has to show, up to where it diverged or was stopped."""
        self._look()
        accounts = []
        for at, stopped, facts in zip(self._diverged, self._stopped, self._facts, strict=True):
            steps, reason = stopped or (self._steps if at is None else at, "")
            accounts.append(Account(steps, at, reason, facts=facts))
        for members, entries in groupby(self._metrics, key=lambda entry: entry[0]):
            own = list(entries)
            table = torch.stack([entry[-1].double() for entry in own]).cpu().tolist()
            for (_, step, epoch, split, name, _), row in zip(own, table, strict=True):
                for lane, value in zip(members, row, strict=True):
                    if _counts(accounts[lane], step):
                        accounts[lane].metrics.append(Metric(step, epoch, split, name, value))
        for members, step, name, value in self._arrays:
            shape = list(value.shape[1:])
            rows = value.reshape(len(members), -1).double().cpu().tolist()
            for lane, numbers in zip(members, rows, strict=True):
                if _counts(accounts[lane], step):
                    accounts[lane].arrays.append(Array(step, name, shape, numbers))
        return accounts


def _counts(account: Account, step: int) -> bool:
    """Return whether what was measured at `step` is the run's: lanes go on past a run's end."""
    if account.diverged_at is not None:
        return step < account.diverged_at
    return not account.stopped or step <= account.steps


def summary(metrics: Sequence[Metric]) -> dict[str, float]:
    """Return the final and the lowest value of each metric, as `split.name` and `...best`."""
    row: dict[str, float] = {}
    for metric in metrics:
        name = f"{metric.split}.{metric.name}"
        row[name] = metric.value
        best = row.get(f"{name}.best", math.inf)
        row[f"{name}.best"] = min(best, metric.value)
    return row
