"""Convolutional networks."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from raybench.errors import RaybenchError
from raybench.models.base import Model


class CNN(Model):
    """`depth` blocks of convolution 3 x 3, batch norm, ReLU and pooling, then a linear layer.

    Block i has width * 2^i channels and halves the image while it has more than one pixel; the
    last block is averaged over the image. The family of the 5-layer CNN of Nakkiran et al. 2019
    (arXiv:1912.02292), which is depth 4.
    """

    width: int = Field(default=8, ge=1)
    """Channels of the first block."""
    depth: int = Field(default=2, ge=1)
    """Number of blocks."""
    batch_norm: bool = True
    """Whether each convolution is followed by batch norm (its statistics are the run's own)."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the blocks in order; needs rows of shape [channels, height, width]."""
        if len(inputs) != 3:
            raise RaybenchError(
                f"model cnn needs images, and rows have shape {list(inputs)}; "
                "for digits set data.layout: image"
            )
        layers: list[nn.Module] = []
        channels, side = inputs[0], min(inputs[1:])
        for block in range(self.depth):
            wide = self.width * 2**block
            layers.append(nn.Conv2d(channels, wide, 3, padding=1, bias=not self.batch_norm))
            layers += [nn.BatchNorm2d(wide)] if self.batch_norm else []
            layers.append(nn.ReLU())
            if side > 1 and block < self.depth - 1:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            channels = wide
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, outputs)
        )
