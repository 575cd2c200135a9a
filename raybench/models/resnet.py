"""The convolutional families of "Deep double descent", whose width is a knob.

Nakkiran et al. 2019 (arXiv:1912.02292, appendix B.1): ResNet18-k and the 5-layer CNN-k.
"""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor, nn

from raybench.models.base import Model
from raybench.models.convnets import image_sides
from raybench.models.initial import Init


class ResNet18k(Model):
    """Pre-activation ResNet-18 whose four stages have k, 2k, 4k and 8k channels, k = `width`.

    A convolution 3 x 3 of k channels; four stages of two units, all but the first stage beginning
    with stride 2; the mean over the image; a linear layer. A unit is batch norm, ReLU, convolution
    3 x 3, batch norm, ReLU, convolution 3 x 3, plus its input (He et al. 2016, arXiv:1603.05027);
    where channels or size change the input goes through the first batch norm and ReLU and a
    convolution 1 x 1. Convolutions have no bias. As in the code of Nakkiran et al. 2019
    (arXiv:1912.02292) there is no batch norm or ReLU before the mean. k = 64 is ResNet-18.

    For C channels and O outputs it has 2724 k^2 + (106 + 9 C + 8 O) k + O parameters: on CIFAR-10
    2,947 at k = 1, 176,050 at k = 8, 11,171,146 at k = 64.
    """

    init: Init = "torch"
    """Weights: PyTorch's default, as in the paper, or another scheme."""
    width: int = Field(default=64, ge=1)
    """Channels of the first stage: k."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the layers in order; needs rows of shape [channels, height, width]."""
        channels, _, _ = image_sides(self.name, inputs, 1)
        layers: list[nn.Module] = [nn.Conv2d(channels, self.width, 3, padding=1, bias=False)]
        before = self.width
        for stage in range(4):
            wide = self.width * 2**stage
            layers += [_Unit(before, wide, 2 if stage else 1), _Unit(wide, wide, 1)]
            before = wide
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, outputs)
        )


class _Unit(nn.Module):
    """A residual unit with batch norm and ReLU before each convolution."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.activated = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            *(nn.BatchNorm2d(after), nn.ReLU()),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
        )
        self.shortcut: nn.Module | None = None
        if before != after or stride > 1:
            self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what went in, or its projection, plus the residual."""
        activated = self.activated(x)
        total: Tensor = self.residual(activated)
        return total + (x if self.shortcut is None else self.shortcut(activated))


class CNN5(Model):
    """Four convolutions of k, 2k, 4k and 8k channels, k = `width`, and a linear layer.

    The 5-layer CNN of Nakkiran et al. 2019 (arXiv:1912.02292, appendix B.1). Each convolution 3 x 3
    (with bias) is followed by batch norm, ReLU and a max-pool: of side 1, 2, 2 and 8, so that an
    image of 32 x 32 ends as one pixel. The last pool takes whatever is left of images of another
    size. Model `cnn` of depth 4 is another one: its convolutions have no bias, it pools after the
    first block too, and ends with a mean.

    For C channels and O outputs it has 378 k^2 + (45 + 9 C + 8 O) k + O parameters: on CIFAR-10
    540 at k = 1, 25,418 at k = 8, 1,558,026 at k = 64.
    """

    init: Init = "torch"
    """Weights: PyTorch's default, as in the paper, or another scheme."""
    width: int = Field(default=64, ge=1)
    """Channels of the first convolution: k."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the layers in order; needs rows of shape [channels, height, width]."""
        channels, height, width = image_sides(self.name, inputs, 4)
        layers: list[nn.Module] = []
        for block in range(4):
            wide = self.width * 2**block
            layers += [nn.Conv2d(channels, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
            if block in (1, 2):
                layers.append(nn.MaxPool2d(2))
            channels = wide
        left = (math.floor(height / 4), math.floor(width / 4))
        return nn.Sequential(
            *layers, nn.MaxPool2d(left), nn.Flatten(), nn.Linear(channels, outputs)
        )
