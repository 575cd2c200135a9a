"""Convolutions and pools with TensorFlow's padding `same`: an output for every stride-th pixel.

n pixels give ceil(n / stride) outputs. What has to be added to the image is split between its two
sides, and where it is odd the far side (bottom, right) gets one more: with stride 2, an even side
and a window of 3 it is (0, 1), which PyTorch's own symmetric padding cannot say.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, max_pool2d, pad


def padding(side: int, window: int, stride: int) -> tuple[int, int]:
    """Return how many pixels are added before and after a side of `side` pixels."""
    total = max((-(-side // stride) - 1) * stride + window - side, 0)
    return total // 2, total - total // 2


def _padded(x: Tensor, window: int, stride: int, value: float) -> tuple[Tensor, tuple[int, int]]:
    """Return `x`, padded where its sides need unequal amounts, and what is left to pad equally."""
    top, bottom = padding(x.shape[-2], window, stride)
    left, right = padding(x.shape[-1], window, stride)
    if (top, left) == (bottom, right):
        return x, (top, left)
    return pad(x, (left, right, top, bottom), value=value), (0, 0)


class Conv(nn.Conv2d):
    """A convolution with padding `same` and a square window."""

    def __init__(
        self, inputs: int, outputs: int, window: int, stride: int = 1, *, bias: bool = True
    ) -> None:
        super().__init__(inputs, outputs, window, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        x, rest = _padded(x, self.kernel_size[0], self.stride[0], 0.0)
        return conv2d(x, self.weight, self.bias, self.stride, rest)


class MaxPool(nn.Module):
    """The largest number of each window, with padding `same`; what is added never wins."""

    def __init__(self, window: int, stride: int) -> None:
        super().__init__()
        self.window, self.stride = window, stride

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, channels, ceil(H / stride), ceil(W / stride)]."""
        x, rest = _padded(x, self.window, self.stride, float("-inf"))
        return max_pool2d(x, self.window, self.stride, rest)


class ConvTranspose(nn.ConvTranspose2d):
    """A transposed convolution with padding `same`: `stride` pixels for every one."""

    def __init__(self, inputs: int, outputs: int, window: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, window, stride)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return [N, outputs, H stride, W stride]."""
        window, stride = self.kernel_size[0], self.stride[0]
        # The convolution of the larger image that this is the gradient of has this padding.
        high, wide = x.shape[-2] * stride, x.shape[-1] * stride
        top, bottom = padding(high, window, stride)
        grown = conv_transpose2d(x, self.weight, self.bias, self.stride, (top, top))
        return grown if top == bottom else grown[..., :high, :wide]
