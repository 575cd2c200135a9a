"""Data made from a run's own `data` stream: no file, no download, any size."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from raybench.data.base import Data, Pool
from raybench.errors import RaybenchError
from raybench.rng import Seed, stream


class Generated(Data):
    """A set whose rows, and what relates them, are drawn anew for each value of stream `data`."""

    dim: int = Field(default=32, ge=1)
    """Number of inputs."""
    train: int | None = Field(default=512, ge=1)
    """Training rows."""
    test: int | None = Field(default=512, ge=1)
    """Test rows; null for none."""

    @property
    def num_rows(self) -> int:
        """Rows that all splits take together."""
        return (self.train or 0) + self.valid + (self.test or 0)

    def _inputs(self, draw: torch.Generator) -> Tensor:
        return torch.randn(self.num_rows, self.dim, generator=draw, dtype=torch.float64)


class TeacherStudent(Generated):
    """Regression on the outputs of a random network with one hidden layer.

    y = V relu(W x) with Gaussian x, W and V, scaled so that y has about unit variance
    (Seung, Sompolinsky and Tishby 1992; Saad and Solla 1995).
    """

    width: int = Field(default=8, ge=1)
    """Hidden units of the teacher."""
    outputs: int = Field(default=1, ge=1)
    """Number of targets."""

    def pool(self, seed: Seed) -> Pool:
        """Return rows with the teacher's outputs."""
        draw = stream(seed, "data/rows")
        x = self._inputs(draw)
        first = torch.randn(self.dim, self.width, generator=draw, dtype=torch.float64)
        second = torch.randn(self.width, self.outputs, generator=draw, dtype=torch.float64)
        hidden = (x @ first / math.sqrt(self.dim)).relu()
        y = hidden @ second * math.sqrt(2 / self.width)
        return Pool(x.float(), y.float(), classes=0)


class Gaussian(Generated):
    """Linear regression with isotropic Gaussian inputs: y = x . beta + noise.

    The setting of Hastie et al. 2019 (arXiv:1903.08560): |beta|^2 = signal. Noise of standard
    deviation `label_noise` is added to the training targets.
    """

    signal: float = Field(default=1.0, ge=0)
    """|beta|^2."""

    def pool(self, seed: Seed) -> Pool:
        """Return rows with y = x . beta, without noise."""
        draw = stream(seed, "data/rows")
        x = self._inputs(draw)
        beta = torch.randn(self.dim, 1, generator=draw, dtype=torch.float64)
        y = x @ (beta / beta.norm() * math.sqrt(self.signal))
        return Pool(x.float(), y.float(), classes=0)


class Quadratic(Generated):
    """A quadratic bowl of a chosen spectrum, as a least-squares problem.

    The training rows X have orthogonal columns with X^T X / n = diag(lambda), lambda falling
    geometrically from 1 to 1 / condition; targets are X theta*, with |theta*_i| = 1. A `linear`
    model without bias and with the loss `mse` then has the full-batch loss
    (theta - theta*)^T diag(lambda) (theta - theta*), and mini-batches give its gradient noise.
    Test rows are drawn from a Gaussian with the same covariance. Validation rows are a part of the
    orthogonal ones, so with `valid` the training rows have this spectrum only about.
    """

    condition: float = Field(default=1000.0, ge=1)
    """Largest over smallest curvature."""

    def pool(self, seed: Seed) -> Pool:
        """Return the training rows first, then the others, with `test_from` between."""
        draw = stream(seed, "data/rows")
        num_fit = (self.train or 0) + self.valid
        if num_fit < self.dim:
            raise RaybenchError(
                f"data quadratic: {num_fit} training rows cannot span {self.dim} directions; "
                f"set data.train to at least {self.dim}, or lower data.dim"
            )
        falling = torch.linspace(0, 1, self.dim, dtype=torch.float64)
        scale = self.condition ** (-falling / 2)  # the square roots of lambda
        gaussian = torch.randn(num_fit, self.dim, generator=draw, dtype=torch.float64)
        basis, _ = torch.linalg.qr(gaussian)
        fit = basis * math.sqrt(num_fit) * scale
        others = torch.randn(self.test or 0, self.dim, generator=draw, dtype=torch.float64) * scale
        theta = torch.randint(0, 2, (self.dim, 1), generator=draw).double() * 2 - 1
        x = torch.cat([fit, others])
        return Pool(x.float(), (x @ theta).float(), classes=0, test_from=num_fit)
