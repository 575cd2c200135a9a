"""What a data set is: a pool of rows that is loaded once, and what each run draws from it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Final, Literal, NamedTuple, final

import torch
from pydantic import Field
from torch import Tensor

from raybench.errors import RaybenchError
from raybench.rng import Seed, stream
from raybench.spec import Hyper, Spec

FOLDER: Final = "RAYBENCH_DATA"
"""The environment variable that names a folder of sets, looked into before the network."""
SPLITS = ("train", "valid", "test")

Inputs = Literal["true", "shuffled", "random_pixels", "gaussian"]
Augmentation = Literal["crop", "crop_sixteenth", "flip", "cutout", "noise", "jitter"]


class Task(NamedTuple):
    """What a model must map: `inputs` is the shape of one row; `outputs` the number of outputs.

    `classes` is the number of classes, 0 for regression (then targets are [N, outputs]).
    """

    inputs: tuple[int, ...]
    outputs: int
    classes: int


class Shape(NamedTuple):
    """What is known of a set before it is loaded: shape of a row, classes, rows of its parts."""

    row: tuple[int, ...]
    classes: int
    train: int
    test: int


class Pool(NamedTuple):
    """All rows of a set: `x` [N, ...] numbers or tokens; `y` [N] classes or [N, outputs] numbers.

    A set of sequences has `y` [N, T], a class for each place. Rows from `test_from` on are the
    set's own test rows, and those from `valid_from` to `test_from` its own validation rows; None
    if it has none of its own. Nobody writes to these tensors: a worker's runs share them.
    """

    x: Tensor
    y: Tensor
    classes: int
    test_from: int | None = None
    valid_from: int | None = None

    @property
    def task(self) -> Task:
        """The task that these rows pose."""
        outputs = self.classes or self.y.shape[1]
        return Task(tuple(self.x.shape[1:]), outputs, self.classes)


class Dataset(NamedTuple):
    """What one run sees: rows of the pool for each split, and their targets (with label noise).

    `clean` holds the targets of all rows of the pool, and None where the run's own differ.
    """

    x: Tensor
    rows: dict[str, Tensor]
    y: dict[str, Tensor]
    task: Task
    clean: Tensor | None


class Data(Spec, ABC):
    """A data set and how a run draws its splits from it.

    The stream `data` of the run decides the split, the subset and the noisy labels. Label noise
    is drawn once, on the training rows only; a higher level keeps the flips of a lower one.

    Attributes:
        sequential: whether rows continue one another, as those of a text do: then they are never
            shuffled, neither into splits nor within an epoch.
    """

    sequential: ClassVar[bool] = False

    train: int | None = Field(default=None, ge=1)
    """Training rows; null for all that are left."""
    valid: int = Field(default=0, ge=0)
    """Validation rows: the first of the set's own, or held out of its training part."""
    test: int | None = Field(default=None, ge=1)
    """Test rows; null for the set's own test part, or a quarter of a set that has none."""
    label_noise: Hyper = Field(default=0.0, ge=0.0)
    """Classification: probability that a training label becomes a uniformly random wrong class.
    Regression: standard deviation of Gaussian noise added to the training targets."""
    augment: tuple[Augmentation, ...] = ()
    """Changes made to each training batch of images, in this order."""
    per_image: bool = False
    """Whether each image is centred and divided by its own deviation, in every split and after
    augmentation (TensorFlow's per_image_standardization)."""
    target: Literal["label", "input"] = "label"
    """What a model must give for a row: its label, or the row itself (autoencoders)."""
    inputs: Inputs = "true"
    """What stands in for the rows, in every split: `shuffled` pixels, by one permutation for all
    rows; `random_pixels`, by one for each row; `gaussian` numbers with the mean and deviation of
    the training rows (Zhang et al. 2017, arXiv:1611.03530). Pixels of images keep their channels
    together. Labels stay. Each run then has rows of its own: a copy of the set for each lane."""

    @abstractmethod
    def pool(self, seed: Seed) -> Pool:
        """Return all rows; a set that is not generated ignores `seed` and loads only once."""

    def require(self) -> None:
        """Raise MissingError if what loads the set is not installed."""

    def missing(self) -> str | None:
        """Return why the rows would have to be fetched first, or None if they are at hand."""
        return None

    def shape(self) -> Shape | None:
        """Return what is known of the set without loading it; None if nothing is."""
        return None

    @final
    def expected(self) -> tuple[Task, dict[str, int]] | None:
        """Return the task and the rows of each split without loading the set, if they are known."""
        shape = self.shape()
        if shape is None:
            return None
        outputs = math.prod(shape.row) if self.target == "input" else shape.classes
        task = Task(shape.row, outputs, 0 if self.target == "input" else shape.classes)
        train = min(shape.train - self.valid, self.train or shape.train)
        test = min(shape.test, shape.test if self.test is None else self.test)
        return task, {"train": train, "valid": self.valid, "test": test}

    @final
    def draw(self, seed: Seed) -> Dataset:
        """Return the splits of the run with `seed`.

        Raises:
            RaybenchError: the set has fewer rows than the splits ask for.
        """
        pool = self.pool(seed)
        rows = self._split(pool, seed)
        if self.inputs != "true":
            pool = pool._replace(x=randomised(pool.x, self.inputs, rows["train"], seed))
        if self.target == "input":
            pool = pool._replace(y=pool.x.flatten(1), classes=0)
        y = {split: pool.y[index] for split, index in rows.items()}
        if self.label_noise > 0:
            y["train"] = _noisy(y["train"], self.label_noise, pool.classes, seed)
        return Dataset(pool.x, rows, y, pool.task, None if self.label_noise > 0 else pool.y)

    def _split(self, pool: Pool, seed: Seed) -> dict[str, Tensor]:
        total = len(pool.x)
        shuffle = stream(seed, "data/split")

        def order(count: int) -> Tensor:
            return torch.arange(count) if self.sequential else _shuffled(count, shuffle)

        if pool.test_from is None:
            mixed = order(total)
            num_test = total // 4 if self.test is None else self.test
            test, rest = mixed[:num_test], mixed[num_test:]
        else:
            test = torch.arange(pool.test_from, total)[: self.test]
            rest = order(pool.valid_from or pool.test_from)
        if pool.valid_from is None:
            valid, rest = rest[: self.valid], rest[self.valid :]
        else:
            valid = torch.arange(pool.valid_from, pool.test_from or total)[: self.valid]
        train = rest[: self.train]
        asked = {"train": self.train or 1, "valid": self.valid, "test": self.test or 0}
        for split, index in zip(SPLITS, (train, valid, test), strict=True):
            if len(index) < asked[split]:
                raise RaybenchError(
                    f"data {self.name}: {asked[split]} {split} rows asked for, {len(index)} left "
                    f"of {total}; ask for fewer rows in data.train, data.valid or data.test"
                )
        return {"train": train, "valid": valid, "test": test}


def randomised(x: Tensor, inputs: Inputs, train: Tensor, seed: Seed) -> Tensor:
    """Return rows whose pixels are moved or drawn anew (Zhang et al. 2017, section 2.2).

    Args:
        x: rows [N, D], or images [N, channels, height, width].
        inputs: what becomes of them; `true` leaves them.
        train: places of the training rows, whose mean and deviation over all numbers those of
            `gaussian` are.
        seed: of the run; its stream `data` decides.

    Raises:
        RaybenchError: rows are tokens, which are no pixels.
    """
    if inputs == "true":
        return x
    if not x.is_floating_point():
        raise RaybenchError("data.inputs: rows are tokens, and only numbers can be randomised")
    draw = stream(seed, "data/inputs")
    if inputs == "gaussian":
        known = x[train].double()
        noise = torch.randn(x.shape, generator=draw)
        return noise * float(known.std(correction=0)) + float(known.mean())
    pixels = x.flatten(2) if x.dim() == 4 else x.flatten(1)
    size = pixels.shape[-1]
    if inputs == "shuffled":
        return pixels[..., torch.randperm(size, generator=draw)].reshape(x.shape)
    places = torch.rand(len(x), size, generator=draw).argsort(1)
    places = places[:, None] if x.dim() == 4 else places
    return pixels.gather(-1, places.expand(pixels.shape)).reshape(x.shape)


def _shuffled(count: int, draw: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=draw)


def _noisy(y: Tensor, level: float, classes: int, seed: Seed) -> Tensor:
    draw = stream(seed, "data/labels")
    if classes == 0:
        noise = torch.randn(y.shape, generator=draw, dtype=torch.float64)
        return y + level * noise.to(y.dtype)
    flipped = torch.rand(y.shape, generator=draw) < level
    shift = torch.randint(1, classes, y.shape, generator=draw)
    return torch.where(flipped, (y + shift) % classes, y)
