"""Rules that scale the step of each layer as a whole: they see weights by name, in their shapes."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from raybench.optim.adam import Adam
from raybench.optim.base import Decoupled, LearningRate, Optimizer, Params, State, each, mix, shrunk
from raybench.optim.numbers import Rate, as_for, larger, smaller
from raybench.spec import Hyper


class Lamb(Adam):
    """Adam whose step in each layer is as long as its weights (You et al. 2020, algorithm 2).

    r = m_hat / (sqrt(s_hat) + eps) + weight_decay p;
    p <- p - lr min(|p|, max_norm) / (|r| + eps) r, with m_hat and s_hat corrected for their bias or
    not, and p <- p - lr r where |p| or |r| is 0 (arXiv:1904.00962).
    """

    elementwise: ClassVar[bool] = False

    eps: Hyper = Field(default=1e-6, ge=0)
    """Added to the root, and to the length of r."""
    weight_decay: Hyper = Field(default=0.0, ge=0)
    """Added to the direction, before its length is taken."""
    max_norm: Hyper = Field(default=10.0, gt=0)
    """Longer weights count as this long."""
    bias_correction: bool = True
    """Whether the moments are corrected for starting at zero (the third version of the paper has
    none)."""

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        return self._move(grads, state, params, lr)

    def _move(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        state = self._advanced(grads, state)
        first, second = 1.0, 1.0
        if self.bias_correction:
            first, second = 1 - state["power1"], 1 - state["power2"]

        def moved(p: Tensor, m: Tensor, s: Tensor) -> Tensor:
            root = (s / second).sqrt_().add_(as_for(self.eps, s))
            step = (m / first).div_(root).add_(p * self.weight_decay)
            length, weight = _norm(step), _norm(p)
            trust = weight.clamp(max=as_for(self.max_norm, p)) / (length + self.eps)
            trust = torch.where((weight > 0) & (length > 0), trust, torch.ones_like(trust))
            return p - step * (trust * lr)

        return each(moved, params, state["mean"], state["square"]), state


class Adafactor(Optimizer):
    """Squares of a matrix kept as row and column means (Shazeer and Stern 2018, algorithms 4, 5).

    With b_t = t^-decay: R <- (1 - b_t) R + b_t mean(g^2 over columns), C likewise over rows;
    s = R C / mean(R) (for vectors a plain mean of squares);  u = g / max(sqrt(s), eps1);
    p <- (1 - lr weight_decay) p - max(eps2, rms(p)) min(lr, 1 / sqrt(t)) u / max(1, rms(u) / clip)
    (arXiv:1804.04235, in PyTorch's form; kernels of more than two axes are matrices in the last
    two).
    """

    elementwise: ClassVar[bool] = False

    lr: LearningRate = 0.01
    decay: Hyper = Field(default=0.8, ge=0, le=1)
    """Power of the step at which new squares count less (PyTorch's `beta2_decay`, negated)."""
    eps1: Hyper = Field(default=2.0**-23, gt=0)
    """Least root of the squares (the default is the epsilon of float32)."""
    eps2: Hyper = Field(default=1e-3, ge=0)
    """Least root mean square of a layer's weights."""
    clip: Hyper = Field(default=1.0, gt=0)
    """Largest root mean square of a layer's u (PyTorch's `d`)."""
    weight_decay: Decoupled = 0.0

    def init(self, params: Params) -> State:
        """Return zero means over rows and columns, and zero mean squares of vectors."""
        rows, columns, squares = {}, {}, {}
        for name, p in params.items():
            if p.dim() > 1:
                rows[name] = p.new_zeros((*p.shape[:-1], 1))
                columns[name] = p.new_zeros((*p.shape[:-2], 1, p.shape[-1]))
            else:
                squares[name] = p.new_zeros(p.shape)
        return {"rows": rows, "columns": columns, "squares": squares, "step": 0}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        step = state["step"] + 1
        share = float(step) ** -self.decay
        rate = smaller(lr, step**-0.5)
        rows, columns, squares = dict(state["rows"]), dict(state["columns"]), dict(state["squares"])

        def direction(name: str, g: Tensor) -> Tensor:
            if name in squares:
                squares[name] = square = mix(squares[name], g * g, share)
            else:
                gg = g * g
                rows[name] = row = mix(rows[name], gg.mean(-1, keepdim=True), share)
                columns[name] = mix(columns[name], gg.mean(-2, keepdim=True), share)
                whole = row.mean(-2, keepdim=True).clamp(min=as_for(self.eps1, g))
                square = (row @ columns[name]).div_(whole)
            return square.clamp(min=as_for(self.eps1 * self.eps1, g)).rsqrt_().mul_(g)

        def moved(p: Tensor, shrunken: Tensor, u: Tensor) -> Tensor:
            scale = rate * larger(_rms(p), as_for(self.eps2, p))
            return shrunken - u * (scale / larger(_rms(u) / self.clip, 1.0))

        directions = {name: direction(name, g) for name, g in grads.items()}
        moves = each(moved, params, shrunk(params, lr, self.weight_decay), directions)
        return moves, {"rows": rows, "columns": columns, "squares": squares, "step": step}


def _norm(weights: Tensor) -> Tensor:
    return weights.square().sum().sqrt_()


def _rms(weights: Tensor) -> Tensor:
    return weights.square().mean().sqrt_()
