"""What an optimizer is: two pure functions of one run, over explicit state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from raybench.spec import Hyper, Spec

Params: TypeAlias = dict[str, Tensor]
State: TypeAlias = dict[str, Any]
"""Tensors by name, or dicts of tensors by the parameters' names."""

Rate: TypeAlias = float | Tensor
"""The learning rate of this step: a number, or a 0-d tensor in lifted code."""


LearningRate: TypeAlias = Annotated[
    Hyper, Field(gt=0, description="Learning rate, before the schedule.")
]
WeightDecay: TypeAlias = Annotated[
    Hyper, Field(ge=0, description="Coupled (L2) weight decay, added to the gradient.")
]
Share: TypeAlias = Annotated[Hyper, Field(ge=0, lt=1)]
"""A decay rate or momentum: at least 0 and below 1."""


class Optimizer(Spec, ABC):
    """An update rule, written for one run.

    Attributes:
        elementwise: whether each weight moves on its own. Then the rule is given all weights of
            the run as one vector under a single name; otherwise it sees them by their names.
    """

    elementwise: ClassVar[bool] = True

    lr: LearningRate = 0.001

    @abstractmethod
    def init(self, params: Params) -> State:
        """Return the state before the first step."""

    @abstractmethod
    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Return the parameters and the state after one step at the learning rate `lr`."""


def zeros(params: Params) -> Params:
    """Return a dict of zeros shaped like `params`."""
    return {name: p.new_zeros(p.shape) for name, p in params.items()}


def each(fn: Callable[..., Tensor], *dicts: Params) -> Params:
    """Return `{name: fn(values under that name)}`."""
    return {name: fn(*(d[name] for d in dicts)) for name in dicts[0]}


def mix(old: Tensor, new: Tensor, share: Rate) -> Tensor:
    """Return (1 - share) old + share new in one pass over memory."""
    return torch.lerp(old, new, as_for(share, old))


def as_for(number: Rate, weights: Tensor) -> Rate:
    """Return a number in the type of the weights it is about to meet in one operation."""
    return number.to(weights.dtype) if isinstance(number, Tensor) else number


def decayed(grads: Params, params: Params, weight_decay: Rate) -> Params:
    """Return the gradients with coupled (L2) weight decay: g + weight_decay p."""
    if not isinstance(weight_decay, Tensor) and weight_decay == 0:
        return grads  # what adding zero gives, without the passes over memory
    return each(lambda g, p: g + weight_decay * p, grads, params)
