"""What an optimizer is: two pure functions of one run, over explicit state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from raybench.optim.numbers import Rate, as_for
from raybench.spec import Hyper, Spec

Params: TypeAlias = dict[str, Tensor]
State: TypeAlias = dict[str, Any]
"""Tensors by name, or dicts of tensors by the parameters' names."""

LearningRate: TypeAlias = Annotated[
    Hyper, Field(gt=0, description="Learning rate, before the schedule.")
]
WeightDecay: TypeAlias = Annotated[
    Hyper, Field(ge=0, description="Coupled (L2) weight decay, added to the gradient.")
]
Decoupled: TypeAlias = Annotated[
    Hyper,
    Field(ge=0, description="Decoupled weight decay, scaled by the learning rate of the step."),
]
Share: TypeAlias = Annotated[Hyper, Field(ge=0, lt=1)]
"""A decay rate or momentum: at least 0 and below 1."""


class Optimizer(Spec, ABC):
    """An update rule, written for one run.

    Attributes:
        elementwise: whether the rule is given all weights of the run as one vector under a single
            name: each weight moves on its own, or by sums over all of them. Otherwise it sees
            them by their names, in their shapes.
        sums: whether an elementwise rule takes sums over all weights: no part of them moves alone.
    """

    elementwise: ClassVar[bool] = True
    sums: ClassVar[bool] = False

    lr: LearningRate = 0.001

    @abstractmethod
    def init(self, params: Params) -> State:
        """Return the state before the first step."""

    @abstractmethod
    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Return the parameters and the state after one step at the learning rate `lr`."""

    def evaluated(self, state: State, params: Params) -> Params:
        """Return the weights to measure with, in a run that trains at `params`: the same ones.

        Rules that train at one point and answer for another (averages) override this.
        """
        return params


def zeros(params: Params) -> Params:
    """Return a dict of zeros shaped like `params`."""
    return {name: p.new_zeros(p.shape) for name, p in params.items()}


def each(fn: Callable[..., Tensor], *dicts: Params) -> Params:
    """Return `{name: fn(values under that name)}`."""
    return {name: fn(*(d[name] for d in dicts)) for name in dicts[0]}


def mix(old: Tensor, new: Tensor, share: Rate) -> Tensor:
    """Return (1 - share) old + share new in one pass over memory."""
    return torch.lerp(old, new, as_for(share, old))


def decayed(grads: Params, params: Params, weight_decay: Rate) -> Params:
    """Return the gradients with coupled (L2) weight decay: g + weight_decay p."""
    if not isinstance(weight_decay, Tensor) and weight_decay == 0:
        return grads  # what adding zero gives, without the passes over memory
    return each(lambda g, p: g + weight_decay * p, grads, params)


def shrunk(params: Params, lr: Rate, weight_decay: Rate) -> Params:
    """Return the parameters after decoupled weight decay: (1 - lr weight_decay) p."""
    if not isinstance(weight_decay, Tensor) and weight_decay == 0:
        return params  # likewise
    factor = 1 - lr * weight_decay
    return each(lambda p: p * factor, params)
