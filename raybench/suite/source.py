"""A suite's YAML text: plain values, and where in the file each of them stands.

YAML 1.2 (`1e-3` is a number, `on` and `no` are texts), no tags, no duplicate keys, bounded size.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.scalarbool import ScalarBoolean
from ruamel.yaml.scalarfloat import ScalarFloat
from ruamel.yaml.scalarint import ScalarInt
from ruamel.yaml.scalarstring import ScalarString

from raybench.errors import Path, Problem, SuiteError, UsageError

COMMAND_LINE = "the command line"
"""First part of the path of a value that came from `KEY=VALUE`."""
MAX_BYTES = 1_000_000
MAX_VALUES = 200_000
MAX_NUMBER = 2**63


_PLAIN_TAGS = (None, "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


@dataclass(frozen=True)
class Source:
    """The text of a suite, its values as plain dicts and lists, and their places.

    Attributes:
        label: the file's name as the user gave it.
        text: the whole file.
        values: a dict of plain Python values.
        places: (line, column), both from 0, of the value at each path.
        key_places: the same for the key under which a value stands.
    """

    label: str
    text: str
    values: dict[str, Any]
    places: Mapping[Path, tuple[int, int]] = field(default_factory=dict)
    key_places: Mapping[Path, tuple[int, int]] = field(default_factory=dict)

    def line(self, problem: Problem) -> str:
        """Return `file:line:column: message`, then the offending line with a mark under it."""
        path = problem.path
        if path[:1] == (COMMAND_LINE,):
            return f"the command line: {_dotted(path[1:])}: {problem.message}"
        places = self.key_places if problem.on_key else self.places
        while path and path not in places:
            path, places = path[:-1], self.places
        if path not in places:
            return f"{self.label}: {_dotted(problem.path)}: {problem.message}"
        row, column = places[path]
        where = _dotted(problem.path)
        return f"{self.label}:{row + 1}:{column + 1}: {where}: {problem.message}\n" + _excerpt(
            self.text, row, column
        )

    def fail(self, problems: Sequence[Problem]) -> SuiteError:
        """Return the error that shows all `problems`, each once, in the order of the file."""
        lines = {self.line(problem): self._order(problem) for problem in problems}
        return SuiteError(sorted(lines, key=lambda line: lines[line]))

    def _order(self, problem: Problem) -> tuple[int, int]:
        path = problem.path
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, (0, 0))


def read(path: FilePath, label: str | None = None) -> Source:
    """Return the suite file at `path`.

    Raises:
        SuiteError: it is not YAML, too large, or holds something other than plain values.
    """
    label = label or str(path)
    data = path.read_bytes()
    if len(data) > MAX_BYTES:
        raise SuiteError([f"{label}: {len(data):,} bytes; a suite has at most {MAX_BYTES:,}"])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SuiteError([f"{label}: not UTF-8 text: {error.reason}"]) from None
    return parse(text, label)


def parse(text: str, label: str) -> Source:
    """Return the suite in `text`; see `read`."""
    loader = YAML(typ="rt", pure=True)
    loader.allow_duplicate_keys = False
    try:
        root = loader.load(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        row, column = (mark.line, mark.column) if mark else (0, 0)
        said = (error.problem or "not YAML").splitlines()[0]
        raise SuiteError(
            [f"{label}:{row + 1}:{column + 1}: {said}\n{_excerpt(text, row, column)}"]
        ) from None
    except Exception as error:  # noqa: BLE001  (ruamel raises what it likes on malformed text)
        said = (str(error).splitlines() or ["malformed"])[0][:200]
        raise SuiteError([f"{label}: not YAML: {said}"]) from None
    if not isinstance(root, CommentedMap):
        raise SuiteError([f"{label}:1:1: a suite is a mapping that begins with `version: 1`"])
    reader = _Reader(label)
    values = reader.plain(root, ())
    return Source(label, text, values, reader.places, reader.key_places)


def parse_value(text: str) -> Any:
    """Return the plain value of a YAML scalar or flow collection, for `KEY=VALUE`."""
    try:
        root = YAML(typ="rt", pure=True).load(io.StringIO(text))
    except Exception as error:  # noqa: BLE001  (as in `parse`)
        said = getattr(error, "problem", None) or "malformed"
        raise UsageError(f"{text!r} is not a YAML value: {said}") from None
    return _Reader("the command line").plain(root, ())


class _Reader:
    def __init__(self, label: str) -> None:
        self.label = label
        self.places: dict[Path, tuple[int, int]] = {(): (0, 0)}
        self.key_places: dict[Path, tuple[int, int]] = {}
        self._count = 0

    def plain(self, node: Any, path: Path) -> Any:
        # Aliases are expanded here, so a small file could grow without bound.
        self._count += 1
        if self._count > MAX_VALUES:
            raise SuiteError([f"{self.label}: more than {MAX_VALUES:,} values"])
        if isinstance(node, CommentedMap | CommentedSeq) and node.tag.value not in _PLAIN_TAGS:
            return self._scalar(node, path)
        if isinstance(node, CommentedMap):
            return {str(key): self._member(node, key, path) for key in node}
        if isinstance(node, CommentedSeq):
            return [self._item(node, index, path) for index in range(len(node))]
        return self._scalar(node, path)

    def _member(self, node: CommentedMap, key: Any, path: Path) -> Any:
        inner = (*path, str(key))
        if key in (node.lc.data or {}):
            self.places[inner] = node.lc.value(key)
            self.key_places[inner] = node.lc.key(key)
        return self.plain(node[key], inner)

    def _item(self, node: CommentedSeq, index: int, path: Path) -> Any:
        inner = (*path, index)
        if index in (node.lc.data or {}):
            self.places[inner] = node.lc.item(index)
        return self.plain(node[index], inner)

    def _scalar(self, node: Any, path: Path) -> Any:
        if isinstance(node, bool) or node is None:
            return node
        if isinstance(node, int) and abs(node) > MAX_NUMBER:
            row, column = self.places.get(path, (0, 0))
            raise SuiteError([f"{self.label}:{row + 1}:{column + 1}: a number past 2**63"])
        for marked, kind in (
            (ScalarBoolean, bool),
            (ScalarFloat, float),
            (ScalarInt, int),
            (ScalarString, str),
        ):
            if isinstance(node, marked):
                return kind(node)
        if isinstance(node, int | float | str):
            return node
        row, column = self.places.get(path, (0, 0))
        raise SuiteError(
            [
                f"{self.label}:{row + 1}:{column + 1}: {type(node).__name__} is not a plain value; "
                "a suite holds texts, numbers, true, false, null, lists and mappings"
            ]
        )


def _dotted(path: Path) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _excerpt(text: str, row: int, column: int) -> str:
    lines = text.splitlines()
    if row >= len(lines):
        return ""
    line = lines[row]
    end = column
    while end < len(line) and line[end] not in ",}] #:":
        end += 1
    mark = "^" * max(end - column, 1)
    return f"{row + 1:>5} | {line}\n      | {' ' * column}{mark}"
