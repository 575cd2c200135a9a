"""Times the steps of a group of runs, whatever they are."""

from __future__ import annotations

import time

import torch

_SAMPLES = 3  # recordings of a group that is timed


class Clock:
    """Times the gradient steps of a group, and can end it after a few: how lanes are measured.

    Args:
        stop_after: raise `Enough` after this many gradient calls; None lets the group run.
        busy: whether to count this thread's time on its core rather than time on the wall, which
            other work on the machine does not change.

    Attributes:
        steps: gradient steps that the procedure said it would take, None if it did not.
        recordings: how often it said it would record.
    """

    class Enough(Exception):  # noqa: N818  (control flow, not an error)
        """The clock has the steps that it was to time."""

    def __init__(self, stop_after: int | None = None, *, busy: bool = False) -> None:
        self._now = time.thread_time if busy else time.perf_counter
        self.stop_after = stop_after
        self.steps: int | None = None
        self.recordings = 1
        self._start = self._now()
        self._ticks: list[float] = []
        self._gaps: list[float] = []  # between ticks with no recording in between
        self._record_began: float | None = None
        self._record_seconds: list[float] = []

    def expect(self, steps: int, recordings: int) -> None:
        """Note how long a procedure is going to be."""
        self.steps, self.recordings = steps, recordings

    def record(self) -> None:
        """Note that a recording begins; it lasts until the next gradient call."""
        if self.stop_after is not None:
            self._record_began = self._now()

    def tick(self, device: torch.device) -> None:
        """Count one gradient call."""
        if self.stop_after is None:
            return
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = self._now()
        if self._record_began is not None:
            self._record_seconds.append(now - self._record_began)
        elif self._ticks:
            self._gaps.append(now - self._ticks[-1])
        self._record_began = None
        self._ticks.append(now)
        if len(self._ticks) > self.stop_after:
            raise Clock.Enough

    def samples(self, step: int) -> bool:
        """Return whether to record at `step` only because the group is being timed."""
        return self.stop_after is not None and step < _SAMPLES

    def seconds_per_step(self) -> float:
        """Return the least seconds between gradient calls, the first (warm-up) left out.

        The least, because on a shared machine whatever else runs only adds to them.
        """
        return min(self._gaps, default=0.0)

    def seconds(self) -> float:
        """Return the estimated seconds of the whole group; what it took if it was not stopped."""
        elapsed = self._now() - self._start
        if self.steps is None or not self._ticks:
            return elapsed
        record = min(self._record_seconds, default=0.0)
        before = max(self._ticks[0] - self._start - record, 0.0)
        return before + self.steps * self.seconds_per_step() + self.recordings * record
