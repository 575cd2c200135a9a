"""The loop that one would write by hand, for the runs of the benchmark: what peers carry out.

PyTorch alone, and as fast as it goes without leaving the ordinary: rows are tensors in memory that
are gathered by index, and optimizers have one kernel a step where PyTorch has one. It does what
raybench does, with the same numbers: initial weights and the order of the rows come from the same
streams, the same rows are measured at the same steps, and the tests compare the losses.

DeepOBS' bowl has a loop of its own: the loss of a row x is |A theta - A x|^2 / 2, so that no
product has the rows of a batch (see `raybench.quadratic`), and the targets A x of every batch are
made once, since their order is the same in each epoch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from raybench.errors import Problem
from raybench.lanes import Lanes
from raybench.procedures import PROCEDURES
from raybench.procedures.feed import Extent, Feed
from raybench.procedures.train import Train
from raybench.quadratic import root
from raybench.rng import Seed, stream
from raybench.tables import build


class Trial(NamedTuple):
    """One run, in plain values that cross to any process.

    Attributes:
        form: JSON of the procedure that all runs share, whatever its optimizer.
        seed: the fields of a `Seed`.
        optimizer: a key of `OPTIMIZERS`.
        numbers: its hyperparameters.
    """

    form: str
    seed: tuple[int, int, tuple[str, ...]]
    optimizer: str
    numbers: Mapping[str, float]


History: TypeAlias = list[dict[str, float]]
"""What was measured, by `split/metric`: before training, on the way and at the end."""


def carry_out(trial: Trial) -> History:
    """Train one run with one thread; it ends early where a loss is not finite."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    course = _begin(trial)
    history = []
    for step in range(course.total + 1):
        if step in course.due:
            history.append(course.measure())
            if not all(map(math.isfinite, history[-1].values())):
                break
        if step < course.total:
            course.step(step)
    return history


def length(trial: Trial) -> int:
    """Return the steps of a run."""
    return _begin(trial).total


def flops(trial: Trial) -> float:
    """Return the floating-point operations of a run's matrix products and convolutions.

    Those of its steps and of its measurements, of which one each is counted.
    """
    course = _begin(trial)
    with _counter() as of_step:
        course.step(0)
    with _counter() as of_measurement:
        course.measure()
    whole = course.total * of_step.get_total_flops()
    return float(whole + len(course.due) * of_measurement.get_total_flops())


def _counter() -> FlopCounterMode:
    # PyTorch has no rule for a matrix times a vector.
    rule = {torch.ops.aten.mv: lambda matrix, *_, **__: 2 * math.prod(matrix)}
    return FlopCounterMode(display=False, custom_mapping=rule)


OPTIMIZERS: Final[Mapping[str, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": lambda params, lr, **_: torch.optim.SGD(params, lr, fused=True),
    "momentum": lambda params, lr, momentum, **_: torch.optim.SGD(params, lr, momentum, fused=True),
    "adam": lambda params, lr, beta1, beta2, eps, **_: torch.optim.Adam(
        params, lr, (beta1, beta2), eps, fused=True
    ),
    "adam_tf": lambda params, lr, beta1, beta2, eps, **_: torch.optim.Adam(
        params, lr, (beta1, beta2), eps, fused=True
    ),
    "rmsprop_tf": lambda params, lr, decay, eps, **_: torch.optim.RMSprop(params, lr, decay, eps),
}
"""PyTorch's own under raybench's names; `adam_tf` and `rmsprop_tf` differ from it in where eps is
added and where the mean square begins, not in what a step costs."""


class _Course(Protocol):
    """A run that has begun.

    Attributes:
        total: its steps.
        due: steps at which it is measured.
    """

    total: int
    due: frozenset[int]

    def step(self, step: int) -> None:
        """Train one step; steps are asked for in order."""
        ...

    def measure(self) -> dict[str, float]:
        """Return the numbers of each split."""
        ...


def _begin(trial: Trial) -> _Course:
    spec = _spec(trial.form)
    value, base, fixed = trial.seed
    seed = Seed(value, base, tuple(fixed))

    def make(params: Iterable[Tensor]) -> torch.optim.Optimizer:
        return OPTIMIZERS[trial.optimizer](params, **trial.numbers)

    if spec.model.name == "quadratic_deep":
        return _Descent(spec, _bowl(trial.form, seed), make)
    return _Net(spec, seed, make)


@lru_cache(maxsize=8)
def _spec(form: str) -> Train:
    problems: list[Problem] = []
    spec = build(PROCEDURES, json.loads(form), (), problems)
    assert isinstance(spec, Train), problems
    return spec


_Make: TypeAlias = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


class _Net:
    """A network that learns classes."""

    def __init__(self, spec: Train, seed: Seed, make: _Make) -> None:
        data = spec.data.draw(seed)
        self._splits = {name: (data.x[data.rows[name]], data.y[name]) for name in spec.record.on}
        self._x, self._y = data.x[data.rows["train"]], data.y["train"]
        self._size = spec.batch_size or len(self._x)
        self._epoch = math.ceil(len(self._x) / self._size)
        self.total = spec.steps.resolve(self._epoch)
        self.due = frozenset(spec.record.at.steps(self.total, self._epoch))
        self._draw = stream(seed, "order/epochs")
        self._order = torch.empty(0)
        shape = (data.task.inputs, data.task.outputs)
        self._net = spec.model.skeleton(*shape)
        params, buffers = spec.model.state(self._net, *shape, seed)
        self._net.load_state_dict(params | buffers, assign=True)
        self._optimizer = make(self._net.parameters())

    def step(self, step: int) -> None:
        within = step % self._epoch
        if within == 0:
            self._order = torch.randperm(len(self._x), generator=self._draw)
        rows = self._order[within * self._size : (within + 1) * self._size]
        self._optimizer.zero_grad()
        loss = functional.cross_entropy(self._net(self._x[rows]), self._y[rows])
        torch.autograd.backward(loss)
        self._optimizer.step()

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        self._net.eval()
        found: dict[str, float] = {}
        for split, (x, y) in self._splits.items():
            outputs = self._net(x)
            found[f"{split}/loss"] = functional.cross_entropy(outputs, y).item()
            found[f"{split}/error"] = (outputs.argmax(-1) != y).float().mean().item()
        self._net.train()
        return found


@dataclass(frozen=True)
class Bowl:
    """What the runs of `quadratic_deep` share: the very rows that raybench trains on.

    Attributes:
        root: A, [D, D].
        batches: the targets A x of an epoch's batches, in order, each [N, D].
        splits: the targets that are measured, by split, each [M, D].
    """

    root: Tensor
    batches: list[Tensor]
    splits: dict[str, Tensor]


@lru_cache(maxsize=2)
def _bowl(form: str, seed: Seed) -> Bowl:
    spec = _spec(form)
    feed = Feed(
        Lanes(1),
        [spec.data],
        [seed],
        batch_size=spec.batch_size,
        drop_last=spec.drop_last,
        order=spec.order,
        extent=Extent(spec.record.train_rows, spec.record.whole_batches),
    )
    model: Any = spec.model
    return Bowl(
        root(model.instance).float(),
        [feed.batch(step)[1].clone() for step in range(feed.steps_per_epoch)],
        {name: torch.cat([targets for _, targets in feed.split(name)]) for name in spec.record.on},
    )


class _Descent:
    """Descent in a bowl from theta = 1."""

    def __init__(self, spec: Train, bowl: Bowl, make: _Make) -> None:
        epoch = len(bowl.batches)
        self.total = spec.steps.resolve(epoch)
        self.due = frozenset(spec.record.at.steps(self.total, epoch))
        self._bowl = bowl
        self._theta = torch.ones(len(bowl.root), requires_grad=True)
        self._optimizer = make([self._theta])

    def step(self, step: int) -> None:
        targets = self._bowl.batches[step % len(self._bowl.batches)]
        self._optimizer.zero_grad()
        torch.autograd.backward(_mean_loss(self._bowl.root @ self._theta, targets))
        self._optimizer.step()

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        outputs = self._bowl.root @ self._theta
        return {
            f"{name}/loss": _mean_loss(outputs, rows).item()
            for name, rows in self._bowl.splits.items()
        }


def _mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    squares = functional.mse_loss(outputs.expand_as(targets), targets, reduction="sum")
    return squares / (2 * len(targets))
