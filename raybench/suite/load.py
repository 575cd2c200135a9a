"""Read a suite's sections at one scale, with overrides; every mistake in them is collected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raybench.errors import Path, Problem, UsageError, suggest
from raybench.suite.axes import Assignment, Option, assignments, axes, search_space
from raybench.suite.config import copy, put
from raybench.suite.expand import Suite
from raybench.suite.sections import (
    SECTIONS,
    Limits,
    Resources,
    Seeds,
    derivations,
    section,
    skips,
)
from raybench.suite.source import Source


def load(
    source: Source, scale: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Suite:
    """Return the suite in `source` at `scale`, with `KEY=VALUE` overrides.

    Args:
        source: the file.
        scale: a key of its `scales`; None for `laptop`, or the only one.
        overrides: dotted key to value: a section's key (`seeds`, `resources.lanes`), or a key of
            the runs' config; a key that an axis sweeps replaces that axis's values.

    Raises:
        SuiteError: with every mistake in the sections. Mistakes in the runs show in `.runs`.
        UsageError: there is no such scale.
    """
    problems: list[Problem] = []
    values = source.values
    _check_keys(values, (), problems)
    scales = values.get("scales", {})
    if not isinstance(scales, Mapping) or not all(isinstance(s, Mapping) for s in scales.values()):
        problems.append(Problem(("scales",), "scales is a mapping: {laptop: {...}, paper: {...}}"))
        scales = {}
    for each, body in scales.items():
        _check_keys(body, ("scales", each), problems)
    chosen = _choose_scale(scales, scale, source.label)
    document, origins = _layer(values, scales.get(chosen, {}), chosen)
    _override(document, overrides or {})
    made = _sections(source, chosen, document, origins, problems)
    if problems:
        raise source.fail(problems)
    return made


def _check_keys(values: Mapping[str, Any], path: Path, problems: list[Problem]) -> None:
    allowed = SECTIONS if not path else tuple(s for s in SECTIONS if s not in ("version", "scales"))
    for key in values:
        if key not in allowed and not key.startswith("x-"):
            hint = suggest(key, allowed)
            problems.append(Problem((*path, key), f"unknown key {key!r}{hint}", on_key=True))
    if path:
        return
    if values.get("version") != 1:
        problems.append(Problem(("version",), "version: 1 is the grammar that this raybench reads"))
    name = values.get("name")
    if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
        message = f"name: letters, digits, - and _ only (it names a folder), not {name!r}"
        problems.append(Problem(("name",), message))
    if "base" not in values:
        problems.append(Problem((), "a suite needs `base`: what all its runs share"))


def _choose_scale(scales: Mapping[str, Any], scale: str | None, label: str) -> str:
    if scale is None:
        return "laptop" if "laptop" in scales else next(iter(scales), "")
    if scale not in scales:
        raise UsageError(f"{label} has no scale {scale!r}{suggest(scale, scales)}")
    return scale


def _layer(
    values: Mapping[str, Any], over: Mapping[str, Any], scale: str
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return the sections with those of the scale on top, and where each now comes from."""
    document = {k: v for k, v in values.items() if k != "scales" and not k.startswith("x-")}
    origins: dict[str, Path] = {key: (key,) for key in document}
    for key, value in over.items():
        if key in ("base", "vars") and isinstance(value, Mapping):
            document[f"{key}+"] = value
            origins[f"{key}+"] = ("scales", scale, key)
        elif key in ("tune", "limits", "resources") and isinstance(value, Mapping):
            document[key] = {**(document.get(key) or {}), **value}
            origins[key] = ("scales", scale, key)
        elif not key.startswith("x-"):
            document[key] = value
            origins[key] = ("scales", scale, key)
    return document, origins


def _override(document: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    for key, value in overrides.items():
        head, _, rest = key.partition(".")
        if head in SECTIONS and head not in ("base", "vars"):
            if not rest:
                document[head] = value
            else:
                inner = document.get(head)
                inner = {"count": inner} if head == "seeds" and isinstance(inner, int) else inner
                changed = copy(dict(inner or {}))
                put(changed, Assignment(tuple(rest.split(".")), value, ()))
                document[head] = changed
            continue
        dotted = rest if head == "base" else key
        if not _override_axis(document, dotted, value):
            document.setdefault("overrides", {})[dotted] = value


def _override_axis(document: dict[str, Any], key: str, value: Any) -> bool:
    sweep = document.get("sweep")
    if not isinstance(sweep, list):
        return False
    replaced = [
        {key: value if isinstance(value, list) else [value]}
        if isinstance(axis, Mapping) and key in axis
        else axis
        for axis in sweep
    ]
    if replaced == sweep and not any(isinstance(a, Mapping) and key in a for a in sweep):
        return False
    document["sweep"] = replaced
    return True


def _sections(
    source: Source,
    scale: str,
    document: dict[str, Any],
    origins: dict[str, Path],
    problems: list[Problem],
) -> Suite:
    base: list[Assignment] = []
    prefixes: dict[str, tuple[str, ...]] = {"base": (), "vars": ("vars",)}
    for key, prefix in prefixes.items():
        for layer in (key, f"{key}+"):
            value = document.get(layer, {})
            path = origins.get(layer, (key,))
            if not isinstance(value, Mapping):
                problems.append(Problem(path, f"{key} is a mapping, not {value!r}"))
                continue
            base += [
                Assignment((*prefix, *item.key), item.value, item.path)
                for item in assignments(value, path)
            ]
    for key, value in document.get("overrides", {}).items():
        base.append(Assignment(tuple(key.split(".")), value, ("the command line", key)))
    typed: dict[str, Any] = {}
    for name in ("tune", "seeds", "limits", "resources"):
        value = document.get(name)
        if value is not None:
            typed[name] = section(name, value, origins.get(name, (name,)), problems)
    options: list[list[Option]] = []
    if "sweep" in document:
        options = axes(document["sweep"], origins.get("sweep", ("sweep",)), problems)
    if "search" in document:
        path = origins.get("search", ("search",))
        options.insert(0, [Option(search=search_space(document["search"], path, problems))])
    skip_path, derive_path = origins.get("skip", ("skip",)), origins.get("derive", ("derive",))
    return Suite(
        source=source,
        scale=scale,
        document=document,
        base=base,
        options=options,
        skip=skips(document["skip"], skip_path, problems) if "skip" in document else [],
        derive=derivations(document["derive"], derive_path, problems)
        if "derive" in document
        else [],
        seeds=typed.get("seeds") or Seeds(),
        limits=typed.get("limits") or Limits(),
        resources=typed.get("resources") or Resources(),
        tune=typed.get("tune"),
        origins=origins,
    )
