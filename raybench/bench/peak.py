"""How fast this machine multiplies matrices at most, in float32."""

from __future__ import annotations

import multiprocessing
import time
from typing import Final, NamedTuple

import torch

_SIZE: Final = 1024
_SECONDS: Final = 1.0  # long enough that all processes are at work at the same time


class Peak(NamedTuple):
    """Floating-point operations per second.

    Attributes:
        one: of one process with one thread, alone on the machine.
        all: of one such process a core, all at the same time.
    """

    one: float
    all: float


def measured(cores: int) -> Peak:
    """Return the peak: the best of many products of square matrices of 1,024 rows.

    Args:
        cores: processes with one thread each; as raybench's workers and its peers' are.
    """
    with multiprocessing.get_context("spawn").Pool(cores, torch.set_num_threads, (1,)) as pool:
        pool.map(_best, [0.1] * cores, chunksize=1)  # imports and first calls
        (one,) = pool.map(_best, [_SECONDS], chunksize=1)
        return Peak(one, sum(pool.map(_best, [_SECONDS] * cores, chunksize=1)))


def _best(seconds: float) -> float:
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(_SIZE, _SIZE, generator=draw)
    best, began = 0.0, time.perf_counter()
    while (now := time.perf_counter()) < began + seconds:
        torch.mm(a, a)
        best = max(best, 2 * _SIZE**3 / (time.perf_counter() - now))
    return best
