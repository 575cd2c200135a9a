"""Methods that scale each coordinate by a running mean of squared gradients."""

from __future__ import annotations

from pydantic import Field

from raybench.optim.base import Optimizer, Params, Rate, State, counter, each, zeros
from raybench.spec import Hyper


class RMSProp(Optimizer):
    """s <- decay s + (1 - decay) g^2;  p <- p - lr g / (sqrt(s) + eps)  (Tieleman, Hinton 2012)."""

    lr: Hyper = Field(default=0.01, gt=0)
    decay: Hyper = Field(default=0.99, ge=0, lt=1)
    """Of the running mean of squares (PyTorch's `alpha`)."""
    eps: Hyper = Field(default=1e-8, ge=0)
    """Added to the root."""

    def init(self, params: Params) -> State:
        """Return zero mean squares."""
        return {"square": zeros(params)}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        decay = self.decay
        square = each(lambda s, g: decay * s + (1 - decay) * g * g, state["square"], grads)
        moved = each(lambda p, g, s: p - lr * g / (s.sqrt() + self.eps), params, grads, square)
        return moved, {"square": square}


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1), in PyTorch's form.

    m <- beta1 m + (1 - beta1) g;  s <- beta2 s + (1 - beta2) g^2;
    p <- p - lr (m / (1 - beta1^t)) / (sqrt(s / (1 - beta2^t)) + eps).
    """

    beta1: Hyper = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean of gradients."""
    beta2: Hyper = Field(default=0.999, ge=0, lt=1)
    """Decay of the mean of squared gradients."""
    eps: Hyper = Field(default=1e-8, ge=0)
    """Added to the root."""
    weight_decay: Hyper = Field(default=0.0, ge=0)
    """Coupled (L2) weight decay, added to the gradient."""

    def init(self, params: Params) -> State:
        """Return zero moments and step 0."""
        return {"mean": zeros(params), "square": zeros(params), "step": counter(params)}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        grads = each(lambda g, p: g + self.weight_decay * p, grads, params)
        direction, state = self._direction(grads, state)
        return each(lambda p, d: p - lr * d, params, direction), state

    def _direction(self, grads: Params, state: State) -> tuple[Params, State]:
        b1, b2, step = self.beta1, self.beta2, state["step"] + 1
        mean = each(lambda m, g: b1 * m + (1 - b1) * g, state["mean"], grads)
        square = each(lambda s, g: b2 * s + (1 - b2) * g * g, state["square"], grads)
        rise, grow = 1 - b1**step, (1 - b2**step) ** 0.5
        direction = each(lambda m, s: (m / rise) / (s.sqrt() / grow + self.eps), mean, square)
        return direction, {"mean": mean, "square": square, "step": step}


class AdamW(Adam):
    """Adam with decoupled weight decay: p <- (1 - lr weight_decay) p first.

    Loshchilov and Hutter 2019 (arXiv:1711.05101), in PyTorch's form.
    """

    weight_decay: Hyper = Field(default=0.01, ge=0)
    """Decoupled weight decay, scaled by the learning rate of the step."""

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        direction, state = self._direction(grads, state)
        moved = each(lambda p, d: p * (1 - lr * self.weight_decay) - lr * d, params, direction)
        return moved, state
