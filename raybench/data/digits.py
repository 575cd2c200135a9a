"""The handwritten digits that ship with scikit-learn (UCI optical recognition, 1998)."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from sklearn.datasets import load_digits

from raybench.data.base import Data, Pool
from raybench.rng import Seed


class Digits(Data):
    """1,797 handwritten digits of 8 x 8 pixels in 10 classes; needs no download.

    From each pixel its mean over all rows is taken, then all are divided by one global deviation.
    These constants are the same for every run, as the published ones of larger sets are; labels do
    not enter them. No test part of its own.
    """

    layout: Literal["flat", "image"] = "flat"
    """`flat`: rows of 64 numbers; `image`: 1 x 8 x 8, for convolutions."""

    def pool(self, seed: Seed) -> Pool:
        """Return the 1,797 rows."""
        return _load(self.layout)


@lru_cache
def _load(layout: str) -> Pool:
    pixels, labels = load_digits(return_X_y=True)
    centred = pixels - pixels.mean(axis=0)
    x = torch.from_numpy((centred / centred.std()).astype(np.float32))
    shape = (-1, 1, 8, 8) if layout == "image" else (-1, 64)
    return Pool(x.reshape(shape), torch.from_numpy(labels.astype(np.int64)), classes=10)
