"""Generated sets of DeepOBS, number for number: they do not depend on a run's seed.

Schneider, Balles and Hennig 2019 (arXiv:1903.05499), github.com/fsschneider/DeepOBS. Each part
comes from a NumPy generator of its own, whose seed is the published one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import torch
from pydantic import Field

from raybench.data.base import Data, Pool
from raybench.quadratic import DIM, root
from raybench.rng import Seed

_TRAIN, _TEST, _VALID = 42, 43, 44


class QuadraticDeep(Data):
    """The noise of DeepOBS' 100-dimensional bowl: 1,000 rows each to train, validate and test.

    Rows x are N(0, 0.36) in each of 100 columns, targets are A x, with A^T A = H the curvature of
    the bowl; see model `quadratic_deep`, and use the loss `half_squares`.
    """

    valid: int = Field(default=1000, ge=0)
    """Validation rows: the first of the set's own."""
    instance: int = Field(default=0, ge=0)
    """Which bowl: 0 is the published one. The published program made another one each time that a
    problem was built in one process, the k-th of them is instance k."""

    def pool(self, seed: Seed) -> Pool:
        """Return the training, validation and test rows."""
        return _bowl_rows(self.instance)


_BOWL_ROWS: Final = 1000
_DEVIATION: Final = 0.6


@lru_cache(maxsize=4)
def _bowl_rows(instance: int) -> Pool:
    parts = [
        np.random.RandomState(part).normal(0.0, _DEVIATION, (_BOWL_ROWS, DIM))
        for part in (_TRAIN, _VALID, _TEST)
    ]
    x = torch.from_numpy(np.concatenate(parts).astype(np.float32))
    y = (x.double() @ root(instance).T).float()
    return Pool(x, y, classes=0, valid_from=_BOWL_ROWS, test_from=2 * _BOWL_ROWS)


class TwoD(Data):
    """The noise of DeepOBS' functions of two parameters: 10,000 rows to train, and to validate.

    Rows are two standard normal numbers, which tilt the function (see model `two_d`); the 10,000
    test rows are 0, so the test loss is the function itself. Targets are 0: use the loss `output`.
    """

    valid: int = Field(default=10_000, ge=0)
    """Validation rows: the first of the set's own."""

    def pool(self, seed: Seed) -> Pool:
        """Return the training, validation and test rows."""
        return _tilts()


_TILTS: Final = 10_000


@lru_cache(maxsize=1)
def _tilts() -> Pool:
    # All first numbers of a part are drawn before all second ones.
    parts = [
        np.random.RandomState(part).normal(0.0, 1.0, (2, _TILTS)).T for part in (_TRAIN, _VALID)
    ]
    x = torch.from_numpy(np.concatenate([*parts, np.zeros((_TILTS, 2))]).astype(np.float32))
    y = torch.zeros(len(x), 1)
    return Pool(x, y, classes=0, valid_from=_TILTS, test_from=2 * _TILTS)
