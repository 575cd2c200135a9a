"""A run's plain config while it is put together: nested dicts, and who set what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from raybench.errors import Path
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
    value: Any = config
    for part in parts:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif part == "name" and isinstance(value, str):
            return value
        else:
            return _default(config, procedures, parts, name)
    if isinstance(value, dict):
        return value.get("name", value)
    return value


def _default(config: Config, procedures: Table[Any], parts: list[str], name: str) -> Any:
    try:
        cls: Any = procedures[str(config.get("procedure"))]
    except KeyError:
        raise KeyError(name) from None
    place: Any = config
    field: Any = None
    for index, part in enumerate(parts):
        field = cls.model_fields.get(part)
        if field is None:
            raise KeyError(name)
        place = place.get(part) if isinstance(place, dict) else None
        table, inner = part_of(field), nested(field)
        if index == len(parts) - 1:
            break
        default = field.get_default(call_default_factory=True)
        if place is None and default is not None and hasattr(default, parts[index + 1]):
            return getattr(default, parts[index + 1])
        named = place.get("name") if isinstance(place, dict) else place
        if table is not None and isinstance(named, str) and named in table:
            cls = table[named]
        elif inner is not None:
            cls = inner
        else:
            raise KeyError(name)
    if field.is_required():
        raise KeyError(name)
    return field.get_default(call_default_factory=True)
