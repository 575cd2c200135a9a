"""Tables of named components, and the building of specs from plain values.

A table is a literal dict from name to spec class, plus what installed distributions add through
an entry-point group. `build` turns `{name: adam, lr: 0.1}` into a spec and collects every mistake
on the way as a `Problem` with its path, so that a suite can show all of them at once.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Final, Generic, Protocol, TypeVar, cast, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from raybench.errors import MissingError, Path, Problem, RefusedError, suggest
from raybench.spec import Spec

T = TypeVar("T", bound=Spec)


class Source(Protocol):
    """Where names of the form `prefix:NAME` come from: a library, or a file that the user allows.

    Attributes:
        revision: of all that it holds; 1 where it has none of its own.
    """

    revision: int

    def names(self) -> list[str]:
        """Return the names that it has, without the prefix; empty if it is not installed."""
        ...

    def find(self, name: str) -> Any:
        """Return the object; KeyError if unknown, MissingError if it is not installed."""
        ...


FILES: Final[dict[str, Source]] = {}
"""Sources that the user allowed for this process, by prefix: any table may take from them."""


class Table(Generic[T]):
    """Components of one kind by name: the literal ones, then those of installed distributions.

    Args:
        kind: what the components are, in the singular ("optimizer"): used in messages.
        group: the entry-point group, such as `raybench.optim`.
        entries: name to spec class.
        adapt: turns what an entry point names, if it is no spec class, into one (a plain
            `torch.optim.Optimizer` or `nn.Module` class); raises TypeError for anything else.
        sources: libraries whose components are called `prefix:NAME`, by prefix.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        entries: Mapping[str, type[T]],
        adapt: Callable[[str, Any], type[T]] | None = None,
        sources: Mapping[str, Source] | None = None,
    ) -> None:
        self.kind = kind
        self.group = group
        self._adapt = adapt
        self.sources: Mapping[str, Source] = sources or {}
        self._classes: dict[str, type[T]] = {}
        self._from: dict[str, Source] = {}
        for name, cls in entries.items():
            self._classes[name] = _named(name, cls)
        self.bundled = tuple(entries)

    def names(self) -> list[str]:
        """Return every known name, bundled ones first."""
        return [*self.bundled, *sorted(set(self._plugins()) - set(self.bundled))]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        if ":" in name:
            source, inner = self.source(name), name.partition(":")[2]
            if source is not None and not source.names():
                source.find(inner)  # which tells what is not installed
            return source is not None and inner in source.names()
        return name in self._classes or name in self._plugins()

    def __getitem__(self, name: str) -> type[T]:
        """Return the class called `name`; KeyError if unknown, MissingError if it cannot load."""
        source = self.source(name)
        if source is not None and self._from.get(name) is not source:
            # A file may have been allowed again, with other contents.
            cls = self._made(name, source.find(name.partition(":")[2]))
            if source.revision != 1:
                cls.revision = source.revision
            self._classes[name], self._from[name] = cls, source
        elif name not in self._classes:
            point = self._plugins()[name]
            self._classes[name] = self._made(name, self._load(point), point.value)
        return self._classes[name]

    def source(self, name: str) -> Source | None:
        """Return where `prefix:NAME` comes from; None for other names and unknown prefixes."""
        prefix, colon, _ = name.partition(":")
        return (self.sources.get(prefix) or FILES.get(prefix)) if colon else None

    def origin(self, name: str) -> str:
        """Return which distribution a component comes from, with its version."""
        if name in self.bundled:
            return "raybench"
        prefix, colon, _ = name.partition(":")
        if colon:
            library = prefix in self.sources
            return f"{prefix} {importlib.metadata.version(prefix)}" if library else f"{prefix}.py"
        dist = self._plugins()[name].dist
        return f"{dist.name} {dist.version}" if dist else "an entry point"

    def _plugins(self) -> dict[str, importlib.metadata.EntryPoint]:
        points = importlib.metadata.entry_points(group=self.group)
        return {point.name: point for point in points}

    def _load(self, point: importlib.metadata.EntryPoint) -> Any:
        try:
            return point.load()
        except ImportError as error:
            raise MissingError(
                f"{self.kind} {point.name!r} ({point.value}) cannot be imported: {error}"
            ) from error

    def _made(self, name: str, found: Any, where: str = "") -> type[T]:
        """Return the spec class of a component that is not the table's own."""
        if isinstance(found, type) and issubclass(found, Spec):
            return _named(name, cast("type[T]", found))
        what = f"{self.kind} {name!r}" + (f" ({where})" if where else "")
        if self._adapt is None:
            raise MissingError(f"{what} is not a spec class")
        try:
            return _named(name, self._adapt(name, found))
        except TypeError as error:
            raise MissingError(f"{what}: {error}") from error


def _named(name: str, cls: type[T]) -> type[T]:
    own = cls.__dict__.get("name", name)
    if own != name:
        raise ValueError(f"{cls.__name__} is already called {own!r}, not {name!r}")
    cls.name = name
    return cls


class Part:
    """The mark of a field that holds a component out of a table, or a tuple of them."""

    def __init__(self, table: Table[Any]) -> None:
        self.table = table


def part_of(field: FieldInfo) -> Table[Any] | None:
    """Return the table that a field's component comes from; None for an ordinary field."""
    return next((mark.table for mark in field.metadata if isinstance(mark, Part)), None)


def nested(field: FieldInfo) -> type[Spec] | None:
    """Return the spec class of a field that holds a spec outside all tables, or may hold one."""
    annotation: object = field.annotation
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        annotation = kinds[0] if len(kinds) == 1 else annotation
    is_spec = isinstance(annotation, type) and issubclass(annotation, Spec)
    return cast("type[Spec]", annotation) if is_spec and part_of(field) is None else None


def build(
    table: Table[Any],
    value: object,
    path: Path,
    problems: list[Problem],
    *,
    shared: bool = True,
) -> Spec | None:
    """Return the component that `value` describes, or None after adding to `problems`.

    Args:
        table: where the name is looked up.
        value: a name, or a mapping with `name` and fields.
        path: where `value` stands, for the problems.
        problems: every mistake found is appended.
        shared: see `construct`.
    """
    if isinstance(value, Spec):
        return value
    fields: dict[str, object] = {}
    name = value
    if isinstance(value, Mapping):
        fields = {str(key): item for key, item in value.items() if key != "name"}
        if "name" not in value:
            problems.append(Problem(path, f"a {table.kind} needs a name" + suggest("", table)))
            return None
        name = value["name"]
        where = (*path, "name")
    else:
        where = path
    if not isinstance(name, str):
        problems.append(Problem(where, f"{name!r} is not the name of a {table.kind}"))
        return None
    if ":" in name and table.source(name) is None:
        file = name.partition(":")[0] + ".py"
        raise RefusedError(
            f"{table.kind} {name!r} is code of a file: read it, and if you trust it give "
            f"--allow-code {file} (libraries: {', '.join(table.sources) or 'none'})"
        )
    if name not in table:
        source = table.source(name)
        hint = suggest(name.partition(":")[2], source.names()) if source else suggest(name, table)
        problems.append(Problem(where, f"unknown {table.kind} {name!r}{hint}"))
        return None
    return construct(table[name], fields, path, problems, shared=shared)


_built: dict[tuple[type[Spec], str], Spec] = {}
_ENCODER: Final = json.JSONEncoder(sort_keys=True, default=repr)


def allow(prefix: str, source: Source) -> None:
    """Let any table take `prefix:NAME` from a source that the user trusts."""
    FILES[prefix] = source
    _built.clear()  # what was built of an earlier source under this prefix


def construct(
    cls: type[Spec],
    fields: Mapping[str, object],
    path: Path,
    problems: list[Problem],
    *,
    shared: bool = True,
) -> Spec | None:
    """Return `cls(**fields)` with nested components built; None after adding to `problems`.

    Equal fields give the same object, which is kept for good: a suite of 100,000 runs builds each
    component once. Not so where it is not `shared`, as procedures are not, of which there may be
    as many as runs.
    """
    token = (cls, _ENCODER.encode(fields) if shared else "")
    if shared and token in _built:
        return _built[token]
    before = len(problems)
    values: dict[str, object] = {}
    failed: set[str] = set()  # fields whose parts have their own problems already
    for key, value in fields.items():
        field = cls.model_fields.get(key)
        if field is None:
            what = f"unknown key {key!r}" + (f" of {cls.name}" if cls.name else "")
            message = what + suggest(key, cls.model_fields)
            problems.append(Problem((*path, key), message, on_key=True))
            continue
        count = len(problems)
        values[key] = _field_value(_kind(cls, key), value, (*path, key), problems)
        if len(problems) > count:
            failed.add(key)
    spec = _validate(cls, values, path, problems, failed)
    if spec is None or len(problems) > before:
        return None
    if shared:
        _built[token] = spec
    return spec


@cache
def _kind(cls: type[Spec], key: str) -> tuple[Table[Any] | None, type[Spec] | None]:
    """Return `part_of` and `nested` of a field, which are asked for in every run of a suite."""
    field = cls.model_fields[key]
    return part_of(field), nested(field)


def _field_value(
    kind: tuple[Table[Any] | None, type[Spec] | None],
    value: object,
    path: Path,
    problems: list[Problem],
) -> object:
    table, inner = kind
    if table is not None:
        if isinstance(value, list | tuple):
            return tuple(
                build(table, part, (*path, index), problems) for index, part in enumerate(value)
            )
        return None if value is None else build(table, value, path, problems)
    if inner is not None and isinstance(value, Mapping):
        return construct(inner, value, path, problems)
    return _tuples(value)


def _validate(
    cls: type[Spec],
    values: dict[str, object],
    path: Path,
    problems: list[Problem],
    failed: set[str],
) -> Spec | None:
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        said: dict[Path, list[str]] = {}
        for detail in error.errors(include_url=False):
            top = detail["loc"][0] if detail["loc"] else None
            if detail["type"] == "missing":
                problems.append(Problem(path, f"{cls.name or 'this'} needs a value for {top!r}"))
            elif top not in failed:
                said.setdefault(_place(detail["loc"], values), []).append(_message(detail))
        for place, messages in said.items():
            # A field of several kinds says for each of them why it does not fit.
            problems.append(Problem((*path, *place), ", or ".join(dict.fromkeys(messages))))
        return None


def _place(loc: tuple[str | int, ...], values: object) -> Path:
    """Return as much of pydantic's path as is a path into `values`; the rest names types."""
    place: list[str | int] = []
    for part in loc:
        inside = isinstance(values, Mapping) and part in values
        at = isinstance(values, tuple | list) and isinstance(part, int) and part < len(values)
        if not inside and not at:
            break
        place.append(part)
        values = values[part]  # type: ignore[index]
    return tuple(place)


def _message(detail: Any) -> str:
    text = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    text = text[:1].lower() + text[1:]
    given = detail["input"]
    if detail["type"] == "value_error" or isinstance(given, Mapping | Spec):
        return text
    return f"{given!r}: {text}"


def _tuples(value: object) -> object:
    # Strict validation takes tuples for tuple fields; YAML has lists.
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def from_signature(
    name: str,
    base: type[Spec],
    signature: Mapping[str, tuple[Any, Any]],
    doc: str | None,
    **class_values: object,
) -> type[Any]:
    """Return a spec class under `base` with one field for each `field: (type, default)`."""
    namespace: dict[str, object] = {
        "__annotations__": {field: kind for field, (kind, _) in signature.items()},
        "__module__": base.__module__,
        "__doc__": doc or base.__doc__,
        **{f: default for f, (_, default) in signature.items() if default is not ...},
        **class_values,
    }
    return type(name.title().replace("_", "").replace("-", ""), (base,), namespace)
