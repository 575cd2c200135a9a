"""Augmentation of image batches as tensor operations, with noise that is a function of a key."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raybench.data.base import Augmentation
from raybench.rng import fold, normal, uniform


def augment(x: Tensor, kinds: Sequence[Augmentation], key: Tensor) -> Tensor:
    """Return a batch of images changed by each of `kinds` in turn.

    Args:
        x: images [N, channels, height, width] of one run.
        kinds: `crop` shifts by up to an eighth of the side, zeros moving in; `flip` mirrors half
            of the images; `cutout` zeroes a square of half the side (DeVries and Taylor 2017);
            `noise` adds Gaussian noise of deviation 0.1.
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


def _crop(x: Tensor, key: Tensor) -> Tensor:
    num, channels, height, width = x.shape
    high, wide = max(height // 8, 1), max(width // 8, 1)
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


_CHANGES = {"crop": _crop, "flip": _flip, "cutout": _cutout, "noise": _noise}
