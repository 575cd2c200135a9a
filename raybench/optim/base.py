"""What an optimizer is: two pure functions of one run, over explicit state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

from pydantic import Field
from torch import Tensor

from raybench.spec import Hyper, Spec

Params: TypeAlias = dict[str, Tensor]
State: TypeAlias = dict[str, Any]
"""Tensors by name, or dicts of tensors by the parameters' names."""

Rate: TypeAlias = float | Tensor
"""The learning rate of this step: a number, or a 0-d tensor in lifted code."""


class Optimizer(Spec, ABC):
    """An update rule. Hyper fields are numbers, or 0-d tensors where runs are fused."""

    lr: Hyper = Field(default=0.001, gt=0)
    """Learning rate, before the schedule."""

    @abstractmethod
    def init(self, params: Params) -> State:
        """Return the state before the first step."""

    @abstractmethod
    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Return the parameters and the state after one step at the learning rate `lr`."""


def zeros(params: Params) -> Params:
    """Return a dict of zeros shaped like `params`."""
    return {name: p.new_zeros(p.shape) for name, p in params.items()}


def counter(params: Params) -> Tensor:
    """Return the step count before the first step: a 0-d tensor of the parameters' type."""
    return next(iter(params.values())).new_zeros(())


def each(fn: Callable[..., Tensor], *dicts: Params) -> Params:
    """Return `{name: fn(values under that name)}`."""
    return {name: fn(*(d[name] for d in dicts)) for name in dicts[0]}
