"""Which suite a command line means: a path, or the name of a bundled one, with overrides."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybench.errors import UsageError, suggest

if TYPE_CHECKING:
    from raybench.suite import Suite


def bundled() -> dict[str, Path]:
    """Return the bundled suites by name."""
    folder = Path(str(resources.files("raybench"))) / "suites"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


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
