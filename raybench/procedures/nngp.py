"""The kernel of an infinitely wide network: Gaussian expectations of activations, and recursion."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

from raybench.optim.numbers import Rate

Nonlinearity = Literal["relu", "erf", "tanh"]

FUNCTIONS: Final[dict[Nonlinearity, Callable[[Tensor], Tensor]]] = {
    "relu": torch.relu,
    "erf": torch.erf,
    "tanh": torch.tanh,
}

_NODES: Final = 160
_TERMS: Final = 96

PER_PAIR: Final[dict[Nonlinearity, int]] = {"relu": 60, "erf": 40, "tanh": 3 * _TERMS}
"""About how many operations `expected` takes for a pair of rows."""


def recursion(
    x: Tensor, activation: Nonlinearity, depth: int, weight_variance: Rate, bias_variance: Rate
) -> Tensor:
    """Return the kernel of the outputs after `depth` hidden layers of infinite width.

    K^0 = sb + sw <x, x'> / d;  K^(l+1) = sb + sw E[phi(z) phi(z')], (z, z') ~ N(0, K^l)
    (Lee et al. 2018, arXiv:1711.00165, equations 4 and 5).

    Args:
        x: rows [N, d].
        activation: phi.
        depth: number of hidden layers.
        weight_variance: sw, times fan_in.
        bias_variance: sb.

    Returns:
        [N, N] in float64.
    """
    rows = x.double()
    kernel = bias_variance + weight_variance * (rows @ rows.T) / rows.shape[1]
    for _ in range(depth):
        kernel = bias_variance + weight_variance * expected(kernel, activation)
    return kernel


def expected(kernel: Tensor, activation: Nonlinearity) -> Tensor:
    """Return E[phi(z) phi(z')] for (z, z') ~ N(0, kernel), each pair of rows: [N, N] of [N, N].

    ReLU: sqrt(q q') (sin t + (pi - t) cos t) / (2 pi), t the angle (Cho and Saul 2009). erf:
    (2 / pi) arcsin(2 k / sqrt((1 + 2 q) (1 + 2 q'))) (Williams 1997). Others: `series`.
    """
    scale = kernel.diagonal()
    if activation == "erf":
        wide = 1 + 2 * scale
        ratio = 2 * kernel / (wide[:, None] * wide[None, :]).sqrt()
        return 2 / math.pi * torch.asin(ratio)
    if activation == "relu":
        norm = (scale[:, None] * scale[None, :]).sqrt()
        cosine = (kernel / norm).clamp(-1, 1)
        angle = torch.acos(cosine)
        return norm / (2 * math.pi) * (torch.sin(angle) + (math.pi - angle) * cosine)
    return series(kernel, FUNCTIONS[activation])


def series(kernel: Tensor, phi: Callable[[Tensor], Tensor]) -> Tensor:
    """Return E[phi(z) phi(z')] from Hermite coefficients: any activation, [N, N] of [N, N].

    With c_k(q) = E[phi(sqrt(q) u) he_k(u)], he_k the orthonormal polynomials of u ~ N(0, 1), it is
    sum_k c_k(q) c_k(q') rho^k (Mehler 1866). Each c_k is a Gauss-Hermite sum over 160 nodes, and
    96 terms are kept: N^2 numbers a term, where quadrature in two dimensions takes N^2 Q^2.
    """
    nodes, basis = _hermite()
    basis = basis.to(kernel.device)
    scale = kernel.diagonal()
    values = phi(scale.sqrt()[:, None] * nodes.to(kernel.device))
    coefficients = values @ basis.T  # [N, terms]
    norm = (scale[:, None] * scale[None, :]).sqrt()
    rho = (kernel / norm).clamp(-1, 1)
    total = torch.zeros_like(rho)
    for column in reversed(range(_TERMS)):
        term = coefficients[:, column]
        total = torch.addcmul(term[:, None] * term[None, :], total, rho)
    return total


@lru_cache(maxsize=1)
def _hermite() -> tuple[Tensor, Tensor]:
    """Return nodes [Q], and weight times he_k at each of them [terms, Q]."""
    points, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    rows = [np.ones_like(points), points]
    for k in range(1, _TERMS - 1):
        rows.append((points * rows[k] - math.sqrt(k) * rows[k - 1]) / math.sqrt(k + 1))
    basis = np.stack(rows) * weights / math.sqrt(2 * math.pi)
    return torch.from_numpy(points.copy()), torch.from_numpy(basis)


def averaged(fn: Callable[[Tensor], Tensor]) -> Tensor:
    """Return E[fn(u)] for u ~ N(0, 1), by Gauss-Hermite quadrature over 160 nodes.

    Args:
        fn: from nodes [Q] to values [Q, ...].
    """
    nodes, basis = _hermite()
    mean: Tensor = torch.tensordot(basis[0], fn(nodes), dims=1)
    return mean
