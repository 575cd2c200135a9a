"""The loop that one would write by hand for DeepOBS' bowl: what raybench is measured beside.

PyTorch alone, and as fast as it goes without leaving the ordinary: the loss of a row x is
|A theta - A x|^2 / 2, so that no product has the rows of a batch (see `raybench.quadratic`); the
targets A x of every batch are made once, since their order is the same in each epoch; optimizers
have one kernel a step where PyTorch has one.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.pool import Pool
from multiprocessing.synchronize import Barrier
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array: TypeAlias = NDArray[np.float32]


class Bowl(NamedTuple):
    """What all runs share, as arrays that cross to another process.

    Attributes:
        root: A, [D, D].
        batches: the targets A x of an epoch's batches, in order, each [N, D].
        splits: the targets that are measured, by split, each [M, D].
    """

    root: Array
    batches: list[Array]
    splits: dict[str, Array]


class Trial(NamedTuple):
    """One run.

    Attributes:
        optimizer: a key of `OPTIMIZERS`.
        numbers: its hyperparameters.
        epochs: how long it trains.
    """

    optimizer: str
    numbers: Mapping[str, float]
    epochs: int


History: TypeAlias = list[dict[str, float]]
"""The mean loss of each split, before the first epoch and after each."""


def _sgd(theta: Tensor, lr: float, **_: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([theta], lr, fused=True)


def _momentum(theta: Tensor, lr: float, momentum: float, **_: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([theta], lr, momentum, fused=True)


def _adam(
    theta: Tensor, lr: float, beta1: float, beta2: float, eps: float, **_: float
) -> torch.optim.Optimizer:
    return torch.optim.Adam([theta], lr, (beta1, beta2), eps, fused=True)


def _rmsprop(
    theta: Tensor, lr: float, decay: float, eps: float, **_: float
) -> torch.optim.Optimizer:
    return torch.optim.RMSprop([theta], lr, decay, eps)


OPTIMIZERS: Final[Mapping[str, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adam_tf": _adam,
    "rmsprop_tf": _rmsprop,
}
"""PyTorch's own under raybench's names; `adam_tf` and `rmsprop_tf` differ from it in where eps is
added and where the mean square begins, not in what a step costs."""


@dataclass(frozen=True)
class _Tensors:
    root: Tensor
    batches: list[Tensor]
    splits: dict[str, Tensor]


def train(bowl: Bowl, trial: Trial) -> History:
    """Return the losses of a run from theta = 1; it ends early where they are not finite."""
    return _train(_tensors(bowl), trial)


def _train(data: _Tensors, trial: Trial) -> History:
    theta = torch.ones(len(data.root), requires_grad=True)
    optimizer = OPTIMIZERS[trial.optimizer](theta, **trial.numbers)
    history = [_measured(data, theta)]
    for _ in range(trial.epochs):
        for targets in data.batches:
            optimizer.zero_grad()
            torch.autograd.backward(_mean_loss(data.root @ theta, targets))
            optimizer.step()
        history.append(_measured(data, theta))
        if not math.isfinite(history[-1]["train"]):
            break
    return history


def _mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    squares = torch.nn.functional.mse_loss(outputs.expand_as(targets), targets, reduction="sum")
    return squares / (2 * len(targets))


@torch.no_grad()
def _measured(data: _Tensors, theta: Tensor) -> dict[str, float]:
    outputs = data.root @ theta
    return {name: _mean_loss(outputs, rows).item() for name, rows in data.splits.items()}


def _tensors(bowl: Bowl) -> _Tensors:
    return _Tensors(
        torch.from_numpy(bowl.root),
        [torch.from_numpy(rows) for rows in bowl.batches],
        {name: torch.from_numpy(rows) for name, rows in bowl.splits.items()},
    )


class Loops:
    """One plain loop in each of several processes, each with one thread; ready when it is made.

    Args:
        bowl: what the runs share.
        processes: how many train at the same time.
        warm_up: a run that each process carries out before any time is taken.
    """

    def __init__(self, bowl: Bowl, processes: int, warm_up: Trial) -> None:
        context = multiprocessing.get_context("spawn")
        ready = context.Barrier(processes + 1)
        self._pool: Pool = context.Pool(processes, _begin, (bowl, warm_up, ready))
        ready.wait(_PATIENCE)

    def __enter__(self) -> Loops:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()
        self._pool.join()

    def run(self, trials: Sequence[Trial]) -> tuple[float, list[History]]:
        """Return the seconds that the trials take, and their histories in the same order.

        A process takes the next trial when it is through with one, so that all end together.
        """
        began = time.perf_counter()
        histories = self._pool.map(_next, trials, chunksize=1)
        return time.perf_counter() - began, histories


_PATIENCE: Final = 300.0  # seconds for the processes to import PyTorch on a busy machine
_here: dict[str, Any] = {}  # what a process of the pool keeps between trials


def _begin(bowl: Bowl, warm_up: Trial, ready: Barrier) -> None:
    torch.set_num_threads(1)
    _here["data"] = _tensors(bowl)
    _next(warm_up)
    ready.wait(_PATIENCE)


def _next(trial: Trial) -> History:
    return _train(_here["data"], trial)
