"""The plain convolutional networks of DeepOBS: 2c2d, 3c3d and All-CNN-C."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from raybench.errors import RaybenchError
from raybench.models.base import Dropout, Published
from raybench.models.initial import glorot_truncated, glorot_uniform, truncated
from raybench.models.same import Conv, MaxPool


def image_sides(name: str, inputs: tuple[int, ...], least: int) -> tuple[int, int, int]:
    """Return channels, height and width of a row.

    Args:
        name: of the model.
        inputs: shape of one row.
        least: pixels that each side must have.

    Raises:
        RaybenchError: rows are no images, or too small ones.
    """
    if len(inputs) != 3:
        raise RaybenchError(
            f"model {name} needs images, and rows have shape {list(inputs)}; "
            "for digits set data.layout: image"
        )
    if min(inputs[1:]) < least:
        raise RaybenchError(
            f"model {name} needs images of at least {least} x {least} pixels, and these have "
            f"{inputs[1]} x {inputs[2]}; for digits set data.side: {16 if least <= 16 else 32}"
        )
    return inputs[0], inputs[1], inputs[2]


class CNN2c2d(Published):
    """Two convolutions and two dense layers, as in TensorFlow's tutorial on MNIST.

    Convolution 5 x 5 of `width` channels, ReLU, pool 2 x 2; the same with 2 `width` channels; a
    dense layer of 32 `width` units with ReLU; a linear layer. DeepOBS' mnist_2c2d and fmnist_2c2d.
    Published: weights N(0, 0.05^2) cut at two deviations, biases 0.05.
    """

    width: int = Field(default=32, ge=1)
    """Channels of the first convolution."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the layers in order; needs rows of shape [channels, height, width]."""
        channels, height, width = image_sides(self.name, inputs, 1)
        wide = 2 * self.width
        pixels = -(-height // 4) * -(-width // 4)
        return nn.Sequential(
            *(Conv(channels, self.width, 5), nn.ReLU(), MaxPool(2, 2)),
            *(Conv(self.width, wide, 5), nn.ReLU(), MaxPool(2, 2)),
            *(nn.Flatten(), nn.Linear(pixels * wide, 16 * wide), nn.ReLU()),
            nn.Linear(16 * wide, outputs),
        )

    def published(
        self, layer: nn.Module, name: str, shape: torch.Size, draw: torch.Generator
    ) -> Tensor:
        """Return cut Gaussian weights and constant biases."""
        return torch.full(shape, 0.05) if name == "bias" else truncated(shape, 0.05, draw)


class CNN3c3d(Published):
    """Three convolutions and three dense layers: DeepOBS' cifar10_3c3d.

    Convolutions 5 x 5 and 3 x 3 without padding, then 3 x 3 with, of 2, 3 and 4 times `width`
    channels, each with ReLU and a pool 3 x 3 of stride 2; dense layers of 16 and 8 `width` units
    with ReLU; a linear layer. Published: Glorot's normal weights for convolutions, uniform ones
    for dense layers, biases 0.
    """

    width: int = Field(default=32, ge=1)
    """Half of the channels of the first convolution."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the layers in order; needs images of at least 9 x 9 pixels."""
        channels, height, width = image_sides(self.name, inputs, 9)
        one, two, three = (times * self.width for times in (2, 3, 4))
        pixels = _left_3c3d(height) * _left_3c3d(width)
        return nn.Sequential(
            *(nn.Conv2d(channels, one, 5), nn.ReLU(), MaxPool(3, 2)),
            *(nn.Conv2d(one, two, 3), nn.ReLU(), MaxPool(3, 2)),
            *(Conv(two, three, 3), nn.ReLU(), MaxPool(3, 2)),
            *(nn.Flatten(), nn.Linear(pixels * three, 16 * self.width), nn.ReLU()),
            *(nn.Linear(16 * self.width, 8 * self.width), nn.ReLU()),
            nn.Linear(8 * self.width, outputs),
        )

    def published(
        self, layer: nn.Module, name: str, shape: torch.Size, draw: torch.Generator
    ) -> Tensor:
        """Return Glorot's weights and zero biases."""
        return glorot_by_kind(layer, name, shape, draw)


def _left_3c3d(side: int) -> int:
    side = -(-(side - 4) // 2)
    side = -(-(side - 2) // 2)
    return -(-side // 2)


def glorot_by_kind(layer: nn.Module, name: str, shape: torch.Size, draw: torch.Generator) -> Tensor:
    """Return Glorot's weights, normal for convolutions and uniform for others, and zero biases."""
    if name == "bias":
        return torch.zeros(shape)
    drawn = glorot_truncated if isinstance(layer, nn.Conv2d) else glorot_uniform
    return drawn(shape, draw)


class AllCNN(Published):
    """All-CNN-C of Springenberg et al. 2015 (arXiv:1412.6806): DeepOBS' cifar100_allcnnc.

    Three convolutions 3 x 3 of `width` channels and three of twice as many, the last of each with
    stride 2; then 3 x 3 without padding, 1 x 1, and 1 x 1 to the classes, ReLU after every one;
    the mean over the image. Dropout of 0.2 on the image and 0.5 after each stride. Published:
    Glorot's normal weights, biases 0.1.
    """

    width: int = Field(default=96, ge=1)
    """Channels of the first convolution."""
    dropout: bool = True
    """Whether there is any."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the layers in order; needs images of at least 9 x 9 pixels."""
        channels, _, _ = image_sides(self.name, inputs, 9)
        one, two = self.width, 2 * self.width
        return nn.Sequential(
            *([Dropout(0.2)] if self.dropout else []),
            *(Conv(channels, one, 3), nn.ReLU(), Conv(one, one, 3), nn.ReLU()),
            *(Conv(one, one, 3, 2), nn.ReLU()),
            *([Dropout(0.5)] if self.dropout else []),
            *(Conv(one, two, 3), nn.ReLU(), Conv(two, two, 3), nn.ReLU()),
            *(Conv(two, two, 3, 2), nn.ReLU()),
            *([Dropout(0.5)] if self.dropout else []),
            *(nn.Conv2d(two, two, 3), nn.ReLU(), Conv(two, two, 1), nn.ReLU()),
            *(Conv(two, outputs, 1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )

    def published(
        self, layer: nn.Module, name: str, shape: torch.Size, draw: torch.Generator
    ) -> Tensor:
        """Return Glorot's normal weights and constant biases."""
        return torch.full(shape, 0.1) if name == "bias" else glorot_truncated(shape, draw)
