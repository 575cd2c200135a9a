"""Rows for the lanes: each run's own splits and order, gathered from one resident tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from raybench.data import Data, Dataset
from raybench.data.augment import augment, standardise
from raybench.lanes import Lanes
from raybench.ranks import Rows, cut
from raybench.rng import Seed, fold, key, rows_from, stream

Order: TypeAlias = Literal["reshuffled", "fixed"]
"""Of training rows: drawn anew for each epoch, or once for all epochs."""


class Extent(NamedTuple):
    """Which rows of the splits are measured.

    Attributes:
        train_rows: how many training rows; None for all.
        whole_batches: whether rows that do not fill a batch are left out, as DeepOBS does.
    """

    train_rows: int | None = None
    whole_batches: bool = False


class Piece(NamedTuple):
    """Rows and targets that are worked on together: a batch, a pass over a split, or a part of one.

    Attributes:
        x: the rows, [K, N, ...] when stacked.
        y: their targets.
        rows: which of the whole they are.
    """

    x: Tensor
    y: Tensor
    rows: Rows


_KEEP = 2**26  # bytes of a split that are kept gathered from one measurement to the next
_CHUNK = 2048  # rows of an evaluation pass; fixed, because packing must not change a sum


class Feed:
    """The training batches and the evaluation rows of K runs.

    Every run has its own order, drawn from its stream `order`. Where all runs share one pool of
    rows it is held once; a batch is gathered from it by index. A split that is the same for all
    runs is gathered once and shown to all of them.

    Args:
        lanes: the runs' lanes.
        data: each run's data set; they differ in Hypers only.
        seeds: the runs' seeds.
        batch_size: rows in a batch; at least the training rows for full-batch descent.
        drop_last: whether the last, smaller batch of an epoch is left out. With a fixed order the
            rows left out are the same in every epoch: they are not part of the split `train` then.
        order: of the training rows, where they do not continue one another.
        extent: which rows are measured; None for all.
    """

    def __init__(
        self,
        lanes: Lanes,
        data: Sequence[Data],
        seeds: Sequence[Seed],
        *,
        batch_size: int | None,
        drop_last: bool = False,
        order: Order = "reshuffled",
        extent: Extent | None = None,
    ) -> None:
        self._lanes = lanes
        datasets = [each.draw(seed) for each, seed in zip(data, seeds, strict=True)]
        first = datasets[0]
        self.task = first.task
        self._pool = _Pool(lanes, datasets)
        self.num_train = len(first.rows["train"])
        self.batch_size = min(batch_size or self.num_train, self.num_train)
        full = self.num_train // self.batch_size
        ragged = self.num_train % self.batch_size > 0 and not drop_last
        self.steps_per_epoch = full + ragged
        self._seeds = list(seeds)
        self._noise = lanes.stack([key(seed, "noise/augment") for seed in seeds])
        self._augmentations = data[0].augment
        self._per_image = data[0].per_image
        self._sequential = data[0].sequential
        self._fixed = order == "fixed"
        self._whole: dict[Rows, tuple[Tensor, Tensor]] = {}
        self._kept: dict[str, list[Piece]] = {}
        self._order = self._rows = torch.empty(0)
        # The runs of a search have one seed: then a batch is gathered once and shown to all lanes.
        self._one_order = len({seed.of("order/epochs") for seed in seeds}) == 1
        self.restart()
        extent = extent or Extent()
        self._whole_batches = extent.whole_batches
        self._measured = self._rows_of_train(drop_last, extent.train_rows)

    def restart(self) -> None:
        """Begin again with the first batch of the first epoch, in the same order as before."""
        self._epoch = -1
        self._orders = [stream(seed, "order/epochs") for seed in self._seeds]

    def take(self, places: Sequence[int]) -> None:
        """Go on with the rows of the lanes at `places` only, each where it is in its order."""
        self._pool.take(places)
        self._seeds = [self._seeds[place] for place in places]
        if not self._one_order:  # else the first one draws for all
            self._orders = [self._orders[place] for place in places]
        self._noise = self._lanes.take(self._noise, places)
        if self._epoch >= 0:
            self._order, self._rows = self._lanes.take((self._order, self._rows), places)
        if self._measured is not None:
            self._measured = self._lanes.take(self._measured, places)
        self._whole = {}
        self._kept = {}

    def has(self, split: str) -> bool:
        """Return whether a split has rows to measure."""
        return self._total(split) > 0

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the rows and targets of training step `step`; steps are asked for in order."""
        return self._training(step, self._of_step(step))

    def pieces(self, step: int, number: int = 1) -> Iterator[Piece]:
        """Yield this rank's part of each piece of a step's batch, gathered when asked for.

        Args:
            step: as for `batch`.
            number: of pieces; fewer where there are fewer rows.
        """
        for piece in cut(self._of_step(step), number):
            if piece.count:
                rows = self._lanes.ranks.part(piece)
                yield Piece(*self._training(step, rows), rows)

    def _of_step(self, step: int) -> Rows:
        start = step % self.steps_per_epoch * self.batch_size
        return Rows.all_of(min(self.batch_size, self.num_train - start))

    def _training(self, step: int, rows: Rows) -> tuple[Tensor, Tensor]:
        if self.batch_size == self.num_train and not self._sequential:
            # Full batch: the order cannot matter, so the rows are gathered once and kept.
            if rows not in self._whole:
                self._whole[rows] = self._pool.part("train", rows.start, rows.stop)
            x, y = self._whole[rows]
        else:
            epoch, within = divmod(step, self.steps_per_epoch)
            first = within * self.batch_size
            start, end = first + rows.start, first + rows.stop
            if self._sequential:
                x, y = self._pool.part("train", start, end)
            else:
                while self._epoch < epoch:
                    self._next_epoch()
                x, y = self._pool.chosen(
                    "train", self._order[..., start:end], self._rows[..., start:end]
                )
        if self._augmentations:
            with rows_from(rows.start, rows.count):
                x = self._lanes.map(
                    lambda images, noise: augment(images, self._augmentations, fold(noise, step))
                )(x, self._noise)
        return self._standardised(x), y

    def split(self, name: str, rows: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return the rows and targets of `passes`."""
        return [(x, y) for x, y, _ in self.passes(name, rows)]

    def passes(self, name: str, rows: int | None = None) -> list[Piece]:
        """Return a whole split in passes of bounded size, of each this rank's part.

        Args:
            name: of the split.
            rows: of each pass, and rows that do not fill one are left out; None for passes of a
                size that suits, and all rows.
        """
        if name in self._kept:
            return self._kept[name]
        total = self._total(name, rows)
        passes = []
        for start in range(0, total, rows or _CHUNK):
            part = self._lanes.ranks.part(Rows.all_of(min(rows or _CHUNK, total - start)))
            low, high = start + part.start, start + part.stop
            if name == "train" and self._measured is not None:
                x, y = self._pool.chosen(name, self._measured[..., low:high])
            else:
                x, y = self._pool.part(name, low, high)
            passes.append(Piece(self._standardised(x), y, part))
        if sum(x.nbytes + y.nbytes for x, y, _ in passes) <= _KEEP:
            self._kept[name] = passes
        return passes

    def _total(self, name: str, rows: int | None = None) -> int:
        whole = self._measured if name == "train" else None
        total = self._pool.count(name) if whole is None else whole.shape[-1]
        # A split smaller than one batch is measured as it is, rather than not at all.
        size = rows or (self.batch_size if self._whole_batches and total > self.batch_size else 1)
        return total - total % size

    def _standardised(self, x: Tensor) -> Tensor:
        if not self._per_image:
            return x
        # Each row by itself, so lanes need no lifting.
        return standardise(x.reshape(-1, *x.shape[-3:])).reshape(x.shape)

    def _rows_of_train(self, drop_last: bool, train_rows: int | None) -> Tensor | None:
        """Return the places of the training rows that are measured; None for all, as they lie."""
        reached = self.num_train
        if drop_last and self._fixed and not self._sequential:
            reached = self.steps_per_epoch * self.batch_size
        count = min(train_rows or reached, reached)
        if count == self.num_train:
            return None
        if not self._fixed or self._sequential:
            return self._lanes.stack([torch.arange(count)] * self._lanes.size)
        self._next_epoch()
        return self._order[..., :count]

    def _next_epoch(self) -> None:
        self._epoch += 1
        if self._fixed and self._epoch > 0:
            return
        draws = self._orders[:1] if self._one_order else self._orders
        orders = [torch.randperm(self.num_train, generator=draw) for draw in draws]
        if self._one_order:
            order = orders[0].to(self._lanes.device)
            self._order = order.expand(self._lanes.size, -1) if self._lanes.lifted else order
        else:
            self._order = self._lanes.stack(orders)
        self._rows = self._pool.places("train", self._order)


class _Pool:
    """The rows that the lanes draw from, and each lane's splits as places in them."""

    def __init__(self, lanes: Lanes, datasets: Sequence[Dataset]) -> None:
        self._lanes = lanes
        first = datasets[0]
        self._shared = all(data.x is first.x for data in datasets)
        self._x = (
            _resident(first.x, lanes.device, lanes.dtype)
            if self._shared
            else lanes.stack([data.x for data in datasets])
        )
        self._rows = lanes.stack([data.rows for data in datasets])
        # Targets are gathered like rows where no run has noise of its own in them.
        self._clean = None
        clean = first.clean
        if self._shared and clean is not None:
            same = all(_same_memory(data.clean, clean) for data in datasets)
            self._clean = _resident(clean, lanes.device, lanes.dtype) if same else None
        self._y = {} if self._clean is not None else lanes.stack([data.y for data in datasets])
        self._common = {
            split: self._clean is not None
            and all(torch.equal(data.rows[split], rows) for data in datasets)
            for split, rows in first.rows.items()
        }
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}

    def take(self, places: Sequence[int]) -> None:
        if not self._shared:
            self._x = self._lanes.take(self._x, places)
        self._rows = self._lanes.take(self._rows, places)
        self._y = self._lanes.take(self._y, places)

    def count(self, split: str) -> int:
        return self._rows[split].shape[-1]

    def part(self, split: str, start: int, end: int | None) -> tuple[Tensor, Tensor]:
        """Return the rows and targets of a split from place `start` to `end`."""
        if not self._common[split]:
            part = slice(start, end)
            return self._take(split, self._rows[split][..., part], part)
        if split not in self._kept:
            rows = self._rows[split][0] if self._lanes.lifted else self._rows[split]
            assert self._clean is not None
            self._kept[split] = self._x.index_select(0, rows), self._clean.index_select(0, rows)
        x, y = (values[start:end] for values in self._kept[split])
        return self._to_all(x, y) if self._lanes.lifted else (x, y)

    def places(self, split: str, chosen: Tensor) -> Tensor:
        """Return where the chosen ones of a split lie in the pool; both [K, N] when stacked."""
        whole = self._rows[split]
        if self._common[split] and chosen.dim() == 2 and chosen.stride(0) == 0:
            return whole[0].index_select(0, chosen[0]).expand(chosen.shape)
        return whole.gather(-1, chosen)

    def chosen(
        self, split: str, chosen: Tensor, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the chosen rows and targets of a split.

        Args:
            split: its name.
            chosen: numbers within the split, [N], or [K, N] when stacked.
            rows: what `places` says of them, if it was asked before.
        """
        rows = self.places(split, chosen) if rows is None else rows
        if self._common[split] and rows.dim() == 2 and rows.stride(0) == 0:
            assert self._clean is not None
            one = rows[0]
            return self._to_all(self._x.index_select(0, one), self._clean.index_select(0, one))
        return self._take(split, rows, chosen)

    def _to_all(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # No copies: all lanes look at the same memory.
        return x.expand(self._lanes.size, *x.shape), y.expand(self._lanes.size, *y.shape)

    def _take(self, split: str, rows: Tensor, chosen: Tensor | slice) -> tuple[Tensor, Tensor]:
        x = self._at(self._x, rows) if self._shared else _pick(self._x, rows)
        if self._clean is not None:
            return x, self._at(self._clean, rows)
        y = self._y[split]
        if isinstance(chosen, slice):
            return x, y[:, chosen] if self._lanes.lifted else y[chosen]
        return x, _pick(y, chosen)

    def _at(self, values: Tensor, rows: Tensor) -> Tensor:
        if rows.dim() == 1:
            return values.index_select(0, rows)
        found = values.index_select(0, rows.reshape(-1))
        return found.reshape(*rows.shape, *values.shape[1:])


def _pick(values: Tensor, chosen: Tensor) -> Tensor:
    """Return values[k, chosen[k]] for each lane; values[chosen] when nothing is stacked."""
    if chosen.dim() == 1:
        return values.index_select(0, chosen)
    lanes = torch.arange(len(chosen), device=chosen.device)[:, None]
    return values[lanes, chosen]


def _same_memory(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.data_ptr() == other.data_ptr() and one.shape == other.shape


_places: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}


def _resident(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return `x` on the device, numbers in `dtype`, moved once per process.

    The original is kept too, so that no other tensor can come to lie where it lies.
    """
    dtype = dtype if x.is_floating_point() else x.dtype
    if x.device == device and x.dtype == dtype:
        return x
    place = (x.data_ptr(), x.shape, x.dtype, device, dtype)
    if place not in _places:
        if len(_places) >= 8:
            _places.pop(next(iter(_places)))
        _places[place] = (x, x.to(device=device, dtype=dtype))
    return _places[place][1]
