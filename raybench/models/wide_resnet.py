"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146)."""

from __future__ import annotations

from typing import Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raybench.models.base import Published
from raybench.models.convnets import image_sides
from raybench.models.initial import glorot_uniform
from raybench.models.same import Conv, MaxPool

_STRIDES: Final = (1, 2, 2)


class WideResNet(Published):
    """WRN-depth-widen: three groups of residual units with batch norm and ReLU before convolutions.

    A convolution 3 x 3 of `width` channels; groups of (depth - 4) / 6 units of two convolutions
    3 x 3 with 1, 2 and 4 times width * widen channels, the second and third group beginning with
    stride 2; batch norm, ReLU, the mean over the image, a linear layer. DeepOBS' wrn164, wrn404:
    in the first unit of a group batch norm and ReLU also precede the shortcut, which is a
    convolution 1 x 1 where the channels change. Published: Glorot's uniform weights.
    """

    depth: Literal[10, 16, 22, 28, 40] = 16
    """Convolutions, shortcuts not counted, and the last layer."""
    widen: int = Field(default=4, ge=1)
    """Channels of the first group over those of the first convolution."""
    width: int = Field(default=16, ge=1)
    """Channels of the first convolution."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the layers in order; needs rows of shape [channels, height, width]."""
        channels, _, _ = image_sides(self.name, inputs, 1)
        layers: list[nn.Module] = [Conv(channels, self.width, 3, bias=False)]
        before = self.width
        for group, stride in enumerate(_STRIDES):
            wide = self.width * self.widen * 2**group
            layers.append(_First(before, wide, stride))
            layers += [_Further(wide) for _ in range((self.depth - 4) // 6 - 1)]
            before = wide
        return nn.Sequential(
            *layers,
            *_activated(before),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, outputs)),
        )

    def published(
        self, layer: nn.Module, name: str, shape: torch.Size, draw: torch.Generator
    ) -> Tensor:
        """Return Glorot's uniform weights, and 1 and 0 for batch norm."""
        if isinstance(layer, nn.BatchNorm2d):
            return torch.ones(shape) if name == "weight" else torch.zeros(shape)
        return torch.zeros(shape) if name == "bias" else glorot_uniform(shape, draw)


def _activated(channels: int) -> tuple[nn.Module, nn.Module]:
    # Running statistics move by a tenth with each batch: TensorFlow's momentum 0.9.
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1), nn.ReLU()


class _First(nn.Module):
    """The first unit of a group, which may change channels and size."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.activated = nn.Sequential(*_activated(before))
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = Conv(before, after, 1, stride, bias=False)
        elif stride > 1:
            self.shortcut = MaxPool(stride, stride)
        self.residual = nn.Sequential(
            Conv(before, after, 3, stride, bias=False),
            *_activated(after),
            Conv(after, after, 3, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both branches, after their common activation."""
        x = self.activated(x)
        total: Tensor = self.residual(x) + self.shortcut(x)
        return total


class _Further(nn.Module):
    """A unit that keeps channels and size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_activated(channels),
            Conv(channels, channels, 3, bias=False),
            *_activated(channels),
            Conv(channels, channels, 3, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return what went in plus the residual."""
        total: Tensor = x + self.residual(x)
        return total
