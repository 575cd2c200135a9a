"""The result tables as a contract: their columns, and rows turned into Arrow tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import pyarrow as pa

TableName = Literal["runs", "metrics", "arrays"]
TABLES: Final[tuple[TableName, ...]] = ("runs", "metrics", "arrays")
_RUNS: Final = pa.schema(
    [
        ("run_id", pa.string()),
        ("suite", pa.string()),
        ("scale", pa.string()),
        ("procedure", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("seed", pa.int64()),
        ("num_params", pa.int64()),
        ("steps", pa.int64()),
        ("wall_s", pa.float64()),
        ("engine", pa.string()),
        ("lanes", pa.int64()),
        ("ranks", pa.int64()),
        ("batch_id", pa.string()),
        ("host", pa.string()),
        ("device", pa.string()),
        ("versions", pa.string()),
        ("started_at", pa.timestamp("us", tz="UTC")),
        ("log", pa.string()),
    ]
)
_TEXT: Final = pa.dictionary(pa.int32(), pa.string())
_METRICS: Final = pa.schema(
    [
        ("run_id", _TEXT),
        ("step", pa.int64()),
        ("epoch", pa.float64()),
        ("split", _TEXT),
        ("metric", _TEXT),
        ("value", pa.float64()),
    ]
)
_ARRAYS: Final = pa.schema(
    [
        ("run_id", _TEXT),
        ("step", pa.int64()),
        ("name", _TEXT),
        ("shape", pa.list_(pa.int64())),
        ("values", pa.list_(pa.float64())),
    ]
)
SCHEMAS: Final[Mapping[str, pa.Schema]] = {"runs": _RUNS, "metrics": _METRICS, "arrays": _ARRAYS}
DYNAMIC: Final = {
    "config.*": "every field of the run's config, defaults included, by dotted name",
    "label.*": "case names; for tuned suites phase, arm, trial and rung",
    "summary.*": "split.metric: the final value; split.metric.best: the lowest over time",
}


def runs_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a `runs` table: the fixed columns, then config.*, label.* and summary.*."""
    arrays = [pa.array([row.get(field.name) for row in rows], type=field.type) for field in _RUNS]
    names = list(_RUNS.names)
    extra = dict.fromkeys(key for row in rows for key in row if key not in _RUNS.names)
    for name in extra:
        values = [_cell(row.get(name)) for row in rows]
        names.append(name)
        kinds = {type(value) for value in values if value is not None}
        if len(kinds) > 1 and kinds != {int, float}:
            values = [None if value is None else str(value) for value in values]
        floats = kinds == {int, float} or name.startswith("summary.")
        arrays.append(
            pa.array(values, type=pa.float64() if floats and kinds <= {int, float} else None)
        )
    return pa.Table.from_arrays(arrays, names=names)


def metrics_table(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Return columns as a `metrics` table."""
    return _typed(columns, _METRICS)


def arrays_table(columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Return columns as an `arrays` table."""
    return _typed(columns, _ARRAYS)


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Return tables of one kind as one; a column that some lack is null there."""
    return pa.concat_tables(tables, promote_options="permissive")


def _typed(columns: Mapping[str, Sequence[Any]], schema: pa.Schema) -> pa.Table:
    arrays = []
    for field in schema:
        values = columns.get(field.name, [])
        if pa.types.is_dictionary(field.type):
            arrays.append(pa.array(values, type=pa.string()).dictionary_encode())
        else:
            arrays.append(pa.array(values, type=field.type))
    return pa.Table.from_arrays(arrays, names=schema.names)


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict | tuple) else value
