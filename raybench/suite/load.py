"""Read a suite's sections at one scale, with overrides; every mistake in them is collected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from raybench.errors import Path, Problem, UsageError, suggest
from raybench.suite.axes import Assignment, Option, assignments, axes, search_space
from raybench.suite.config import copy, put
from raybench.suite.expand import Suite
from raybench.suite.sections import (
    SECTIONS,
    SPECS,
    Limits,
    Resources,
    Seeds,
    derivations,
    section,
    skips,
)
from raybench.suite.source import COMMAND_LINE, Source


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
    for each in scales if isinstance(scales, Mapping) else ():
        if not _is_name(each):
            message = f"scale {each!r}: letters, digits, - and _ only (it names a file)"
            problems.append(Problem(("scales", each), message, on_key=True))
    if not isinstance(scales, Mapping) or not all(isinstance(s, Mapping) for s in scales.values()):
        problems.append(Problem(("scales",), "scales is a mapping: {laptop: {...}, paper: {...}}"))
        scales = {}
    for each, body in scales.items():
        _check_keys(body, ("scales", each), problems)
    chosen = _choose_scale(scales, scale, source.label)
    document, origins = _layer(values, scales.get(chosen, {}), chosen)
    _override(document, origins, overrides or {}, problems)
    _check_document(document, origins, problems)
    made = _sections(source, chosen, document, origins, problems)
    made.overrides = dict(overrides or {})
    if problems:
        problems += made.mistakes()
    problems = [_relocated(problem, scales.get(chosen, {}), chosen) for problem in problems]
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
    version = values.get("version")
    if version != 1 or isinstance(version, bool):
        problems.append(Problem(("version",), "version: 1 is the grammar that this raybench reads"))
    if "base" not in values:
        problems.append(Problem((), "a suite needs `base`: what all its runs share"))
    if "name" not in values:
        problems.append(Problem((), "a suite needs a `name`: the folder of its results"))


def _check_document(
    document: Mapping[str, Any], origins: Mapping[str, Path], problems: list[Problem]
) -> None:
    name = document.get("name")
    if not _is_name(name):
        message = f"name: letters, digits, - and _ only (it names a folder), not {name!r}"
        problems.append(Problem(origins.get("name", ("name",)), message))
    figures = document.get("figures", "")
    if not isinstance(figures, str):
        message = f"figures: the suite whose figures are drawn, by name, not {figures!r}"
        problems.append(Problem(origins["figures"], message))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_-]+", value) is not None


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
        elif key in _MERGED and isinstance(value, Mapping) and key in document:
            # What is no mapping stays as it is, to be told as the mistake that it is.
            if isinstance(document[key], Mapping):
                document[key] = {**document[key], **value}
        elif not key.startswith("x-"):
            document[key] = value
            origins[key] = ("scales", scale, key)
    return document, origins


_MERGED = ("tune", "limits", "resources", "checkpoint")
"""Sections of which a scale changes single keys."""


def _relocated(problem: Problem, over: Mapping[str, Any], scale: str) -> Problem:
    """Return a problem of a merged section where the scale says what is wrong."""
    section_name, *rest = problem.path or ("",)
    above = over.get(str(section_name))
    if section_name in _MERGED and rest and isinstance(above, Mapping) and rest[0] in above:
        path = ("scales", scale, *problem.path)
        return Problem(path, problem.message, problem.on_key)
    return problem


def _override(
    document: dict[str, Any],
    origins: dict[str, Path],
    overrides: Mapping[str, Any],
    problems: list[Problem],
) -> None:
    for key, value in overrides.items():
        path: Path = (COMMAND_LINE, key)
        parts = key.split(".")
        head, rest = parts[0], parts[1:]
        if not all(parts) or head in ("version", "scales", "name") or (head == "base" and not rest):
            problems.append(Problem(path, f"{key!r} is not a key that can be overridden"))
        elif head in SECTIONS and head not in ("base", "vars"):
            _override_section(document, origins, head, rest, value, problems)
        else:
            dotted = ".".join(rest) if head == "base" else key
            if not _override_axis(document, dotted, value):
                document.setdefault("overrides", {})[dotted] = value


def _override_section(
    document: dict[str, Any],
    origins: dict[str, Path],
    name: str,
    rest: list[str],
    value: Any,
    problems: list[Problem],
) -> None:
    if not rest:
        document[name] = value
        origins[name] = (COMMAND_LINE, name)
        return
    inner = document.get(name, {})
    if name == "seeds" and isinstance(inner, int):
        inner = {"count": inner}
    if not isinstance(inner, Mapping) or any(
        not isinstance(inner.get(part, {}), Mapping) for part in rest[:-1]
    ):
        path: Path = (COMMAND_LINE, ".".join([name, *rest]))
        problems.append(Problem(path, f"{name} has no such key"))
        return
    changed = copy(dict(inner))
    put(changed, Assignment(tuple(rest), value, ()))
    document[name] = changed


def _override_axis(document: dict[str, Any], key: str, value: Any) -> bool:
    """Replace the values of every axis over `key`; return whether there is one.

    What is given on the command line is searched no longer.
    """
    found: list[bool] = []

    def search(body: Mapping[str, Any]) -> dict[str, Any]:
        changed = dict(body)
        if isinstance(changed.get("search"), Mapping):
            changed["search"] = {k: v for k, v in changed["search"].items() if k != key}
        if isinstance(changed.get("sweep"), list):
            changed["sweep"] = [axis(each) for each in changed["sweep"]]
        return changed

    def axis(each: Any) -> Any:
        if not isinstance(each, Mapping):
            return each
        if key in each:
            found.append(True)
            return {key: value if isinstance(value, list) else [value]}
        if isinstance(each.get("cases"), Mapping):
            cases = each["cases"]
            inside = {n: search(b) if isinstance(b, Mapping) else b for n, b in cases.items()}
            return {**each, "cases": inside}
        return each

    document.update(search(document))
    return bool(found)


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
    last = [
        Assignment(tuple(key.split(".")), value, (COMMAND_LINE, key))
        for key, value in document.get("overrides", {}).items()
    ]
    typed: dict[str, Any] = {}
    for name in SPECS:
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
        last=last,
        options=options,
        skip=skips(document["skip"], skip_path, problems) if "skip" in document else [],
        derive=derivations(document["derive"], derive_path, problems)
        if "derive" in document
        else [],
        seeds=typed.get("seeds") or Seeds(),
        limits=typed.get("limits") or Limits(),
        resources=typed.get("resources") or Resources(),
        tune=typed.get("tune"),
        checkpoint=typed.get("checkpoint"),
        origins=origins,
    )
