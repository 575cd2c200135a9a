"""Gradient descent, plain and with momentum."""

from __future__ import annotations

from pydantic import Field

from raybench.optim.base import Optimizer, Params, Rate, State, each, zeros
from raybench.spec import Hyper


class SGD(Optimizer):
    """p <- p - lr (g + weight_decay p)  (Robbins and Monro 1951)."""

    lr: Hyper = Field(default=0.01, gt=0)
    weight_decay: Hyper = Field(default=0.0, ge=0)
    """Coupled (L2) weight decay, added to the gradient."""

    def init(self, params: Params) -> State:
        """Return no state."""
        return {}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        return each(lambda p, g: p - lr * (g + self.weight_decay * p), params, grads), state


class Momentum(Optimizer):
    """v <- momentum v + g;  p <- p - lr v  (Polyak 1964, in PyTorch's form)."""

    lr: Hyper = Field(default=0.01, gt=0)
    momentum: Hyper = Field(default=0.9, ge=0, lt=1)
    """Share of the last velocity that is kept."""
    weight_decay: Hyper = Field(default=0.0, ge=0)
    """Coupled (L2) weight decay, added to the gradient."""

    def init(self, params: Params) -> State:
        """Return zero velocity."""
        return {"velocity": zeros(params)}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        grads = each(lambda g, p: g + self.weight_decay * p, grads, params)
        velocity = each(lambda v, g: self.momentum * v + g, state["velocity"], grads)
        return each(lambda p, v: p - lr * v, params, velocity), {"velocity": velocity}


class NAG(Optimizer):
    """v <- momentum v + g;  p <- p - lr (g + momentum v)  (Nesterov 1983; Sutskever et al. 2013).

    The form of PyTorch's SGD with `nesterov=True`.
    """

    lr: Hyper = Field(default=0.01, gt=0)
    momentum: Hyper = Field(default=0.9, ge=0, lt=1)
    """Share of the last velocity that is kept."""
    weight_decay: Hyper = Field(default=0.0, ge=0)
    """Coupled (L2) weight decay, added to the gradient."""

    def init(self, params: Params) -> State:
        """Return zero velocity."""
        return {"velocity": zeros(params)}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        grads = each(lambda g, p: g + self.weight_decay * p, grads, params)
        velocity = each(lambda v, g: self.momentum * v + g, state["velocity"], grads)
        ahead = each(lambda g, v: g + self.momentum * v, grads, velocity)
        return each(lambda p, d: p - lr * d, params, ahead), {"velocity": velocity}
