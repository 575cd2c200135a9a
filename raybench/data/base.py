"""What a data set is: a pool of rows that is loaded once, and what each run draws from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, final

import torch
from pydantic import Field
from torch import Tensor

from raybench.errors import RaybenchError
from raybench.rng import Seed, stream
from raybench.spec import Hyper, Spec

SPLITS = ("train", "valid", "test")

Augmentation = Literal["crop", "flip", "cutout", "noise"]


class Task(NamedTuple):
    """What a model must map: `inputs` is the shape of one row; `outputs` the number of outputs.

    `classes` is the number of classes, 0 for regression (then targets are [N, outputs]).
    """

    inputs: tuple[int, ...]
    outputs: int
    classes: int


class Pool(NamedTuple):
    """All rows of a set: `x` [N, ...] floating point; `y` [N] whole numbers or [N, outputs].

    Rows from `test_from` on are the set's own test rows; None if it has none of its own.
    Nobody writes to these tensors: a worker's runs share them.
    """

    x: Tensor
    y: Tensor
    classes: int
    test_from: int | None = None

    @property
    def task(self) -> Task:
        """The task that these rows pose."""
        outputs = self.classes or self.y.shape[1]
        return Task(tuple(self.x.shape[1:]), outputs, self.classes)


class Dataset(NamedTuple):
    """What one run sees: rows of the pool for each split, and their targets (with label noise)."""

    x: Tensor
    rows: dict[str, Tensor]
    y: dict[str, Tensor]
    task: Task


class Data(Spec, ABC):
    """A data set and how a run draws its splits from it.

    The stream `data` of the run decides the split, the subset and the noisy labels. Label noise
    is drawn once, on the training rows only; a higher level keeps the flips of a lower one.
    """

    train: int | None = Field(default=None, ge=1)
    """Training rows; null for all that are left."""
    valid: int = Field(default=0, ge=0)
    """Validation rows, held out of the training part."""
    test: int | None = Field(default=None, ge=1)
    """Test rows; null for the set's own test part, or a quarter of a set that has none."""
    label_noise: Hyper = Field(default=0.0, ge=0.0)
    """Classification: probability that a training label becomes a uniformly random wrong class.
    Regression: standard deviation of Gaussian noise added to the training targets."""
    augment: tuple[Augmentation, ...] = ()
    """Changes made to each training batch of images, in this order."""

    @abstractmethod
    def pool(self, seed: Seed) -> Pool:
        """Return all rows; a set that is not generated ignores `seed` and loads only once."""

    def require(self) -> None:
        """Raise MissingError if what loads the set is not installed."""

    @final
    def draw(self, seed: Seed) -> Dataset:
        """Return the splits of the run with `seed`.

        Raises:
            RaybenchError: the set has fewer rows than the splits ask for.
        """
        pool = self.pool(seed)
        rows = self._split(pool, seed)
        y = {split: pool.y[index] for split, index in rows.items()}
        if self.label_noise > 0:
            y["train"] = _noisy(y["train"], self.label_noise, pool.classes, seed)
        return Dataset(pool.x, rows, y, pool.task)

    def _split(self, pool: Pool, seed: Seed) -> dict[str, Tensor]:
        total = len(pool.x)
        shuffle = stream(seed, "data/split")
        if pool.test_from is None:
            order = torch.randperm(total, generator=shuffle)
            num_test = total // 4 if self.test is None else self.test
            test, rest = order[:num_test], order[num_test:]
        else:
            test = torch.arange(pool.test_from, total)[: self.test]
            rest = torch.randperm(pool.test_from, generator=shuffle)
        valid, rest = rest[: self.valid], rest[self.valid :]
        train = rest[: self.train]
        asked = {"train": self.train or 1, "valid": self.valid, "test": self.test or 0}
        for split, index in zip(SPLITS, (train, valid, test), strict=True):
            if len(index) < asked[split]:
                raise RaybenchError(
                    f"data {self.name}: {asked[split]} {split} rows asked for, {len(index)} left "
                    f"of {total}; ask for fewer rows in data.train, data.valid or data.test"
                )
        return {"train": train, "valid": valid, "test": test}


def _noisy(y: Tensor, level: float, classes: int, seed: Seed) -> Tensor:
    draw = stream(seed, "data/labels")
    if classes == 0:
        noise = torch.randn(y.shape, generator=draw, dtype=torch.float64)
        return y + level * noise.to(y.dtype)
    flipped = torch.rand(len(y), generator=draw) < level
    shift = torch.randint(1, classes, (len(y),), generator=draw)
    return torch.where(flipped, (y + shift) % classes, y)
