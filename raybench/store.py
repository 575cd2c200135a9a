"""Results on disk: plain Parquet, one part per batch, written atomically, read with DuckDB.

    STORE/SUITE/runs/part-<batch>.parquet      one row a run; this part is written last and is
    STORE/SUITE/metrics/part-<batch>.parquet   what makes a batch exist
    STORE/SUITE/arrays/part-<batch>.parquet
    STORE/SUITE/plan-<scale>.parquet           which runs belong to the suite now, and their labels
    STORE/SUITE/suite.yaml                     the resolved suite, versions, commit, hardware
    STORE/SUITE/checkpoints/                   runs under way; see raybench.checkpoints

A repeated batch overwrites its part. Where a run stands in several parts its latest row counts,
and the metrics and arrays that lie in the same part as that row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raybench import untrained
from raybench.errors import NothingMatched, UnavailableError
from raybench.parts import (
    listed,
    measured,
    merge,
    readable,
    remove_leftovers,
    remove_sources,
    settled,
    viewed,
)
from raybench.schema import TABLES, TableName
from raybench.storage import Root, Storage, at

ENDED: Final = ("done", "stopped")
"""Statuses of runs whose last values are results."""
FINISHED: Final = ("done", "diverged", "stopped")
"""Statuses that are not run again."""
QUARANTINED: Final = "quarantined"
"""How the reason of a failed run begins that ends its process: it runs again only if asked for."""

T = TypeVar("T")


class SuiteStore:
    """The results of one suite: what a worker writes to and a driver reads from.

    Args:
        root: the store, a folder or a URL.
        suite: the suite's name, a folder in it.

    Attributes:
        storage: where it lies.
        folder: of the suite, on this machine.

    Raises:
        UnavailableError: the folder cannot be made or written.
    """

    def __init__(self, root: Root, suite: str) -> None:
        if not _is_name(suite):
            raise ValueError(f"{suite!r} is not the name of a suite")
        self.storage: Storage = at(at(root).root)
        self.root = self.storage.root
        self.suite = suite
        self.folder = self.storage.folder / suite
        self.checkpoints = self.folder / "checkpoints"
        try:
            for name in TABLES:
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(
                f"store {self.storage.folder} cannot be written: {error.strerror or error}; "
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
        try:
            for name, rows in (("metrics", metrics), ("arrays", arrays), ("runs", runs)):
                if rows is not None and (len(rows) or name == "runs"):
                    self._write(rows, self.folder / name / f"part-{part}.parquet")
        except UnavailableError as error:
            raise UnavailableError(
                f"{error}\nWhat was stored is kept; the same command goes on with the rest"
            ) from error

    def read_part(self, part: str) -> dict[str, pa.Table] | None:
        """Return the tables of a batch that was begun before, or None."""
        found: dict[str, pa.Table] = {}
        paths = {name: self.folder / name / f"part-{part}.parquet" for name in TABLES}
        self.storage.bring(*paths.values())
        for name, path in paths.items():
            if readable(path):
                found[name] = pq.ParquetFile(path).read()
        return found if "runs" in found else None

    def run_ids(self, part: str) -> set[str]:
        """Return the runs that a batch's part has a row of."""
        path = self.folder / "runs" / f"part-{part}.parquet"
        self.storage.bring(path)
        if not readable(path):
            return set()
        return set(pq.ParquetFile(path).read(columns=["run_id"])["run_id"].to_pylist())

    def statuses(self) -> dict[str, str]:
        """Return the status of every run in the store, by run_id."""
        found = self._ask("select run_id, status from runs")
        return dict(zip(found["run_id"].to_pylist(), found["status"].to_pylist(), strict=True))

    def ended(self) -> pd.DataFrame:
        """Return run_id, wall_s and started_at of the runs that ended as done or diverged."""
        listing = ", ".join(f"'{status}'" for status in FINISHED)
        rows = self._ask(f"select run_id, wall_s, started_at from runs where status in ({listing})")
        frame: pd.DataFrame = rows.to_pandas()
        return frame

    def num_bytes(self) -> int:
        """Return the size of all parts that count."""
        counted = {path.name for path in self.parts()}
        sizes = [self.storage.sizes(self.folder / name) for name in TABLES]
        return sum(sum(each[name] for name in counted & each.keys()) for each in sizes)

    def quarantined(self) -> set[str]:
        """Return the runs that failed for good: they end the process that they train in."""
        held = f"status = 'failed' and starts_with(reason, '{QUARANTINED}')"
        return set(self._ask(f"select run_id from runs where {held}")["run_id"].to_pylist())

    def summaries(self, column: str) -> dict[str, float]:
        """Return `summary.<column>` by run_id: infinite for runs that were lost."""
        name = f"summary.{column}"

        def ask(connection: duckdb.DuckDBPyConnection) -> list[tuple[Any, ...]]:
            value = _identifier(name) if name in _columns(connection, "runs") else "null"
            return connection.execute(f"select run_id, status, {value} from runs").fetchall()

        return {
            run_id: value
            if status in ENDED and value is not None and not math.isnan(value)
            else math.inf
            for run_id, status, value in _asked(self.storage, [self.folder], ask)
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
        self.storage.pull(*{self.folder / "runs", self.folder / name})
        paths = [self.folder / name / part.name for part in listed(self.folder)]
        return [path for path in paths if path.exists()]

    def compact(self, at_least: int = 64) -> int:
        """Merge all parts into one, and return how many there were.

        Readers see every run at all times: the merged part is there before the others go.
        """
        self.parts()
        remove_leftovers(self.storage, self.folder)
        parts = self.parts()
        if len(parts) < at_least:
            return 0
        merged = merge(self.storage, self.folder, parts, 1)
        remove_sources(self.storage, self.folder, merged)
        return len(parts)

    def _ask(self, sql: str) -> pa.Table:
        return _asked(
            self.storage, [self.folder], lambda connection: connection.sql(sql).to_arrow_table()
        )

    def write_table(self, name: str, rows: pa.Table) -> None:
        """Write a table beside the results, whole or not at all."""
        self._write(rows, self.folder / name)

    def _write(self, rows: pa.Table, path: Path) -> None:
        self.storage.write(path, lambda file: pq.write_table(rows, file, compression="zstd"))

    def _write_text(self, name: str, text: str) -> None:
        self.storage.write(self.folder / name, lambda file: file.write_text(text, encoding="utf-8"))


def connect(
    store: Root = "results", tables: Sequence[TableName] = TABLES
) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB connection with the views `runs`, `metrics` and `arrays`.

    Args:
        store: the store, a folder or a URL; or the folder of one suite in it.
        tables: only the views of these, which is faster; `runs` must be among them.

    Raises:
        NothingMatched: there are no results.
    """
    storage = at(store)
    folders = _folders(storage)
    return settled(lambda: viewed(storage, folders, tables))


def suites(store: Root = "results") -> list[str]:
    """Return the names of the suites in a store."""
    return [folder.name for folder in _folders(at(store))]


def suite_folder(store: Root, suite: str) -> Path | None:
    """Return the folder here with what lies beside the tables of a suite; None if there is none."""
    if not _is_name(suite):  # it must not lead out of the store
        return None
    storage = at(store)
    folder = storage.folder / suite
    storage.pull(folder)
    return folder if (folder / "runs").is_dir() else None


def scales(store: Root, suite: str) -> list[str]:
    """Return the scales that a suite was planned at, the latest first."""
    folder = _folder(store, suite)
    found = sorted(path.stem.removeprefix("plan-") for path in folder.glob("plan-*.parquet"))
    marker = folder / "latest-scale"
    latest = marker.read_text(encoding="utf-8") if marker.exists() else ""
    return sorted(found, key=lambda scale: scale != latest)


def plan(store: Root, suite: str, scale: str | None = None) -> pd.DataFrame:
    """Return which runs belong to a suite: run_id, labels, and why some are skipped."""
    known = scales(store, suite)
    chosen = scale or (known[0] if known else "default")
    path = _folder(store, suite) / f"plan-{chosen}.parquet"
    if not path.exists():
        raise NothingMatched(f"{suite} was not run at scale {chosen!r}; there is {known or 'none'}")
    frame: pd.DataFrame = pq.ParquetFile(path).read().to_pandas()
    return frame


def table(
    store: Root = "results",
    suite: str | None = None,
    name: TableName = "runs",
    scale: str | None = None,
    diverged: Literal["measured", "untrained"] = "measured",
    columns: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return a table of a suite as pandas.

    Args:
        store: the store, a folder or a URL.
        suite: the suite's name; None if the store holds only one.
        name: `runs`, `metrics` or `arrays`.
        scale: None for the scale that was run last. Only runs that belong to the suite as it was
            last planned at that scale are in the table, with the labels they have there.
        diverged: `measured` shows diverged runs as they were; `untrained` gives them the values
            before the first step from there on, as DeepOBS and Schmidt et al. 2021 count them.
        columns: only these, as far as there are such, which is faster; None for all.

    Returns:
        The rows; text of `metrics` and `arrays` is categorical.

    Raises:
        NothingMatched: there are no such results.
    """
    known = suites(store)
    if suite is None:
        if len(known) != 1:
            raise NothingMatched(f"{store} holds {', '.join(known)}: say which suite")
        suite = known[0]
    if diverged == "untrained" and name != "arrays":
        fill = untrained.fill_runs if name == "runs" else untrained.fill_metrics
        filled = fill(table(store, suite, "runs", scale), table(store, suite, "metrics", scale))
        return filled if columns is None else filled[[c for c in columns if c in filled]]
    storage, folder = at(store), _folder(store, suite)
    planned = plan(store, suite, scale)
    if name != "runs":
        wanted = pa.table({"run_id": pa.array(planned["run_id"].unique(), pa.string())})

        def read() -> pa.Table:
            storage.pull(folder / "runs", folder / name)
            return measured(folder, name, wanted)

        return _frame(settled(read), columns)
    rows = _asked(storage, [folder], lambda connection: _selected(connection, columns))
    labels = [column for column in map(str, planned) if column.startswith("label.")]
    own = [column for column in rows.column_names if not column.startswith("label.")]
    shown = [*own, *labels] if columns is None else list(columns)
    merged = planned[["run_id", *labels]].merge(rows.select(own).to_pandas(), on="run_id")
    return merged[[column for column in shown if column in merged]]


def _selected(connection: duckdb.DuckDBPyConnection, columns: Sequence[str] | None) -> pa.Table:
    """Return the rows of `runs` with these columns, as far as there are such, and run_id."""
    names = "*"
    if columns is not None:
        known = [name for name in _columns(connection, "runs") if name in columns]
        names = ", ".join(_identifier(name) for name in dict.fromkeys(["run_id", *known]))
    return connection.sql(f"select {names} from runs").to_arrow_table()


def _frame(rows: pa.Table, columns: Sequence[str] | None) -> pd.DataFrame:
    """Return rows as pandas, with text as categories in alphabetical order."""
    frame: pd.DataFrame = rows.select(columns or rows.column_names).to_pandas(
        split_blocks=True  # without it each column is copied once more
    )
    for name in frame.columns:
        if isinstance(frame[name].dtype, pd.CategoricalDtype):
            frame[name] = _alphabetical(frame[name].array)
    return frame


def _alphabetical(values: pd.Categorical) -> pd.Categorical:
    order = values.categories.argsort()
    place = np.empty(len(order) + 1, dtype=np.int32)
    place[order], place[-1] = np.arange(len(order)), -1  # the last one is for missing values
    return pd.Categorical.from_codes(place[values.codes], values.categories[order])


def _folder(store: Root, suite: str) -> Path:
    folder = suite_folder(store, suite)
    if folder is None:
        raise NothingMatched(f"store {at(store).label} has no suite {suite!r}")
    return folder


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]+", text) is not None


def _folders(storage: Storage) -> list[Path]:
    names = storage.folders(storage.folder)
    if "runs" in names:
        return [storage.folder]
    found = [
        storage.folder / name
        for name in names
        if any(n.startswith("part-") for n in storage.names(storage.folder / name / "runs"))
    ]
    if not found:
        raise NothingMatched(
            f"no results in {storage.label}; `raybench run quickstart -o {storage.label}` "
            "makes some"
        )
    return found


def _asked(
    storage: Storage, folders: Sequence[Path], ask: Callable[[duckdb.DuckDBPyConnection], T]
) -> T:
    """Return what `ask` finds in `runs` as it is now."""

    def attempt() -> T:
        with viewed(storage, folders, ("runs",)) as connection:
            return ask(connection)

    return settled(attempt)


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _columns(connection: duckdb.DuckDBPyConnection, name: str) -> list[str]:
    return [row[0] for row in connection.execute(f"describe {name}").fetchall()]
