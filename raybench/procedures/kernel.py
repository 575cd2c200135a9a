"""Finite networks against the infinite one: the kernel of one net, and regression with the limit.

Lee et al. 2018, "Deep neural networks as Gaussian processes" (arXiv:1711.00165).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from raybench.data import DATA, Data
from raybench.errors import RaybenchError
from raybench.lanes import Lanes
from raybench.procedures.base import Procedure
from raybench.procedures.feed import Feed
from raybench.procedures.nngp import FUNCTIONS, PER_PAIR, Nonlinearity, recursion
from raybench.record import Recorder
from raybench.rng import stream
from raybench.spec import Hyper, Run
from raybench.tables import Part

BIN = 100
"""Test rows in a bin of figure 3 of the paper, which sets errors against predicted variance."""


class _Wide(Procedure):
    """What the kernel of a wide network depends on."""

    data: Annotated[Data, Part(DATA)]
    """Data set; each row is centred and divided by its own deviation, so that |x|^2 = d."""
    depth: int = Field(default=1, ge=1)
    """Number of hidden layers."""
    activation: Nonlinearity = "relu"
    """After each hidden layer."""
    weight_variance: Hyper = Field(default=2.0, gt=0)
    """Of weights, times fan_in: sigma_w^2."""
    bias_variance: Hyper = Field(default=0.1, ge=0)
    """Of biases: sigma_b^2."""

    def require(self) -> None:
        """Ask the data set."""
        self.data.require()

    def missing(self) -> str | None:
        """Ask the data set."""
        return self.data.missing()


class Kernel(_Wide):
    """Draw networks and hold their kernels and outputs against the recursion.

    Records of the training rows, under split `model`: `kernel_error`, |K_net - K| / |K| in the
    Frobenius norm with K_net = sb + sw h h^T / width of one net's last hidden layer h, the mean
    over nets; `second` and `fourth`, the means of f^2 / K and f^4 / (3 K^2) over nets and rows,
    which are 1 for the outputs f of the limit.
    """

    width: int = Field(default=64, ge=1)
    """Units in each hidden layer."""
    nets: int = Field(default=16, ge=1)
    """Networks of one run, each with one output."""

    def operations(self) -> float | None:
        """Count the nets' layers and their kernels."""
        expected = self.data.expected()
        if expected is None:
            return None
        task, rows = expected
        n, inputs = rows["train"], math.prod(task.inputs)
        layers = inputs * self.width + (self.depth - 1) * self.width**2
        return float(self.nets * 2 * n * (layers + n * self.width))

    def execute(self, lanes: Lanes, runs: Sequence[Run[Any]], recorder: Recorder) -> None:
        """Draw the nets one after the other, each for all runs at once."""
        specs = lanes.stack([run.procedure for run in runs])
        x = _rows(lanes, _feed(lanes, runs), "train")
        limit = lanes.map(_limit)(specs, x)
        draws = [stream(run.seed, "init/weights") for run in runs]
        measure = lanes.map(_one_net)
        lanes.clock.expect(self.nets, 1)
        found: list[dict[str, Tensor]] = []
        for _ in range(self.nets):
            lanes.clock.tick(lanes.device)
            nets = lanes.stack([self._drawn(x.shape[-1], draw) for draw in draws])
            found.append(measure(specs, x, limit, nets))
        means = {name: torch.stack([net[name] for net in found]).mean(0) for name in found[0]}
        recorder.write(0, 0.0, "model", means)

    def _drawn(self, inputs: int, draw: torch.Generator) -> list[tuple[Tensor, Tensor]]:
        """Return standard normal weights [out, in] and biases [out] of one net, layer by layer."""
        sizes = [inputs, *[self.width] * self.depth, 1]
        return [
            (torch.randn(out, fan_in, generator=draw), torch.randn(out, generator=draw))
            for fan_in, out in pairwise(sizes)
        ]


class GaussianProcess(_Wide):
    """Regression with the kernel of the infinitely wide network, in closed form.

    Targets are one-hot minus 0.1; a row's class is that of the largest mean. The mean is
    K_*n (K_nn + noise I)^-1 y, the variance K_** - K_*n (K_nn + noise I)^-1 K_n*  (the paper's
    equations 8 and 9). Records of the test split: `error`, `mse`, and `variance_correlation`,
    the correlation of mean predicted variance with mean squared error over bins of 100 rows in
    the order of their variance (figure 3; nan for fewer than two bins).
    """

    dtype: Literal["float32", "float64"] = "float64"
    """Of the kernel and its factorization."""
    noise: Hyper = Field(default=1e-3, gt=0)
    """Added to the diagonal of the kernel of the training rows."""

    def operations(self) -> float | None:
        """Count the kernel of all rows and the factorization of that of the training rows."""
        expected = self.data.expected()
        if expected is None:
            return None
        task, rows = expected
        n, m, inputs = rows["train"], rows["test"], math.prod(task.inputs)
        pairs = (n + m) ** 2
        return float(
            2 * pairs * inputs
            + self.depth * pairs * PER_PAIR[self.activation]
            + n**3 / 3
            + n**2 * m
        )

    def execute(self, lanes: Lanes, runs: Sequence[Run[Any]], recorder: Recorder) -> None:
        """Solve for the means and variances of the test rows."""
        feed = _feed(lanes, runs)
        classes = feed.task.classes
        if not classes:
            raise RaybenchError("gaussian_process predicts classes; choose data with classes")
        specs = lanes.stack([run.procedure for run in runs])
        x = torch.cat([_rows(lanes, feed, split) for split in ("train", "test")], -2)
        y, answers = (_targets(lanes, feed, split) for split in ("train", "test"))

        def one(spec: GaussianProcess, x: Tensor, y: Tensor, answers: Tensor) -> dict[str, Tensor]:
            kernel = recursion(
                x, spec.activation, spec.depth, spec.weight_variance, spec.bias_variance
            ).to(x.dtype)
            mean, variance = predicted(kernel, _one_hot(y, classes, x.dtype), spec.noise)
            squares = (mean - _one_hot(answers, classes, x.dtype)).square().mean(-1)
            wrong = (mean.argmax(-1) != answers).to(x.dtype)
            return {
                "error": wrong.mean(),
                "mse": squares.mean(),
                "variance_correlation": _binned_correlation(variance, squares),
            }

        recorder.write(0, 0.0, "test", lanes.map(one)(specs, x, y, answers))


def predicted(kernel: Tensor, y: Tensor, noise: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return means [M, O] and variances [M] of a Gaussian process at the rows after the first N.

    Args:
        kernel: of all rows, [N + M, N + M].
        y: targets of the first N rows, [N, O].
        noise: added to their diagonal.
    """
    n = len(y)
    known, cross = kernel[:n, :n], kernel[:n, n:]
    eye = torch.eye(n, dtype=kernel.dtype, device=kernel.device)
    factor = torch.linalg.cholesky(known + noise * eye)
    mean = cross.T @ torch.cholesky_solve(y, factor)
    half = torch.linalg.solve_triangular(factor, cross, upper=False)
    return mean, kernel.diagonal()[n:] - half.square().sum(0)


def features(x: Tensor, net: Sequence[tuple[Tensor, Tensor]], spec: Any) -> tuple[Tensor, Tensor]:
    """Return one net's last hidden layer [N, width] and its outputs [N, O].

    Args:
        x: rows [N, d].
        net: standard normal weights and biases, hidden layers first.
        spec: with `activation`, `weight_variance`, `bias_variance`.
    """
    hidden, phi = x, FUNCTIONS[spec.activation]
    *layers, readout = net
    for weight, bias in layers:
        hidden = phi(_affine(hidden, weight, bias, spec))
    return hidden, _affine(hidden, *readout, spec)


def _affine(x: Tensor, weight: Tensor, bias: Tensor, spec: Any) -> Tensor:
    scale, shift = spec.weight_variance**0.5, spec.bias_variance**0.5
    sums: Tensor = x @ weight.T / x.shape[1] ** 0.5 * scale + bias * shift
    return sums


def _limit(spec: _Wide, x: Tensor) -> Tensor:
    return recursion(x, spec.activation, spec.depth, spec.weight_variance, spec.bias_variance)


def _one_net(
    spec: Kernel, x: Tensor, limit: Tensor, net: list[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    hidden, outputs = features(x, net, spec)
    hidden, outputs = hidden.double(), outputs.double()
    kernel = spec.bias_variance + spec.weight_variance * hidden @ hidden.T / hidden.shape[1]
    share = outputs.squeeze(-1).square() / limit.diagonal()
    return {
        "kernel_error": (kernel - limit).norm() / limit.norm(),
        "second": share.mean(),
        "fourth": share.square().mean() / 3,
    }


def _feed(lanes: Lanes, runs: Sequence[Run[Any]]) -> Feed:
    seeds = [run.seed for run in runs]
    return Feed(lanes, [run.procedure.data for run in runs], seeds, batch_size=None)


def _rows(lanes: Lanes, feed: Feed, split: str) -> Tensor:
    """Return the rows of a split, each with mean 0 and variance 1: [N, d], [K, N, d] stacked."""
    start = 2 if lanes.lifted else 1
    x = torch.cat([x for x, _ in feed.split(split)], start - 1).flatten(start)
    centred = x - x.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt()


def _targets(lanes: Lanes, feed: Feed, split: str) -> Tensor:
    return torch.cat([y for _, y in feed.split(split)], 1 if lanes.lifted else 0)


def _one_hot(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    return (y[:, None] == torch.arange(classes, device=y.device)).to(dtype) - 0.1


def _binned_correlation(variance: Tensor, squares: Tensor) -> Tensor:
    bins = len(variance) // BIN
    if bins < 2:
        return torch.full_like(variance[0], torch.nan)
    order = variance.argsort()[: bins * BIN]
    pairs = torch.stack([variance[order], squares[order]]).view(2, bins, BIN).mean(-1)
    pairs = pairs - pairs.mean(-1, keepdim=True)
    product: Tensor = (pairs[0] * pairs[1]).sum() / (pairs[0].norm() * pairs[1].norm())
    return product
