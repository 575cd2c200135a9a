"""Adam with learning rates between bounds that close in on one number, that of SGD."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from raybench.optim.adam import Adam, AMSGrad
from raybench.optim.base import Params, State, each
from raybench.optim.numbers import Rate, as_for
from raybench.spec import Hyper


class AdaBound(Adam):
    """Adam's step of each coordinate, clipped to [lower_t, upper_t] (Luo et al. 2019).

    p <- p - clip(lr sqrt(1 - beta2^t) / (1 - beta1^t) / (sqrt(s) + eps), lower_t, upper_t) m, with
    lower_t = F (1 - 1 / (gamma t + 1)), upper_t = F (1 + 1 / (gamma t)), and F the `final_lr`
    scaled as the schedule scales `lr` (arXiv:1902.09843, in the form of the authors' package).
    """

    final_lr: Hyper = Field(default=0.1, gt=0)
    """The rate that both bounds close in on, before the schedule."""
    gamma: Hyper = Field(default=0.001, gt=0)
    """How fast the bounds close in."""

    def init(self, params: Params) -> State:
        """Return zero moments, and the powers beta^0."""
        return super().init(params) | {"step": 0}

    def _move(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        step = state["step"] + 1
        state = self._advanced(grads, state) | {"step": step}
        length = lr * (1 - state["power2"]) ** 0.5 / (1 - state["power1"])
        final = self.final_lr * (lr / self.lr)
        lower = final * (1 - 1 / (self.gamma * step + 1))
        upper = final * (1 + 1 / (self.gamma * step))

        def moved(p: Tensor, m: Tensor, s: Tensor) -> Tensor:
            rates = as_for(length, s) / s.sqrt().add_(as_for(self.eps, s))
            # Two calls: one takes two tensors or two numbers, and only one bound may be a number.
            rates = rates.clamp(min=as_for(lower, s)).clamp(max=as_for(upper, s))
            return p - rates.mul_(m)

        return each(moved, params, state["mean"], state[self.scale]), state


class AMSBound(AMSGrad, AdaBound):
    """AdaBound whose mean square never falls: s_max <- max(s_max, s) is under the root.

    Luo et al. 2019 (arXiv:1902.09843), in the form of the authors' package.
    """
