"""Augmentation of image batches as tensor operations, with noise that is a function of a key."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor

from raybench.data.base import Augmentation
from raybench.rng import fold, normal, uniform


def augment(x: Tensor, kinds: Sequence[Augmentation], key: Tensor) -> Tensor:
    """Return a batch of images changed by each of `kinds` in turn.

    Args:
        x: images [N, channels, height, width] of one run.
        kinds: `crop` shifts by up to an eighth of the side, zeros moving in, and `crop_sixteenth`
            by up to a sixteenth; `flip` mirrors half of the images; `cutout` zeroes a square of
            half the side (DeVries and Taylor 2017); `noise` adds Gaussian noise of deviation 0.1;
            `jitter` is DeepOBS' change of brightness (by less than a grey level, see
            `_BRIGHTNESS`), saturation (times 0.5 to 1.5) and contrast (times 0.2 to 1.8), for
            pixels of [0, 1].
        key: int64 scalar; the noise is a pure function of it.
    """
    if x.dim() != 4:
        raise ValueError(f"augmentation needs images [N, C, H, W], not {tuple(x.shape)}")
    for place, kind in enumerate(kinds):
        x = _CHANGES[kind](x, fold(key, place))
    return x


def _flip(x: Tensor, key: Tensor) -> Tensor:
    mirrored = uniform(key, (len(x), 1, 1, 1)) < 0.5
    return torch.where(mirrored, x.flip(-1), x)


def _crop(x: Tensor, key: Tensor, *, share: int) -> Tensor:
    num, channels, height, width = x.shape
    high, wide = max(height // share, 1), max(width // share, 1)
    padded = torch.nn.functional.pad(x, (wide, wide, high, high))
    top = (uniform(fold(key, 0), (num, 1)) * (2 * high + 1)).long()
    left = (uniform(fold(key, 1), (num, 1)) * (2 * wide + 1)).long()
    rows = (top + torch.arange(height, device=x.device))[:, None, :, None]
    columns = (left + torch.arange(width, device=x.device))[:, None, None, :]
    tall = padded.gather(2, rows.expand(num, channels, height, width + 2 * wide))
    return tall.gather(3, columns.expand(num, channels, height, width))


def _cutout(x: Tensor, key: Tensor) -> Tensor:
    num, _, height, width = x.shape
    middle_y = uniform(fold(key, 0), (num, 1, 1)) * height
    middle_x = uniform(fold(key, 1), (num, 1, 1)) * width
    far_y = (torch.arange(height, device=x.device)[:, None] + 0.5 - middle_y).abs() > height / 4
    far_x = (torch.arange(width, device=x.device)[None, :] + 0.5 - middle_x).abs() > width / 4
    return x * (far_y | far_x)[:, None].to(x.dtype)


def _noise(x: Tensor, key: Tensor) -> Tensor:
    return x + 0.1 * normal(key, x.shape, x.dtype)


def _jitter(x: Tensor, key: Tensor) -> Tensor:
    def between(place: int, low: float, high: float) -> Tensor:
        return low + (high - low) * uniform(fold(key, place), (len(x), 1, 1, 1)).to(x.dtype)

    x = x + between(0, -_BRIGHTNESS, _BRIGHTNESS)
    if x.shape[1] == 3:
        x = saturated(x, between(1, 0.5, 1.5))
    return contrasted(x, between(2, 0.2, 1.8))


_BRIGHTNESS: Final = 63 / 255 / 255
"""DeepOBS' random brightness moves pixels of [0, 255] by up to 63 / 255: hardly at all."""


def saturated(x: Tensor, factor: Tensor) -> Tensor:
    """Return images with their saturation in HSV multiplied, and cut to [0, 1].

    Value V and hue stay, so what a channel c lacks of V is scaled like the saturation
    S = (V - min) / V itself.

    Args:
        x: images [N, 3, H, W]; pixels whose largest channel is not positive become grey.
        factor: [N, 1, 1, 1].
    """
    value = x.amax(1, keepdim=True)
    span = value - x.amin(1, keepdim=True)
    one = torch.ones_like(value)
    saturation = torch.where(value > 0, span / torch.where(value > 0, value, one), 0)
    lacking = (value - x) / torch.where(span > 0, span, one)
    return value - value * (saturation * factor).clamp(0, 1) * lacking


def contrasted(x: Tensor, factor: Tensor) -> Tensor:
    """Return images whose distance from the mean of their channel is multiplied.

    Args:
        x: images [N, C, H, W].
        factor: [N, 1, 1, 1].
    """
    mean = x.mean((2, 3), keepdim=True)
    return mean + (x - mean) * factor


def standardise(x: Tensor) -> Tensor:
    """Return images [N, C, H, W], each less its mean and divided by its own deviation.

    As TensorFlow's per_image_standardization: the deviation of all pixels and channels of the
    image, and at least 1 / sqrt(C H W), so that an image of one colour becomes 0.
    """
    rows = x.flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    return (centred / deviation.clamp(min=1 / math.sqrt(rows.shape[1]))).reshape(x.shape)


_CHANGES: Final[dict[Augmentation, Callable[[Tensor, Tensor], Tensor]]] = {
    "crop": partial(_crop, share=8),
    "crop_sixteenth": partial(_crop, share=16),
    "flip": _flip,
    "cutout": _cutout,
    "noise": _noise,
    "jitter": _jitter,
}
