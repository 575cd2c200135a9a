"""raybench measured against its peers: the same runs, the same machine, one command."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from raybench.cluster import connect
from raybench.data import Data
from raybench.errors import UsageError, suggest
from raybench.lanes import Lanes
from raybench.plainloop import Bowl, Loops, Trial
from raybench.plan import Batch, batches, distinct
from raybench.procedures.feed import Extent, Feed
from raybench.quadratic import root
from raybench.store import SuiteStore
from raybench.suite import Planned, Suite, load, parse
from raybench.work import Progress

_ONE_STEP: Final = """
version: 1
name: one_step
base:
  procedure: train
  data: {name: digits, train: 256, test: 256}
  model: {name: mlp, width: 16}
  optimizer: {name: sgd, lr: 0.1}
  steps: 1it
  batch_size: 64
  record: {at: {linear: 1}, on: [test], probes: [loss]}
seeds: %d
"""

_QUADRATIC_DEEP: Final = """
version: 1
name: quadratic_deep
base:
  procedure: train
  data: quadratic_deep
  model: quadratic_deep
  loss: half_squares
  batch_size: 128
  steps: 100ep
  drop_last: true
  order: fixed
  record: {at: {every: 1ep}, on: [train, valid, test], probes: [loss], whole_batches: true}
seeds: {base: 42}
tune:
  method: random_state
  seed: 42
  budgets: {all: %d}
  select: {metric: valid/loss}
sweep:
  - cases:
      sgd:
        optimizer: {name: sgd, lr: 1e-2}
        search: {optimizer.lr: &lr {log10_uniform: [-4, 0]}}
      momentum:
        optimizer: {name: momentum, lr: 1e-2, momentum: 0.99}
        search: {optimizer.lr: *lr, optimizer.momentum: {one_minus: *lr}}
      rmsprop:
        optimizer: {name: rmsprop_tf, lr: 1e-3, decay: 0.9, eps: 1e-10}
        search: {optimizer.lr: *lr, optimizer.decay: {one_minus: *lr}}
      adam:
        optimizer: {name: adam_tf, lr: 1e-3}
        search:
          optimizer.lr: *lr
          optimizer.beta1: {log10_uniform: [-0.301, -0.00043]}
          optimizer.beta2: {log10_uniform: [-0.0969, -0.00043]}
    as: optimizer
"""


@dataclass(frozen=True)
class Workload:
    """What is measured.

    Attributes:
        form: YAML of its suite, with a place for a number.
        arms: as many runs has the suite for each of that number.
        runs: runs through raybench where nothing else is asked for.
        peers: runs of naive Ray Tune, likewise.
        blocks: in how many parts raybench and the plain loops take turns.
        plain: whether a plain loop of it exists.
    """

    form: str
    arms: int
    runs: int
    peers: int
    blocks: int
    plain: bool

    def suite(self, runs: int) -> Suite:
        """Return its suite with at least as many runs."""
        return load(parse(self.form % math.ceil(runs / self.arms), "bench"))


WORKLOADS: Final[Mapping[str, Workload]] = {
    "one_step": Workload(_ONE_STEP, 1, runs=10_000, peers=20, blocks=1, plain=False),
    "quadratic_deep": Workload(_QUADRATIC_DEEP, 4, runs=1536, peers=16, blocks=3, plain=True),
}
_LOOPED: Final = 4  # of so many runs of a block the plain loops carry out one


@dataclass
class Tally:
    """Seconds and runs of one contestant, block by block."""

    what: str
    seconds: list[float] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)
    bytes_a_run: float | None = None

    def add(self, seconds: float, runs: int, bytes_a_run: float | None = None) -> None:
        """Note one more block, and how much a run of it takes in the store."""
        self.seconds.append(seconds)
        self.runs.append(runs)
        self.bytes_a_run = bytes_a_run

    def row(self, workload: str, first: Tally) -> dict[str, Any]:
        """Return the sums, and how many times the milliseconds of `first` they are."""
        seconds, runs = sum(self.seconds), sum(self.runs)
        each, base = self._milliseconds(), first._milliseconds()
        # Blocks that lie side by side in time met the same load.
        paired = len(each) == len(base) and self is not first
        ratios = [a / b for a, b in zip(each, base, strict=True)] if paired else []
        return {
            "workload": workload,
            "what": self.what,
            "runs": runs,
            "ms a run": 1000 * seconds / runs,
            "runs/s": runs / seconds,
            "times raybench": (seconds / runs) / (sum(first.seconds) / sum(first.runs)),
            "lowest": min(ratios) if len(ratios) > 1 else None,
            "highest": max(ratios) if len(ratios) > 1 else None,
            "bytes a run": self.bytes_a_run,
        }

    def _milliseconds(self) -> list[float]:
        return [1000 * s / n for s, n in zip(self.seconds, self.runs, strict=True)]


def known(names: Sequence[str]) -> list[str]:
    """Return the names of workloads, each once; all there are for none.

    Raises:
        UsageError: there is no such workload.
    """
    for name in names:
        if name not in WORKLOADS:
            raise UsageError(f"unknown workload {name!r}{suggest(name, WORKLOADS)}")
    return list(dict.fromkeys(names or WORKLOADS))


def measure(
    name: str, runs: int | None, peers: int | None, note: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return a row for raybench and one for each peer, all on the same runs of a workload.

    Milliseconds a run are those of the clock on the wall, with every core at work. Ray, the
    processes of its workers and those of the plain loops are started before any time is taken;
    only naive Ray Tune, which starts a process for each run, is timed with them. `lowest` and
    `highest` are the extremes of `times raybench` over the blocks in which the two took turns.

    Args:
        name: a key of `WORKLOADS`.
        runs: how many raybench carries out; None for the workload's own number.
        peers: how many of them naive Ray Tune carries out, which takes seconds each; 0 for no
            peers at all, None for the workload's own number.
        note: told what is being measured.

    Raises:
        UsageError: no such workload, or no runs.
    """
    known([name])
    workload = WORKLOADS[name]
    runs = workload.runs if runs is None else runs
    peers = min(workload.peers if peers is None else peers, runs)
    if runs < 1 or peers < 0:
        raise UsageError(f"--runs {runs} --peers {peers}: at least 1 run and 0 peers, please")
    spare = 2 * _cores()
    suite = workload.suite(runs + spare)
    drawn = distinct(suite.runs)
    warm, timed = drawn[:spare], drawn[spare : spare + runs]
    count = min(workload.blocks, runs)
    blocks = [timed[index::count] for index in range(count)]
    tallies = [Tally("raybench")]
    with _loops(workload, timed, note if peers else None) as loops:
        if loops:
            tallies.append(Tally("plain PyTorch loop per core"))
        for index, block in enumerate(blocks):
            where = f" (block {index + 1} of {count})" if count > 1 else ""
            note(f"{name}: {len(block):,} runs through raybench{where} ...")
            tallies[0].add(*_through_raybench(suite, warm, block, note))
            if loops:
                sample = block[::_LOOPED]
                note(f"{name}: {len(sample):,} of them in plain loops{where} ...")
                tallies[1].add(loops.run([trial(p) for p in sample])[0], len(sample))
    if peers:
        note(f"{name}: {peers:,} of them through naive Ray Tune ...")
        tallies.append(Tally("naive Ray Tune"))
        tallies[-1].add(_through_naive_tune(suite, timed[:: runs // peers][:peers]), peers)
    return [tally.row(name, tallies[0]) for tally in tallies]


def _through_raybench(
    suite: Suite, warm: Sequence[Planned], block: Sequence[Planned], note: Callable[[str], None]
) -> tuple[float, int, float]:
    """Return a block's seconds, runs and bytes a run, on a Ray of its own that ends with it.

    Each worker first has a small batch to start with. Its part of the time begins where that
    batch ends: the sum over the workers is what counts.
    """
    with (
        closing(connect(cpus=_cores())) as executor,
        tempfile.TemporaryDirectory(prefix="raybench-") as folder,
    ):
        store = SuiteStore(Path(folder), suite.name)
        slots = executor.slots
        first = _batches(suite, warm, size=max(1, len(warm) // slots))[:slots]
        rest = _batches(suite, block, slots=slots)
        counted = _Counted({batch.batch_id for batch in first})
        executor.run([*first, *rest], store, counted.update)
        ended = time.perf_counter()
        num_bytes = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet"))
    done = sum(counted.statuses.values())
    if done < len(block) or counted.statuses["failed"] or not counted.warm:
        raise RuntimeError(f"of {len(block)} runs: {dict(counted.statuses)} {counted.reasons}")
    if diverged := counted.statuses["diverged"]:
        note(f"{diverged:,} of them diverged")
    stored = done + sum(len(batch.runs) for batch in first)
    return ended - sum(counted.warm) / len(counted.warm), done, num_bytes / stored


@dataclass
class _Counted:
    """Notes when each of the first batches ended, and what became of the runs of all others."""

    first: set[str]
    warm: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def update(self, progress: Progress) -> None:
        self.reasons.update(progress.reasons)
        if progress.batch_id not in self.first:
            self.statuses.update(progress.statuses)
        elif progress.finished:
            self.warm.append(time.perf_counter())


def _batches(
    suite: Suite, runs: Sequence[Planned], *, slots: int = 1, size: int | None = None
) -> list[Batch]:
    resources = suite.resources.replace(batch=size) if size else suite.resources
    return batches(runs, suite=suite.name, scale="", resources=resources, slots=slots)


def _through_naive_tune(suite: Suite, runs: Sequence[Planned]) -> float:
    with closing(connect(cpus=_cores())):
        from raybench.cluster.peers import naive_tune

        return naive_tune([batch.encode() for batch in _batches(suite, runs, size=1)])


@contextmanager
def _loops(
    workload: Workload, runs: Sequence[Planned], note: Callable[[str], None] | None
) -> Iterator[Loops | None]:
    """Give a plain loop for each core, started and warm; None if there are to be none."""
    if not workload.plain or note is None:
        yield None
        return
    note(f"starting {_cores()} plain loops ...")
    with Loops(bowl(runs[0]), _cores(), trial(runs[0])._replace(epochs=3)) as loops:
        yield loops


def _cores() -> int:
    """Return how many cores every contestant may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bowl(planned: Planned) -> Bowl:
    """Return what the plain loop sees of a run of `quadratic_deep`: the very rows of the run."""
    procedure: Any = planned.run.procedure
    data: Data = procedure.data
    feed = Feed(
        Lanes(1),
        [data],
        [planned.run.seed],
        batch_size=procedure.batch_size,
        drop_last=procedure.drop_last,
        order=procedure.order,
        extent=Extent(procedure.record.train_rows, procedure.record.whole_batches),
    )
    return Bowl(
        root(procedure.model.instance).float().numpy(),
        [feed.batch(step)[1].numpy() for step in range(feed.steps_per_epoch)],
        {
            name: torch.cat([targets for _, targets in feed.split(name)]).numpy()
            for name in procedure.record.on
        },
    )


def trial(planned: Planned) -> Trial:
    """Return what the plain loop is told of a run of `quadratic_deep`."""
    procedure: Any = planned.run.procedure
    optimizer = procedure.optimizer
    numbers = {name: float(getattr(optimizer, name)) for name in type(optimizer).model_fields}
    return Trial(optimizer.name, numbers, procedure.steps.count)
