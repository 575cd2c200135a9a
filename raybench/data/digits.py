"""The handwritten digits that ship with scikit-learn (UCI optical recognition, 1998)."""

from __future__ import annotations

import gzip
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from raybench.data.base import Data, Pool
from raybench.errors import MissingError
from raybench.rng import Seed


class Digits(Data):
    """1,797 handwritten digits of 8 x 8 pixels in 10 classes; needs no download.

    No test part of its own.
    """

    layout: Literal["flat", "image"] = "flat"
    """`flat`: rows of numbers, 64 of them by default; `image`: channels x side x side, for
    convolutions."""
    side: Literal[8, 16, 32] = 8
    """Height and width; more than 8 by bilinear interpolation."""
    channels: Literal[1, 3] = 1
    """3: as a colour image whose channels are equal."""
    pixels: Literal["standard", "unit"] = "standard"
    """`standard`: from each pixel its mean over all rows is taken, then all are divided by one
    global deviation; these constants are the same for every run, as the published ones of larger
    sets are, and labels do not enter them. `unit`: from 0 to 1, as autoencoders and colour
    augmentation need them."""

    def pool(self, seed: Seed) -> Pool:
        """Return the 1,797 rows."""
        return _load(self.layout, self.side, self.channels, self.pixels)


def _table() -> NDArray[np.float64]:
    """Return rows of 64 pixels from 0 to 16 and a label, [1797, 65], from scikit-learn's file.

    scikit-learn itself is not imported: that takes each worker a second.
    """
    spec = find_spec("sklearn")
    places = spec.submodule_search_locations if spec else None
    if not places:
        raise MissingError("data set digits needs scikit-learn: pip install scikit-learn")
    with gzip.open(Path(places[0]) / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        return np.loadtxt(file, delimiter=",")


@lru_cache(maxsize=4)
def _load(layout: str, side: int, channels: int, pixels: str) -> Pool:
    table = _table()
    rows, labels = table[:, :-1], table[:, -1]
    if side != 8:
        images = torch.from_numpy(rows).reshape(-1, 1, 8, 8)
        rows = interpolate(images, size=(side, side), mode="bilinear").flatten(1).numpy()
    if pixels == "unit":
        scaled = rows / 16
    else:
        centred = rows - rows.mean(axis=0)
        scaled = centred / centred.std()
    x = torch.from_numpy(scaled.astype(np.float32)).reshape(-1, 1, side, side)
    x = x.repeat(1, channels, 1, 1)
    y = torch.from_numpy(labels.astype(np.int64))
    return Pool(x if layout == "image" else x.flatten(1), y, classes=10)
