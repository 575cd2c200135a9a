"""What a suite does, for Prometheus: Ray's metrics, scraped from each node's metrics port.

    raybench_runs{suite, status}         runs stored; `rate()` of it is the speed
    raybench_runs_per_second{suite}      the speed since the last look, some seconds ago
    raybench_lanes{suite}                runs that train at this moment
    raybench_batches{suite}              batches that train at this moment
    raybench_memory_bytes{suite, kind}   of each process: resident, and of its GPU

Ray adds its own labels (node, process) and writes `ray_` before each name, `_total` after counters.
Setting one takes microseconds; without the extra `cluster` nobody collects them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ray.util.metrics import Counter, Gauge

from raybench.progress import Progress

_SECONDS: Final = 2.0  # at least, over which a speed is measured
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Metrics:
    """The driver's: what executors report, counted.

    Args:
        suite: whose runs they are.
        pass_on: who else is told.
    """

    def __init__(self, suite: str, pass_on: Callable[[Progress], None]) -> None:
        tags = {"suite": suite}
        self._runs = Counter("raybench_runs", "Runs stored.", tag_keys=("suite", "status"))
        self._speed = Gauge("raybench_runs_per_second", "Runs stored a second.", ("suite",))
        self._lanes = Gauge("raybench_lanes", "Runs that train now.", tag_keys=("suite",))
        self._batches = Gauge("raybench_batches", "Batches that train now.", tag_keys=("suite",))
        for each in (self._runs, self._speed, self._lanes, self._batches):
            each.set_default_tags(tags)
        self._memory = Memory(suite)
        self._pass_on = pass_on
        self._training: dict[str, int] = {}
        self._since, self._count = time.monotonic(), 0

    def update(self, progress: Progress) -> None:
        """Count what has been stored, and pass it on."""
        for status, count in progress.statuses.items():
            if count > 0:
                self._runs.inc(count, {"status": status})
                self._count += count
        self._training[progress.batch_id] = progress.lanes
        if progress.finished or progress.excused or progress.waiting:
            self._training.pop(progress.batch_id, None)
        self._lanes.set(sum(self._training.values()))
        self._batches.set(len(self._training))
        seconds = time.monotonic() - self._since
        if seconds > _SECONDS:
            self._speed.set(self._count / seconds)
            self._since, self._count = time.monotonic(), 0
            self._memory.update()
        self._pass_on(progress)

    def close(self) -> None:
        """Say that nothing trains any more."""
        self._training.clear()
        for each in (self._lanes, self._batches, self._speed):
            each.set(0)


class Memory:
    """The memory of this process, in bytes."""

    def __init__(self, suite: str) -> None:
        self._gauge = Gauge("raybench_memory_bytes", "Memory in use.", ("suite", "kind"))
        self._gauge.set_default_tags({"suite": suite})

    def update(self) -> None:
        """Look again; a process that has not touched a GPU says nothing of one."""
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        self._gauge.set(int(pages) * _PAGE, {"kind": "resident"})
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            self._gauge.set(torch.cuda.memory_allocated(), {"kind": "gpu"})
