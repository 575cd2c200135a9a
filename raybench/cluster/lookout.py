"""Look after batches while Ray carries them out: who waits for a node, whose worker is silent.

Tune and Train say nothing of a batch that no node has room for, and Tune waits for ever for a
process that has stopped. A worker that hangs in its own code ends itself (`deadline`); one that is
stopped cannot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import ray
from ray.tune.experiment import Trial

from raybench.cluster import placement
from raybench.deadline import GRACE_SECONDS
from raybench.suite import Resources

WAITING_SECONDS: Final = 30.0
"""Between two messages about a batch that waits, and before the first where a node has room."""
_FIRST_SECONDS: Final = 5.0  # before the first one where no node has
_SILENCE_SECONDS: Final = 20.0  # past the wall limit, in which a process can still end itself
_LOOK_SECONDS: Final = 1.0


class Wait:
    """Says from time to time what batches wait for that all take the same.

    Args:
        resources: what each takes.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self.end()

    def end(self) -> None:
        """Note that none waits, or that some go on."""
        self._since = time.monotonic()
        self._tell_at = self._since + _FIRST_SECONDS

    def look(self, busy: float = -math.inf) -> str:
        """Return the message if it is time for it, else nothing.

        To be called often while some wait and none goes on.

        Args:
            busy: when others, to whom the same nodes are open, have last got on.
        """
        now = time.monotonic()
        if now < self._tell_at:
            return ""
        present = placement.nodes().values()
        fits = placement.room(self._resources, present) > 0
        ready = max(self._since, busy) + WAITING_SECONDS
        if fits and now < ready:
            self._tell_at = ready  # Ray may only be starting a process
            return ""
        self._tell_at = now + WAITING_SECONDS
        none = "no node has it" if self._resources.ranks == 1 else "too few nodes have it"
        why = "others use what there is" if fits else none
        return f"waiting for a node: {placement.lack(self._resources, present)} ({why})"


class Lookout:
    """Looks at the trials of one call of Tune now and then.

    Args:
        resources: what a batch takes.
        tell: given a trial's config and a message while batches wait for a node.
        journal: the folder in which batches note their groups; None if there is none.
        wall_s: seconds that a group may take; None for as long as it likes.

    Attributes:
        ended: why a worker was ended, by trial id.
    """

    def __init__(
        self,
        resources: Resources,
        tell: Callable[[Any, str], None],
        journal: Path | None = None,
        wall_s: float | None = None,
    ) -> None:
        self.ended: dict[str, str] = {}
        self._wait = Wait(resources)
        self._tell = tell
        self._journal = journal if wall_s is not None else None
        self._most = (wall_s or 0.0) + GRACE_SECONDS + _SILENCE_SECONDS
        self._before = set(self._notes())
        self._noted: dict[Path, tuple[int, float]] = {}  # size of a journal, and when it was new
        self._looked = time.monotonic()

    def look(self, trials: Sequence[Trial]) -> None:
        """See to what needs it; to be called often."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        running = [trial for trial in trials if trial.status == Trial.RUNNING]
        self._see_to_waiting(trials, running)
        if self._journal is not None:
            self._see_to_silent(running, now)

    def _see_to_waiting(self, trials: Sequence[Trial], running: list[Trial]) -> None:
        waiting = [trial for trial in trials if trial.status == Trial.PENDING]
        if running or not waiting:
            self._wait.end()
        elif message := self._wait.look():
            self._tell(waiting[0].config, message)

    def _see_to_silent(self, running: list[Trial], now: float) -> None:
        notes = set(self._notes()) - self._before
        for trial in running:
            if trial.trial_id in self.ended:
                continue
            for path in notes:
                if not path.name.startswith(f"{trial.config['batch_id']}-"):
                    continue
                size = _size(path)
                known, since = self._noted.get(path, (-1, now))
                if size != known:
                    self._noted[path] = (size, now)
                elif now - since > self._most and trial.temporary_state.ray_actor is not None:
                    self.ended[trial.trial_id] = (
                        f"the worker process did not answer for {now - since:.0f} s and was ended "
                        "(limits.wall_s)"
                    )
                    # Ray ends a process that does not hear it either, 5 s later.
                    ray.kill(trial.temporary_state.ray_actor)

    def _notes(self) -> list[Path]:
        return [] if self._journal is None else list(self._journal.glob("*.jsonl"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1  # the batch has ended meanwhile
