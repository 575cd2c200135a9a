"""R processes that carry out the same group of runs, each on its share of the rows of every step.

The only module that knows `torch.distributed`. Who starts the processes also initializes the
default process group (gloo on CPU, nccl on GPU); `Ranks.current()` is what the others see of it.
Every rank executes the same program on the same runs, so that collective calls meet; what a rank
alone can know (times, memory) is decided by the first one: `agree`.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

Shard: TypeAlias = Literal["none", "optimizer", "full"]
"""What the ranks of a run divide among them instead of each holding all of it: nothing; the state
of the optimizer; weights and gradients too."""

BUCKET: int = 2**22
"""Bytes of gradients that are summed over the ranks in one collective call."""


@dataclass(frozen=True)
class Rows:
    """Consecutive rows out of a whole: of a batch, or of a pass over a split.

    Attributes:
        start: the first one.
        stop: the one after the last.
        total: rows of the whole.
    """

    start: int
    stop: int
    total: int

    @property
    def share(self) -> float:
        """The part of the whole that they are: what a mean over them counts for."""
        return self.count / self.total

    @property
    def count(self) -> int:
        """How many they are."""
        return self.stop - self.start

    @classmethod
    def all_of(cls, total: int) -> Rows:
        """Return all rows of a whole."""
        return cls(0, total, total)


def cut(rows: Rows, pieces: int) -> list[Rows]:
    """Return rows in consecutive pieces whose numbers of rows differ by at most one."""
    count, rest = divmod(rows.count, pieces)
    edges = [rows.start + place * count + min(place, rest) for place in range(pieces + 1)]
    return [Rows(low, high, rows.total) for low, high in itertools.pairwise(edges)]


@dataclass(frozen=True)
class Ranks:
    """This process among those that carry out a group of runs.

    Attributes:
        rank: which one this is, from 0; the first one writes what is kept.
        size: R, how many there are.
        shard: what they divide among them.
    """

    rank: int = 0
    size: int = 1
    shard: Shard = "none"

    @classmethod
    def alone(cls) -> Ranks:
        """Return the one rank of a run that shares its work with no other process."""
        return cls()

    @classmethod
    def current(cls, shard: Shard = "none") -> Ranks:
        """Return this process's place in the default process group; alone if there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size(), shard)

    @property
    def first(self) -> bool:
        """Whether this rank writes parts, journals and logs."""
        return self.rank == 0

    @property
    def divides_weights(self) -> bool:
        """Whether each rank holds a part of the weights only."""
        return self.size > 1 and self.shard == "full"

    def part(self, rows: Rows) -> Rows:
        """Return which of some rows are this rank's; none where there are too few for all."""
        return self.parts(rows)[self.rank]

    def parts(self, rows: Rows) -> list[Rows]:
        """Return which of some rows are each rank's, in order."""
        return cut(rows, self.size)

    def sum(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums of tensors over the ranks, equal bit by bit on all of them.

        In one flat collective call for each type of number.
        """
        if self.size == 1:
            return dict(values)
        found: dict[str, Tensor] = {}
        for dtype in dict.fromkeys(value.dtype for value in values.values()):
            some = {name: value for name, value in values.items() if value.dtype == dtype}
            flat = torch.cat([value.reshape(-1) for value in some.values()])
            dist.all_reduce(flat)
            parts = torch.split(flat, [value.numel() for value in some.values()])
            found |= {name: p.view(some[name].shape) for name, p in zip(some, parts, strict=True)}
        return {name: found[name] for name in values}

    def summed(self, value: Tensor) -> Tensor:
        """Return the sum over the ranks of a tensor, through which gradients flow.

        Each rank goes on with the sum, so its gradient is that of all of them. Lifts over lanes.
        """
        return value if self.size == 1 else _summed(value)

    def gather(self, own: Tensor, lengths: Sequence[int], dim: int = 0) -> Tensor:
        """Return the tensors of all ranks, joined in their order along `dim`, on each of them.

        Args:
            own: this rank's.
            lengths: of each rank's tensor along `dim`; they may differ, and be 0.
            dim: along which they are joined.
        """
        if self.size == 1:
            return own
        rows = own.movedim(dim, 0).contiguous()
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        all_rows = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(all_rows, padded)
        kept = [each[:length] for each, length in zip(all_rows, lengths, strict=True)]
        return torch.cat(kept).movedim(0, dim)

    def broadcast(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite tensors with those of the first rank."""
        if self.size > 1:
            for value in values.values():
                dist.broadcast(value, 0)

    def agree(self, value: T) -> T:
        """Return the first rank's value, which JSON can hold: for what ranks see differently."""
        if self.size == 1:
            return value
        text = json.dumps(value).encode() if self.first else b""
        length = torch.tensor([len(text)], device=_device())
        dist.broadcast(length, 0)
        letters = list(text) if self.first else [0] * int(length)
        cells = torch.tensor(letters, dtype=torch.uint8, device=_device())
        dist.broadcast(cells, 0)
        return cast("T", json.loads(bytes(cells.tolist())))

    def require_all(self, *, failed: bool) -> None:
        """Compare how a group of runs has ended: what failed on one rank has failed on all.

        Args:
            failed: whether it has here.

        Raises:
            RanksApart: it has not ended so on all ranks, or some are still in its midst.
        """
        if self.size == 1 or _accord is None:
            return
        count = torch.tensor([int(failed)])
        try:
            dist.all_reduce(count, group=_accord)
        except RuntimeError as error:
            raise RanksApart(f"rank {self.rank} waits in vain for the others") from error
        if int(count) not in (0, self.size):
            raise RanksApart(f"{int(count)} of {self.size} ranks failed")

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


class RanksApart(Exception):  # noqa: N818  (reads as the reason it is)
    """The ranks of a run have not ended alike: none of them can go on."""


_accord: dist.ProcessGroup | None = None


def prepare(seconds: float) -> None:
    """Let `Ranks.require_all` compare: called by each rank once the default group is there.

    In a process group of its own, since a rank that failed is not where the others are in theirs.

    Args:
        seconds: that one rank waits for the others.
    """
    global _accord
    _accord = dist.new_group(backend="gloo", timeout=dt.timedelta(seconds=seconds))


class Sums:
    """Sums over the ranks of the gradients of leaves, begun while the backward pass goes on.

    The leaves are put in buckets, of which each is one flat collective call: the last leaves first,
    which is about how a backward pass reaches them. Buckets are begun in one order on all ranks.

    Args:
        leaves: whose gradients are going to be computed, once.
        earlier: what is added to them before they are summed: of other pieces of the batch.
    """

    def __init__(self, leaves: Mapping[str, Tensor], earlier: Mapping[str, Tensor]) -> None:
        self._names = list(leaves)
        self._earlier = earlier
        self._waiting = list(_buckets(leaves))[::-1]
        self._found: dict[str, Tensor] = {}
        self._begun: list[tuple[list[str], Tensor, Any]] = []
        for name, leaf in leaves.items():
            leaf.register_hook(partial(self._note, name))  # type: ignore[no-untyped-call]

    @staticmethod
    def pay(leaves: Mapping[str, Tensor]) -> bool:
        """Return whether anything can be begun early: where there is more than one bucket."""
        return len([*_buckets(leaves)]) > 1

    def of(self, grads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums, equal bit by bit on all ranks.

        Args:
            grads: this rank's, also of leaves that the backward pass did not reach.
        """
        for name, grad in grads.items():
            if name not in self._found:
                self._note(name, grad)
        sums: dict[str, Tensor] = {}
        for names, flat, work in self._begun:
            work.wait()
            parts = torch.split(flat, [grads[name].numel() for name in names])
            sums |= {name: p.view(grads[name].shape) for name, p in zip(names, parts, strict=True)}
        return {name: sums[name] for name in self._names}

    def _note(self, name: str, grad: Tensor) -> None:
        self._found[name] = grad
        while self._waiting and all(each in self._found for each in self._waiting[-1]):
            names = self._waiting.pop()
            flat = torch.cat([self._found[each].reshape(-1) for each in names])
            if self._earlier:
                flat += torch.cat([self._earlier[each].reshape(-1) for each in names])
            self._begun.append((names, flat, dist.all_reduce(flat, async_op=True)))


def _buckets(leaves: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Yield the names of leaves, the last ones first, of one type of number each time.

    A leaf that is larger than a bucket has one of its own.
    """
    names: list[str] = []
    held = 0
    for name, leaf in reversed(list(leaves.items())):
        if names and (held + leaf.nbytes > BUCKET or leaf.dtype != leaves[names[0]].dtype):
            yield names
            names, held = [], 0
        names.append(name)
        held += leaf.nbytes
    if names:
        yield names


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(value: Tensor) -> Tensor:
        total = value.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep nothing: the gradient of a sum is a sum."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _summed(grad)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], value: Tensor) -> tuple[Any, int]:
        return _summed(value), in_dims[0]


def _summed(value: Tensor) -> Tensor:
    apply: Callable[[Tensor], Tensor] = _Summed.apply
    return apply(value)


def _device() -> torch.device:
    """Return where the backend wants tensors to be."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
