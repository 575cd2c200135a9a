"""Data made from a run's own `data` stream: no file, no download, any size."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from raybench.data.base import Data, Pool
from raybench.errors import RaybenchError
from raybench.rng import Seed, stream
from raybench.spec import Hyper


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


class Truth(NamedTuple):
    """The linear function that targets follow, as far as inputs can tell.

    Attributes:
        beta: coefficients, [dim, outputs], in float64.
        unseen: variance of what inputs do not hold, for each output.
    """

    beta: Tensor
    unseen: float


class Gaussian(Generated):
    """Linear regression with isotropic Gaussian inputs: y = x . beta + noise.

    The setting of Hastie et al. 2019 (arXiv:1903.08560): |beta|^2 = signal in a random direction.
    Noise of standard deviation `label_noise` is added to the training targets. With `decay` the
    model is misspecified (their section 5): only a share of the signal is in the `dim` inputs, and
    the rest comes from inputs nobody sees. Those are Gaussian too, so what they add to y is a
    Gaussian number in each row, however many they are.
    """

    revision: ClassVar[int] = 2

    signal: Hyper = Field(default=1.0, ge=0)
    """|beta|^2, that of unseen inputs included."""
    decay: float | None = Field(default=None, ge=0)
    """Unseen is a share (1 + dim / train)^-decay of the signal; null for none."""
    outputs: int = Field(default=1, ge=1)
    """Number of targets, each with coefficients and noise of its own over the same inputs."""

    def pool(self, seed: Seed) -> Pool:
        """Return rows with y, without noise."""
        x, directions = _isotropic(seed.of("data/rows"), self.num_rows, self.dim, self.outputs)
        truth = self._truth(directions)
        y = x.double() @ truth.beta
        if truth.unseen:
            draw = stream(seed, "data/unseen")
            others = torch.randn(y.shape, generator=draw, dtype=torch.float64)
            y = y + math.sqrt(truth.unseen) * others
        # Without test rows of its own a set would give a quarter of all rows to the test.
        test_from = self.num_rows if self.test is None else None
        return Pool(x, y.float(), classes=0, test_from=test_from)

    def truth(self, seed: Seed) -> Truth:
        """Return the coefficients of the run with `seed`, and the variance that is unseen."""
        _, directions = _isotropic(seed.of("data/rows"), self.num_rows, self.dim, self.outputs)
        return self._truth(directions)

    def _truth(self, directions: Tensor) -> Truth:
        hidden = 0.0
        if self.decay is not None:
            hidden = (1 + self.dim / (self.train or self.num_rows)) ** -self.decay
        return Truth(directions * math.sqrt(self.signal * (1 - hidden)), self.signal * hidden)


@lru_cache(maxsize=1)
def _isotropic(seed: int, rows: int, dim: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Return inputs [rows, dim] and unit coefficients [dim, outputs].

    The last ones are kept: runs that differ only in signal and noise follow one another.
    """
    draw = torch.Generator().manual_seed(seed)
    # In float32, which is what rows are held in: drawn many times faster than float64.
    x = torch.randn(rows, dim, generator=draw)
    beta = torch.randn(dim, outputs, generator=draw, dtype=torch.float64)
    return x, beta / beta.norm(dim=0)


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
