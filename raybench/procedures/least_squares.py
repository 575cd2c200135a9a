"""Minimum-norm least squares and ridge regression, solved directly: one factor, many targets."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

RCOND: Final = 1e-10
"""Singular values under this share of the largest count as zero. PyTorch's and LAPACK's default is
larger and softens the peak at the interpolation threshold."""


class LeastSquares:
    """argmin_b |y - F b|^2 / n + ridge |b|^2, and at ridge 0 the solution of least norm.

    With A the taller of F and F^T, and R from its QR factorization, A^T A + n ridge = R'^T R' where
    R' is the triangle of [R; sqrt(n ridge)]: one factorization of the features serves any ridge,
    and their squares are never formed. The solution is b = (F^T F + n ridge)^-1 F^T y for fewer
    features than rows, and b = F^T (F F^T + n ridge)^-1 y otherwise (Golub and Van Loan, Matrix
    Computations, sections 5.3 and 5.6), with one step of iterative refinement. Features whose
    condition number may exceed 1 / `RCOND` take the pseudo-inverse by singular values instead.

    Args:
        features: F, [n, p].
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features
        self._rows = features.shape[0]
        self._wide = features.shape[1] > features.shape[0]
        tall = features.T if self._wide else features
        self._triangle = torch.linalg.qr(tall, mode="r").R
        self._halves: dict[float, Tensor] = {}

    def solve(self, y: Tensor, ridge: float) -> Tensor:
        """Return the coefficients [p, k] for targets [n, k]."""
        half = self._half(ridge)
        weight = self._rows * ridge

        def inverse(z: Tensor) -> Tensor:
            return half @ (half.T @ z)

        f = self.features
        if self._wide:
            dual = inverse(y)
            dual = dual + inverse(y - f @ (f.T @ dual) - weight * dual)
            return f.T @ dual
        b = inverse(f.T @ y)
        return b + inverse(f.T @ (y - f @ b) - weight * b)

    def _half(self, ridge: float) -> Tensor:
        """Return H with H H^T = (A^T A + n ridge)^-1, the pseudo-inverse at ridge 0."""
        if ridge not in self._halves:
            self._halves[ridge] = self._inverse_half(ridge)
        return self._halves[ridge]

    def _inverse_half(self, ridge: float) -> Tensor:
        r = self._triangle
        identity = torch.eye(len(r), dtype=r.dtype, device=r.device)
        if ridge > 0:
            stacked = torch.cat([r, math.sqrt(self._rows * ridge) * identity])
            r = torch.linalg.qr(stacked, mode="r").R
        half: Tensor = torch.linalg.solve_triangular(r, identity, upper=True)
        # The product of the Frobenius norms bounds the condition number from above.
        bound = float(r.norm() * half.norm())
        if bound < 1 / max(RCOND, torch.finfo(r.dtype).eps * len(r)):
            return half
        _, s, vh = torch.linalg.svd(r)
        kept = s > max(RCOND, torch.finfo(r.dtype).eps * len(r)) * s[0]
        scaled: Tensor = vh.T * torch.where(kept, 1 / s, 0.0)
        return scaled
