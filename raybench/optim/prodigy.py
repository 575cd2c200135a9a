"""Adam that finds its own learning rate."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from raybench.optim.base import (
    Decoupled,
    LearningRate,
    Optimizer,
    Params,
    Share,
    State,
    each,
    mix,
    shrunk,
    zeros,
)
from raybench.optim.numbers import Rate, as_for, larger
from raybench.spec import Hyper


class Prodigy(Optimizer):
    """Adam with steps of d, an estimate of the distance from the first weights p0 to a solution.

    With l = d lr:  n <- sqrt(beta2) n + (d l / d0) <g, p0 - p>;
    k <- sqrt(beta2) k + (d l / d0) g;  d' = max(d, d_coef n / |k|_1);
    m <- beta1 m + (1 - beta1) d g;  s <- beta2 s + (1 - beta2) d^2 g^2;
    p <- (1 - l weight_decay) p - l m / (sqrt(s) + d' eps);  d <- d'.
    Mishchenko and Defazio 2023 (arXiv:2306.06101, algorithm 4), as in the authors'
    package. Sums are over all weights of the run. Leave lr at 1.
    """

    sums: ClassVar[bool] = True

    lr: LearningRate = 1.0
    beta1: Share = 0.9
    """Decay of the mean of gradients."""
    beta2: Share = 0.999
    """Decay of the mean of squared gradients; its root is that of the sums."""
    eps: Hyper = Field(default=1e-8, ge=0)
    """Added to the root, times the distance."""
    weight_decay: Decoupled = 0.0
    d0: Hyper = Field(default=1e-6, gt=0)
    """First estimate of the distance."""
    d_coef: Hyper = Field(default=1.0, gt=0)
    """Factor of the estimates that follow."""
    bias_correction: bool = False
    """Whether l has Adam's correction for moments that start at zero."""
    safeguard_warmup: bool = False
    """Whether lr is left out of k, for long warm-ups."""

    def init(self, params: Params) -> State:
        """Return zero moments and sums, and the first weights and distance."""
        return {
            "start": params,
            "sum": zeros(params),
            "mean": zeros(params),
            "square": zeros(params),
            "dot": 0.0,
            "distance": self.d0,
            "power1": 1.0,
            "power2": 1.0,
        }

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        d, keep = state["distance"], self.beta2**0.5
        power1, power2 = state["power1"] * self.beta1, state["power2"] * self.beta2
        rate = d * lr
        if self.bias_correction:
            rate = rate * (1 - power2) ** 0.5 / (1 - power1)
        gain = d / self.d0
        of_sum = gain * (d if self.safeguard_warmup else rate)
        dots = each(lambda g, p, p0: (g * (p0 - p)).sum(), grads, params, state["start"])
        dot = state["dot"] * keep + gain * rate * _total(dots)
        total = each(lambda k, g: (k * keep).add_(g * of_sum), state["sum"], grads)
        length = _total(each(lambda k: k.abs().sum(), total))
        # Without any gradient yet there is nothing to divide by, and the estimate stays.
        found = torch.where(length > 0, self.d_coef * dot / length, torch.zeros_like(length))
        distance = larger(cast("Tensor", as_for(found, length)), d)
        mean = each(lambda m, g: mix(m, g * d, 1 - self.beta1), state["mean"], grads)
        square = each(lambda s, g: mix(s, (g * d).square(), 1 - self.beta2), state["square"], grads)
        eps = distance * self.eps

        def moved(p: Tensor, m: Tensor, s: Tensor) -> Tensor:
            return p - (m / s.sqrt().add_(as_for(eps, s))).mul_(as_for(rate, s))

        moves = each(moved, shrunk(params, rate, self.weight_decay), mean, square)
        state = {"start": state["start"], "sum": total, "mean": mean, "square": square}
        numbers = {"dot": dot, "distance": distance, "power1": power1, "power2": power2}
        return moves, state | numbers


def _total(parts: Params) -> Tensor:
    return torch.stack(list(parts.values())).sum()
