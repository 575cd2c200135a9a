"""Search spaces: distributions for hyperparameters, and the points that a tuning method draws."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from scipy.stats import qmc

from raybench.errors import Path, Problem, suggest

METHODS: Final = ("random", "halton", "sobol", "grid")


@dataclass(frozen=True)
class Distribution:
    """A hyperparameter's space: `quantile` maps a number in [0, 1) to a value.

    `choices` is set where the space is a finite list (`choice`), which a grid goes through.
    """

    quantile: Callable[[float], Any]
    choices: tuple[Any, ...] = ()


def _log_uniform(low: float, high: float) -> Distribution:
    if low <= 0:
        raise ValueError("log_uniform needs two positive numbers")
    start, width = math.log(low), math.log(high / low)
    return Distribution(lambda u: math.exp(start + u * width))


def _uniform(low: float, high: float) -> Distribution:
    return Distribution(lambda u: low + u * (high - low))


def _integers(low: float, high: float) -> Distribution:
    if int(low) != low or int(high) != high:
        raise ValueError("int needs two whole numbers")
    return Distribution(lambda u: int(low) + int(u * (int(high) - int(low) + 1)))


_RANGES: Final = {"log_uniform": _log_uniform, "uniform": _uniform, "int": _integers}
KINDS: Final = (*_RANGES, "choice")


def distribution(value: object, path: Path, problems: list[Problem]) -> Distribution | None:
    """Return the space that `{log_uniform: [1e-4, 1]}` and its like describe, or None."""
    if not isinstance(value, Mapping) or len(value) != 1:
        message = f"a search space is one of {', '.join(KINDS)}, such as {{uniform: [0, 1]}}"
        problems.append(Problem(path, message))
        return None
    ((kind, bounds),) = value.items()
    inner = (*path, str(kind))
    if kind == "choice" and isinstance(bounds, list) and bounds:
        options = tuple(bounds)
        return Distribution(lambda u: options[int(u * len(options))], options)
    if kind not in KINDS:
        message = f"unknown distribution {kind!r}{suggest(str(kind), KINDS)}"
        problems.append(Problem(inner, message, on_key=True))
        return None
    numbers = isinstance(bounds, list) and all(
        isinstance(bound, int | float) and not isinstance(bound, bool) and math.isfinite(bound)
        for bound in bounds
    )
    if not numbers or len(bounds) != 2 or not bounds[0] < bounds[1]:
        message = f"{kind} needs [low, high] with low < high, not {bounds!r}"
        problems.append(Problem(inner, message))
        return None
    try:
        return _RANGES[kind](*bounds)
    except ValueError as error:
        problems.append(Problem(inner, str(error)))
        return None


def points(
    space: Mapping[str, Distribution], method: str, trials: int, seed: int
) -> list[dict[str, Any]]:
    """Return the hyperparameters of each trial.

    The points depend only on the space's names, the method, and `seed`: arms with one space get
    the same points, on every problem. More trials extend a list and leave its beginning alone.

    Raises:
        ValueError: a grid over a space that is not finite.
    """
    names = list(space)
    if method == "grid":
        endless = [name for name in names if not space[name].choices]
        if endless:
            raise ValueError(f"a grid needs `choice` for every key, and {endless[0]} has none")
        product = itertools.product(*(space[name].choices for name in names))
        return [dict(zip(names, combo, strict=True)) for combo in product][:trials]
    unit = _unit_cube(method, trials, len(names), seed)
    return [
        {name: space[name].quantile(float(u)) for name, u in zip(names, row, strict=True)}
        for row in unit
    ]


def _unit_cube(method: str, trials: int, dim: int, seed: int) -> Sequence[Sequence[float]]:
    digest = hashlib.sha256(f"{seed}:search/{method}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    if method == "halton":
        return list(qmc.Halton(dim, rng=generator).random(trials))
    if method == "sobol":
        # Drawn to the next power of two, for which the sequence is balanced, then cut.
        return list(qmc.Sobol(dim, rng=generator).random_base2(max(trials - 1, 1).bit_length()))[
            :trials
        ]
    return list(generator.random((trials, dim)))
