"""Batches whose runs are shared by several processes: one TorchTrainer of Ray Train for each.

Trainers are started by threads of the driver while Tune carries out the other batches. A trainer's
controller takes no CPU, and its workers come in a placement group that is there as a whole or not
at all, so batches that wait for cores never hold some of them meanwhile. Tune has no part in it:
what it stops itself is let go of with the help of Ray's dashboard only.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybench import ranks
from raybench.cluster import placement
from raybench.errors import UnavailableError
from raybench.plan import Batch, decode
from raybench.progress import Progress
from raybench.store import SuiteStore
from raybench.suite import Resources
from raybench.work import run_batch

_POLL: Final = 0.2  # seconds between looks at what has been reported
_APART: Final = 60.0  # seconds that a rank waits for the others at the end of a group
_DEAD: Final = re.compile(r"actor (is dead|died)|worker process has died|ActorDiedError")
_MOST: Final = 16  # trainers at a time: each has a controller on the driver's machine


class Gangs:
    """Carries out batches of several ranks while the body of the `with` does other things.

    Leaving it waits until all have ended. Where the body raises, what is under way is left behind:
    it ends with the connection to Ray.

    Args:
        batches: each with `resources.ranks` above 1.
        store: where results go.
        on_progress: told what happens.
        present: what each node has.

    Raises:
        UnavailableError: the cluster has less than a batch needs.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        store: SuiteStore,
        on_progress: Callable[[Progress], None],
        present: Sequence[placement.Amounts],
    ) -> None:
        self._batches = batches
        self._store = store
        self._on_progress = on_progress
        self._width = min(_MOST, *(_fitting(batch.resources, present) for batch in batches))
        self._lock = threading.Lock()
        self._raised: Exception | None = None

    def report(self, progress: Progress) -> None:
        """Pass progress on, one at a time, and raise what the listener has raised to anybody."""
        with self._lock:
            if self._raised is None:
                try:
                    self._on_progress(progress)
                except Exception as error:  # noqa: BLE001  (whatever it is, it is raised here)
                    self._raised = error
            if self._raised is not None:
                raise self._raised

    def __enter__(self) -> Self:
        """Start as many as the cluster has room for; the others follow as these end."""
        self._folder = Path(tempfile.mkdtemp(prefix="raybench-train-"))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox: Any = _MAILBOX.options(scheduling_strategy=here).remote()
        self._pool = ThreadPoolExecutor(self._width, thread_name_prefix="gang")
        self._fits = [self._pool.submit(self._fit, batch) for batch in self._batches]
        self._left = threading.Event()
        self._postman = threading.Thread(target=self._deliver, name="gang-mail", daemon=True)
        self._postman.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the batches, unless something was raised."""
        try:
            while kind is None and self._postman.is_alive():
                self._postman.join(_POLL)
        finally:
            # From here on no thread asks Ray for anything: once its connection is closed, that
            # would start another one.
            self._left.set()
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._postman.join()
            shutil.rmtree(self._folder, ignore_errors=True)
        if kind is None and self._raised is not None:
            raise self._raised
        if kind is None:
            ray.kill(self._mailbox)

    def _deliver(self) -> None:
        """Pass on what comes until all batches have ended; a thread."""
        ended = False
        while not (ended or self._left.is_set()):
            ended = not wait(self._fits, timeout=_POLL).not_done
            try:
                for plain in ray.get(self._mailbox.take.remote()):
                    self.report(Progress.of(plain))
            except Exception as error:  # noqa: BLE001  (raised by whoever waits for the batches)
                self._raised = self._raised or error
                return

    def _fit(self, batch: Batch) -> None:
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
                failure_config=FailureConfig(max_failures=takes.retries),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001  (whatever it is, it is why the batch broke)
            if self._left.is_set():
                return
            broken = Progress(batch.batch_id, finished=True, broken=_cause(error))
            ray.get(self._mailbox.post.remote(broken.plain()))


class _Mailbox:
    """Holds what ranks have reported until the driver takes it."""

    def __init__(self) -> None:
        self._held: list[dict[str, Any]] = []

    def post(self, plain: dict[str, Any]) -> None:
        self._held.append(plain)

    def take(self) -> list[dict[str, Any]]:
        held, self._held = self._held, []
        return held


_MAILBOX: Final[Any] = ray.remote(num_cpus=0)(_Mailbox)


def _train(config: dict[str, Any]) -> None:
    """Carry out a batch as one of its ranks; the first one reports."""
    ranks.prepare(_APART)
    first = ranks.Ranks.current().first
    batch = decode(config["batch"])
    for progress in run_batch(batch, SuiteStore(config["store"], batch.suite), "ray"):
        if first:
            ray.get(config["mailbox"].post.remote(progress.plain()))


def _fitting(takes: Resources, present: Sequence[placement.Amounts]) -> int:
    """Return how many batches there is room for at a time; UnavailableError if for none."""
    each = placement.bundle(takes)
    room = sum(placement.room(each, node) for node in present)
    if room < takes.ranks:
        raise UnavailableError(
            f"there is room for {room} of the {takes.ranks} ranks of a batch: "
            f"{placement.lack(each, present, 'each')}; lower resources.ranks or what each takes, "
            "or use a larger cluster: --address"
        )
    return room // takes.ranks


def _cause(error: Exception) -> str:
    """Return why a trainer gave up, in a line."""
    if isinstance(error, WorkerGroupError):
        lost = sorted(error.worker_failures.items())
        dead = [str(rank) for rank, why in lost if _DEAD.search(str(why))]
        if dead:
            return f"the worker process of rank {', '.join(dead)} died (killed, or out of memory)"
        error = next((why for _, why in lost), error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else "the batch failed without a message"
