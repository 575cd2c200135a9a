"""The bowls of DeepOBS' problem `quadratic_deep`: what its data and its model must agree on.

A bowl is 0.5 (theta - x)^T H (theta - x) for rows x, with H = R^T diag(e) R (Schneider, Balles and
Hennig 2019, arXiv:1903.05499). The spectrum e has 90 small and 10 large eigenvalues, as found in
deep networks (Chaudhari et al. 2016, arXiv:1611.01838).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DIM: Final = 100
"""Number of parameters, and of columns of a row."""
_SMALL: Final = 90
_SEED: Final = 42

Matrix: TypeAlias = NDArray[np.float64]


@lru_cache(maxsize=4)
def root(instance: int) -> Tensor:
    """Return A = diag(sqrt(e)) R, float64 [100, 100], so that H = A^T A; nobody writes to it.

    Args:
        instance: how many bowls the same generator made before. The published code drew from one
            generator for the life of a process, so its k-th problem there has the k-th bowl.
    """
    draw = np.random.RandomState(_SEED)
    for _ in range(instance):
        _spectrum_and_rotation(draw)
    spectrum, rotation = _spectrum_and_rotation(draw)
    return torch.from_numpy(np.sqrt(spectrum)[:, None] * rotation)


def _spectrum_and_rotation(draw: np.random.RandomState) -> tuple[Matrix, Matrix]:
    small = draw.uniform(0.0, 1.0, _SMALL)
    large = draw.uniform(30.0, 60.0, DIM - _SMALL)
    return np.concatenate([small, large]), _rotation(draw)


def _rotation(draw: np.random.RandomState) -> Matrix:
    """Return a rotation drawn uniformly (Haar), by the subgroup algorithm.

    Diaconis and Shahshahani 1987: a uniform rotation of d dimensions, reflected so that the first
    axis goes to a uniform direction, is a uniform rotation of d + 1 dimensions.
    """
    angle = 2 * np.pi * draw.uniform()
    cos, sin = np.cos(angle), np.sin(angle)
    rotation: Matrix = np.array([[cos, sin], [-sin, cos]])
    for dim in range(2, DIM):
        direction = draw.standard_normal(dim + 1)
        direction /= np.linalg.norm(direction)
        mirror = -direction
        mirror[0] += 1
        mirror /= np.linalg.norm(mirror)
        wider = np.eye(dim + 1)
        wider[1:, 1:] = rotation
        rotation = wider - 2 * np.outer(mirror, mirror @ wider)
    return -rotation
