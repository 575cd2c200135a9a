"""Who is measured: raybench, and the peers that carry out plain loops of the same runs.

A contestant lives in a process of its own (`raybench.bench.driver`), which is the driver whose
memory is measured. What it starts first (a Ray, workers, their imports, a first run in each) is
told apart from the seconds of its runs, but for naive Ray Tune, where each run starts a process.
"""

from __future__ import annotations

import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

from raybench.bench.loop import Trial, carry_out
from raybench.bench.workloads import WARM_UP, Work
from raybench.cluster import connect
from raybench.local import LocalExecutor
from raybench.plan import Batch, batches, distinct
from raybench.progress import Progress
from raybench.rounds import Executor
from raybench.session import Session
from raybench.store import SuiteStore
from raybench.suite import Suite


class Timed(NamedTuple):
    """What one contestant took for one block.

    Attributes:
        seconds: on the wall, without what was started first.
        runs: how many it carried out.
        start: seconds for what was started first.
        stored: bytes of its results on disk; None where it keeps none.
        diverged: runs that diverged, as far as the contestant tells.
    """

    seconds: float
    runs: int
    start: float = 0.0
    stored: int | None = None
    diverged: int = 0


class Contestant(ABC):
    """One way to carry out runs."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._held = ExitStack()

    def close(self) -> None:
        """End what it started."""
        self._held.close()

    @abstractmethod
    def block(self, work: Work, sample: int | None) -> Timed:
        """Carry out the runs of a block, or a sample of them."""


class Raybench(Contestant):
    """A suite through Ray, from its file to the last row, as `raybench run` does it."""

    def __init__(self, cores: int) -> None:
        super().__init__(cores)
        self._executor = self._held.enter_context(closing(connect(cpus=cores)))

    def block(self, work: Work, sample: int | None) -> Timed:
        """Carry out all of the runs, after a small batch on each worker."""
        slots = self._executor.slots
        warm = _WarmedUp(self._executor, work._replace(runs=2 * slots, block=WARM_UP).suite())
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="raybench-") as folder:
            suite = work.suite()
            counted = _Counted()
            outcome = Session(suite, Path(folder), lambda: warm, counted).run()
            seconds = time.perf_counter() - began - warm.seconds
            counted.check(outcome.executed)
            stored = _size(Path(folder) / suite.name)
        return counted.timed(seconds, warm.seconds, stored)


class _WarmedUp:
    """An executor whose workers have each carried out a small batch before the first of others.

    Each worker's part of the time begins where its small batch ends: the mean over workers counts.
    """

    def __init__(self, executor: Executor, suite: Suite) -> None:
        self._executor = executor
        self.slots = executor.slots
        self._warm = _batches(suite, "warm_up", size=2)[: self.slots]
        self.seconds = 0.0

    def run(
        self,
        batches: Sequence[Batch],
        store: SuiteStore,
        on_progress: Callable[[Progress], None],
    ) -> None:
        own = {batch.batch_id for batch in self._warm}
        ended: list[float] = []

        def relay(progress: Progress) -> None:
            if progress.batch_id not in own:
                on_progress(progress)
            elif progress.finished:
                ended.append(time.perf_counter())

        began = time.perf_counter()
        self._executor.run([*self._warm, *batches], store, relay)
        self.seconds += sum(ended) / len(ended) - began

    def close(self) -> None:
        """Leave the executor for the next block."""


class RaybenchAlone(Contestant):
    """raybench in this process, one lane and one thread, storing included."""

    def block(self, work: Work, sample: int | None) -> Timed:
        """Carry out a sample of the runs."""
        self._carry_out(work._replace(runs=2, block=WARM_UP))
        return self._carry_out(work._replace(runs=min(sample or work.runs, work.runs)))

    def _carry_out(self, work: Work) -> Timed:
        suite = work.suite()
        made = _batches(suite, suite.name, lanes=1)
        counted = _Counted()
        with tempfile.TemporaryDirectory(prefix="raybench-") as folder:
            store = SuiteStore(folder, suite.name)
            began = time.perf_counter()
            LocalExecutor().run(made, store, counted.update)
            seconds = time.perf_counter() - began
            stored = _size(store.folder)
        counted.check(sum(len(batch.runs) for batch in made))
        return counted.timed(seconds, 0.0, stored)


class _Counted:
    """What became of the runs of a block; a `Watcher` that shows nothing."""

    def __init__(self) -> None:
        self._statuses: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def begin(self, phase: str, total: int, finished: int, to_do: int) -> None:
        pass

    def update(self, progress: Progress) -> None:
        self._statuses.update(progress.statuses)
        self._reasons.update(progress.reasons)

    def check(self, runs: int) -> None:
        """Refuse a block whose runs did not all end: its seconds would mean nothing."""
        ended = self._statuses["done"] + self._statuses["diverged"]
        if ended != runs:
            raise RuntimeError(f"of {runs} runs: {dict(self._statuses)} {dict(self._reasons)}")

    def timed(self, seconds: float, start: float, stored: int) -> Timed:
        runs = sum(self._statuses.values())
        return Timed(seconds, runs, start, stored, self._statuses["diverged"])


def _batches(suite: Suite, name: str, *, size: int | None = None, lanes: int = 0) -> list[Batch]:
    resources = suite.resources
    if size:
        resources = resources.replace(batch=size)
    if lanes:
        resources = resources.replace(lanes=lanes)
    drawn = distinct(suite.runs)
    return batches(drawn, suite=name, scale=suite.scale, resources=resources, slots=1)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class _Peer(Contestant):
    """Plain loops of a sample of the runs."""

    def block(self, work: Work, sample: int | None) -> Timed:
        """Carry out a sample of the runs."""
        return self._carry_out(work.sample(min(sample or work.runs, work.runs)))

    @abstractmethod
    def _carry_out(self, trials: Sequence[Trial]) -> Timed: ...


class Loop(_Peer):
    """One loop in this process."""

    def _carry_out(self, trials: Sequence[Trial]) -> Timed:
        carry_out(trials[0])
        began = time.perf_counter()
        for trial in trials:
            carry_out(trial)
        return Timed(time.perf_counter() - began, len(trials))


def last(trial: Mapping[str, Any]) -> dict[str, float]:
    """Carry out a trial that came as a dict, and return what was measured at its end."""
    return carry_out(Trial(**trial))[-1]


class _Tune(_Peer):
    """Ray Tune on a Ray of its own."""

    def __init__(self, cores: int) -> None:
        super().__init__(cores)
        self._held.enter_context(closing(connect(cpus=cores)))


class NaiveTune(_Tune):
    """Ray Tune as its tutorials use it: a function, `grid_search`, a process for each run."""

    def _carry_out(self, trials: Sequence[Trial]) -> Timed:
        from raybench.cluster.peers import naive_tune

        return Timed(naive_tune([trial._asdict() for trial in trials], last), len(trials))


class ReusedTune(_Tune):
    """Ray Tune with a class whose actors go on with the next run."""

    def _carry_out(self, trials: Sequence[Trial]) -> Timed:
        from raybench.cluster.peers import reused_tune

        # The first run of each actor is its start: as many more, so that the sample has its size.
        more = [*trials[: self._cores], *trials]
        return Timed(*reused_tune([trial._asdict() for trial in more], last))


class _Pool(_Peer):
    """joblib's processes, one a core, which are kept from block to block."""

    def __init__(self, cores: int) -> None:
        super().__init__(cores)
        self._held.callback(_end_pool)

    def _carry_out(self, trials: Sequence[Trial]) -> Timed:
        from joblib import Parallel, delayed

        began = time.perf_counter()
        pids: set[int] = set()
        while len(pids) < self._cores:  # as long as one process is still to start
            first = [delayed(_linger)(trial) for trial in [trials[0]] * self._cores]
            pids.update(Parallel(n_jobs=self._cores, batch_size=1)(first))
        warm = time.perf_counter()
        self._spread(trials)
        return Timed(time.perf_counter() - warm, len(trials), warm - began)

    @abstractmethod
    def _spread(self, trials: Sequence[Trial]) -> None: ...


def _end_pool() -> None:
    """End joblib's processes, which otherwise wait for five minutes for more to do."""
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor(reuse=True).shutdown(wait=True)


def _linger(trial: Trial) -> int:
    carry_out(trial)
    time.sleep(0.2)  # so that another process takes the next trial
    return os.getpid()


class Joblib(_Pool):
    """joblib with its defaults (loky): histories come back to the driver, nothing is stored."""

    def _spread(self, trials: Sequence[Trial]) -> None:
        from joblib import Parallel, delayed

        Parallel(n_jobs=self._cores)(delayed(carry_out)(trial) for trial in trials)


class Optuna(_Pool):
    """Optuna as its documentation spreads a study over processes: a journal file, joblib."""

    def _spread(self, trials: Sequence[Trial]) -> None:
        from joblib import Parallel, delayed

        with tempfile.TemporaryDirectory(prefix="raybench-") as folder:
            file = f"{folder}/journal.log"
            _study(file, create=True)
            ends = [len(trials) * i // self._cores for i in range(self._cores + 1)]
            shares = [end - start for start, end in pairwise(ends)]
            Parallel(n_jobs=self._cores, batch_size=1)(
                delayed(_optimize)(file, trials, share) for share in shares if share
            )


def _study(file: str, *, create: bool) -> Any:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.JournalStorage(JournalFileBackend(file))
    sampler = optuna.samplers.RandomSampler(seed=0)
    if create:
        return optuna.create_study(study_name="bench", storage=storage, sampler=sampler)
    return optuna.load_study(study_name="bench", storage=storage, sampler=sampler)


def _optimize(file: str, trials: Sequence[Trial], share: int) -> None:
    def objective(trial: Any) -> float:
        # The study's own number says which run: no two processes get the same.
        return next(iter(carry_out(trials[trial.number])[-1].values()))

    _study(file, create=False).optimize(objective, n_trials=share)


CONTESTANTS: Final[Mapping[str, type[Contestant]]] = {
    "raybench": Raybench,
    "tune": NaiveTune,
    "tune_reuse": ReusedTune,
    "joblib": Joblib,
    "optuna": Optuna,
    "raybench_alone": RaybenchAlone,
    "loop": Loop,
}
"""Those that use every core, raybench first; then those of one process with one thread."""

ALONE: Final = ("raybench_alone", "loop")
