"""When a run ends before its steps are over: at a target, at a wall time, at a step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from raybench.errors import RaybenchError
from raybench.record import Recorder
from raybench.spec import Duration, Spec, Steps

Measured = Annotated[str, Field(pattern=r"^(train|valid)/\w+$")]
"""`split/metric`. Nothing may be decided by the test split."""


class Stop(Spec):
    """What ends a run early; its status is `stopped`, and its last values are its final ones."""

    target: Mapping[Measured, float] | None = None
    """Stops at the first recording at which every `split/metric` here is at most its number, as in
    {valid/error: 0.1}. The test split cannot be named."""
    wall: Duration | None = None
    """Stops once training has taken this long on the clock: 90s, 10min, 1.5h. Lanes share the
    clock, so this alone makes a result depend on what trains beside it and on the machine: set
    resources.lanes: 1 for runs that are compared by time."""
    at: Steps | None = None
    """Stops here, on the schedule of all `steps`: the beginning of the longer run, to the bit."""


class Watch:
    """Which lanes of a group stop, and why.

    Args:
        spec: what ends a run; None for nothing.
        recorder: what the targets are read from, and what is told.
        total: steps of the whole run.
        end: the step after which none is trained; see `ending`.
        before: seconds of training that are behind already.
    """

    def __init__(
        self,
        spec: Stop | None,
        recorder: Recorder,
        total: int,
        end: int,
        before: float = 0.0,
    ) -> None:
        self._spec = spec or Stop()
        self._recorder = recorder
        self._total = total
        self._end = end
        self._began = time.perf_counter() - before

    def late(self) -> bool:
        """Return whether the wall time is over."""
        wall = self._spec.wall
        if wall is None:
            return False
        # Ranks have clocks of their own, and must end at the same step.
        return self._recorder.ranks.agree(time.perf_counter() - self._began >= wall.seconds)

    def look(self, step: int, at: int) -> list[int]:
        """Stop the lanes whose end has come, and return the places of those that go on.

        Args:
            step: of the fit; its measurements have been recorded.
            at: the step that they were recorded at.

        Raises:
            RaybenchError: a target is not among what is measured.
        """
        left = self._recorder.left()
        if step == self._total or not left:
            return left
        reasons: dict[int, str] = {}
        if self._spec.target:
            reasons = self._reached(self._spec.target, left, at)
        everyone = ""
        if step == self._end:
            everyone = f"at step {at:,}, as stop.at says"
        elif self.late():
            everyone = f"wall time {self._spec.wall} is over at step {at:,}"
        if everyone:
            reasons = dict.fromkeys(left, everyone) | reasons
        self._recorder.stop(at, reasons)
        return [place for place in left if place not in reasons]

    def _reached(self, target: Mapping[str, float], left: list[int], at: int) -> dict[int, str]:
        measured = self._recorder.latest(at)
        if absent := [name for name in target if name not in measured]:
            there = ", ".join(sorted(name for name in measured if not name.startswith("test/")))
            raise RaybenchError(f"stop.target {absent[0]} is not measured; measured: {there}")
        values = {name: measured[name].tolist() for name in target}
        return {
            place: ", ".join(f"{name} reached {most:g}" for name, most in target.items())
            + f" at step {at:,}"
            for place in left
            if all(values[name][place] <= most for name, most in target.items())
        }


def ending(spec: Stop | None, total: int, epoch: int) -> int:
    """Return the step after which a run of `total` steps is not trained, by what is set before."""
    if spec is None or spec.at is None:
        return total
    return min(total, spec.at.resolve(epoch))
