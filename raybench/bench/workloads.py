"""What is measured: the scales of the suite `selfbench`, cut into blocks of fresh runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple

from raybench.bench import loop
from raybench.bench.loop import Trial
from raybench.errors import UsageError, suggest
from raybench.plan import distinct
from raybench.spec import plain_config
from raybench.suite import Planned, Source, Suite, load, read

DEFAULTS: Final[Mapping[str, int]] = {
    "one_step": 10_000,
    "mlp_64": 1_000,
    "mlp_256": 300,
    "cnn": 100,
    "quadratic_deep": 128,
}
"""Workloads that are measured where none is asked for, and the runs of a block of each."""

WARM_UP: Final = 0
"""The number of the block whose runs warm processes up, and are in no figure."""
_STRIDE: Final = 1_000_000  # seeds from one block to the next


class Work(NamedTuple):
    """The runs of one block.

    Attributes:
        workload: a scale of the suite.
        runs: how many; a search has as many for each of its arms, so it may have a few more.
        steps: how long each trains; None for the suite's own length.
        block: no two blocks have a run in common.
    """

    workload: str
    runs: int
    steps: int | None = None
    block: int = WARM_UP

    def suite(self) -> Suite:
        """Return them as a suite, as `raybench run` would read it."""
        overrides: dict[str, Any] = {} if self.steps is None else {"steps": f"{self.steps}it"}
        scale = source().values["scales"][self.workload]
        if "tune" in scale:
            arms = len(load(source(), self.workload).arms)
            overrides["tune.budgets"] = {"all": math.ceil(self.runs / arms)}
            overrides["tune.seed"] = scale["tune"]["seed"] + self.block
        else:
            overrides["seeds"] = {"count": self.runs, "base": self.block * _STRIDE}
        return load(source(), self.workload, overrides)

    def sample(self, size: int) -> list[Trial]:
        """Return `size` of the runs, of all arms alike, as a plain loop is told of them."""
        # The first runs of a smaller suite are those of a larger one.
        drawn = distinct(self._replace(runs=min(size, self.runs)).suite().runs)
        count = min(size, len(drawn))
        return [trial(drawn[len(drawn) * i // count]) for i in range(count)]


@dataclass(frozen=True)
class Case:
    """One workload at one length, with the runs of a block."""

    workload: str
    steps: int | None
    runs: int

    def work(self, block: int) -> Work:
        """Return the runs of a block."""
        return Work(self.workload, self.runs, self.steps, block)

    @property
    def first(self) -> Trial:
        """One of its runs that is in no figure."""
        return self.work(WARM_UP)._replace(runs=1).sample(1)[0]

    @property
    def length(self) -> int:
        """Steps of a run."""
        return loop.length(self.first)


@lru_cache(maxsize=1)
def source() -> Source:
    """Return the suite's file."""
    folder = Path(str(resources.files("raybench"))) / "suites"
    return read(folder / "selfbench.yaml", "selfbench.yaml")


def names() -> list[str]:
    """Return the names of all workloads."""
    return [*source().values["scales"]]


def cases(workloads: Sequence[str], steps: Sequence[int], runs: int | None) -> list[Case]:
    """Return what is to be measured: each workload at each length.

    Args:
        workloads: their names; none for those of `DEFAULTS`.
        steps: lengths; none for each workload's own.
        runs: of a block; None for as many as take some seconds.

    Raises:
        UsageError: there is no such workload, or no runs or steps.
    """
    for name in workloads:
        if name not in names():
            raise UsageError(f"unknown workload {name!r}{suggest(name, names())}")
    for number, option in [(runs, "--runs"), *((count, "--steps") for count in steps)]:
        if number is not None and number < 1:
            raise UsageError(f"{option} {number}: at least 1, please")
    found = [
        Case(name, length, runs or _runs(name, length))
        for name in workloads or DEFAULTS
        for length in steps or (None,)
    ]
    return list(dict.fromkeys(found))


def _runs(name: str, steps: int | None) -> int:
    """Return as many runs as the suite's own length takes of steps, and at most 10,000."""
    own = DEFAULTS.get(name, 1_000)
    length = Case(name, None, own).length
    return max(min(own * length // (steps or length), 10_000), 8)


def trial(planned: Planned) -> Trial:
    """Return what a plain loop is told of a run."""
    config = plain_config(planned.run.procedure)
    optimizer: Any = planned.run.procedure.optimizer  # type: ignore[attr-defined]
    numbers = {name: float(getattr(optimizer, name)) for name in type(optimizer).model_fields}
    # Runs of a search differ in nothing else, so that a process builds what they share once.
    config["optimizer"] = "sgd"
    seed = planned.run.seed
    form = json.dumps(config, sort_keys=True)
    return Trial(form, (seed.value, seed.base, seed.fixed), optimizer.name, numbers)
