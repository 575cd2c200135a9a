"""Values that describe runs: frozen specs, `Hyper` fields, lengths, and what a run's identity is.

The config is the object: a spec's fields are the hyperparameters, its methods are the behaviour.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, Self, TypeAlias, TypeVar, cast

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from raybench.rng import Seed

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class HyperMark:
    """The mark that `Hyper` carries in a field's metadata."""


Hyper = Annotated[float, HyperMark()]
"""A number that may differ between the runs of one batch: inside lifted code it is a 0-d float64
tensor where the runs differ, so no code may branch on it in Python."""


@dataclass(frozen=True)
class Steps:
    """A length of training: `160ep` (epochs) or `500it` (optimizer steps)."""

    count: int
    unit: Literal["ep", "it"]

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read `160ep` or `500it`; raise ValueError for anything else."""
        if isinstance(text, cls):
            return text
        match = re.fullmatch(r"(\d+)(ep|it)", text) if isinstance(text, str) else None
        if not match:
            hint = f" (write {text}it or {text}ep)" if isinstance(text, int) else ""
            raise ValueError(f"{text!r} is not a length: write 160ep or 500it{hint}")
        return cls(int(match[1]), "ep" if match[2] == "ep" else "it")

    def resolve(self, steps_per_epoch: int) -> int:
        """Return the length in optimizer steps."""
        return self.count * (steps_per_epoch if self.unit == "ep" else 1)

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^\d+(ep|it)$", "examples": ["160ep", "500it"]}


@dataclass(frozen=True)
class Duration:
    """A time on the clock: `90s`, `10min` or `1.5h`."""

    count: float
    unit: Literal["s", "min", "h"]

    @classmethod
    def parse(cls, text: object) -> Self:
        """Read `90s`, `10min` or `1.5h`; raise ValueError for anything else."""
        if isinstance(text, cls):
            return text
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h)", text) if isinstance(text, str) else None
        if not match or not float(match[1]):
            hint = f" (write {text}s)" if isinstance(text, int | float) and text > 0 else ""
            raise ValueError(f"{text!r} is not a time above 0: write 90s, 10min or 1.5h{hint}")
        return cls(float(match[1]), cast("Literal['s', 'min', 'h']", match[2]))

    @property
    def seconds(self) -> float:
        """The time in seconds."""
        return self.count * {"s": 1, "min": 60, "h": 3600}[self.unit]

    def __str__(self) -> str:
        return f"{self.count:g}{self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "pattern": r"^\d+(\.\d+)?(s|min|h)$", "examples": ["90s", "1.5h"]}


class Spec(BaseModel):
    """A frozen, strictly checked value whose fields are hyperparameters.

    Attributes:
        name: the name under which its table knows it (empty for a spec that is in no table).
        revision: raised whenever the same fields begin to give other numbers.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )
    name: ClassVar[str] = ""
    revision: ClassVar[int] = 1

    def replace(self, **changes: object) -> Self:
        """Return a copy with some fields changed, unchecked (values may be tensors)."""
        kept = {field: getattr(self, field) for field in type(self).model_fields}
        return cast("Self", type(self).model_construct(None, **{**kept, **changes}))

    @cached_property
    def canonical(self) -> dict[str, Json]:
        """What identifies this value: name, revision, and the fields that differ from default."""
        return _canonical(self, hypers=True)

    @cached_property
    def batch_form(self) -> dict[str, Json]:
        """The canonical form with every `Hyper` erased: what the runs of a batch share."""
        return _canonical(self, hypers=False)

    def columns(self, prefix: str = "") -> dict[str, Json]:
        """Return every field, defaults included, as `dotted.name: value` for a table row."""
        row: dict[str, Json] = {prefix + "name": self.name} if self.name else {}
        for field in type(self).model_fields:
            value = getattr(self, field)
            if isinstance(value, Spec):
                row |= value.columns(f"{prefix}{field}.")
            else:
                row[prefix + field] = _plain(value)
        return row


@cache
def hyper_fields(cls: type[Spec]) -> tuple[str, ...]:
    """Return the names of the `Hyper` fields of a spec class."""
    return tuple(
        name
        for name, field in cls.model_fields.items()
        if any(isinstance(mark, HyperMark) for mark in field.metadata)
    )


_REQUIRED: Final = object()
"""Stands for the default of a field that has none: no value equals it."""


@cache
def _defaults(cls: type[Spec]) -> dict[str, object]:
    """Return the default of each field of a spec class; asking pydantic each time is slow."""
    return {
        name: _REQUIRED if field.is_required() else field.get_default(call_default_factory=True)
        for name, field in cls.model_fields.items()
    }


def _canonical(spec: Spec, *, hypers: bool) -> dict[str, Json]:
    # A nested spec is always present, even when it equals its default: its revision counts.
    cls = type(spec)
    erased = () if hypers else hyper_fields(cls)
    form: dict[str, Json] = {"name": spec.name} if spec.name else {}
    if spec.revision != 1:
        form["revision"] = spec.revision
    for name, default in _defaults(cls).items():
        if name in erased:
            continue
        value = getattr(spec, name)
        if isinstance(value, Spec):
            form[name] = value.canonical if hypers else value.batch_form
        elif _holds_specs(value):
            form[name] = [part.canonical if hypers else part.batch_form for part in value]
        elif value != default:
            form[name] = _plain(value)
    return form


def _holds_specs(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(v, Spec) for v in value)


def _plain(value: object) -> Json:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Spec):
        return value.canonical
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return str(value)


def plain_config(spec: Spec) -> dict[str, Json]:
    """Return the plain values that `tables.build` makes an equal spec from."""

    def strip(form: Json) -> Json:
        if isinstance(form, dict):
            return {key: strip(value) for key, value in form.items() if key != "revision"}
        return [strip(value) for value in form] if isinstance(form, list) else form

    stripped = strip(spec.canonical)
    assert isinstance(stripped, dict)
    return stripped


def digest(form: Json, length: int = 16) -> str:
    """Return `length` hex digits of a hash over a JSON value, whatever the order of its keys."""
    return hashlib.sha256(_ENCODER.encode(form).encode()).hexdigest()[:length]


_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


P = TypeVar("P", bound=Spec, covariant=True)


@dataclass(frozen=True)
class Run(Generic[P]):
    """One fully resolved procedure with one seed."""

    procedure: P
    seed: Seed

    @cached_property
    def run_id(self) -> str:
        """16 hex digits over the canonical config and the seed: the run's identity."""
        return digest({"procedure": self.procedure.canonical, "seed": self._seed_form()})

    @cached_property
    def batch_key(self) -> str:
        """Equal for runs that may share a batch: all but the Hypers and the seed agree."""
        return digest({"procedure": self.procedure.batch_form})

    def _seed_form(self) -> Json:
        if not self.seed.fixed:
            return self.seed.value
        return [self.seed.value, self.seed.base, list(self.seed.fixed)]
