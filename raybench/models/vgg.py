"""VGG networks (Simonyan and Zisserman 2015, arXiv:1409.1556)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import interpolate

from raybench.models.base import Dropout, Published
from raybench.models.convnets import glorot_by_kind, image_sides
from raybench.models.same import Conv, MaxPool


class VGG(Published):
    """VGG-16 or VGG-19 on images resized to a square: DeepOBS' vgg16 and vgg19.

    Five blocks of convolutions 3 x 3 with ReLU, of 1, 2, 4, 8 and 8 times `width` channels, each
    with a pool 2 x 2 at its end; two dense layers of 64 `width` units with ReLU and dropout 0.5; a
    linear layer. Published: Glorot's normal weights for convolutions, uniform ones for dense
    layers, biases 0; an L2 penalty covers the weights of convolutions only.
    """

    depth: Literal[16, 19] = 16
    """Layers with weights."""
    width: int = Field(default=64, ge=1)
    """Channels of the first block."""
    side: int | None = Field(default=224, ge=1)
    """Height and width that images are resized to (bilinear); null: as they are."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the layers in order; needs rows of shape [channels, height, width]."""
        channels, height, width = image_sides(self.name, inputs, 1)
        deep = 3 if self.depth == 16 else 4
        layers: list[nn.Module] = [] if self.side is None else [_Resize(self.side)]
        for times, convolutions in ((1, 2), (2, 2), (4, deep), (8, deep), (8, deep)):
            for _ in range(convolutions):
                layers += [Conv(channels, times * self.width, 3), nn.ReLU()]
                channels = times * self.width
            layers.append(MaxPool(2, 2))
        high, wide = (self.side, self.side) if self.side else (height, width)
        units = -(-high // 32) * -(-wide // 32) * channels
        for _ in range(2):
            layers += [nn.Flatten(), nn.Linear(units, 64 * self.width), nn.ReLU(), Dropout(0.5)]
            units = 64 * self.width
        return nn.Sequential(*layers, nn.Linear(units, outputs))

    def published(
        self, layer: nn.Module, name: str, shape: torch.Size, draw: torch.Generator
    ) -> Tensor:
        """Return Glorot's weights and zero biases."""
        return glorot_by_kind(layer, name, shape, draw)

    def decays(self, name: str, shape: torch.Size) -> bool:
        """Return whether the parameter is the weight of a convolution."""
        return len(shape) == 4


class _Resize(nn.Module):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Return the images with `side` pixels each way."""
        return interpolate(x, size=(self.side, self.side), mode="bilinear", antialias=False)
