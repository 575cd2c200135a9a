"""Where a batch trains, and how many lanes to fuse: measured on real steps, limited by memory.

Nothing here can change a result: a run's numbers do not depend on the lanes beside it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import resource
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from raybench.clock import Clock
from raybench.deadline import WallLimit
from raybench.lanes import Compiling, Lanes
from raybench.plan import Batch
from raybench.procedures.base import DTYPES
from raybench.record import Recorder
from raybench.spec import digest
from raybench.suite import Planned

CANDIDATES: Final = (1, 4, 16, 64, 256)
_STEPS: Final = 6  # gradient steps timed at each width, after one that warms up
_GAIN: Final = 0.95  # a wider group must cost at most this share per lane to be worth its memory
_MEMORY_SHARE: Final = 0.4  # of what is free
_PRODUCTS: Final = 5  # matrix products that are timed

_log = logging.getLogger(__name__)


@dataclass
class _Knowledge:
    """What this process has measured about runs that cost the same.

    Attributes:
        seconds: a lane and step, by lanes.
        limit: the most lanes at once.
        compiled: the most with which a compiled step was taken; 0 for none.
        tight: what did not fit in memory, for the log of the runs that follow; else empty.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    limit: int = max(CANDIDATES)
    compiled: int = 0
    tight: str = ""


_known: dict[tuple[str, str], _Knowledge] = {}
_warm: set[str] = set()
_trained: Counter[str] = Counter()  # runs that this process has carried out, by batch key


def device_for(batch: Batch) -> torch.device:
    """Return where a batch trains: the GPU it asked for, else the CPU."""
    if batch.resources.gpu and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")


def confine(batch: Batch) -> None:
    """Hold this process to its batch's share of cores and of a GPU's memory."""
    torch.set_num_threads(max(1, int(batch.resources.cpu)))
    if device_for(batch).type == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(batch.resources.gpu, 1.0))


def lanes(batch: Batch, waiting: Sequence[Planned], device: torch.device) -> int:
    """Return how many of the waiting runs to fuse into the next group."""
    known = _knowledge(batch, device)
    asked = batch.resources.lanes
    if asked == "auto" and batch.resources.ranks > 1:
        return 1  # what is given several processes fills them; and each would measure other times
    if isinstance(asked, int):
        return max(1, min(asked, len(waiting), known.limit))
    most = min(len(waiting), known.limit)
    if most == 1:
        return 1
    best = min(_best(known, waiting, most, device, batch), most)
    if best <= 2 * known.compiled and known.compiled <= most:
        return known.compiled
    groups = math.ceil(len(waiting) / best)
    return math.ceil(len(waiting) / groups)  # of equal size, rather than a small one at the end


def compiling(batch: Batch, group: int) -> Compiling:
    """Return what a group of so many runs is told about compiling its steps."""
    later = batch.alike - _trained[batch.runs[0].run.batch_key] - group
    return Compiling(batch.resources.compile, max(later, 0), batch.wall_s)


def remember_trained(batch: Batch, group: int, compiled: int) -> None:
    """Note that a group has ended, and the number of lanes that its steps were compiled for."""
    _trained[batch.runs[0].run.batch_key] += group
    if compiled:
        known = _knowledge(batch, device_for(batch))
        known.compiled = max(known.compiled, compiled)


def remember_limit(batch: Batch, lanes: int, why: str = "") -> None:
    """Note that more than `lanes` of such runs do not fit in memory."""
    known = _knowledge(batch, device_for(batch))
    known.limit = max(1, min(lanes, known.limit))
    known.tight = why


def memory_note(batch: Batch) -> str | None:
    """Return what is known of lanes that did not fit in memory; None if all did."""
    known = _knowledge(batch, device_for(batch))
    return f"{known.tight}; from then on at most {known.limit} at once" if known.tight else None


_OUT_OF_MEMORY: Final = (
    "can't allocate memory",  # PyTorch's allocator for the CPU
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that less at once may work."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
    )


def timed(group: Sequence[Planned], device: torch.device) -> Clock:
    """Return a clock that has timed the first steps of a group of runs.

    A procedure without gradient steps is carried out whole.
    """
    procedure = group[0].run.procedure
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = Clock(stop_after=_STEPS, busy=alone)
    width = Lanes(len(group), device=device, dtype=DTYPES[procedure.dtype], clock=clock)
    with contextlib.suppress(Clock.Enough):
        procedure.execute(width, [planned.run for planned in group], Recorder(width))
    return clock


def product_speed(device: torch.device) -> float:
    """Return floating-point operations a second of large float32 matrix products, measured."""
    size = 4096 if device.type == "cuda" else 1024
    matrix = torch.ones(size, size, device=device)
    best = math.inf
    for _ in range(_PRODUCTS):
        began = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return float(2 * size**3 / best)


def _knowledge(batch: Batch, device: torch.device) -> _Knowledge:
    form = digest(batch.runs[0].run.procedure.cost_form())
    return _known.setdefault((form, device.type), _Knowledge())


def _best(
    known: _Knowledge, waiting: Sequence[Planned], most: int, device: torch.device, batch: Batch
) -> int:
    best = 1
    if device.type not in _warm:
        # The first steps of a process load kernels and vmap itself, which is nobody's cost.
        _warm.add(device.type)
        with contextlib.suppress(Exception):
            timed(waiting[:2], device)
    for width in [*(c for c in CANDIDATES if c < most), most]:
        if width not in known.seconds:
            before = _memory(device)
            try:
                clock = timed(waiting[:width], device)
                # A step's share of the whole: runs of other lengths are compared with it too.
                known.seconds[width] = clock.seconds() / width / (clock.steps or 1)
            except (Exception, WallLimit) as error:  # noqa: BLE001  (the run's row will show it)
                if is_out_of_memory(error):
                    known.limit = best
                break
            if width > 1 and (_memory(device) - before) * 4 > _MEMORY_SHARE * _free(device):
                known.limit = width  # the next candidate, four times wider, would not fit
        if known.seconds[width] <= _GAIN * known.seconds[best]:
            best = width
        elif known.seconds[width] > 2 * known.seconds[best]:
            break
        if width >= known.limit:
            break
    _log.info("batch %s: %d lanes of %s", batch.batch_id, best, known.seconds)
    return best


def _memory(device: torch.device) -> int:
    """Return the most memory used so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        share = torch.cuda.get_per_process_memory_fraction(device) * total
        return int(min(free, share - torch.cuda.memory_reserved(device)))
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62
