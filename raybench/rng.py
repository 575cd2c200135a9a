"""The only source of randomness: named streams derived from a run's seed.

Two kinds. `stream` gives a `torch.Generator` for what is drawn once per run or per epoch (initial
weights, splits, order). `key` and `uniform` give counter-based noise for what is drawn inside a
step (dropout, augmentation): a pure function of an integer key, so it lifts over lanes and is the
same on every device, in every batch and in every order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, NamedTuple

import torch
from torch import Tensor

STREAMS: Final = ("init", "order", "data", "noise")
"""The streams of a run: initial weights; order of the rows; split, subset, labels and generated
data; noise during training (dropout, augmentation)."""


class Seed(NamedTuple):
    """The seed of a run, and the streams that do not follow it.

    Attributes:
        value: the run's own seed.
        base: the seed of the streams in `fixed`, the same for all runs of a suite.
        fixed: names out of `STREAMS`, sorted.
    """

    value: int
    base: int = 0
    fixed: tuple[str, ...] = ()

    def of(self, purpose: str) -> int:
        """Return a 63-bit seed for `purpose`: a stream's name, or `stream/detail`."""
        name = purpose.partition("/")[0]
        if name not in STREAMS:
            raise ValueError(f"unknown stream {name!r}: use one of {', '.join(STREAMS)}")
        value = self.base if name in self.fixed else self.value
        digest = hashlib.sha256(f"{value}:{purpose}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1


def stream(seed: Seed, purpose: str) -> torch.Generator:
    """Return a fresh CPU generator for `purpose` (see `Seed.of`)."""
    return torch.Generator().manual_seed(seed.of(purpose))


def key(seed: Seed, purpose: str) -> Tensor:
    """Return the int64 scalar that starts a counter-based stream for `purpose`."""
    return torch.tensor(seed.of(purpose), dtype=torch.int64)


_GOLDEN: Final = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1: Final = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2: Final = -7723592293110705685  # 0x94D049BB133111EB


def _mix(z: Tensor) -> Tensor:
    # The finalizer of SplitMix64 (Steele, Lea and Flood 2014). `>>` on int64 keeps the sign,
    # so the bits that it shifts in are masked off.
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _MIX_1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def fold(key: Tensor, number: Tensor | int) -> Tensor:
    """Return a key for step, layer or epoch `number` of the stream that starts at `key`."""
    offset = (number + 1) * _GOLDEN
    if isinstance(offset, int):
        offset = (offset + 2**63) % 2**64 - 2**63  # wrapped as int64 wraps
    return _mix(key + offset)


_place: ContextVar[tuple[int, int]] = ContextVar("place", default=(0, 0))


@contextmanager
def rows_from(start: int, count: int) -> Iterator[None]:
    """Within, noise of the shape of `count` rows is that of these rows of a larger batch.

    So a batch that is worked on in parts, by several processes or in turn, has the noise that it
    would have as a whole.

    Args:
        start: the place of the first of the rows in the batch.
        count: rows; the first axis of what noise is drawn for is a multiple of it.
    """
    token = _place.set((start, count))
    try:
        yield
    finally:
        _place.reset(token)


def uniform(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return numbers uniform on [0, 1) of `shape`: a pure function of `key` (int64 scalar)."""
    size = 1
    for length in shape:
        size *= length
    start, count = _place.get()
    before = 0
    if start and count:
        if not shape or shape[0] % count:
            raise ValueError(
                f"noise of shape {tuple(shape)} is not of {count} rows, so it cannot be drawn for "
                "a part of a batch; use resources.ranks: 1 and accumulate: 1"
            )
        before = size // count * start
    counter = torch.arange(before + 1, before + size + 1, device=key.device)
    bits = (_mix(key + counter * _GOLDEN) >> 11) & 0x1FFFFFFFFFFFFF
    # 24 bits are what float32 holds; drawn so in every dtype, for equal noise in float64.
    return ((bits >> 29).to(dtype) * 2.0**-24).reshape(tuple(shape))


def normal(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return standard normal numbers of `shape`: a pure function of `key` (Box-Muller)."""
    radius = uniform(fold(key, 0), shape, dtype)
    angle = uniform(fold(key, 1), shape, dtype)
    return (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * torch.pi * angle)
