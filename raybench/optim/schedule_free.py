"""Averages of weights in the place of a schedule."""

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
from raybench.optim.numbers import Rate, as_for, larger
from raybench.spec import Hyper


class ScheduleFreeAdamW(Optimizer):
    """Trains at y, between the iterate z and its average x, and is measured at x.

    With u = g(y) / (sqrt(s / (1 - beta2^t)) + eps) + weight_decay y:  z <- z - lr u;
    x <- (1 - c) x + c z, c being lr_max^2 over its sum so far;  y = (1 - beta1) z + beta1 x.
    Defazio et al. 2024 (arXiv:2405.15682), in the form of the authors' package. Meant for no
    schedule but a warm-up.
    """

    lr: LearningRate = 0.0025
    beta1: Hyper = Field(default=0.9, gt=0, lt=1)
    """Share of the average x in the point y at which gradients are taken."""
    beta2: Share = 0.999
    """Decay of the mean of squared gradients."""
    eps: Hyper = Field(default=1e-8, ge=0)
    """Added to the root."""
    weight_decay: WeightDecay = 0.0

    def init(self, params: Params) -> State:
        """Return z at the weights, zero mean squares, and the power beta2^0."""
        return {"z": params, "square": zeros(params), "power2": 1.0, "peak": 0.0, "total": 0.0}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step, of y."""
        power2 = state["power2"] * self.beta2
        peak = larger(lr, state["peak"])
        total = state["total"] + peak * peak
        share = peak * peak / total
        correction = (1 - power2) ** 0.5
        eps = self.eps * correction
        square = each(lambda s, g: mix(s, g * g, 1 - self.beta2), state["square"], grads)

        def scaled(g: Tensor, s: Tensor) -> Tensor:
            return (g / s.sqrt().add_(as_for(eps, s))).mul_(as_for(correction, s))

        steps = decayed(each(scaled, grads, square), params, self.weight_decay)
        # z moves by -lr u; of that y takes 1 - beta1 directly, and beta1 c by way of the average.
        part = lr * (self.beta1 * (1 - share) - 1)
        moved = each(lambda y, z, u: mix(y, z, share).add_(u * part), params, state["z"], steps)
        z = each(lambda z, u: z - u * lr, state["z"], steps)
        state = {"z": z, "square": square, "power2": power2, "peak": peak, "total": total}
        return moved, state

    def evaluated(self, state: State, params: Params) -> Params:
        """Return x, the average of z so far."""
        beyond = 1 - 1 / self.beta1
        return each(lambda y, z: mix(y, z, beyond), params, state["z"])
