"""Batches whose runs are shared by several processes: one TorchTrainer of Ray Train for each.

A trainer is a thread of the driver, while Tune carries out the other batches. Its controller takes
no CPU, and its workers come in a placement group that is there as a whole or not at all, so batches
that wait for cores never hold some of them meanwhile. Tune has no part in it: what it stops itself
is let go of with the help of Ray's dashboard only.

Trainers retry nothing, `rounds` does, as for all batches. Only a batch that has lost a node begins
again at once: it may last for hours, and so may the others of its round.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import ray
from ray.train import (
    FailureConfig,
    RunConfig,
    ScalingConfig,
    WorkerGroupError,
    get_preemption_info,
)
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybench import ranks
from raybench.cluster import placement
from raybench.cluster.lookout import Wait
from raybench.cluster.worker import end_with_node
from raybench.errors import UnavailableError
from raybench.plan import Batch, decode
from raybench.progress import Progress
from raybench.store import SuiteStore
from raybench.work import run_batch

_POLL: Final = 0.2  # seconds between looks at what has become of the trainers
_APART: Final = 60.0  # seconds that a rank waits for the others at the end of a group
_LOST: Final = "the worker process of a rank died with its node"
_TAKEN: Final = "the node of a rank is being taken away (spot preemption, or scaled down)"
_DEAD: Final = re.compile(r"actor (is dead|died)|worker process has died|ActorDiedError")
_MOST: Final = 16  # trainers at a time: each has a controller on the driver's machine
_AHEAD: Final = 4  # of which wait for nodes: so much is an autoscaler told at a time


@dataclass
class _Gang:
    """A batch under way.

    Attributes:
        batch: with `resources.ranks` above 1.
        fit: its trainer's thread; returns whether the ranks have left a node that will go.
        before: the nodes that were there when it began to wait.
        nodes: that its ranks are on; none as long as they wait.
        ended: whether its first rank has reported its end.
        sure_at: when Ray is sure to know whether a node has died; None while the trainer goes on.
    """

    batch: Batch
    fit: Future[bool]
    before: set[str]
    nodes: set[str] = field(default_factory=set)
    ended: bool = False
    sure_at: float | None = None


class Gangs:
    """Carries out batches of several ranks while the body of the `with` does other things.

    Leaving it waits until all have ended. Where the body raises, what is under way is left behind:
    it ends with the connection to Ray.

    Args:
        batches: each with `resources.ranks` above 1.
        store: where results go.
        on_progress: told what happens.
        own: whether Ray is one's own: no node can be added to it or lost. There it has room for
            each batch, elsewhere batches wait for nodes.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        store: SuiteStore,
        on_progress: Callable[[Progress], None],
        *,
        own: bool,
    ) -> None:
        self._to_do = deque(batches)
        self._under_way: dict[str, _Gang] = {}
        self._store = store
        self._on_progress = on_progress
        self._own = own
        self._most = _MOST
        if own:
            present = placement.nodes().values()
            fit = min(placement.room(batch.resources, present) for batch in batches)
            self._most = min(_MOST, fit)
        self._waits = {_kind(batch): Wait(batch.resources) for batch in batches}
        self._busy = time.monotonic()  # when anything has last got on
        self._lock = threading.Lock()
        self._raised: Exception | None = None

    def report(self, progress: Progress) -> None:
        """Pass progress on, one at a time, and raise what the listener has raised to anybody."""
        with self._lock:
            if not progress.waiting:
                self._busy = time.monotonic()
            if self._raised is None:
                try:
                    self._on_progress(progress)
                except Exception as error:  # noqa: BLE001  (whatever it is, it is raised here)
                    self._raised = error
            if self._raised is not None:
                raise self._raised

    def __enter__(self) -> Self:
        """Start the first ones; the others follow as these end."""
        self._folder = Path(tempfile.mkdtemp(prefix="raybench-train-"))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox: Any = _MAILBOX.options(scheduling_strategy=here).remote()
        self._pool = ThreadPoolExecutor(_MOST, thread_name_prefix="gang")
        self._left = threading.Event()
        self._manager = threading.Thread(target=self._manage, name="gangs", daemon=True)
        self._manager.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the batches, unless something was raised."""
        try:
            while kind is None and self._manager.is_alive():
                self._manager.join(_POLL)
        finally:
            # From here on no thread asks Ray for anything: once its connection is closed, that
            # would start another one.
            self._left.set()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._manager.join()
            shutil.rmtree(self._folder, ignore_errors=True)
        if kind is None and self._raised is not None:
            raise self._raised
        if kind is None:
            ray.kill(self._mailbox)

    def _manage(self) -> None:
        """See to the batches until all have ended; a thread."""
        try:
            while (self._to_do or self._under_way) and not self._left.is_set():
                self._start()
                self._left.wait(_POLL)
                through = [gang for gang in self._under_way.values() if gang.fit.done()]
                self._deliver()  # what has been posted before a trainer's end, too
                for gang in through:
                    self._end(gang)
                self._see_to_waiting()
        except Exception as error:  # noqa: BLE001  (raised by whoever waits for the batches)
            self._raised = self._raised or error

    def _start(self) -> None:
        """Start trainers as long as most of those there are have found room."""
        waiting = sum(not gang.nodes for gang in self._under_way.values())
        while self._to_do and waiting < _AHEAD and len(self._under_way) < self._most:
            batch = self._to_do.popleft()
            fit = self._pool.submit(self._fit, batch)
            self._under_way[batch.batch_id] = _Gang(batch, fit, set(placement.nodes()))
            waiting += 1

    def _deliver(self) -> None:
        """Pass on what ranks have posted."""
        for plain in ray.get(self._mailbox.take.remote()):
            gang = self._under_way.get(plain["batch_id"])
            if gang is None or gang.ended:
                continue  # its ranks may outlive its trainer for a moment
            if "node" in plain:
                gang.nodes.add(plain["node"])
                continue
            progress = Progress.of(plain)
            gang.ended = progress.finished
            self.report(progress)

    def _end(self, gang: _Gang) -> None:
        """Say what has become of a batch whose trainer has ended."""
        batch_id = gang.batch.batch_id
        error = gang.fit.exception()
        if gang.ended or (error is None and not gang.fit.result()):
            del self._under_way[batch_id]
            return
        now = time.monotonic()
        if gang.sure_at is None:
            sure = error is None or self._own or _died(error)
            gang.sure_at = now if sure else now + placement.SURE_SECONDS
        if error is None or (gang.nodes or gang.before) - set(placement.nodes()):
            del self._under_way[batch_id]
            self._to_do.appendleft(gang.batch)
            self.report(Progress(batch_id, excused=True, broken=_LOST if error else _TAKEN))
        elif now >= gang.sure_at:
            del self._under_way[batch_id]
            self.report(Progress(batch_id, finished=True, broken=_cause(error)))

    def _see_to_waiting(self) -> None:
        """Report which batches wait for nodes, of each kind of which none goes on."""
        for kind, wait in self._waits.items():
            same = [gang for gang in self._under_way.values() if _kind(gang.batch) == kind]
            if not same or any(gang.nodes for gang in same):
                wait.end()
            elif message := wait.look(self._busy):
                self.report(Progress(same[0].batch.batch_id, waiting=message))

    def _fit(self, batch: Batch) -> bool:
        """Carry out one batch; a thread of the pool."""
        takes = batch.resources
        trainer = TorchTrainer(
            _train,
            train_loop_config={
                "batch": batch.encode(),
                "store": self._store.root,
                "mailbox": self._mailbox,
            },
            torch_config=TorchConfig(backend="nccl" if takes.gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=takes.ranks,
                use_gpu=bool(takes.gpu),
                resources_per_worker=dict(placement.bundle(takes)),
                placement_strategy=takes.placement.upper(),
            ),
            run_config=RunConfig(
                name=batch.batch_id,
                storage_path=str(self._folder),
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            ),
        )
        return bool(trainer.fit().return_value)


class _Mailbox:
    """Holds what ranks have posted until the driver takes it."""

    def __init__(self) -> None:
        self._held: list[dict[str, Any]] = []

    def post(self, plain: dict[str, Any]) -> None:
        self._held.append(plain)

    def take(self) -> list[dict[str, Any]]:
        held, self._held = self._held, []
        return held


_MAILBOX: Final[Any] = ray.remote(num_cpus=0)(_Mailbox)


def _train(config: dict[str, Any]) -> bool:
    """Carry out a batch as one of its ranks; the first one reports.

    Returns:
        Whether they have left before its end, since a node that one of them is on will be gone.
    """

    def post(plain: dict[str, Any]) -> None:
        ray.get(config["mailbox"].post.remote(plain))

    end_with_node()
    batch = decode(config["batch"])
    post({"batch_id": batch.batch_id, "node": ray.get_runtime_context().get_node_id()})
    ranks.prepare(_APART)
    first = ranks.Ranks.current().first
    work = run_batch(batch, SuiteStore(config["store"], batch.suite), "ray")
    try:
        for progress in work:
            if first:
                post(progress.plain())
            if not progress.finished and get_preemption_info():  # the same to all of them
                work.close()
                return True
    except UnavailableError as error:  # a store that takes nothing: no other try will do
        if first:
            post(Progress(batch.batch_id, finished=True, unstored=str(error)).plain())
        raise
    return False


def _kind(batch: Batch) -> str:
    """Return what a batch takes as text: equal for batches that wait for the same."""
    return batch.resources.model_dump_json()


def _died(error: BaseException) -> bool:
    """Return whether Ray has said of a rank that its process died, and not that it is silent."""
    return bool(_dead_ranks(error))


def _dead_ranks(error: BaseException) -> list[int]:
    lost = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    return sorted(rank for rank, why in lost.items() if _DEAD.search(str(why)))


def _cause(error: BaseException) -> str:
    """Return why a trainer gave up, in a line."""
    if dead := _dead_ranks(error):
        who = ", ".join(map(str, dead))
        return f"the worker process of rank {who} died (killed, or out of memory)"
    if isinstance(error, WorkerGroupError):
        error = next(iter(error.worker_failures.values()), error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "the batch failed without a message"
