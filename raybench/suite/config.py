"""A run's plain config while it is put together: nested dicts, and who set what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from pydantic.fields import FieldInfo

from raybench.errors import Path
from raybench.spec import Spec
from raybench.suite.axes import Assignment
from raybench.tables import Table, nested, part_of

Config: TypeAlias = dict[str, Any]
Origins: TypeAlias = dict[tuple[str, ...], Path]
"""Where in the file each part of a config was set."""


def copy(config: Config) -> Config:
    """Return a copy that shares no dict with `config`."""
    return {key: copy(value) if isinstance(value, dict) else value for key, value in config.items()}


def put(config: Config, item: Assignment, origins: Origins | None = None) -> None:
    """Set one value in place, and note where it came from.

    A name where a component stands (`optimizer: adam`) is short for `{name: adam}`; it and a
    mapping with a `name` replace the component, anything else changes one field of it.
    """
    place = config
    for part in item.key[:-1]:
        inner = place.get(part)
        if not isinstance(inner, dict):
            inner = {} if inner is None else {"name": inner}
            place[part] = inner
        place = inner
    value = item.value
    last = item.key[-1]
    if isinstance(value, Mapping):
        value = copy(dict(value))
    elif isinstance(place.get(last), dict) and isinstance(value, str):
        value = {"name": value}
    place[last] = value
    if origins is not None:
        for key in [key for key in origins if key[: len(item.key)] == item.key]:
            del origins[key]
        origins[item.key] = item.path


def put_all(config: Config, items: Iterable[Assignment], origins: Origins | None = None) -> None:
    """Set several values in their order."""
    for item in items:
        put(config, item, origins)


def origin(origins: Origins, path: Path) -> Path:
    """Return where in the file the value at config `path` was set."""
    key = tuple(str(part) for part in path)
    for length in range(len(key), 0, -1):
        if key[:length] in origins:
            return origins[key[:length]] + path[length:]
    inside = [where for set_key, where in origins.items() if set_key[: len(key)] == key]
    return inside[0][:-1] if inside and key else ("base", *path)


def look_up(config: Config, procedures: Table[Any], name: str) -> Any:
    """Return the value of dotted `name`, or the default of the field; KeyError if there is none."""
    parts = name.split(".")
    place: Any = config
    kind: type[Spec] | None = _named(procedures, config.get("procedure"))
    for index, part in enumerate(parts):
        field = kind.model_fields.get(part) if kind is not None else None
        if isinstance(place, dict) and part in place:
            value = place[part]
        elif part == "name" and isinstance(place, str):
            value = place  # `optimizer: adam` is short for {name: adam}
        elif isinstance(place, Spec) and field is not None:
            value = getattr(place, part)
        elif part == "name" and isinstance(place, Spec):
            value = place.name
        elif field is not None and not field.is_required():
            value = field.get_default(call_default_factory=True)
        elif field is not None and index < len(parts) - 1:
            value = None  # a part that is not set: its own fields have defaults
        else:
            raise KeyError(name)
        place, kind = value, _kind(field, value)
    if isinstance(place, dict):
        return place.get("name", place)
    return place.name if isinstance(place, Spec) else place


def _kind(field: FieldInfo | None, value: Any) -> type[Spec] | None:
    """Return the class whose fields a value has."""
    if isinstance(value, Spec):
        return type(value)
    if field is None:
        return None
    table = part_of(field)
    return nested(field) if table is None else _named(table, value)


def _named(table: Table[Any], value: Any) -> type[Spec] | None:
    name = value.get("name") if isinstance(value, dict) else value
    return table[name] if isinstance(name, str) and name in table else None
