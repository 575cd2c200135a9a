"""Momentum made orthogonal in each hidden matrix."""

from __future__ import annotations

from typing import ClassVar, Final

from pydantic import Field
from torch import Tensor

from raybench.optim.adam import AdamW
from raybench.optim.base import Decoupled, Params, Share, State, each, mix, shrunk, zeros
from raybench.optim.numbers import Rate
from raybench.spec import Hyper

_ITERATIONS: Final = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315  # of Keller Jordan's post
_LEAST_NORM: Final = 1e-7


class Muon(AdamW):
    """Orthogonalized momentum for weights of two axes and more, AdamW for the others (Jordan 2024).

    B <- momentum B + (1 - momentum) g;  O = NS(momentum B + (1 - momentum) g);
    p <- (1 - lr weight_decay) p - lr sqrt(max(1, rows / columns)) O (PyTorch's "original" scale).
    NS, five quintic Newton-Schulz steps, takes singular values to about 1. Kernels are matrices
    of their output channels by all the rest. The first and the last layer's matrices are treated
    as the others. Computed in the weights' own type; PyTorch computes NS in bfloat16.
    """

    elementwise: ClassVar[bool] = False

    momentum: Share = 0.95
    """Decay of the mean of gradients of matrices."""
    nesterov: bool = True
    """Whether a step looks ahead: momentum B + (1 - momentum) g instead of B."""
    weight_decay: Decoupled = 0.1
    adamw_lr: Hyper = Field(default=3e-4, gt=0)
    """Learning rate of AdamW for biases and other vectors; the schedule scales it too."""
    beta1: Share = 0.9
    """Decay of the mean of gradients of vectors."""
    beta2: Share = 0.95
    """Decay of the mean of squared gradients of vectors."""
    eps: Hyper = Field(default=1e-10, ge=0)
    """Added to the root, for vectors."""

    def init(self, params: Params) -> State:
        """Return zero means."""
        matrices, vectors = _parted(params)
        return {"mean": zeros(matrices), "adamw": super().init(vectors)}

    def update(self, grads: Params, state: State, params: Params, lr: Rate) -> tuple[Params, State]:
        """Take one step."""
        matrices, vectors = _parted(params)
        share = 1 - self.momentum
        mean = each(lambda b, g: mix(b, g, share), state["mean"], _parted(grads)[0])

        def moved(p: Tensor, b: Tensor, g: Tensor) -> Tensor:
            ahead = (mix(b, g, share) if self.nesterov else b).flatten(1)
            scale: float = max(1.0, ahead.shape[0] / ahead.shape[1]) ** 0.5
            length = lr * scale
            return p - orthogonalized(ahead).view(p.shape) * length

        matrices = each(moved, shrunk(matrices, lr, self.weight_decay), mean, grads)
        rate = self.adamw_lr * (lr / self.lr)
        vectors, inner = super().update(_parted(grads)[1], state["adamw"], vectors, rate)
        both = matrices | vectors
        return {name: both[name] for name in params}, {"mean": mean, "adamw": inner}


def orthogonalized(matrix: Tensor) -> Tensor:
    """Return U f(S) V^T of a matrix U S V^T [rows, columns], with f(S) between about 0.7 and 1.2.

    Five steps X <- a X + (b A + c A A) X with A = X X^T, from X = the matrix over its Frobenius
    norm (https://kellerjordan.github.io/posts/muon).
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.square().sum().sqrt_().clamp(min=_LEAST_NORM)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = _A * x + (_B * gram + _C * (gram @ gram)) @ x
    return x.T.contiguous() if tall else x


def _parted(values: Params) -> tuple[Params, Params]:
    """Return the weights of two axes and more, and the others."""
    matrices = {name: value for name, value in values.items() if value.dim() > 1}
    return matrices, {name: value for name, value in values.items() if value.dim() < 2}
