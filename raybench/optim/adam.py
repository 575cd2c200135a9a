"""Adam and the rules that keep its two moments, in PyTorch's forms."""

from __future__ import annotations

from typing import ClassVar

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
    WeightDecay,
    decayed,
    each,
    mix,
    shrunk,
    zeros,
)
from raybench.optim.numbers import Rate, as_for
from raybench.spec import Hyper


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1), in PyTorch's form.

    m <- beta1 m + (1 - beta1) g;  s <- beta2 s + (1 - beta2) g^2;
    p <- p - lr (m / (1 - beta1^t)) / (sqrt(s / (1 - beta2^t)) + eps).
    """

    scale: ClassVar[str] = "square"  # which part of the state is under the root
    eps_hat: ClassVar[bool] = False  # whether eps is added to sqrt(s) before its correction

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

    def _advanced(self, grads: Params, state: State) -> State:
        """Return the moments and powers of this step."""
        b1, b2 = self.beta1, self.beta2
        return {
            "mean": each(lambda m, g: mix(m, g, 1 - b1), state["mean"], grads),
            "square": each(lambda s, g: mix(s, g * g, 1 - b2), state["square"], grads),
            "power1": state["power1"] * b1,
            "power2": state["power2"] * b2,
        }

    def _direction(self, grads: Params, state: State) -> Params:
        """Return what is divided by the root."""
        mean: Params = state["mean"]
        return mean

    def _move(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        state = self._advanced(grads, state)
        # Both bias corrections are numbers: in m / (1 - b1^t) / (sqrt(s / (1 - b2^t)) + eps) the
        # root of the second is taken out of the fraction, which saves passes over the weights.
        correction: Rate = (1 - state["power2"]) ** 0.5
        length = lr * correction / (1 - state["power1"])
        eps = self.eps if self.eps_hat else self.eps * correction

        def moved(p: Tensor, m: Tensor, s: Tensor) -> Tensor:
            return p - (m / s.sqrt().add_(as_for(eps, s))).mul_(as_for(length, s))

        return each(moved, params, self._direction(grads, state), state[self.scale]), state


class AdamW(Adam):
    """Adam with decoupled weight decay: p <- (1 - lr weight_decay) p first.

    Loshchilov and Hutter 2019 (arXiv:1711.05101), in PyTorch's form.
    """

    weight_decay: Decoupled = 0.01

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        return self._move(grads, state, shrunk(params, lr, self.weight_decay), lr)


class AMSGrad(Adam):
    """Adam whose mean square never falls (Reddi et al. 2018, arXiv:1904.09237), in PyTorch's form.

    s_max <- max(s_max, s) takes the place of s under the root. The maximum is of mean squares
    without bias correction; the corrections of this step are applied to it.
    """

    scale: ClassVar[str] = "largest"

    def init(self, params: Params) -> State:
        """Return zero moments and maxima, and the powers beta^0."""
        return super().init(params) | {"largest": zeros(params)}

    def _advanced(self, grads: Params, state: State) -> State:
        new = super()._advanced(grads, state)
        return new | {"largest": each(torch.maximum, state["largest"], new["square"])}


class Nadam(Adam):
    """Adam with Nesterov momentum (Dozat 2016), in the form of Keras and PyTorch.

    mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2);  M_t = mu_1 mu_2 ... mu_t;
    p <- p - lr ((1 - mu_t) / (1 - M_t) g + mu_(t+1) / (1 - M_(t+1)) m) / (sqrt(s / (1 - beta2^t))
    + eps). `nadam_tf` is the form without a schedule of mu.
    """

    lr: LearningRate = 0.002
    momentum_decay: Hyper = Field(default=0.004, ge=0)
    """How fast mu_t rises from beta1 / 2 to beta1."""

    def init(self, params: Params) -> State:
        """Return zero moments, the powers beta^0 and the empty product of mu."""
        return super().init(params) | {"product": 1.0, "step": 0}

    def _move(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        step = state["step"] + 1
        mu, ahead = self._mu(step), self._mu(step + 1)
        product: Rate = state["product"] * mu
        state = self._advanced(grads, state) | {"product": product, "step": step}
        correction: Rate = (1 - state["power2"]) ** 0.5
        of_grad: Rate = lr * correction * (1 - mu) / (1 - product)
        of_mean: Rate = lr * correction * ahead / (1 - product * ahead)
        eps = self.eps * correction

        def moved(p: Tensor, g: Tensor, m: Tensor, s: Tensor) -> Tensor:
            return p - (m * of_mean).add_(g * of_grad).div_(s.sqrt().add_(as_for(eps, s)))

        return each(moved, params, grads, state["mean"], state["square"]), state

    def _mu(self, step: int) -> Rate:
        share: Rate = 0.96 ** (step * self.momentum_decay)
        return self.beta1 * (1 - 0.5 * share)


class Adamax(Optimizer):
    """Adam with the largest gradient in place of the root (Kingma and Ba 2015, section 7.1).

    m <- beta1 m + (1 - beta1) g;  u <- max(beta2 u, |g| + eps);
    p <- p - lr / (1 - beta1^t) m / u. PyTorch's form.
    """

    lr: LearningRate = 0.002
    beta1: Share = 0.9
    """Decay of the mean of gradients."""
    beta2: Share = 0.999
    """Decay of the largest gradient."""
    eps: Hyper = Field(default=1e-8, ge=0)
    """Added to the size of each gradient."""
    weight_decay: WeightDecay = 0.0

    def init(self, params: Params) -> State:
        """Return a zero mean and zero maxima, and the power beta1^0."""
        return {"mean": zeros(params), "largest": zeros(params), "power1": 1.0}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        grads = decayed(grads, params, self.weight_decay)
        power1 = state["power1"] * self.beta1
        length = lr / (1 - power1)
        mean = each(lambda m, g: mix(m, g, 1 - self.beta1), state["mean"], grads)

        def grown(u: Tensor, g: Tensor) -> Tensor:
            return torch.maximum(u * self.beta2, g.abs().add_(as_for(self.eps, g)))

        largest = each(grown, state["largest"], grads)
        moved = each(lambda p, m, u: p - (m / u).mul_(as_for(length, p)), params, mean, largest)
        return moved, {"mean": mean, "largest": largest, "power1": power1}
