"""Python files that the user allows: their classes become components called `FILE:NAME`.

Nothing is loaded that the command line did not name with `--allow-code`. A worker gets the text of
the files with its batch, so it needs no copy of them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from raybench import tables
from raybench.errors import UsageError


class UserFile:
    """One allowed file, loaded.

    Args:
        stem: the file's name without `.py`: the prefix of its components.
        text: what is in it.

    Attributes:
        revision: changes with the file's code, but not with its comments and layout, so that an
            edited optimizer gives its runs new ids.
    """

    def __init__(self, stem: str, text: str) -> None:
        self.text = text
        try:
            tree = ast.parse(text)
        except SyntaxError as error:
            raise UsageError(f"--allow-code {stem}.py:{error.lineno}: {error.msg}") from error
        code = hashlib.sha256(repr(_code(tree)).encode()).hexdigest()
        self.revision = int(code[:12], 16) + 2
        self._module = _loaded(stem, text)

    def names(self) -> list[str]:
        """Return the public classes and functions that the file itself defines."""
        return [
            name
            for name, value in vars(self._module).items()
            if not name.startswith("_") and callable(value)
            if getattr(value, "__module__", None) == self._module.__name__
        ]

    def find(self, name: str) -> Any:
        """Return a class or function of the file; KeyError if it defines none of that name."""
        return vars(self._module)[name]


def allow(path: Path) -> None:
    """Load a Python file and make what it defines available as `FILE:NAME`.

    Raises:
        UsageError: there is no such file, it cannot be loaded, or its name cannot be a prefix.
    """
    if path.suffix != ".py" or not path.stem.isidentifier():
        raise UsageError(
            f"--allow-code {path}: a Python file called like a word, such as my_opt.py"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--allow-code {path}: {error.strerror}") from error
    tables.allow(path.stem, UserFile(path.stem, text))


def allowed() -> dict[str, str]:
    """Return the text of every allowed file by its prefix, for the workers."""
    return {stem: file.text for stem, file in tables.FILES.items() if isinstance(file, UserFile)}


def receive(files: Mapping[str, str]) -> None:
    """Load the files that came with a batch, unless they are here already."""
    for stem, text in files.items():
        known = tables.FILES.get(stem)
        if not isinstance(known, UserFile) or known.text != text:
            tables.allow(stem, UserFile(stem, text))


def _code(node: object) -> object:
    """Return what a syntax tree says, without places; `ast.dump` differs between Pythons."""
    if isinstance(node, list):
        return [_code(item) for item in node]
    if not isinstance(node, ast.AST):
        return node
    fields = [(name, _code(value)) for name, value in ast.iter_fields(node)]
    # Later versions have fields of what the earlier ones cannot write, which is then not there.
    return type(node).__name__, [(name, value) for name, value in fields if value not in (None, [])]


class _Text(importlib.abc.InspectLoader):
    def __init__(self, text: str) -> None:
        self._text = text

    def get_source(self, fullname: str) -> str:
        return self._text


def _loaded(stem: str, text: str) -> ModuleType:
    spec = importlib.util.spec_from_loader(f"{stem} (--allow-code)", _Text(text))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(spec.name)
    sys.modules[spec.name] = module  # where annotations that are texts are looked up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        if before is not None:
            sys.modules[spec.name] = before
        raise UsageError(f"--allow-code {stem}.py: {type(error).__name__}: {error}") from error
    return module
