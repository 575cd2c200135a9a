"""Methods that scale each coordinate by a running mean of squared gradients."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from raybench.optim.base import (
    LearningRate,
    Optimizer,
    Params,
    Rate,
    Share,
    State,
    WeightDecay,
    as_for,
    decayed,
    each,
    mix,
    zeros,
)
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


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1), in PyTorch's form.

    m <- beta1 m + (1 - beta1) g;  s <- beta2 s + (1 - beta2) g^2;
    p <- p - lr (m / (1 - beta1^t)) / (sqrt(s / (1 - beta2^t)) + eps).
    """

    beta1: Share = 0.9
    """Decay of the mean of gradients."""
    beta2: Share = 0.999
    """Decay of the mean of squared gradients."""
    eps: Hyper = Field(default=1e-8, ge=0)
    """Added to the root."""
    weight_decay: WeightDecay = 0.0

    def init(self, params: Params) -> State:
        """Return zero moments, and the powers beta^0."""
        return {"mean": zeros(params), "square": zeros(params), "power1": 1.0, "power2": 1.0}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        return self._move(decayed(grads, params, self.weight_decay), state, params, lr)

    def _move(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        b1, b2 = self.beta1, self.beta2
        power1, power2 = state["power1"] * b1, state["power2"] * b2
        mean = each(lambda m, g: mix(m, g, 1 - b1), state["mean"], grads)
        square = each(lambda s, g: mix(s, g * g, 1 - b2), state["square"], grads)
        # Both bias corrections are numbers: in m / (1 - b1^t) / (sqrt(s / (1 - b2^t)) + eps) the
        # root of the second is taken out of the fraction, which saves passes over the weights.
        correction = (1 - power2) ** 0.5
        length, eps = lr * correction / (1 - power1), self.eps * correction

        def moved(p: Tensor, m: Tensor, s: Tensor) -> Tensor:
            return p - (m / s.sqrt().add_(as_for(eps, s))).mul_(as_for(length, s))

        state = {"mean": mean, "square": square, "power1": power1, "power2": power2}
        return each(moved, params, mean, square), state


class AdamW(Adam):
    """Adam with decoupled weight decay: p <- (1 - lr weight_decay) p first.

    Loshchilov and Hutter 2019 (arXiv:1711.05101), in PyTorch's form.
    """

    weight_decay: Hyper = Field(default=0.01, ge=0)
    """Decoupled weight decay, scaled by the learning rate of the step."""

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        shrink = 1 - lr * self.weight_decay
        params = each(lambda p: p * shrink, params)
        return self._move(grads, state, params, lr)
