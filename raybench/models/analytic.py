"""Losses that are plain functions of a few parameters, as models: what they output is the loss."""

from __future__ import annotations

import math
from typing import Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raybench.errors import RaybenchError
from raybench.models.base import Keep, Published, State, whole
from raybench.quadratic import DIM, root
from raybench.rng import Seed


class QuadraticDeep(Published):
    """The 100 parameters theta of DeepOBS' noisy bowl, all 1 at the start.

    Gives A theta for every row; with the targets A x of data `quadratic_deep` and the loss
    `half_squares` a row's loss is 0.5 (theta - x)^T H (theta - x), H = A^T A.
    """

    init: Literal["published", "zeros"] = "published"
    """`published`: ones; `zeros`: at the origin."""
    instance: int = Field(default=0, ge=0)
    """Which bowl: the same number as that of the data."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the bowl; needs rows of 100 numbers and as many targets."""
        if inputs != (DIM,) or outputs != DIM:
            raise RaybenchError(
                f"model {self.name} has {DIM} parameters, and rows have shape {list(inputs)} with "
                f"{outputs} targets; set data: quadratic_deep"
            )
        return _Bowl()

    def state(
        self,
        skeleton: nn.Module,
        inputs: tuple[int, ...],
        outputs: int,
        seed: Seed,
        keep: Keep = whole,
    ) -> State:
        """Return theta, and the root A of H as a buffer."""
        params, _ = super().state(skeleton, inputs, outputs, seed, keep)
        return params, {"root": root(self.instance).float()}

    def published(
        self, layer: nn.Module, name: str, shape: torch.Size, draw: torch.Generator
    ) -> Tensor:
        """Return ones."""
        return torch.ones(shape)


class _Bowl(nn.Module):
    root: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(DIM))
        self.register_buffer("root", torch.zeros(DIM, DIM))

    def forward(self, x: Tensor) -> Tensor:
        """Return A theta [N, 100], one matrix-vector product whatever the number of rows."""
        return (self.root @ self.theta).expand(len(x), DIM)


FunctionName = Literal["rosenbrock", "beale", "branin"]


class TwoD(Published):
    """A classic function of two parameters u and v, with noise in its gradient.

    Gives f(u, v) + u x + v y for a row (x, y): with the loss `output` this is the row's loss, and
    the mean over standard normal rows is f. DeepOBS' two_d problems. f is

    - `rosenbrock`: (1 - u)^2 + 100 (v - u^2)^2 from (-0.5, 1.5); minimum 0 at (1, 1);
    - `beale`: (1.5 - u + uv)^2 + (2.25 - u + uv^2)^2 + (2.625 - u + uv^3)^2 from (-4.5, 4.5);
      minimum 0 at (3, 0.5);
    - `branin`: (v - 5.1 u^2 / (4 pi^2) + 5 u / pi - 6)^2 + 10 (1 - 1 / (8 pi)) cos u + 10 from
      (2.5, 12.5); minimum 0.397887 at (-pi, 12.275), (pi, 2.275) and (9.42478, 2.475).
    """

    init: Literal["published", "zeros"] = "published"
    """`published`: where the published runs start; `zeros`: at the origin."""
    function: FunctionName = "rosenbrock"
    """f."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the function; needs rows of two numbers and one target."""
        if inputs != (2,) or outputs != 1:
            raise RaybenchError(
                f"model {self.name} needs two numbers in a row and one target, and rows have shape "
                f"{list(inputs)} with {outputs} targets; set data: two_d"
            )
        return _Surface(self.function)

    def published(
        self, layer: nn.Module, name: str, shape: torch.Size, draw: torch.Generator
    ) -> Tensor:
        """Return where the published runs start."""
        u, v = _STARTS[self.function]
        return torch.full(shape, u if name == "u" else v)


class _Surface(nn.Module):
    def __init__(self, function: FunctionName) -> None:
        super().__init__()
        self.function = _FUNCTIONS[function]
        self.u = nn.Parameter(torch.zeros(1))
        self.v = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the loss of each row, [N, 1]."""
        tilt = x[:, :1] * self.u + x[:, 1:] * self.v
        return self.function(self.u, self.v) + tilt


def _rosenbrock(u: Tensor, v: Tensor) -> Tensor:
    return (1 - u) ** 2 + 100 * (v - u**2) ** 2


def _beale(u: Tensor, v: Tensor) -> Tensor:
    return (1.5 - u + u * v) ** 2 + (2.25 - u + u * v**2) ** 2 + (2.625 - u + u * v**3) ** 2


def _branin(u: Tensor, v: Tensor) -> Tensor:
    valley = v - 5.1 / (4 * math.pi**2) * u**2 + 5 / math.pi * u - 6
    return valley**2 + 10 * (1 - 1 / (8 * math.pi)) * torch.cos(u) + 10


_FUNCTIONS: Final = {"rosenbrock": _rosenbrock, "beale": _beale, "branin": _branin}
_STARTS: Final = {"rosenbrock": (-0.5, 1.5), "beale": (-4.5, 4.5), "branin": (2.5, 12.5)}
