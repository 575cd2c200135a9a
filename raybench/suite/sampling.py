"""Search spaces: distributions for hyperparameters, and the points that a tuning method draws."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from raybench.errors import Path, Problem, suggest

METHODS: Final = ("random", "random_state", "halton", "sobol", "grid")


@dataclass(frozen=True)
class Distribution:
    """A hyperparameter's space.

    Attributes:
        kind: how values lie between the bounds, a key of `RANGES`, or `choice`.
        low: lower bound, an exponent of 10 for `log10_uniform`.
        high: upper bound, included for `int`.
        choices: of a `choice`, which a grid goes through.
        complement: whether the value is 1 - what is drawn (`one_minus`).
    """

    kind: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()
    complement: bool = False

    def quantile(self, u: float) -> Any:
        """Return the value at `u` in [0, 1)."""
        if self.kind == "choice":
            return self.choices[int(u * len(self.choices))]
        value = RANGES[self.kind](self.low, self.high, u)
        return 1 - value if self.complement else value

    def drawn(self, generator: np.random.RandomState) -> Any:
        """Return a value from numpy's legacy generator, which draws whole numbers by `randint`."""
        if self.kind == "int":
            return int(generator.randint(int(self.low), int(self.high) + 1))
        return self.quantile(float(generator.random_sample()))

    def around(self, values: Sequence[Any]) -> Distribution:
        """Return the same kind of space, from the lowest to the highest of `values`."""
        if self.kind == "choice":
            return replace(self, choices=tuple(dict.fromkeys(values)))
        plain = [1 - value if self.complement else value for value in values]
        ends = min(plain), max(plain)
        if self.kind == "log10_uniform":
            ends = math.log10(ends[0]), math.log10(ends[1])
        return replace(self, low=ends[0], high=ends[1])


def _log_uniform(low: float, high: float, u: float) -> float:
    return math.exp(math.log(low) + u * math.log(high / low))


def _log10_uniform(low: float, high: float, u: float) -> float:
    return float(10 ** (low + u * (high - low)))


def _uniform(low: float, high: float, u: float) -> float:
    return low + u * (high - low)


def _integers(low: float, high: float, u: float) -> int:
    return int(low) + int(u * (int(high) - int(low) + 1))


RANGES: Final[Mapping[str, Callable[[float, float, float], Any]]] = {
    "log_uniform": _log_uniform,
    "log10_uniform": _log10_uniform,
    "uniform": _uniform,
    "int": _integers,
}
KINDS: Final = (*RANGES, "choice", "one_minus")


def distribution(value: object, path: Path, problems: list[Problem]) -> Distribution | None:
    """Return the space that `{log_uniform: [1e-4, 1]}` and its like describe, or None."""
    if not isinstance(value, Mapping) or len(value) != 1:
        message = f"a search space is one of {', '.join(KINDS)}, such as {{uniform: [0, 1]}}"
        problems.append(Problem(path, message))
        return None
    ((kind, bounds),) = value.items()
    inner = (*path, str(kind))
    if kind == "one_minus":
        found = distribution(bounds, inner, problems)
        if found is not None and (found.kind in ("choice", "int") or found.complement):
            problems.append(Problem(inner, f"one_minus of {found.kind} is not a space"))
            return None
        return found and replace(found, complement=True)
    if kind == "choice" and isinstance(bounds, list) and bounds:
        return Distribution("choice", choices=tuple(bounds))
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
    if kind == "log_uniform" and bounds[0] <= 0:
        problems.append(Problem(inner, "log_uniform needs two positive numbers"))
        return None
    if kind == "int" and any(int(bound) != bound for bound in bounds):
        problems.append(Problem(inner, "int needs two whole numbers"))
        return None
    return Distribution(str(kind), *bounds)


def points(
    space: Mapping[str, Distribution], method: str, trials: int, seed: int
) -> list[dict[str, Any]]:
    """Return the hyperparameters of each trial.

    The points depend only on the space's names, the method, and `seed`: arms with one space get
    the same points, on every problem. More trials extend a list and leave its beginning alone.

    `random_state` is the sampler of Schmidt et al. 2021 (arXiv:2007.01547): one
    `numpy.random.RandomState(seed)` draws trial by trial, in the order of the space's names.

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
    if method == "random_state":
        legacy = np.random.RandomState(seed)
        return [{name: space[name].drawn(legacy) for name in names} for _ in range(trials)]
    unit = _unit_cube(method, trials, len(names), seed)
    return [
        {name: space[name].quantile(float(u)) for name, u in zip(names, row, strict=True)}
        for row in unit
    ]


def _unit_cube(method: str, trials: int, dim: int, seed: int) -> Sequence[Sequence[float]]:
    digest = hashlib.sha256(f"{seed}:search/{method}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    if method in ("halton", "sobol"):
        from scipy.stats import qmc  # which takes half a second to import
    if method == "halton":
        return list(qmc.Halton(dim, rng=generator).random(trials))
    if method == "sobol":
        # Drawn to the next power of two, for which the sequence is balanced, then cut.
        return list(qmc.Sobol(dim, rng=generator).random_base2(max(trials - 1, 1).bit_length()))[
            :trials
        ]
    return list(generator.random((trials, dim)))
