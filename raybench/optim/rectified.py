"""Rules that wait with adaptive steps until enough gradients were seen to trust their scale."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from raybench.optim.adam import Adam
from raybench.optim.base import Decoupled, Params, State, each, mix, shrunk
from raybench.optim.numbers import Rate, as_for, choose
from raybench.spec import Hyper


def rectification(beta2: Rate, power2: Rate, step: int) -> tuple[bool | Tensor, Rate]:
    """Return whether a mean of squares can be trusted at a step, and by how much.

    Liu et al. 2020 (arXiv:1908.03265), section 4: rho_inf = 2 / (1 - beta2) - 1;
    rho_t = rho_inf - 2 t beta2^t / (1 - beta2^t); trusted if rho_t > 5, with the factor
    sqrt((rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t)).

    Args:
        beta2: decay of the mean of squares.
        power2: beta2^t.
        step: t, from 1.

    Returns:
        The condition and the factor, which has no meaning where the condition does not hold.
    """
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * power2 / (1 - power2)
    trusted = length > 5
    if trusted is False:
        return False, 1.0
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    factor: Rate = ratio**0.5
    return trusted, factor


class RAdam(Adam):
    """Rectified Adam (Liu et al. 2020, arXiv:1908.03265), in PyTorch's form.

    While rho_t <= 5 (see the paper; 5 steps with beta2 = 0.999): p <- p - lr m / (1 - beta1^t).
    Then p <- p - lr r_t sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(s) + eps), with the
    paper's factor r_t, which rises to 1.
    """

    def init(self, params: Params) -> State:
        """Return zero moments, and the powers beta^0."""
        return super().init(params) | {"step": 0}

    def _move(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        step = state["step"] + 1
        state = self._advanced(grads, state) | {"step": step}
        trusted, factor = rectification(self.beta2, state["power2"], step)
        plain: Rate = lr / (1 - state["power1"])
        length = plain * factor * (1 - state["power2"]) ** 0.5

        def moved(p: Tensor, m: Tensor, s: Tensor) -> Tensor:
            if trusted is False:
                return p - m * plain
            step = (m / s.sqrt().add_(as_for(self.eps, s))).mul_(as_for(length, s))
            return p - (step if trusted is True else choose(trusted, step, m * plain))

        return each(moved, params, state["mean"], state["square"]), state


class AdaBelief(Adam):
    """Adam scaled by how far gradients are from what was expected (Zhuang et al. 2020).

    s <- beta2 s + (1 - beta2) (g - m)^2 + eps takes the place of the mean square; else Adam, or
    RAdam if `rectify` (arXiv:2010.07468, in the form of the authors' package for PyTorch, whose
    defaults these are). The Crowded Valley has `rectify` and `degenerated_to_sgd`, eps 1e-14.
    """

    eps: Hyper = Field(default=1e-16, ge=0)
    """Added to s in every step, and to its root."""
    weight_decay: Decoupled = 0.0
    rectify: bool = True
    """Whether steps are rectified as in RAdam."""
    degenerated_to_sgd: bool = True
    """Whether a rectified rule moves along the mean until it trusts s; otherwise it waits."""

    def init(self, params: Params) -> State:
        """Return zero moments, and the powers beta^0."""
        return super().init(params) | {"step": 0}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        return self._move(grads, state, shrunk(params, lr, self.weight_decay), lr)

    def _move(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        step = state["step"] + 1
        state = self._advanced(grads, state) | {"step": step}
        correction: Rate = (1 - state["power2"]) ** 0.5
        plain: Rate = lr / (1 - state["power1"])
        trusted, factor, eps = self._trust(state["power2"], step, correction)
        length = plain * factor * correction

        def moved(p: Tensor, m: Tensor, s: Tensor) -> Tensor:
            if trusted is False:
                return p - m * plain if self.degenerated_to_sgd else p
            step = (m / s.sqrt().add_(as_for(eps, s))).mul_(as_for(length, s))
            if trusted is True:
                return p - step
            waiting = m * plain if self.degenerated_to_sgd else torch.zeros_like(m)
            return p - choose(trusted, step, waiting)

        return each(moved, params, state["mean"], state["square"]), state

    def _trust(self, power2: Rate, step: int, correction: Rate) -> tuple[bool | Tensor, Rate, Rate]:
        if self.rectify:
            return *rectification(self.beta2, power2, step), self.eps
        return True, 1.0, self.eps * correction

    def _advanced(self, grads: Params, state: State) -> State:
        mean = each(lambda m, g: mix(m, g, 1 - self.beta1), state["mean"], grads)

        def belief(s: Tensor, g: Tensor, m: Tensor) -> Tensor:
            return mix(s, (g - m).square(), 1 - self.beta2).add_(as_for(self.eps, s))

        return {
            "mean": mean,
            "square": each(belief, state["square"], grads, mean),
            "power1": state["power1"] * self.beta1,
            "power2": state["power2"] * self.beta2,
        }
