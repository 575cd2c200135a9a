"""What a layer's parameters start from: the named schemes, and the draws that they are made of."""

from __future__ import annotations

import math
from typing import Final, Literal

import torch
from torch import Tensor, nn

Init = Literal["he", "glorot", "lecun", "torch", "glorot_uniform", "zeros", "published"]

_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def initial(
    layer: nn.Module, name: str, shape: torch.Size, scheme: Init, draw: torch.Generator
) -> Tensor:
    """Return the first value of a layer's parameter, drawn in float32 whatever the run's type."""
    if isinstance(layer, _NORMS):
        return torch.ones(shape) if name == "weight" else torch.zeros(shape)
    if scheme == "zeros":
        return torch.zeros(shape)
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(layer).__name__} has no weight: give the model its own `state`")
    fan_in, fan_out = fans(weight.shape)
    if scheme == "torch":
        if isinstance(layer, nn.Embedding):
            return torch.randn(shape, generator=draw)
        bound = 1 / math.sqrt(fan_in)  # kaiming_uniform with a = sqrt(5) has this bound as well
        return torch.rand(shape, generator=draw) * (2 * bound) - bound
    if name == "bias":
        return torch.zeros(shape)
    if scheme == "glorot_uniform":
        return glorot_uniform(shape, draw)
    variance = {"he": 2 / fan_in, "lecun": 1 / fan_in, "glorot": 2 / (fan_in + fan_out)}[scheme]
    return torch.randn(shape, generator=draw) * math.sqrt(variance)


def fans(shape: torch.Size) -> tuple[int, int]:
    """Return how many numbers a weight [outputs, inputs, ...] reads and writes, for each other."""
    if len(shape) == 1:
        return shape[0], shape[0]
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


def glorot_uniform(shape: torch.Size, draw: torch.Generator) -> Tensor:
    """Return numbers uniform on +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    bound = math.sqrt(6 / sum(fans(shape)))
    return torch.rand(shape, generator=draw) * (2 * bound) - bound


_CUT: Final = 2.0
_TRUNCATED_DEVIATION: Final = 0.87962566103423978
"""Of a standard normal cut at two deviations."""


def truncated(shape: torch.Size, deviation: float, draw: torch.Generator) -> Tensor:
    """Return Gaussian numbers cut at two deviations, [-2 `deviation`, 2 `deviation`].

    As TensorFlow's `truncated_normal`: `deviation` is the one before the cut.
    """
    inside = math.erf(_CUT / math.sqrt(2))
    # In float64: the inverse of the distribution is steep where float32 has few numbers.
    level = torch.rand(shape, generator=draw, dtype=torch.float64) * (2 * inside) - inside
    return (torch.erfinv(level) * math.sqrt(2) * deviation).float()


def glorot_truncated(shape: torch.Size, draw: torch.Generator) -> Tensor:
    """Return Glorot's normal numbers as TensorFlow draws them: cut, with variance 2 / fans."""
    deviation = math.sqrt(2 / sum(fans(shape)))
    return truncated(shape, deviation / _TRUNCATED_DEVIATION, draw)
