"""What DeepOBS calls things, and what they are called here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

BUDGETS: Final[Mapping[str, str]] = {
    "oneshot": "one_shot",
    "small_budget": "small",
    "medium_budget": "medium",
    "large_budget": "large",
}
"""Folders of tuning budgets."""

SCHEDULES: Final[Mapping[str, str]] = {
    "none": "constant",
    "cosine": "cosine",
    "cosine_wr": "cosine_restarts",
    "ltr": "trapezoidal",
}
"""Folders of learning-rate schedules."""

_OPTIMIZERS: Final[Mapping[str, str]] = {
    "AMSBoundOptimizer": "amsbound",
    "AMSGrad": "amsgrad",
    "AdaBeliefOptimizer": "adabelief",
    "AdaBoundOptimizer": "adabound",
    "AdadeltaOptimizer": "adadelta",
    "AdagradOptimizer": "adagrad",
    "AdamOptimizer": "adam",
    "GradientDescentOptimizer": "sgd",
    "LookaheadOptimizerMBGDMomentum": "lookahead_momentum",
    "LookaheadOptimizerRAdam": "lookahead_radam",
    "MomentumOptimizer": "momentum",
    "NAGOptimizer": "nag",
    "NadamOptimizer": "nadam",
    "RAdamOptimizer": "radam",
    "RMSPropOptimizer": "rmsprop",
    # PyTorch's spelling
    "NAdam": "nadam",
    "RAdam": "radam",
    "RMSprop": "rmsprop",
}
_HYPERPARAMETERS: Final[Mapping[str, str]] = {
    "learning_rate": "lr",
    "epsilon": "eps",
    "initial_accumulator_value": "initial_accumulator",
}
# How TensorFlow locks its variables, and what the optimizer's own name already says.
_IMPLIED: Final = ("use_locking", "use_nesterov", "amsbound", "name")


def optimizer(name: str) -> str:
    """Return an optimizer's name; an unknown class is named in snake case, less `Optimizer`."""
    if name in _OPTIMIZERS:
        return _OPTIMIZERS[name]
    words = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name.replace("Optimizer", "") or name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", words).lower()


def hyperparameters(given: Mapping[str, object]) -> dict[str, float | bool]:
    """Return an optimizer's numbers and switches by the names of its fields, numbers as floats."""
    found: dict[str, float | bool] = {}
    for name, value in given.items():
        if name in _IMPLIED or not name.isidentifier() or not isinstance(value, int | float):
            continue
        # Columns differ in more than case.
        own = _HYPERPARAMETERS.get(name, name.lower())
        found[own] = value if isinstance(value, bool) else float(str(value))
    return found


def schedule(epochs: Sequence[int], factors: Sequence[float], total: int) -> str:
    """Return which schedule a list of factors of the learning rate is, `listed` for any other.

    Args:
        epochs: when each factor begins to hold, from 0.
        factors: multiples of the base learning rate.
        total: epochs of the run.
    """
    if not factors:
        return "constant"
    for name, shape in (
        ("cosine", _cosine),
        ("cosine_restarts", _restarts),
        ("trapezoidal", _trapezoid),
    ):
        if all(
            math.isclose(factor, shape(epoch, total), abs_tol=1e-9)
            for epoch, factor in zip(epochs, factors, strict=True)
        ):
            return name
    return "listed"


def _cosine(epoch: int, total: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * epoch / total))


def _restarts(epoch: int, total: int) -> float:
    # Loshchilov and Hutter 2017: ten epochs whatever the total, and each period twice the last.
    start, period = 0, 10
    while epoch >= start + period:
        start, period = start + period, 2 * period
    return _cosine(epoch - start, period)


def _trapezoid(epoch: int, total: int) -> float:
    rise = 0.1 * total
    if epoch <= rise:
        return epoch / rise
    return min(1.0, 1 - (epoch - 0.9 * total) / (rise + 1))
