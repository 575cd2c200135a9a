"""Steps of one size in every coordinate."""

from __future__ import annotations

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
from raybench.optim.numbers import Rate


class Lion(Optimizer):
    """Steps of one size along the sign of a mean of gradients.

    p <- (1 - lr weight_decay) p - lr sign(beta1 m + (1 - beta1) g);
    m <- beta2 m + (1 - beta2) g. Chen et al. 2023 (arXiv:2302.06675), program 1.
    """

    lr: LearningRate = 0.0001
    beta1: Share = 0.9
    """Share of the mean in the direction of a step."""
    beta2: Share = 0.99
    """Decay of the mean of gradients."""
    weight_decay: Decoupled = 0.0

    def init(self, params: Params) -> State:
        """Return a zero mean."""
        return {"mean": zeros(params)}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""

        def moved(p: Tensor, m: Tensor, g: Tensor) -> Tensor:
            return p - mix(m, g, 1 - self.beta1).sign_() * lr

        params = shrunk(params, lr, self.weight_decay)
        mean = each(lambda m, g: mix(m, g, 1 - self.beta2), state["mean"], grads)
        return each(moved, params, state["mean"], grads), {"mean": mean}
