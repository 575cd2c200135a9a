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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from raybench.errors import UnavailableError
from raybench.plan import Batch, Climb, decode
from raybench.store import SuiteStore
from raybench.suite import Resources
from raybench.work import Progress, run_batch

_log = logging.getLogger(__name__)


class RayExecutor:
    """Batches as Tune trials on a Ray cluster: one's own on loopback, or one at an address.

    Args:
        address: of a running cluster (`auto`, `host:port`, `ray://...`); None starts one here
            that listens on loopback only, with a token that only this process knows.
        cpus: CPU cores of the cluster started here; None for all.

    Raises:
        UnavailableError: no cluster can be reached or started.
    """

    def __init__(self, address: str | None = None, cpus: int | None = None) -> None:
        self._folder: Path | None = None
        for name in ("ray", "ray.tune", "ray.data", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address is None:
                self._start(cpus, quiet)
            else:
                _knock(address)
                ray.init(address=address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            self._remove_folder()
            said = (str(error).strip().splitlines() or ["no reason given"])[0]
            where = f"the Ray cluster at {address}" if address else "a local Ray"
            raise UnavailableError(
                f"{where} cannot be {'reached' if address else 'started'}: {said}; "
                "--in-process runs without Ray"
            ) from error
        self.resources: Mapping[str, float] = ray.cluster_resources()
        self.slots = max(1, int(self.resources.get("CPU", 1)))

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
        # By what Ray has to know of them: all others go through the same workers.
        kinds: dict[tuple[float, float], list[Batch]] = {}
        for batch in batches:
            kinds.setdefault((batch.resources.cpu, batch.resources.gpu), []).append(batch)
        for same in kinds.values():
            self._check(same[0])
            # A batch becomes text when its turn comes: that of 100,000 runs would be held twice.
            given = ({"batch": batch.encode(), "store": store.root} for batch in same)
            queue, relay = _Queue(given, len(same)), _OfBatches(on_progress)
            self._tune(BatchTrainable, queue, _Unhurried(), relay, same[0].resources)

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
        queue, relay = _Queue(configs(climbs, store), len(climbs)), OfClimbs(on_progress)
        resources = climbs[0].rungs[0].resources
        self._tune(Climber, queue, Brackets(climbs), relay, resources, resources.retries)

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
        slots = max(1, int(self.slots / resources.cpu))
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max(2, min(slots, 16)))
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
                resources_per_trial={"cpu": resources.cpu, "gpu": resources.gpu},
                callbacks=[relay],
                stop=_Stop(relay),
                reuse_actors=True,
                max_failures=retries,
                raise_on_failed_trial=False,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            )
        shutil.rmtree(folder / "tune", ignore_errors=True)
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
        needed = {"CPU": batch.resources.cpu, "GPU": batch.resources.gpu}
        for name, amount in needed.items():
            have = self.resources.get(name, 0)
            if amount > have:
                raise UnavailableError(
                    f"a batch needs {amount:g} {name} and the cluster has {have:g}; "
                    f"lower resources.{name.lower()} or use a larger cluster"
                )

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class BatchTrainable(tune.Trainable):  # type: ignore[misc]
    """A batch as Tune sees it: each step trains groups until some results have been stored."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the batch in `config`."""
        batch = decode(config["batch"])
        self._work = run_batch(batch, SuiteStore(config["store"], batch.suite), "ray")

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another batch in the same process, whose data and measurements are kept."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Go on until some runs have been stored, and return what became of them."""
        try:
            progress = next(self._work)
        except UnavailableError as error:  # a store that takes nothing: no other try will do
            batch_id = json.loads(self.config["batch"])["batch_id"]
            progress = Progress(batch_id, finished=True, unstored=str(error))
        return {**progress.plain(), "done": progress.finished}

    def cleanup(self) -> None:
        """Store what has been computed: Tune ends the batch early."""
        self._work.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: what is stored in Parquet is the checkpoint."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Load nothing; see `save_checkpoint`."""


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
    """

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._on_progress = on_progress
        self.raised: Exception | None = None

    def pass_on(self, progress: Progress) -> None:
        """Report, unless something has been raised already."""
        if self.raised is not None:
            return
        try:
            self._on_progress(progress)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is raised later)
            self.raised = error


class _OfBatches(Relay):
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.pass_on(Progress.of(result))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        batch_id = json.loads(trial.config["batch"])["batch_id"]
        self.pass_on(Progress(batch_id, finished=True, broken=_cause(trial)))


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


def _cause(trial: Any) -> str:
    file = Path(trial.error_file or "")
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "running low on memory" in text:
        return "the worker process was killed: its node ran low on memory"
    if "actor died" in text or "worker process has died" in text or "ActorDiedError" in text:
        return "the worker process died (killed, or out of memory)"
    return lines[-1][:300] if lines else "the batch failed without a message"


def _knock(address: str) -> None:
    """Raise OSError at once if nothing listens at `host:port`, for which Ray would wait minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
