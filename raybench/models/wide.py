"""A perceptron whose parametrization is a choice: what its width limit is, lazy or learning."""

from __future__ import annotations

import math
from typing import Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raybench.models.base import Published

Parametrization = Literal["standard", "ntk", "mup"]
Place = Literal["input", "hidden", "readout"]


class WideMLP(Published):
    """`depth` hidden layers of `width` units and a readout, without biases.

    A layer computes a (w x) with w ~ N(0, s^2) trained and a fixed: an abc-parametrization (Yang
    and Hu 2021, arXiv:2011.14522). What counts is W = a w, and one learning rate serves all layers,
    because a step moves W by a^2 lr dL/dW with SGD and by a lr u with Adam, whose direction u does
    not feel the scale of a gradient (but for eps). With d = sqrt(variance / fan_in) and
    r = width / base_width a layer has (a, s):

    - standard: (1, d) everywhere.
    - ntk: (d, 1) everywhere (Jacot, Gabriel and Hongler 2018, arXiv:1806.07572).
    - mup for Adam (Yang et al. 2022, arXiv:2203.03466, table 8): input (1, d), hidden (1 / r, d r),
      readout (1 / r, d sqrt(r)): W moves by lr, lr / r, lr / r.
    - mup for SGD: input (sqrt(r), d / sqrt(r)), hidden (1, d), readout (1 / sqrt(r), d): W moves by
      lr r, lr, lr / r times dL/dW.

    In both the first W of the readout has deviation d / sqrt(r), that is, variance of the order of
    1 / fan_in^2. At `base_width` mup is the standard parametrization.
    """

    init: Literal["published"] = "published"
    """`published`: as the parametrization says."""
    width: int = Field(default=64, ge=1)
    """Units in each hidden layer."""
    depth: int = Field(default=1, ge=1)
    """Number of hidden layers."""
    activation: Literal["relu", "tanh", "erf", "gelu"] = "relu"
    """After each hidden layer."""
    parametrization: Parametrization = "standard"
    """How layers and their updates scale with width: standard, ntk or mup."""
    mup_for: Literal["adam", "sgd"] = "adam"
    """The kind of update that mup is made for: `adam` for rules whose steps do not feel the scale
    of a gradient (Adam, Lion, RMSProp), `sgd` for those that are linear in it."""
    base_width: int = Field(default=64, ge=1)
    """Width at which mup is the standard parametrization."""
    weight_variance: float = Field(default=2.0, gt=0)
    """Of a hidden layer's first weights, times fan_in."""
    readout_variance: float = Field(default=1.0, gt=0)
    """Of the readout's first weights, times fan_in (at `base_width` for mup)."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the layers in order."""
        layers: list[nn.Module] = [nn.Flatten()]
        fan_in, place = math.prod(inputs), "input"
        for _ in range(self.depth):
            layers += [self._layer("input" if place == "input" else "hidden", fan_in, self.width)]
            layers += [_ACTIVATIONS[self.activation]()]
            fan_in, place = self.width, "hidden"
        return nn.Sequential(*layers, self._layer("readout", fan_in, outputs))

    def published(
        self, layer: nn.Module, name: str, shape: torch.Size, draw: torch.Generator
    ) -> Tensor:
        """Return Gaussian weights of the layer's deviation."""
        assert isinstance(layer, Scaled)
        return torch.randn(shape, generator=draw) * layer.deviation

    def _layer(self, place: Place, fan_in: int, fan_out: int) -> Scaled:
        variance = self.readout_variance if place == "readout" else self.weight_variance
        deviation = math.sqrt(variance / fan_in)
        if self.parametrization == "ntk":
            return Scaled(fan_in, fan_out, deviation, 1.0)
        if self.parametrization == "standard":
            return Scaled(fan_in, fan_out, 1.0, deviation)
        power_a, power_s = _MUP[self.mup_for][place]
        ratio = self.width / self.base_width
        return Scaled(fan_in, fan_out, ratio**power_a, deviation * ratio**power_s)


class Scaled(nn.Module):
    """A linear layer with a fixed multiplier: x -> multiplier (x w^T).

    Args:
        fan_in: numbers that it reads.
        fan_out: numbers that it writes.
        multiplier: a of the abc-parametrization.
        deviation: of the first weights.
    """

    def __init__(self, fan_in: int, fan_out: int, multiplier: float, deviation: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(fan_out, fan_in))
        self.multiplier = multiplier
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs [N, fan_out] for x [N, fan_in]."""
        outputs = nn.functional.linear(x, self.weight)
        return outputs if self.multiplier == 1.0 else outputs * self.multiplier


class Erf(nn.Module):
    """The error function: the activation with an arcsine kernel (Williams 1997)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return erf(x)."""
        return torch.erf(x)


_ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "erf": Erf,
    "gelu": nn.GELU,
}
_MUP: Final[dict[str, dict[Place, tuple[float, float]]]] = {
    "adam": {"input": (0.0, 0.0), "hidden": (-1.0, 1.0), "readout": (-1.0, 0.5)},
    "sgd": {"input": (0.5, -0.5), "hidden": (0.0, 0.0), "readout": (-0.5, 0.0)},
}
"""Powers of width / base_width in the multiplier and in the first weights' deviation."""
