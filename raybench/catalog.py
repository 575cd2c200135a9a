"""The component tables gathered, and the JSON Schema of suite files that follows from them."""

from __future__ import annotations

import contextlib
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter

from raybench.data import DATA
from raybench.errors import MissingError
from raybench.models import MODELS
from raybench.optim import OPTIMIZERS, SCHEDULES
from raybench.probes import PROBES
from raybench.procedures import PROCEDURES
from raybench.spec import Spec
from raybench.suite.axes import GENERATORS
from raybench.suite.sampling import KINDS
from raybench.suite.sections import SPECS
from raybench.tables import Table, nested, part_of

TABLES: Final[dict[str, Table[Any]]] = {
    "data": DATA,
    "models": MODELS,
    "optim": OPTIMIZERS,
    "schedules": SCHEDULES,
    "probes": PROBES,
    "procedures": PROCEDURES,
}

_NUMBERS: Final = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 3}


def suite_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a suite file, with all installed components."""
    definitions: dict[str, Any] = {
        "config": {
            "type": "object",
            "description": "What runs are made of: fields of the procedure, nested or dotted.",
            "properties": {"procedure": {"enum": PROCEDURES.names()}, **_procedure_fields()},
            "additionalProperties": True,
        },
        "axis": _axis(),
        "search": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {
                    **{kind: {"type": "array"} for kind in KINDS},
                    "one_minus": {"type": "object"},
                },
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            },
        },
    }
    sections: dict[str, Any] = {
        "description": {"type": "string"},
        "paper": {"type": "string"},
        "figures": {"type": "string", "description": "The suite whose figures are drawn."},
        "base": {"$ref": "#/$defs/config"},
        "vars": {"type": "object", "description": "Free values for `derive`."},
        "sweep": {"type": "array", "items": {"$ref": "#/$defs/axis"}},
        "search": {"$ref": "#/$defs/search"},
        "skip": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"if": {"type": "string"}, "because": {"type": "string"}},
                "required": ["if", "because"],
                "additionalProperties": False,
            },
        },
        "derive": {"type": "object", "additionalProperties": {"type": ["string", "number"]}},
        **{name: _spec(cls) for name, cls in SPECS.items()},
    }
    sections["seeds"] = {"anyOf": [{"type": "integer", "minimum": 1}, sections["seeds"]]}
    notes: dict[str, Any] = {"^x-": {}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "raybench suite",
        "type": "object",
        "required": ["version", "name", "base"],
        "properties": {
            "version": {"const": 1},
            "name": {"type": "string", "pattern": r"^[\w-]+$"},
            **sections,
            "scales": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "properties": sections,
                    "patternProperties": notes,
                    "additionalProperties": False,
                },
            },
        },
        "patternProperties": notes,
        "additionalProperties": False,
        "$defs": definitions,
    }


def _axis() -> dict[str, Any]:
    values = {
        "anyOf": [
            {"type": "array", "minItems": 1},
            *(
                {
                    "type": "object",
                    "properties": {
                        kind: _NUMBERS,
                        "num": {"type": "integer"},
                        "round": {"type": "boolean"},
                    },
                    "required": [kind],
                    "additionalProperties": False,
                }
                for kind in GENERATORS
            ),
        ]
    }
    return {
        "type": "object",
        "properties": {
            "zip": {"type": "object", "additionalProperties": values},
            "cases": {"type": "object", "additionalProperties": {"$ref": "#/$defs/config"}},
            "as": {"type": "string"},
        },
        "additionalProperties": values,
    }


def _procedure_fields() -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for cls in _loaded(PROCEDURES).values():
        fields |= _fields(cls)
    return fields


def _loaded(table: Table[Any]) -> dict[str, type[Spec]]:
    """Return the classes that can be loaded: one broken plug-in does not hide the others."""
    found = {}
    for name in table:
        with contextlib.suppress(MissingError):
            found[name] = table[name]
    return found


def _spec(cls: type[Spec]) -> dict[str, Any]:
    return {"type": "object", "properties": _fields(cls), "additionalProperties": False}


def _fields(cls: type[BaseModel]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        table, inner = part_of(field), nested(field)
        if table is not None:
            one = _component(table)
            schema = {"anyOf": [one, {"type": "array", "items": one}]}
        elif inner is not None:
            schema = _spec(inner)
            if field.default is None:
                schema = {"anyOf": [schema, {"type": "null"}]}
        else:
            kind: Any = field.rebuild_annotation()
            schema = TypeAdapter(kind).json_schema()
        found[name] = {**schema, "description": field.description or ""}
    return found


def _component(table: Table[Any]) -> dict[str, Any]:
    shapes = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, **_fields(cls)},
            "required": ["name"],
            "description": (cls.__doc__ or "").strip().partition("\n")[0],
        }
        for name, cls in _loaded(table).items()
    ]
    partial = {"type": "object", "not": {"required": ["name"]}}
    return {"anyOf": [{"enum": table.names()}, *shapes, partial]}
