"""The axes of a sweep: what each point sets, how it is called, and the space that it opens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from raybench.errors import Path, Problem, suggest
from raybench.suite.sampling import Distribution, distribution


@dataclass(frozen=True)
class Assignment:
    """`key` (a path into a run's config) takes `value`, as the file says at `path`."""

    key: tuple[str, ...]
    value: Any
    path: Path


@dataclass(frozen=True)
class Option:
    """One point of an axis: what it sets, how it is called, and the space it opens.

    `tune` and `resources` hold what a case changes of these sections, each with its place in the
    file.
    """

    sets: tuple[Assignment, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    search: Mapping[str, tuple[Distribution, Path]] = field(default_factory=dict)
    tune: Mapping[str, tuple[Any, Path]] = field(default_factory=dict)
    resources: Mapping[str, tuple[Any, Path]] = field(default_factory=dict)

    def __add__(self, other: Option) -> Option:
        return Option(
            self.sets + other.sets,
            {**self.labels, **other.labels},
            {**self.search, **other.search},
            {**self.tune, **other.tune},
            {**self.resources, **other.resources},
        )


_NOT_CONFIG: Final = ("search", "sweep", "tune", "resources")
"""Keys of a case that set nothing of a run's config."""


def assignments(values: Mapping[str, Any], path: Path) -> Iterator[Assignment]:
    """Yield what a mapping sets. One with a `name` replaces a component; any other merges in."""
    for key, value in values.items():
        parts = tuple(str(key).split("."))
        inner = (*path, str(key))
        if isinstance(value, Mapping) and "name" not in value and value:
            for item in assignments(value, inner):
                yield Assignment(parts + item.key, item.value, item.path)
        else:
            yield Assignment(parts, value, inner)


def product(axes: Sequence[Sequence[Option]]) -> Iterator[Option]:
    """Yield every combination of one option from each axis, the last axis fastest."""
    for combo in itertools.product(*axes):
        yield sum(combo, Option())


def axes(value: object, path: Path, problems: list[Problem]) -> list[list[Option]]:
    """Return the options of each axis of a `sweep`."""
    if not isinstance(value, list):
        problems.append(Problem(path, "a sweep is a list of axes, such as `- model.width: [1, 2]`"))
        return []
    found = [axis(item, (*path, index), problems) for index, item in enumerate(value)]
    labelled: dict[str, Path] = {}
    for index, options in enumerate(found):
        for name in {name for option in options for name in option.labels}:
            if name in labelled:
                message = f"two axes of cases are both called {name!r}; give one `as: OTHER`"
                problems.append(Problem((*path, index), message))
            labelled[name] = (*path, index)
    return [options for options in found if options]


def axis(value: object, path: Path, problems: list[Problem]) -> list[Option]:
    """Return the options of one axis: `key: values`, `zip: {...}` or `cases: {...}`."""
    if not isinstance(value, Mapping) or not value:
        problems.append(Problem(path, "an axis is `key: values`, `zip: {...}` or `cases: {...}`"))
        return []
    if "cases" in value:
        return _cases(value, path, problems)
    if len(value) != 1:
        extra = list(value)[1]
        message = "an axis has one key; use `zip` for keys that move together, or another axis"
        problems.append(Problem((*path, extra), message, on_key=True))
        return []
    ((key, content),) = value.items()
    if key == "zip":
        return _zip(content, (*path, "zip"), problems)
    inner = (*path, str(key))
    options = []
    for index, item in enumerate(numbers(content, inner, problems)):
        where = (*inner, index) if isinstance(content, list) else inner
        options.append(Option(tuple(_assign(str(key), item, where))))
    return options


def _assign(key: str, value: Any, path: Path) -> Iterator[Assignment]:
    for item in assignments({key: value}, ()):
        yield Assignment(item.key, item.value, path + item.path[1:])


def _zip(content: object, path: Path, problems: list[Problem]) -> list[Option]:
    if not isinstance(content, Mapping) or not content:
        problems.append(Problem(path, "zip needs keys with lists: {a.b: [...], c.d: [...]}"))
        return []
    columns = {key: numbers(values, (*path, key), problems) for key, values in content.items()}
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        problems.append(Problem(path, f"zipped lists differ in length: {listing}"))
        return []
    return [
        Option(
            tuple(
                item
                for key, values in columns.items()
                for item in _assign(key, values[index], (*path, key, index))
            )
        )
        for index in range(next(iter(lengths.values())))
    ]


def _cases(value: Mapping[str, Any], path: Path, problems: list[Problem]) -> list[Option]:
    label = value.get("as", "case")
    for key in value:
        if key not in ("cases", "as"):
            hint = suggest(key, ["cases", "as"])
            problems.append(Problem((*path, key), f"unknown key {key!r} of cases{hint}", True))
    cases = value["cases"]
    if not isinstance(cases, Mapping) or not cases or not isinstance(label, str):
        message = "cases are named: cases: {sgd: {...}, adam: {...}}, with `as: LABEL` beside"
        problems.append(Problem((*path, "cases"), message))
        return []
    options: list[Option] = []
    for name, body in cases.items():
        inner = (*path, "cases", name)
        if not isinstance(body, Mapping):
            problems.append(Problem(inner, f"case {name!r} is a mapping of what it sets"))
            continue
        rest = {k: item for k, item in body.items() if k not in _NOT_CONFIG}
        own = Option(
            tuple(assignments(rest, inner)),
            {label: str(name)},
            search_space(body.get("search", {}), (*inner, "search"), problems),
            _changes("tune", body.get("tune", {}), "{one_shot: 3}", inner, problems),
            _changes("resources", body.get("resources", {}), "{ranks: 2}", inner, problems),
        )
        nested = axes(body["sweep"], (*inner, "sweep"), problems) if "sweep" in body else []
        if any(label in option.labels for axis_options in nested for option in axis_options):
            message = f"cases inside of cases are both called {label!r}; give one `as: OTHER`"
            problems.append(Problem((*inner, "sweep"), message))
        options += [own + combo for combo in product(nested)]
    return options


def _changes(
    name: str, value: object, example: str, path: Path, problems: list[Problem]
) -> dict[str, tuple[Any, Path]]:
    """Return what a case changes of a section, by key."""
    if not isinstance(value, Mapping):
        message = f"{name} is a mapping of what the case changes: {example}"
        problems.append(Problem((*path, name), message))
        return {}
    return {key: (item, (*path, name, key)) for key, item in value.items()}


def search_space(
    value: object, path: Path, problems: list[Problem]
) -> dict[str, tuple[Distribution, Path]]:
    """Return the distributions of a `search` mapping by dotted key."""
    if not isinstance(value, Mapping):
        problems.append(Problem(path, "search is a mapping: {optimizer.lr: {log_uniform: [...]}}"))
        return {}
    found: dict[str, tuple[Distribution, Path]] = {}
    for key, content in value.items():
        space = distribution(content, (*path, key), problems)
        if space is not None:
            found[key] = (space, (*path, key))
    return found


def numbers(value: object, path: Path, problems: list[Problem]) -> list[Any]:
    """Return the values of an axis: a list, or {range|linspace|logspace|geomspace|pow2: [a, b]}."""
    if isinstance(value, list):
        if not value:
            problems.append(Problem(path, "an axis needs at least one value"))
        return value
    if isinstance(value, Mapping):
        kinds = [key for key in value if key in GENERATORS]
        if len(kinds) == 1:
            return _generated(kinds[0], value, path, problems)
    kinds_text = ", ".join(GENERATORS)
    message = f"{value!r} is not an axis: write a list, or {{KIND: [first, last]}} ({kinds_text})"
    problems.append(Problem(path, message))
    return []


def _generated(
    kind: str, value: Mapping[str, Any], path: Path, problems: list[Problem]
) -> list[Any]:
    spaced = kind in ("linspace", "logspace", "geomspace")
    allowed = {kind, "num", "round"} if spaced else {kind}
    for key in value:
        if key not in allowed:
            hint = suggest(key, allowed)
            problems.append(Problem((*path, key), f"unknown key {key!r} of {kind}{hint}", True))
            return []
    ends, num = value[kind], value.get("num", 0)
    valid = isinstance(ends, list) and all(_is_number(end) for end in ends)
    if not valid or len(ends) not in ((2, 3) if kind == "range" else (2,)):
        shape = "[first, last] or [first, last, step]" if kind == "range" else "[first, last]"
        problems.append(Problem((*path, kind), f"{kind} needs {shape}, not {ends!r}"))
        return []
    if spaced and (not isinstance(num, int) or not 2 <= num <= 100_000):
        problems.append(Problem(path, f"{kind} needs num: how many values, at least 2"))
        return []
    try:
        made = list(GENERATORS[kind](ends, num))
    except (ValueError, ArithmeticError) as error:
        problems.append(Problem((*path, kind), f"{kind} {ends!r}: {error}"))
        return []
    if value.get("round"):
        made = list(dict.fromkeys(round(number) for number in made))
    if not made:
        problems.append(Problem((*path, kind), f"{kind} {ends!r} has no values: first to last"))
    return made


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _range(ends: list[Any], num: int) -> Iterable[int]:
    # Both ends are in the list, as people read "1 to 8".
    if any(not isinstance(end, int) for end in ends):
        raise ValueError("needs whole numbers; use linspace for others")
    step = ends[2] if len(ends) == 3 else 1
    if step == 0 or len(range(ends[0], ends[1], step)) > 100_000:
        raise ValueError("needs a step that is not 0, and at most 100,000 values")
    return range(ends[0], ends[1] + (1 if step > 0 else -1), step)


def _linspace(ends: list[Any], num: int) -> Iterable[float]:
    return (ends[0] + (ends[1] - ends[0]) * i / (num - 1) for i in range(num))


def _logspace(ends: list[Any], num: int) -> Iterable[float]:
    return (10.0**exponent for exponent in _linspace(ends, num))


def _geomspace(ends: list[Any], num: int) -> Iterable[float]:
    if min(ends) <= 0:
        raise ValueError("needs two positive numbers")
    low, high = math.log(ends[0]), math.log(ends[1])
    inner = [math.exp(low + (high - low) * i / (num - 1)) for i in range(1, num - 1)]
    return [float(ends[0]), *inner, float(ends[1])]


def _pow2(ends: list[Any], num: int) -> Iterable[float]:
    if any(not isinstance(end, int) for end in ends):
        raise ValueError("needs whole exponents")
    if max(map(abs, ends)) > 1000:
        raise ValueError("needs exponents between -1000 and 1000")
    return (2**e if min(ends) >= 0 else 2.0**e for e in range(ends[0], ends[1] + 1))


GENERATORS: Final = {
    "range": _range,
    "linspace": _linspace,
    "logspace": _logspace,
    "geomspace": _geomspace,
    "pow2": _pow2,
}
