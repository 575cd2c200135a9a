"""Results on disk: plain Parquet, one part per batch, written atomically, read with DuckDB.

    STORE/SUITE/runs/part-<batch>.parquet      one row a run; this part is written last and is
    STORE/SUITE/metrics/part-<batch>.parquet   what makes a batch exist
    STORE/SUITE/arrays/part-<batch>.parquet
    STORE/SUITE/plan-<scale>.parquet           which runs belong to the suite now, and their labels
    STORE/SUITE/suite.yaml                     the resolved suite, versions, commit, hardware

A repeated batch overwrites its part. Where a run stands in several parts its latest row counts,
and the metrics and arrays that lie in the same part as that row.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raybench import untrained
from raybench.errors import NothingMatched, UnavailableError
from raybench.schema import SCHEMAS, TABLES, TableName

ENDED: Final = ("done", "stopped")
"""Statuses of runs whose last values are results."""
FINISHED: Final = ("done", "diverged", "stopped")
"""Statuses that are not run again."""
QUARANTINED: Final = "quarantined"
"""How the reason of a failed run begins that ends its process: it runs again only if asked for."""

_log = logging.getLogger(__name__)


class SuiteStore:
    """The results of one suite: what a worker writes to and a driver reads from.

    Args:
        root: the store's folder.
        suite: the suite's name, a folder in it.

    Raises:
        UnavailableError: the folder cannot be made or written.
    """

    def __init__(self, root: Path | str, suite: str) -> None:
        if not _is_name(suite):
            raise ValueError(f"{suite!r} is not the name of a suite")
        self.root = Path(root).absolute()
        self.suite = suite
        self.folder = self.root / suite
        try:
            for name in TABLES:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(
                f"store {self.root} cannot be written: {error.strerror or error}; "
                "give another folder with -o"
            ) from error

    def write_part(
        self,
        part: str,
        runs: pa.Table,
        metrics: pa.Table | None = None,
        arrays: pa.Table | None = None,
    ) -> None:
        """Write one batch's tables; `runs` last, since its part is what makes the others count."""
        for name, rows in (("metrics", metrics), ("arrays", arrays), ("runs", runs)):
            if rows is not None and (len(rows) or name == "runs"):
                self._write(rows, self.folder / name / f"part-{part}.parquet")

    def read_part(self, part: str) -> dict[str, pa.Table] | None:
        """Return the tables of a batch that was begun before, or None."""
        found: dict[str, pa.Table] = {}
        for name in TABLES:
            path = self.folder / name / f"part-{part}.parquet"
            if _readable(path):
                found[name] = pq.ParquetFile(path).read()
        return found if "runs" in found else None

    def statuses(self) -> dict[str, str]:
        """Return the status of every run in the store, by run_id."""
        frame = _frame(self, "select run_id, status from runs")
        return dict(zip(frame["run_id"], frame["status"], strict=True))

    def quarantined(self) -> set[str]:
        """Return the runs that failed for good: they end the process that they train in."""
        held = f"status = 'failed' and starts_with(reason, '{QUARANTINED}')"
        return set(_frame(self, f"select run_id from runs where {held}")["run_id"])

    def summaries(self, column: str) -> dict[str, float]:
        """Return `summary.<column>` by run_id: infinite for runs that were lost."""
        name = f"summary.{column}"
        with _connection(self.folder) as connection:
            if name not in _columns(connection, "runs"):
                rows = connection.execute("select run_id, status, null from runs").fetchall()
            else:
                rows = connection.execute(f'select run_id, status, "{name}" from runs').fetchall()
        return {
            run_id: value
            if status in ENDED and value is not None and not math.isnan(value)
            else math.inf
            for run_id, status, value in rows
        }

    def write_plan(
        self, scale: str, rows: Sequence[Mapping[str, Any]], *, latest: bool = True
    ) -> None:
        """Write which runs belong to the suite at `scale`, replacing what was there.

        Args:
            scale: its name; empty for a suite without scales.
            rows: run_id, why it is skipped, and labels.
            latest: whether readers take this scale unless another is asked for.
        """
        columns: dict[str, list[Any]] = {}
        for name in dict.fromkeys(key for row in rows for key in row):
            columns[name] = [row.get(name) for row in rows]
        self._write(pa.table(columns), self.folder / f"plan-{scale or 'default'}.parquet")
        if latest:
            self._write_text("latest-scale", scale or "default")

    def write_suite(self, text: str) -> None:
        """Write the resolved suite."""
        self._write_text("suite.yaml", text)

    def parts(self, name: TableName = "runs") -> list[Path]:
        """Return a table's readable parts."""
        return _parts(self.folder, name)

    def compact(self, at_least: int = 64) -> int:
        """Merge all parts of each table into one, and return how many there were.

        Readers see every run at all times: the merged part is there before the others go.
        """
        parts = self.parts()
        if len(parts) < at_least:
            return 0
        merged = f"all-{_digest(path.name for path in parts)}"
        before = {path: path.stat().st_mtime_ns for path in parts}
        with _connection(self.folder, parts) as connection:
            for name in ("metrics", "arrays", "runs"):
                target = self.folder / name / f"part-{merged}.parquet"
                temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
                connection.execute(
                    f"copy (from {name}) to '{_quoted(temporary)}' (format parquet, "
                    "compression zstd)"
                )
                temporary.replace(target)
        for path, written in before.items():
            # A part that was written again meanwhile holds newer rows and stays.
            if path.name != f"part-{merged}.parquet" and path.stat().st_mtime_ns == written:
                for name in TABLES:
                    (self.folder / name / path.name).unlink(missing_ok=True)
        return len(parts)

    def _write(self, rows: pa.Table, path: Path) -> None:
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        try:
            pq.write_table(rows, temporary, compression="zstd")
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UnavailableError(f"{path} cannot be written: {error}") from error

    def _write_text(self, name: str, text: str) -> None:
        temporary = self.folder / f".{name}.tmp-{os.getpid()}"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.folder / name)


def connect(store: Path | str = "results") -> duckdb.DuckDBPyConnection:
    """Return a DuckDB connection with the views `runs`, `metrics` and `arrays`.

    Args:
        store: the store, or the folder of one suite in it.

    Raises:
        NothingMatched: there are no results.
    """
    connection = duckdb.connect()
    folders = _folders(Path(store))
    _views(connection, [(folder, _parts(folder, "runs")) for folder in folders])
    return connection


def suites(store: Path | str = "results") -> list[str]:
    """Return the names of the suites in a store."""
    return [folder.name for folder in _folders(Path(store))]


def scales(store: Path | str, suite: str) -> list[str]:
    """Return the scales that a suite was planned at, the latest first."""
    folder = _folder(Path(store), suite)
    found = sorted(path.stem.removeprefix("plan-") for path in folder.glob("plan-*.parquet"))
    marker = folder / "latest-scale"
    latest = marker.read_text(encoding="utf-8") if marker.exists() else ""
    return sorted(found, key=lambda scale: scale != latest)


def plan(store: Path | str, suite: str, scale: str | None = None) -> pd.DataFrame:
    """Return which runs belong to a suite: run_id, labels, and why some are skipped."""
    known = scales(store, suite)
    chosen = scale or (known[0] if known else "default")
    path = _folder(Path(store), suite) / f"plan-{chosen}.parquet"
    if not path.exists():
        raise NothingMatched(f"{suite} was not run at scale {chosen!r}; there is {known or 'none'}")
    frame: pd.DataFrame = pq.ParquetFile(path).read().to_pandas()
    return frame


def table(
    store: Path | str = "results",
    suite: str | None = None,
    name: TableName = "runs",
    scale: str | None = None,
    diverged: Literal["measured", "untrained"] = "measured",
) -> pd.DataFrame:
    """Return a table of a suite as pandas.

    Args:
        store: the store's folder.
        suite: the suite's name; None if the store holds only one.
        name: `runs`, `metrics` or `arrays`.
        scale: None for the scale that was run last. Only runs that belong to the suite as it was
            last planned at that scale are in the table, with the labels they have there.
        diverged: `measured` shows diverged runs as they were; `untrained` gives them the values
            before the first step from there on, as DeepOBS and Schmidt et al. 2021 count them.

    Raises:
        NothingMatched: there are no such results.
    """
    root = Path(store)
    known = suites(root)
    if suite is None:
        if len(known) != 1:
            raise NothingMatched(f"{store} holds {', '.join(known)}: say which suite")
        suite = known[0]
    if diverged == "untrained" and name != "arrays":
        fill = untrained.fill_runs if name == "runs" else untrained.fill_metrics
        return fill(table(root, suite, "runs", scale), table(root, suite, "metrics", scale))
    folder = _folder(root, suite)
    planned = plan(root, suite, scale)
    with _connection(folder) as connection:
        if name != "runs":
            connection.register("planned", planned[["run_id"]].drop_duplicates())
            return connection.execute(f"from {name} semi join planned using (run_id)").df()
        rows = connection.execute("from runs").df()
    labels = [column for column in map(str, planned) if column.startswith("label.")]
    own = rows.drop(columns=[column for column in map(str, rows) if column.startswith("label.")])
    merged = planned[["run_id", *labels]].merge(own, on="run_id", how="inner")
    return merged[[*own.columns, *labels]]


def _folder(root: Path, suite: str) -> Path:
    # A name out of a command line or a suite must not lead out of the store.
    if not _is_name(suite) or not (root / suite / "runs").is_dir():
        raise NothingMatched(f"store {root} has no suite {suite!r}")
    return root / suite


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]+", text) is not None


def _folders(root: Path) -> list[Path]:
    if (root / "runs").is_dir():
        return [root]
    found = sorted(path.parent for path in root.glob("*/runs") if path.is_dir())
    found = [folder for folder in found if _parts(folder, "runs")]
    if not found:
        raise NothingMatched(
            f"no results in {root}; `raybench run quickstart -o {root}` makes some"
        )
    return found


def _parts(folder: Path, name: str) -> list[Path]:
    found = [path for path in sorted((folder / name).glob("part-*.parquet")) if _readable(path)]
    if name != "runs":
        return found
    # A row counts only with what was measured: its run is run again if that is damaged.
    return [part for part in found if all(_intact(folder / t / part.name) for t in TABLES)]


def _intact(path: Path) -> bool:
    return not path.exists() or _readable(path)


def _readable(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid) as error:
        _log.warning("%s is damaged and left out (%s); its runs will run again", path, error)
        return False
    return True


def _connection(folder: Path, parts: Sequence[Path] | None = None) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    _views(connection, [(folder, _parts(folder, "runs") if parts is None else parts)])
    return connection


def _views(
    connection: duckdb.DuckDBPyConnection, folders: Sequence[tuple[Path, Sequence[Path]]]
) -> None:
    """Create the views over the given parts of `runs`, and what lies beside each of them."""
    for name in TABLES:
        paths = [
            folder / name / part.name
            for folder, parts in folders
            for part in parts
            if name == "runs" or _readable(folder / name / part.name)
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
    for name in TABLES:
        keys = "run_id, suite, _part" if name == "runs" else "run_id, _part"
        connection.execute(
            f"create view {name} as select * exclude (_file, _part) from "
            f"(from _{name} semi join _latest using ({keys}))"
        )


def _columns(connection: duckdb.DuckDBPyConnection, name: str) -> list[str]:
    return [row[0] for row in connection.execute(f"describe {name}").fetchall()]


def _frame(store: SuiteStore, sql: str) -> pd.DataFrame:
    with _connection(store.folder) as connection:
        return connection.execute(sql).df()


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]
