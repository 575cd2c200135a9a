"""Gradient descent, plain and with momentum."""

from __future__ import annotations

from raybench.optim.base import (
    LearningRate,
    Optimizer,
    Params,
    Share,
    State,
    WeightDecay,
    decayed,
    each,
    zeros,
)
from raybench.optim.numbers import Rate


class SGD(Optimizer):
    """p <- p - lr (g + weight_decay p)  (Robbins and Monro 1951)."""

    lr: LearningRate = 0.01
    weight_decay: WeightDecay = 0.0

    def init(self, params: Params) -> State:
        """Return no state."""
        return {}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        grads = decayed(grads, params, self.weight_decay)
        return each(lambda p, g: p - lr * g, params, grads), state


class Momentum(Optimizer):
    """v <- momentum v + g;  p <- p - lr v  (Polyak 1964, in PyTorch's form)."""

    lr: LearningRate = 0.01
    momentum: Share = 0.9
    """Share of the last velocity that is kept."""
    weight_decay: WeightDecay = 0.0

    def init(self, params: Params) -> State:
        """Return zero velocity."""
        return {"velocity": zeros(params)}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        grads = decayed(grads, params, self.weight_decay)
        velocity = each(lambda v, g: self.momentum * v + g, state["velocity"], grads)
        return each(lambda p, v: p - lr * v, params, velocity), {"velocity": velocity}


class NAG(Optimizer):
    """v <- momentum v + g;  p <- p - lr (g + momentum v)  (Nesterov 1983; Sutskever et al. 2013).

    The form of PyTorch's SGD with `nesterov=True`.
    """

    lr: LearningRate = 0.01
    momentum: Share = 0.9
    """Share of the last velocity that is kept."""
    weight_decay: WeightDecay = 0.0

    def init(self, params: Params) -> State:
        """Return zero velocity."""
        return {"velocity": zeros(params)}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        grads = decayed(grads, params, self.weight_decay)
        velocity = each(lambda v, g: self.momentum * v + g, state["velocity"], grads)
        ahead = each(lambda g, v: g + self.momentum * v, grads, velocity)
        return each(lambda p, d: p - lr * d, params, ahead), {"velocity": velocity}
