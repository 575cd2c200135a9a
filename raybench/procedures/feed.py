"""Rows for the lanes: each run's own splits and order, gathered from one resident tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raybench.data import Dataset
from raybench.data.augment import augment
from raybench.data.base import Augmentation
from raybench.lanes import Lanes
from raybench.rng import Seed, fold, key, stream

_CHUNK = 2048  # rows of an evaluation pass; fixed, because packing must not change a sum


class Feed:
    """The training batches and the evaluation rows of K runs.

    Every run has its own order, drawn anew each epoch from its stream `order`. Where all runs
    share one pool of rows it is held once; a batch is gathered from it by index.

    Args:
        lanes: the runs' lanes.
        datasets: what each run drew.
        seeds: the runs' seeds.
        batch_size: rows in a batch; at least the training rows for full-batch descent.
        drop_last: whether the last, smaller batch of an epoch is left out.
        augmentations: changes made to each training batch.
    """

    def __init__(
        self,
        lanes: Lanes,
        datasets: Sequence[Dataset],
        seeds: Sequence[Seed],
        *,
        batch_size: int | None,
        drop_last: bool = False,
        augmentations: Sequence[Augmentation] = (),
    ) -> None:
        self._lanes = lanes
        first = datasets[0]
        self.task = first.task
        self._shared = all(data.x is first.x for data in datasets)
        self._x = (
            _resident(first.x, lanes.device, lanes.dtype)
            if self._shared
            else lanes.stack([data.x for data in datasets])
        )
        self._rows = lanes.stack([data.rows for data in datasets])
        self._y = lanes.stack([data.y for data in datasets])
        self.num_train = len(first.rows["train"])
        self._batch = min(batch_size or self.num_train, self.num_train)
        full = self.num_train // self._batch
        ragged = self.num_train % self._batch > 0 and not drop_last
        self.steps_per_epoch = full + ragged
        self._seeds = list(seeds)
        self._noise = lanes.stack([key(seed, "noise/augment") for seed in seeds])
        self._augmentations = tuple(augmentations)
        self._whole: tuple[Tensor, Tensor] | None = None
        self._order = torch.empty(0)
        self.restart()

    def restart(self) -> None:
        """Begin again with the first batch of the first epoch, in the same order as before."""
        self._epoch = -1
        self._orders = [stream(seed, "order/epochs") for seed in self._seeds]

    def has(self, split: str) -> bool:
        """Return whether a split has rows."""
        return self._rows[split].shape[-1] > 0

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the rows and targets of training step `step`; steps are asked for in order."""
        if self._batch == self.num_train:
            # Full batch: the order cannot matter, so the rows are gathered once and kept.
            if self._whole is None:
                self._whole = self._take("train", slice(None))
            x, y = self._whole
        else:
            epoch, within = divmod(step, self.steps_per_epoch)
            while self._epoch < epoch:
                self._shuffle()
            chosen = self._order[..., within * self._batch : (within + 1) * self._batch]
            x, y = self._take("train", chosen)
        if self._augmentations:
            x = self._lanes.map(
                lambda rows, noise: augment(rows, self._augmentations, fold(noise, step))
            )(x, self._noise)
        return x, y

    def split(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """Return the rows and targets of a whole split, in passes of bounded size."""
        total = self._rows[name].shape[-1]
        return [self._take(name, slice(start, start + _CHUNK)) for start in range(0, total, _CHUNK)]

    def _shuffle(self) -> None:
        self._epoch += 1
        self._order = self._lanes.stack(
            [torch.randperm(self.num_train, generator=draw) for draw in self._orders]
        )

    def _take(self, split: str, chosen: Tensor | slice) -> tuple[Tensor, Tensor]:
        rows, y = self._rows[split], self._y[split]
        if isinstance(chosen, slice):
            rows, y = rows[..., chosen], (y[:, chosen] if self._lanes.lifted else y[chosen])
        else:
            rows = rows.gather(-1, chosen)
            y = _pick(y, chosen)
        if not self._lanes.lifted:
            return self._x.index_select(0, rows), y
        if self._shared:
            x = self._x.index_select(0, rows.reshape(-1))
            return x.reshape(*rows.shape, *self._x.shape[1:]), y
        return _pick(self._x, rows), y


def _pick(values: Tensor, chosen: Tensor) -> Tensor:
    """Return values[k, chosen[k]] for each lane; values[chosen] when nothing is stacked."""
    if chosen.dim() == 1:
        return values.index_select(0, chosen)
    lanes = torch.arange(len(chosen), device=chosen.device)[:, None]
    return values[lanes, chosen]


_places: dict[tuple[int, torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}


def _resident(x: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return `x` on the device, moved once per process; the original is kept so ids stay valid."""
    if x.device == device and x.dtype == dtype:
        return x
    place = (id(x), device, dtype)
    if place not in _places:
        if len(_places) >= 8:
            _places.pop(next(iter(_places)))
        _places[place] = (x, x.to(device=device, dtype=dtype))
    return _places[place][1]
