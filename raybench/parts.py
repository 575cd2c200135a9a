"""The Parquet parts of a suite's tables: which of them count, how they are merged, and views.

    FOLDER/{runs,metrics,arrays}/part-<name>.parquet

A merged part names its sources in its footer, with their times of writing. Readers pass over a
source that has not been written since, so it may lie there for a while: those who have opened it
go on, and nobody sees a run twice. Where a run stands in several parts its latest row counts, and
the metrics and arrays that lie in the same part as that row.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raybench.schema import SCHEMAS, TABLES, TableName
from raybench.storage import Storage

MERGED: Final = "part-all-"
"""How the name of a merged part begins."""
_SOURCES: Final = "raybench.sources"
_ABANDONED: Final = 3600.0  # seconds after which nobody writes to a temporary file any more
_ATTEMPTS: Final = 20
_log = logging.getLogger(__name__)

T = TypeVar("T")


def listed(folder: Path) -> list[Path]:
    """Return the parts of `runs` that count.

    A row counts only with what was measured: its run is run again if that is damaged.
    """
    found = [
        path for path in sorted((folder / "runs").glob("part-*.parquet")) if _whole(folder, path)
    ]
    gone = {
        (name, written)
        for path in found
        if path.name.startswith(MERGED)
        for name, written in _sources(path)
    }
    return [path for path in found if not gone or (path.name, _written(path)) not in gone]


def readable(path: Path) -> bool:
    """Return whether a part is there and whole; tell of one that is damaged."""
    try:
        pq.read_metadata(path)
    except FileNotFoundError:
        return False
    except (OSError, pa.ArrowInvalid) as error:
        _log.warning("%s is damaged and left out (%s); its runs will run again", path, error)
        return False
    return True


def opened() -> duckdb.DuckDBPyConnection:
    """Return a connection that prints nothing: a bar on standard output would break its readers."""
    connection = duckdb.connect()
    connection.execute("set enable_progress_bar = false")
    return connection


def merge(storage: Storage, folder: Path, parts: Sequence[Path], level: int) -> Path:
    """Write the rows of some parts of `runs`, and of what lies beside them, as one part.

    The sources stay; see `remove_sources`. A crash leaves them as they were.

    Args:
        storage: of the store.
        folder: of the suite.
        parts: of `runs`.
        level: how often the rows have then been merged; it is part of the name.
    """
    storage.bring(*(folder / table / path.name for table in TABLES for path in parts))
    sources = [(path.name, _written(path)) for path in parts]
    name = f"{MERGED}{level}-{_digest(path.name for path in parts)}.parquet"
    footer = json.dumps(sources).replace("'", "''")
    with opened() as connection:
        connection.execute("set threads = 1")  # the cores belong to the runs
        create_views(connection, [(folder, parts)])
        for table in ("metrics", "arrays", "runs"):  # `runs` last: it makes the others count

            def copy(path: Path, table: str = table) -> None:
                connection.execute(
                    f"copy (from {table}) to '{_quoted(path)}' (format parquet, "
                    f"compression zstd, kv_metadata {{'{_SOURCES}': '{footer}'}})"
                )

            storage.write(folder / table / name, copy)
    storage.bring(folder / "runs" / name)
    return folder / "runs" / name


def remove_sources(storage: Storage, folder: Path, merged: Path) -> None:
    """Remove what a merged part stands for; a source that was written since holds newer rows."""
    _remove_sources(storage, folder, [merged])


def remove_leftovers(storage: Storage, folder: Path) -> None:
    """Remove what merging left behind where a process was killed in it."""
    # The oldest first, since a merged part may itself have been merged.
    found = sorted((folder / "runs").glob(f"{MERGED}*.parquet"), key=_written)
    _remove_sources(storage, folder, [merged for merged in found if _whole(folder, merged)])
    for table in TABLES:
        for temporary in (folder / table).glob(f".{MERGED}*.tmp-*"):
            if time.time() - temporary.stat().st_mtime > _ABANDONED:
                temporary.unlink(missing_ok=True)


def _remove_sources(storage: Storage, folder: Path, parts: Sequence[Path]) -> None:
    there = {table: set(storage.names(folder / table)) for table in TABLES} if parts else {}
    for merged in parts:
        for name, written in _sources(merged):
            path = folder / "runs" / name
            if path == merged or (name in there["runs"] and storage.written(path) != written):
                continue
            for table in TABLES:  # `runs` first: without it the others are nothing
                if name in there[table]:
                    storage.remove(folder / table / name)


def create_views(
    connection: duckdb.DuckDBPyConnection,
    folders: Sequence[tuple[Path, Sequence[Path]]],
    tables: Sequence[TableName] = TABLES,
) -> None:
    """Create the views `runs`, `metrics` and `arrays` over parts, and `_latest`: who counts.

    Each table costs the opening of its parts; `runs` must be among those that are asked for.
    """
    for name in tables:
        paths = [
            folder / name / part.name
            for folder, parts in folders
            for part in parts
            if name == "runs" or (folder / name / part.name).exists()
        ]
        if paths:
            listing = ", ".join(f"'{_quoted(path)}'" for path in paths)
            origin = f"read_parquet([{listing}], union_by_name=true, filename='_file')"
            # The part is the file's name under any table, with the suite's folder before it.
            part = "regexp_replace(_file, '/(runs|metrics|arrays)/(part-[^/]*)$', '/\\2')"
            connection.execute(f"create view _{name} as select *, {part} as _part from {origin}")
        else:
            empty = SCHEMAS[name].empty_table()
            connection.register(f"_empty_{name}", empty)
            connection.execute(
                f"create view _{name} as select *, '' as _file, '' as _part from _empty_{name}"
            )
    connection.execute(
        "create view _latest as select run_id, suite, _part from _runs qualify row_number() over "
        "(partition by suite, run_id order by started_at desc, _part desc) = 1"
    )
    for name in tables:
        keys = "run_id, suite, _part" if name == "runs" else "run_id, _part"
        connection.execute(
            f"create view {name} as select * exclude (_file, _part) from "
            f"(from _{name} semi join _latest using ({keys}))"
        )


def viewed(
    storage: Storage, folders: Sequence[Path], tables: Sequence[TableName]
) -> duckdb.DuckDBPyConnection:
    """Return a connection with the views of some tables over the parts that there are now."""
    storage.pull(*(folder / name for folder in folders for name in tables))
    connection = opened()
    create_views(connection, [(folder, listed(folder)) for folder in folders], tables)
    return connection


def settled(read: Callable[[], T]) -> T:
    """Return what `read` returns, which is called again where a part has gone meanwhile.

    Compaction may remove parts between their listing and their reading: the merged part is then
    in their place.
    """
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(duckdb.IOException, FileNotFoundError):
            return read()
    return read()


def measured(folder: Path, name: TableName, run_ids: pa.Table) -> pa.Table:
    """Return the rows of `metrics` or `arrays` of some runs, with text as dictionaries.

    DuckDB would make a text of each of millions of ids; here they stay codes from end to end.

    Args:
        folder: of the suite.
        name: the table.
        run_ids: a column `run_id` of the runs that are meant.
    """
    schema = SCHEMAS[name]
    coded = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    found: list[pa.Table] = []
    with opened() as connection:
        create_views(connection, [(folder, listed(folder))], ("runs",))
        connection.register("_wanted", run_ids)
        owners = connection.execute(
            "select parse_filename(_part), list(run_id) from _latest semi join _wanted "
            "using (run_id) group by _part order by _part"
        ).fetchall()
    for part, ids in owners:
        path = folder / name / part
        if path.exists():
            rows = (
                pq.ParquetFile(path, read_dictionary=coded).read().select(schema.names).cast(schema)
            )
            found.append(_of_runs(rows, pa.array(ids, pa.string())))
        elif not (folder / "runs" / part).exists():
            raise FileNotFoundError(f"{part} has been merged meanwhile")
    return pa.concat_tables(found or [schema.empty_table()]).unify_dictionaries()


def _of_runs(rows: pa.Table, ids: pa.Array) -> pa.Table:
    column = rows.unify_dictionaries()["run_id"].combine_chunks()
    inside = pc.is_in(column.dictionary, value_set=ids)
    return rows if pc.all(inside).as_py() else rows.filter(pc.take(inside, column.indices))


def _sources(merged: Path) -> list[tuple[str, int]]:
    try:
        found = pq.read_metadata(merged).metadata or {}
    except FileNotFoundError:
        return []
    return [(name, written) for name, written in json.loads(found.get(_SOURCES.encode(), "[]"))]


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _whole(folder: Path, part: Path) -> bool:
    beside = (folder / name / part.name for name in TABLES[1:])
    return readable(part) and all(not path.exists() or readable(path) for path in beside)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]
