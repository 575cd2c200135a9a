"""Rules that scale each coordinate by its past squared gradients, without a mean of gradients."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from raybench.optim.base import (
    LearningRate,
    Optimizer,
    Params,
    Share,
    State,
    WeightDecay,
    decayed,
    each,
    mix,
    zeros,
)
from raybench.optim.numbers import Rate, as_for
from raybench.spec import Hyper


class RMSProp(Optimizer):
    """s <- decay s + (1 - decay) g^2;  p <- p - lr g / (sqrt(s) + eps)  (Tieleman, Hinton 2012)."""

    lr: LearningRate = 0.01
    decay: Share = 0.99
    """Of the running mean of squares (PyTorch's `alpha`)."""
    eps: Hyper = Field(default=1e-8, ge=0)
    """Added to the root."""

    def init(self, params: Params) -> State:
        """Return zero mean squares."""
        return {"square": zeros(params)}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        square = each(lambda s, g: mix(s, g * g, 1 - self.decay), state["square"], grads)
        moved = each(lambda p, g, s: p - lr * g / (s.sqrt() + self.eps), params, grads, square)
        return moved, {"square": square}


class Adagrad(Optimizer):
    """a <- a + g^2;  p <- p - lr / (1 + (t - 1) lr_decay) g / (sqrt(a) + eps).

    Duchi et al. 2011, in PyTorch's form. `adagrad_tf` has the defaults of TensorFlow 1.
    """

    lr: LearningRate = 0.01
    lr_decay: Hyper = Field(default=0.0, ge=0)
    """Decay of the learning rate with the number of steps, beside any schedule."""
    initial_accumulator: Hyper = Field(default=0.0, ge=0)
    """The sum of squares a before the first step."""
    eps: Hyper = Field(default=1e-10, ge=0)
    """Added to the root."""
    weight_decay: WeightDecay = 0.0

    def init(self, params: Params) -> State:
        """Return the initial sums of squares."""
        return {"total": each(lambda z: z + self.initial_accumulator, zeros(params)), "step": 0}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        grads = decayed(grads, params, self.weight_decay)
        total = each(lambda a, g: (g * g).add_(a), state["total"], grads)
        length = lr / (1 + state["step"] * self.lr_decay)

        def moved(p: Tensor, g: Tensor, a: Tensor) -> Tensor:
            return p - (g / a.sqrt().add_(as_for(self.eps, a))).mul_(as_for(length, a))

        return each(moved, params, grads, total), {"total": total, "step": state["step"] + 1}


class Adadelta(Optimizer):
    """Steps in the weights' own units (Zeiler 2012, arXiv:1212.5701), in PyTorch's form.

    s <- rho s + (1 - rho) g^2;  d = sqrt(u + eps) / sqrt(s + eps) g;  p <- p - lr d;
    u <- rho u + (1 - rho) d^2. TensorFlow 1 has the same recursion, with other defaults.
    """

    lr: LearningRate = 1.0
    rho: Share = 0.9
    """Decay of both mean squares."""
    eps: Hyper = Field(default=1e-6, ge=0)
    """Added inside both roots."""
    weight_decay: WeightDecay = 0.0

    def init(self, params: Params) -> State:
        """Return zero mean squares of gradients and of steps."""
        return {"square": zeros(params), "moved": zeros(params)}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        grads = decayed(grads, params, self.weight_decay)
        share = 1 - self.rho
        square = each(lambda s, g: mix(s, g * g, share), state["square"], grads)

        def delta(u: Tensor, s: Tensor, g: Tensor) -> Tensor:
            return (u + self.eps).div_(s + self.eps).sqrt_().mul_(g)

        deltas = each(delta, state["moved"], square, grads)
        moved = each(lambda u, d: mix(u, d * d, share), state["moved"], deltas)
        return each(lambda p, d: p - lr * d, params, deltas), {"square": square, "moved": moved}
