"""Which suite a command line means: a path, or the name of a bundled one, with overrides."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybench.errors import RaybenchError, UsageError, suggest

if TYPE_CHECKING:
    from raybench.suite import Suite


def bundled() -> dict[str, Path]:
    """Return the bundled suites by name."""
    folder = Path(str(resources.files("raybench"))) / "suites"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def launch_files() -> dict[str, Path]:
    """Return the bundled files that start a cluster, by name."""
    folder = Path(str(resources.files("raybench"))) / "launch"
    return {path.name: path for path in sorted(folder.iterdir()) if path.suffix in (".yaml", ".sh")}


def find(name: str) -> tuple[Path, str]:
    """Return a suite's file and how to call it in messages.

    Raises:
        UsageError: there is no such file, and no bundled suite of that name.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        if not path.is_file():
            raise UsageError(f"{name}: no such file; bundled suites: {', '.join(bundled())}")
        return path, name
    known = bundled()
    if name not in known:
        raise UsageError(f"no suite {name!r}{suggest(name, known)}; or give a path to a .yaml file")
    return known[name], f"{name}.yaml"


def overrides(words: Sequence[str]) -> dict[str, Any]:
    """Return `KEY=VALUE` words as dotted key to YAML value."""
    from raybench.suite import parse_value

    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{word!r} is not KEY=VALUE, such as seeds=3 or optimizer.lr=0.1")
        found[key] = parse_value(value)
    return found


def load(
    name: str, words: Sequence[str], scale: str | None, code: Sequence[Path] | None = None
) -> Suite:
    """Return the suite that a command line means, once the files it allows are loaded."""
    from raybench import suite, usercode

    for file in code or ():
        usercode.allow(file)
    path, label = find(name)
    return suite.load(suite.read(path, label), scale, overrides(words))


def resolved(store: str, suite: str) -> tuple[str, dict[str, Any]]:
    """Return a suite of a store as it was resolved, as text and values; empty if none is."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from raybench.store import suite_folder

    folder = suite_folder(store, suite)
    path = folder / "suite.yaml" if folder is not None else None
    text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
    try:
        return text, YAML(typ="safe", pure=True).load(text) or {}
    except YAMLError as error:
        raise RaybenchError(f"{path} is damaged: {error}; run the suite again") from error


def command(suite: str, document: Mapping[str, Any]) -> list[str]:
    """Return the words of the command that runs a suite as it was run; see `resolved`."""
    file = str(document.get("file", suite))
    words = ["raybench", "run", suite if suite in bundled() and file == f"{suite}.yaml" else file]
    if document.get("scale"):
        words += ["--scale", str(document["scale"])]
    for code in document.get("code", ()):
        words += ["--allow-code", str(code)]
    words += [f"{key}={_flow(value)}" for key, value in (document.get("overrides") or {}).items()]
    return words


def _flow(value: Any) -> str:
    """Return a value as YAML on one line, which JSON is."""
    return value if isinstance(value, str) else json.dumps(value)


def retry(words: Sequence[str], store: str) -> str:
    """Return the command that tries the failed runs of a suite again."""
    return shlex.join([*words, "--lf", "-o", store])
