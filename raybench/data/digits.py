"""The handwritten digits that ship with scikit-learn (UCI optical recognition, 1998)."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from sklearn.datasets import load_digits

from raybench.data.base import Data, Pool
from raybench.rng import Seed

_MEAN, _STD = 0.3053, 0.3760  # of all pixels / 16


class Digits(Data):
    """1,797 handwritten digits of 8 x 8 pixels in 10 classes; needs no download.

    Pixels are divided by 16, then by one global mean and deviation. No test part of its own.
    """

    layout: Literal["flat", "image"] = "flat"
    """`flat`: rows of 64 numbers; `image`: 1 x 8 x 8, for convolutions."""

    def pool(self, seed: Seed) -> Pool:
        """Return the 1,797 rows."""
        return _load(self.layout)


@lru_cache
def _load(layout: str) -> Pool:
    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(((pixels / 16 - _MEAN) / _STD).astype(np.float32))
    shape = (-1, 1, 8, 8) if layout == "image" else (-1, 64)
    return Pool(x.reshape(shape), torch.from_numpy(labels.astype(np.int64)), classes=10)
