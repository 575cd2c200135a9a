"""What the runs of a group record: metrics, arrays and divergence, without waiting for a device.

A procedure writes vectors with one number per lane; they are read back once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

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
        diverged_at: the first step whose loss was not finite, or None.
        metrics: up to the step before it diverged.
    """

    steps: int = 0
    diverged_at: int | None = None
    metrics: list[Metric] = field(default_factory=list)
    arrays: list[Array] = field(default_factory=list)
    facts: dict[str, int | float | str] = field(default_factory=dict)


_WATCHED = 512  # losses that are looked at together; each look waits for the device


class Recorder:
    """Collects what a group of K runs measures."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._diverged: list[int | None] = [None] * lanes.size
        self._losses: list[tuple[int, Tensor]] = []
        self._metrics: list[tuple[int, float, str, str, Tensor]] = []
        self._arrays: list[tuple[int, str, Tensor]] = []
        self._facts: list[dict[str, int | float | str]] = [{} for _ in range(lanes.size)]
        self._steps = 0

    def watch(self, step: int, loss: Tensor) -> None:
        """Note the lanes whose loss at `step` is not finite: they have diverged."""
        self._losses.append((step, loss.detach()))
        self.reach(step)
        if len(self._losses) >= _WATCHED:
            self._look()

    def all_diverged(self) -> bool:
        """Return whether no lane is left to train (waits for the device)."""
        self._look()
        return None not in self._diverged

    def _look(self) -> None:
        """Find the first step of each lane whose loss is not finite, in all losses at once."""
        if not self._losses:
            return
        finite = torch.stack([self._lanes.columns(loss) for _, loss in self._losses]).isfinite()
        if not bool(finite.all()):
            for lane, column in enumerate(finite.T.tolist()):
                if self._diverged[lane] is None and False in column:
                    self._diverged[lane] = self._losses[column.index(False)][0]
        self._losses.clear()

    def reach(self, step: int) -> None:
        """Note that training has come to `step`."""
        self._steps = max(self._steps, step)

    def write(self, step: int, epoch: float, split: str, values: Mapping[str, Tensor]) -> None:
        """Record scalars of each run, [K] when stacked, measured at `step`."""
        for name, value in values.items():
            self._metrics.append((step, epoch, split, name, self._lanes.columns(value).detach()))
        self.reach(step)

    def array(self, step: int, name: str, value: Tensor) -> None:
        """Record an array of each run, [K, ...] when stacked."""
        self._arrays.append((step, name, self._lanes.columns(value).detach()))

    def fact(self, name: str, value: float | str | Sequence[int | float | str]) -> None:
        """Set a column of the `runs` table: one value for all lanes, or one for each."""
        each = value if isinstance(value, list | tuple) else [value] * self._lanes.size
        for facts, own in zip(self._facts, each, strict=True):
            facts[name] = own

    def accounts(self) -> list[Account]:
        """Return what each lane has to show; metrics of diverged steps are left out."""
        self._look()
        accounts = [
            Account(self._steps if at is None else at, at, facts=facts)
            for at, facts in zip(self._diverged, self._facts, strict=True)
        ]
        stacked = [metric[-1].double() for metric in self._metrics]
        table = torch.stack(stacked).cpu().tolist() if stacked else []
        for (step, epoch, split, name, _), row in zip(self._metrics, table, strict=True):
            for account, value in zip(accounts, row, strict=True):
                if account.diverged_at is None or step < account.diverged_at:
                    account.metrics.append(Metric(step, epoch, split, name, value))
        for step, name, value in self._arrays:
            shape = list(value.shape[1:])
            rows = value.reshape(len(accounts), -1).double().cpu().tolist()
            for account, numbers in zip(accounts, rows, strict=True):
                if account.diverged_at is None or step < account.diverged_at:
                    account.arrays.append(Array(step, name, shape, numbers))
        return accounts


def summary(metrics: Sequence[Metric]) -> dict[str, float]:
    """Return the final and the lowest value of each metric, as `split.name` and `...best`."""
    row: dict[str, float] = {}
    for metric in metrics:
        name = f"{metric.split}.{metric.name}"
        row[name] = metric.value
        best = row.get(f"{name}.best", math.inf)
        row[f"{name}.best"] = min(best, metric.value)
    return row
