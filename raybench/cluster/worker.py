"""A batch as a process of Ray's carries it out, which ends with its node and leaves one in time."""

from __future__ import annotations

import math
import os
import threading
import time
from functools import cache
from typing import Any, Final

import ray
from ray import tune

from raybench.cluster import placement
from raybench.cluster.metrics import Memory
from raybench.errors import UnavailableError
from raybench.plan import decode
from raybench.progress import Progress
from raybench.store import SuiteStore
from raybench.work import run_batch

_ASK_SECONDS: Final = 2.0  # between two questions whether the node is being drained


class BatchTrainable(tune.Trainable):  # type: ignore[misc]
    """A batch as Tune sees it: each step trains groups until some results have been stored."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the batch in `config`."""
        end_with_node()
        batch = decode(config["batch"])
        self._work = run_batch(batch, SuiteStore(config["store"], batch.suite), "ray")
        self._memory = Memory(batch.suite)
        self._asked = -math.inf

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another batch in the same process, whose data and measurements are kept."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Go on until some runs have been stored, and return what became of them."""
        now = time.monotonic()
        if now - self._asked >= _ASK_SECONDS:
            self._asked = now
            if ray.get_runtime_context().get_node_id() in placement.draining():
                self._work.close()
                raise Drained("the node is being taken away (spot preemption, or scaled down)")
        try:
            progress = next(self._work)
        except UnavailableError as error:  # a store that takes nothing: no other try will do
            progress = Progress(self.config["batch_id"], finished=True, unstored=str(error))
        self._memory.update()
        return {**progress.plain(), "done": progress.finished}

    def cleanup(self) -> None:
        """Store what has been computed: Tune ends the batch early."""
        self._work.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: what is stored in Parquet is the checkpoint."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Load nothing; see `save_checkpoint`."""


class Drained(Exception):  # noqa: N818  (reads as the reason it is)
    """A batch was left, because the node that it ran on is about to go."""


@cache
def end_with_node() -> None:
    """End this process as soon as Ray's process of its node has died.

    Ray lets such a worker go on for seconds, in which another may have got its batch: they would
    both write the same part.
    """
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()
