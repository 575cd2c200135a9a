"""What runs will cost, before they are carried out: measured where that is possible, or guessed.

Only the order and the size of batches, and what is told of the time that is left, depend on it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Final

from raybench.procedures import Procedure

_RATE: Final = 2e10  # operations a second of one core on small networks


def operations(procedure: Procedure) -> float | None:
    """Return a run's operations; None if they are not known, or its model cannot be built."""
    with contextlib.suppress(Exception):  # carrying the run out says why, in its row
        return procedure.operations()
    return None


def seconds(procedures: Mapping[str, Procedure], known: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of a run of each batch key: measured ones, others by comparison.

    A run that was not measured takes as long as one that was, times what it computes more or less
    (`Procedure.operations`); where nothing was measured, a core's usual rate is assumed.

    Args:
        procedures: one of each batch key, in the order of the suite.
        known: measured seconds by batch key.
    """
    keys = list(procedures)
    counted = {key: operations(each) for key, each in procedures.items()}
    if any(count is None for count in counted.values()):  # only one kind can be compared
        counted = {key: each.rough_operations() for key, each in procedures.items()}
    guessed = {key: (count or 1.0) / _RATE for key, count in counted.items()}
    measured = [place for place, key in enumerate(keys) if 0 < known.get(key, 0) < math.inf]
    found: dict[str, float] = {}
    for place, key in enumerate(keys):
        # The nearest on both sides, since neighbours in a suite differ in the fewest settings.
        near = [max((p for p in measured if p <= place), default=None)]
        near += [min((p for p in measured if p >= place), default=None)]
        others = [keys[p] for p in near if p is not None]
        ratios = [known[other] / guessed[other] for other in others]
        found[key] = guessed[key] * (sum(ratios) / len(ratios) if ratios else 1.0)
    return found
