"""Execute batches on Ray: one Tune trial is one batch. The only module that imports ray.

Ray is the executor and never the database: workers write their own Parquet parts, Tune sees
counts, and a suite is resumed from the store. Settings follow what was measured on Ray 2.60: no
loggers, no checkpoints, reused actors, a searcher that hands out an index, a scheduler that does
not walk all trials.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from raybench.cluster import placement
from raybench.cluster.environment import package
from raybench.cluster.lookout import Lookout
from raybench.cluster.metrics import Metrics
from raybench.cluster.remains import gather
from raybench.cluster.worker import BatchTrainable, Drained
from raybench.errors import UnavailableError
from raybench.journal import folder_of
from raybench.plan import Batch, Climb
from raybench.progress import Progress
from raybench.store import SuiteStore
from raybench.suite import Resources

_SLOTS_TO_COME: Final = 16
_PENDING: Final = 16
_UNAVAILABLE: Final = " is unavailable: "  # of the text, which does not name the exception
_WITH_NODE: Final = "the worker process died with its node"

_log = logging.getLogger(__name__)


class RayExecutor:
    """Batches as Tune trials on a Ray cluster: one's own on loopback, or one at an address.

    Args:
        address: of a running cluster (`auto`, `host:port`, `ray://...`); None starts one here
            that listens on loopback only, with a token that only this process knows.
        cpus: CPU cores of the cluster started here; None for all.
        resources: what a batch takes.

    Attributes:
        slots: how many batches fit on the nodes there are; where none does, a guess at what an
            autoscaler will bring.

    Raises:
        UnavailableError: no cluster can be reached or started.
    """

    def __init__(
        self,
        address: str | None = None,
        cpus: int | None = None,
        resources: Resources | None = None,
    ) -> None:
        self._folder: Path | None = None
        for name in ("ray", "ray.tune", "ray.data", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address is None:
                self._start(cpus, quiet)
            else:
                _knock(address)
                ray.init(address=address, runtime_env=package(), **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            self._remove_folder()
            said = (str(error).strip().splitlines() or ["no reason given"])[0]
            where = f"the Ray cluster at {address}" if address else "a local Ray"
            raise UnavailableError(
                f"{where} cannot be {'reached' if address else 'started'}: {said}; "
                "--in-process runs without Ray"
            ) from error
        present = placement.nodes().values()
        self.slots = placement.room(resources or Resources(), present) or _SLOTS_TO_COME

    def run(
        self,
        batches: Sequence[Batch],
        store: SuiteStore,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Carry out the batches and report as their runs are stored.

        A batch whose process dies is reported as broken, with the reason, and is not retried:
        who was in flight is for the caller to find out.
        """
        metrics = Metrics(store.suite, on_progress)
        broken: set[str] = set()

        def note(progress: Progress) -> None:
            if progress.broken and not progress.excused:
                broken.add(progress.batch_id)
            metrics.update(progress)

        report = note
        shared = [batch for batch in batches if batch.resources.ranks > 1]
        with contextlib.ExitStack() as stack:
            if shared:
                from raybench.cluster.gang import Gangs

                for batch in shared:
                    self._check(batch)
                gangs = stack.enter_context(Gangs(shared, store, report, own=bool(self._folder)))
                report = gangs.report
            self._run_alone([b for b in batches if b.resources.ranks == 1], store, report)
        metrics.close()
        if broken and store.storage.remote and self._folder is None:
            gather(store, batches[0].session, broken)

    def _run_alone(
        self,
        batches: Sequence[Batch],
        store: SuiteStore,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Carry out batches of runs that are each trained by one process."""
        # By what Ray has to know of them: all others go through the same workers.
        kinds: dict[str, list[Batch]] = {}
        for batch in batches:
            asked = {**placement.bundle(batch.resources), "placement": batch.resources.placement}
            kinds.setdefault(json.dumps(asked, sort_keys=True), []).append(batch)
        for same in kinds.values():
            first = same[0]
            self._check(first)
            before = set(placement.nodes())
            # A batch becomes text when its turn comes: that of 100,000 runs would be held twice.
            given = (
                {"batch_id": batch.batch_id, "batch": batch.encode(), "store": store.root}
                for batch in same
            )
            relay = _OfBatches(on_progress)
            journal = folder_of(store.folder, first.session)
            relay.lookout = Lookout(first.resources, relay.waits, journal, first.wall_s)
            queue = _Queue(given, len(same))
            self._tune(BatchTrainable, queue, _Unhurried(), relay, first.resources)
            if relay.unsure:
                gone = _lost(before)
                for progress in relay.unsure:
                    why = _WITH_NODE if gone else progress.broken
                    on_progress(replace(progress, broken=why, excused=gone))

    def climb(
        self,
        climbs: Sequence[Climb],
        store: SuiteStore,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Carry out trials that go on as soon as they are among the best that have got as far.

        What a trial has stored when its process dies stays; the session does the rest.
        """
        from raybench.cluster.climb import Brackets, Climber, OfClimbs, configs

        self._check(climbs[0].rungs[0])
        metrics = Metrics(store.suite, on_progress)
        queue, relay = _Queue(configs(climbs, store), len(climbs)), OfClimbs(metrics.update)
        resources = climbs[0].rungs[0].resources
        relay.lookout = Lookout(resources, relay.waits)
        self._tune(Climber, queue, Brackets(climbs), relay, resources, resources.retries)
        metrics.close()

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        ray.shutdown()
        self._remove_folder()

    def _tune(
        self,
        trainable: type[tune.Trainable],
        queue: _Queue,
        scheduler: FIFOScheduler,
        relay: Relay,
        resources: Resources,
        retries: int = 0,
    ) -> None:
        # What is pending is what an autoscaler sees.
        fewest = 2 if self._folder else _PENDING
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(fewest, min(self.slots, _PENDING)))
        folder = self._folder or Path(tempfile.mkdtemp(prefix="raybench-"))
        # Ray prints about lost workers; standard output belongs to what a verb answers.
        with contextlib.redirect_stdout(sys.stderr):
            tune.run(
                trainable,
                name="tune",
                storage_path=str(folder / "tune"),
                search_alg=queue,
                scheduler=scheduler,
                num_samples=queue.count,
                resources_per_trial=placement.factory(resources),
                callbacks=[relay],
                stop=_Stop(relay),
                reuse_actors=True,
                max_failures=retries,
                raise_on_failed_trial=False,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            )
        shutil.rmtree(folder / "tune" if self._folder else folder, ignore_errors=True)
        if relay.raised is not None:
            raise relay.raised

    def _start(self, cpus: int | None, quiet: Mapping[str, Any]) -> None:
        # A folder of its own: nothing stays in /tmp, and no other user can read what is in it.
        self._folder = Path(tempfile.mkdtemp(prefix="raybench-"))
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(self._folder / "ray"),  # Ray opens its own folder to everybody
            object_store_memory=128 * 2**20,
            **quiet,
        )

    def _check(self, batch: Batch) -> None:
        """Refuse what no node has, where no node can be added; elsewhere it waits for them."""
        present = placement.nodes().values()
        if self._folder and placement.room(batch.resources, present) == 0:
            raise UnavailableError(
                f"{placement.lack(batch.resources, present)}; lower `resources`, or use a cluster "
                "that has it: --address"
            )

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class _Queue(Searcher):  # type: ignore[misc]
    """Hands out `count` configs in order; Tune's own grid copies the whole list for each trial."""

    def __init__(self, configs: Iterator[Mapping[str, Any]], count: int) -> None:
        super().__init__(metric="done", mode="max")
        self._configs = configs
        self.count = count

    def suggest(self, trial_id: str) -> Any:
        return next(self._configs, Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Unhurried(FIFOScheduler):  # type: ignore[misc]
    """First in, first out, without a walk over all trials at each step."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        return None


class Relay(tune.Callback):  # type: ignore[misc]
    """Passes on what trials report.

    Attributes:
        raised: by whom it is passed on to. Tune would take it for a failure of its own: it is told
            to stop instead, and this is raised after it has.
        lookout: what looks at the trials meanwhile.
    """

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._on_progress = on_progress
        self.raised: Exception | None = None
        self.lookout: Lookout | None = None

    def pass_on(self, progress: Progress) -> None:
        """Report, unless something has been raised already."""
        if self.raised is not None:
            return
        try:
            self._on_progress(progress)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is raised later)
            self.raised = error

    def waits(self, config: Mapping[str, Any], message: str) -> None:
        """Report that a trial waits for a node."""
        self.pass_on(Progress(config.get("batch_id", ""), waiting=message))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look at the trials."""
        if self.lookout is not None:
            self.lookout.look(trials)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # as for _Stop


class _OfBatches(Relay):
    """Passes on what batches report.

    Attributes:
        unsure: of batches whose process may have died alone or with its node.
    """

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        super().__init__(on_progress)
        self.unsure: list[Progress] = []

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.pass_on(Progress.of(result))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        assert self.lookout is not None
        text = _error_text(trial)
        why = self.lookout.ended.get(trial.trial_id) or _cause(text)
        progress = Progress(trial.config["batch_id"], finished=True, broken=why)
        if _UNAVAILABLE in text:
            self.unsure.append(progress)
        else:
            excused = "its node has died" in text or Drained.__name__ in text
            self.pass_on(replace(progress, excused=excused))


class _Stop(tune.Stopper):  # type: ignore[misc]
    """Ends all trials once the relay's listener has raised."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._relay.raised is not None

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it into its snapshots, and listeners cannot be pickled


def _error_text(trial: Any) -> str:
    file = Path(trial.error_file or "")
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _cause(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "running low on memory" in text:
        return "the worker process was killed: its node ran low on memory"
    if "its node has died" in text:
        return _WITH_NODE
    if "in its creation task" in text:  # the process lives: a batch cannot be begun in it
        return lines[-1][:300]
    if any(word in text for word in ("actor died", "worker process has died", "ActorDiedError")):
        return "the worker process died (killed, or out of memory)"
    if _UNAVAILABLE in text:
        return "the worker process could not be reached any more"
    return lines[-1][:300] if lines else "the batch failed without a message"


def _lost(before: set[str]) -> bool:
    """Return whether a node of `before` is gone; Ray takes a while to be sure that one is."""
    end = time.monotonic() + placement.SURE_SECONDS
    while time.monotonic() < end:
        if before - set(placement.nodes()):
            return True
        time.sleep(0.5)
    return False


def _knock(address: str) -> None:
    """Raise OSError at once if nothing listens at `host:port`, for which Ray would wait minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
