"""Results on disk: written whole or not at all, latest row first, readable by anyone."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import re
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raybench
from raybench import store as stores
from raybench.errors import NothingMatched, UnavailableError
from raybench.schema import SCHEMAS, arrays_table, joined, metrics_table, runs_table
from raybench.storage import folder
from raybench.store import SuiteStore

EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def rows(*ids: str, hour: int = 0, status: str = "done", **extra: Any) -> pa.Table:
    return runs_table(
        [
            {
                "run_id": run_id,
                "suite": "tiny",
                "scale": "laptop",
                "status": status,
                "seed": 0,
                "started_at": EPOCH + dt.timedelta(hours=hour),
                **extra,
            }
            for run_id in ids
        ]
    )


def metrics(*ids: str, value: float = 1.0) -> pa.Table:
    count = len(ids)
    return metrics_table(
        {
            "run_id": ids,
            "step": [0] * count,
            "epoch": [0.0] * count,
            "split": ["test"] * count,
            "metric": ["loss"] * count,
            "value": [value] * count,
        }
    )


def arrays(run_id: str, values: list[float]) -> pa.Table:
    return arrays_table(
        {
            "run_id": [run_id],
            "step": [3],
            "name": ["spectrum"],
            "shape": [[1, len(values)]],
            "values": [values],
        }
    )


@pytest.fixture
def store(tmp_path: Path) -> SuiteStore:
    return SuiteStore(tmp_path / "results", "tiny")


def planned(store: SuiteStore, *ids: str, scale: str = "laptop", **labels: str) -> None:
    store.write_plan(
        scale,
        [{"run_id": i, "skipped": "", **{f"label.{k}": v for k, v in labels.items()}} for i in ids],
    )


def files(store: SuiteStore) -> list[str]:
    return sorted(
        str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file()
    )


def read(store: SuiteStore, sql: str) -> list[tuple[Any, ...]]:
    with stores.connect(store.root) as connection:
        return connection.execute(sql).fetchall()


# Writing.


def test_a_part_is_three_files(store: SuiteStore) -> None:
    store.write_part("b1", rows("r1"), metrics("r1"), arrays("r1", [1.0, 2.0]))
    assert files(store) == [
        "arrays/part-b1.parquet", "metrics/part-b1.parquet", "runs/part-b1.parquet",
    ]  # fmt: skip
    again = store.read_part("b1")
    assert again is not None
    assert again["runs"]["run_id"].to_pylist() == ["r1"]
    assert again["arrays"]["values"].to_pylist() == [[1.0, 2.0]]
    assert store.read_part("b2") is None


def test_tables_without_rows_are_not_written(store: SuiteStore) -> None:
    store.write_part("b1", rows("r1"), metrics())
    assert files(store) == ["runs/part-b1.parquet"]


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_crash_while_writing_leaves_no_part(
    store: SuiteStore, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    store.write_part("old", rows("r0"), metrics("r0"))
    count = 0
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count > at:
            raise Killed
        return original(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(Killed):
        store.write_part("b1", rows("r1"), metrics("r1"), arrays("r1", [1.0]))
    monkeypatch.undo()
    assert store.read_part("b1") is None, "the runs' part is what makes a batch exist"
    assert store.statuses() == {"r0": "done"}
    assert read(store, "select run_id from metrics") == [("r0",)]
    assert read(store, "select * from arrays") == []
    store.write_part("b1", rows("r1"), metrics("r1", value=2.0))
    assert read(store, "select run_id, value from metrics order by all") == [
        ("r0", 1.0), ("r1", 2.0),
    ]  # fmt: skip


def test_a_crash_while_overwriting_keeps_the_old_part(
    store: SuiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_part("b1", rows("r1", status="failed"))

    def replace(self: Path, target: Path) -> Path:
        raise Killed

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(Killed):
        store.write_part("b1", rows("r1", hour=1))
    monkeypatch.undo()
    assert store.statuses() == {"r1": "failed"}


def test_a_write_that_fails_is_told_and_leaves_nothing(
    store: SuiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(folder, "PAUSES", (0.0,))
    with pytest.raises(UnavailableError, match=r"cannot be written: .*No space left"):
        store.write_part("b1", rows("r1"))
    assert files(store) == []


def test_a_store_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(UnavailableError, match="give another folder with -o"):
        SuiteStore(tmp_path / "results", "tiny")


def test_a_batch_written_again_overwrites_itself(store: SuiteStore) -> None:
    store.write_part("b1", rows("r1", "r2"), metrics("r1", "r2"))
    store.write_part("b1", rows("r1", hour=1), metrics("r1", value=5.0))
    assert store.statuses() == {"r1": "done"}
    assert read(store, "select run_id, value from metrics") == [("r1", 5.0)]


# Reading.


def test_the_latest_row_wins_and_its_metrics_follow(store: SuiteStore) -> None:
    # The names of the parts go the other way, and the later one was written first.
    store.write_part("a", rows("r1", hour=2, status="done"), metrics("r1", value=2.0))
    store.write_part(
        "z", rows("r1", "r2", hour=1, status="diverged"), metrics("r1", "r2"), arrays("r1", [1.0])
    )
    assert store.statuses() == {"r1": "done", "r2": "diverged"}
    assert sorted(read(store, "select run_id, value from metrics")) == [("r1", 2.0), ("r2", 1.0)]
    assert read(store, "select * from arrays") == [], "they lie beside the row that is overruled"
    assert read(store, "select count(*) from runs") == [(2,)]


def test_runs_of_two_suites_do_not_mix(tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("two", 2.0)):
        each = SuiteStore(tmp_path, name)
        table = rows("r1").set_column(1, "suite", pa.array([name]))
        each.write_part("b", table, metrics("r1", value=value))
        planned(each, "r1")
    assert stores.suites(tmp_path) == ["one", "two"]
    with stores.connect(tmp_path) as connection:
        assert connection.execute("select count(*) from runs").fetchone() == (2,)
        assert connection.execute("select count(*) from metrics").fetchone() == (2,)
    with stores.connect(tmp_path / "two") as connection:
        assert connection.execute("select value from metrics").fetchall() == [(2.0,)]
    assert raybench.table(tmp_path, "two", "metrics")["value"].tolist() == [2.0]
    with pytest.raises(NothingMatched, match="one, two: say which suite"):
        raybench.table(tmp_path)


def test_columns_that_some_parts_lack_are_null_there(store: SuiteStore) -> None:
    store.write_part("a", rows("r1", **{"config.model.width": 8, "label.case": "x"}))
    store.write_part("b", rows("r2", **{"config.model.depth": 2, "summary.test.loss": 1}))
    found = read(
        store,
        'select run_id, "config.model.width", "config.model.depth", "label.case", '
        '"summary.test.loss" from runs order by run_id',
    )
    assert found == [("r1", 8, None, "x", None), ("r2", None, 2, None, 1.0)]


def test_columns_of_two_types_can_be_read(store: SuiteStore) -> None:
    for part, value in (("a", 3), ("b", 0.5), ("c", "auto"), ("d", True), ("e", None)):
        store.write_part(part, rows(part, **{"config.x": value}))
    found = dict(read(store, 'select run_id, "config.x" from runs'))
    assert found.keys() == set("abcde")
    assert found["c"] == "auto"
    assert found["e"] is None


def test_tables_of_a_batch_join() -> None:
    one = rows("a", **{"config.lr": 1, "label.case": "x", "config.on": ["train"]})
    other = rows("b", **{"config.lr": 0.5, "summary.loss": 2})
    both = joined([one, other])
    assert both["config.lr"].to_pylist() == [1, 0.5]
    assert both["config.on"].to_pylist() == ['["train"]', None]
    assert joined([metrics("a"), metrics("b")])["run_id"].to_pylist() == ["a", "b"]


def test_a_damaged_part_is_left_out_with_a_warning(
    store: SuiteStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.write_part("good", rows("r1"), metrics("r1"))
    store.write_part("bad", rows("r2"), metrics("r2"))
    path = store.folder / "runs" / "part-bad.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        assert store.statuses() == {"r1": "done"}
    assert "part-bad.parquet is damaged and left out" in caplog.text
    assert read(store, "select run_id from metrics") == [("r1",)]
    assert store.read_part("bad") is None, "its runs run again"
    (store.folder / "runs" / "part-empty.parquet").touch()
    assert store.statuses() == {"r1": "done"}


def test_runs_whose_metrics_are_damaged_do_not_count_as_stored(store: SuiteStore) -> None:
    store.write_part("bad", rows("r1"), metrics("r1"))
    path = store.folder / "metrics" / "part-bad.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    # The warning says that its runs will run again, so they must not be finished.
    assert store.statuses().get("r1") != "done"


def test_temporary_files_are_not_read(store: SuiteStore) -> None:
    store.write_part("b1", rows("r1"))
    (store.folder / "runs" / ".part-b2.parquet.tmp-1").write_bytes(b"half")
    (store.folder / "runs" / "notes.txt").write_text("x")
    assert store.statuses() == {"r1": "done"}
    assert [path.name for path in store.parts()] == ["part-b1.parquet"]


def test_summaries(store: SuiteStore) -> None:
    store.write_part("a", rows("r1", **{"summary.valid.loss": 0.5}))
    store.write_part("b", rows("r2", status="diverged", **{"summary.valid.loss": 0.1}))
    store.write_part("c", rows("r3"))
    assert store.summaries("valid.loss") == {
        "r1": 0.5, "r2": float("inf"), "r3": float("inf"),
    }  # fmt: skip
    assert set(store.summaries("no.such").values()) == {float("inf")}


def test_every_column_can_be_fetched(store: SuiteStore) -> None:
    store.write_part("b", rows("r1", hour=3))
    (started,) = read(store, "select started_at from runs")[0]
    assert started == EPOCH + dt.timedelta(hours=3)


def test_an_empty_store(store: SuiteStore, tmp_path: Path) -> None:
    assert store.statuses() == {}
    assert store.summaries("valid.loss") == {}
    assert store.compact() == 0
    for root in (store.root, tmp_path / "nowhere"):
        with pytest.raises(NothingMatched, match="no results in"):
            stores.connect(root)
        with pytest.raises(NothingMatched):
            raybench.table(root)


def test_names_with_quotes_are_names(tmp_path: Path) -> None:
    each = SuiteStore(tmp_path / "it's a 'store'", "tiny")
    each.write_part("b", rows("r1"), metrics("r1"))
    planned(each, "r1")
    assert each.statuses() == {"r1": "done"}
    assert len(raybench.table(each.root, "tiny", "metrics")) == 1


# Compaction.


def fill(store: SuiteStore, count: int) -> None:
    for index in range(count):
        own, old = f"r{index}", "twice"
        store.write_part(
            f"b{index:02}",
            rows(own, old, hour=index, **{f"config.only{index % 3}": index}),
            metrics(own, old, value=float(index)),
            arrays(own, [float(index)]) if index % 2 else None,
        )


EVERYTHING = {
    "runs": "select * replace (started_at::varchar as started_at) from runs order by run_id",
    "metrics": "select * from metrics order by run_id, step",
    "arrays": "select * from arrays order by run_id",
}


def test_compaction_keeps_every_row_and_removes_the_parts(store: SuiteStore) -> None:
    fill(store, 9)
    before = {name: read(store, sql) for name, sql in EVERYTHING.items()}
    assert store.compact(at_least=10) == 0
    assert len(store.parts()) == 9
    assert store.compact(at_least=9) == 9
    assert {name: read(store, sql) for name, sql in EVERYTHING.items()} == before
    assert len(before["runs"]) == len(before["metrics"]) == 10
    assert [len(store.parts(name)) for name in ("runs", "metrics", "arrays")] == [1, 1, 1]
    assert len(files(store)) == 3, "and nothing temporary"


def test_compaction_can_go_on(store: SuiteStore) -> None:
    fill(store, 5)
    store.compact(at_least=2)
    store.write_part("new", rows("twice", "r1", hour=99, status="failed"))
    assert store.statuses()["twice"] == "failed"
    store.compact(at_least=2)
    assert len(store.parts()) == 1
    found = store.statuses()
    assert (found["twice"], found["r1"], found["r2"]) == ("failed", "failed", "done")
    assert read(store, "select count(*) from metrics where run_id in ('r1', 'twice')") == [(0,)]


@pytest.mark.parametrize("name", ["unlink", "replace"])
@pytest.mark.parametrize("crash", [1, 2, 3, 4, 7, 8])
def test_a_crash_in_compaction_loses_nothing(
    store: SuiteStore, name: str, crash: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 4)
    before = {name: read(store, sql) for name, sql in EVERYTHING.items()}
    calls = 0
    original = getattr(Path, name)

    def once(self: Path, *args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == crash:
            raise Killed
        return original(self, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, name, once)
        reached = name == "unlink" or crash <= 3  # a table each is renamed into place
        with pytest.raises(Killed) if reached else contextlib.nullcontext():
            store.compact(at_least=2)
    assert {each: read(store, sql) for each, sql in EVERYTHING.items()} == before
    store.compact(at_least=1)
    assert {each: read(store, sql) for each, sql in EVERYTHING.items()} == before
    assert len(store.parts()) == 1
    assert not [file for file in files(store) if "part-b" in file], "what a crash left is removed"


def test_a_part_written_again_during_compaction_stays(
    store: SuiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 3)
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        done = original(self, target)
        if target.parent.name == "runs" and "all-" in target.name:
            pq.write_table(
                rows("r0", hour=50, status="failed"), store.folder / "runs/part-b00.parquet"
            )
        return done

    monkeypatch.setattr(Path, "replace", replace)
    store.compact(at_least=2)
    assert store.statuses()["r0"] == "failed"


# Tables, plans and scales.


def test_table_holds_what_the_suite_now_plans(store: SuiteStore) -> None:
    store.write_part(
        "b",
        rows("r1", "r2", "gone", **{"label.case": "old", "label.lost": "x"}),
        metrics("r1", "gone"),
    )
    planned(store, "r1", "r2", "not-run", case="new")
    runs = raybench.table(store.root, "tiny")
    assert isinstance(runs, pd.DataFrame)
    assert sorted(runs["run_id"]) == ["r1", "r2"]
    assert set(runs["label.case"]) == {"new"}, "labels are the plan's"
    assert "label.lost" not in runs
    assert raybench.table(store.root, name="metrics")["run_id"].tolist() == ["r1"]
    assert list(raybench.table(store.root, name="arrays").columns) == SCHEMAS["arrays"].names


def test_scales_and_plans(store: SuiteStore) -> None:
    store.write_part("b", rows("r1", "r2"))
    planned(store, "r1", scale="paper")
    planned(store, "r1", "r2", scale="laptop")
    assert stores.scales(store.root, "tiny") == ["laptop", "paper"], "the latest first"
    planned(store, "r1", scale="paper")
    assert stores.scales(store.root, "tiny") == ["paper", "laptop"]
    assert stores.plan(store.root, "tiny")["run_id"].tolist() == ["r1"]
    assert stores.plan(store.root, "tiny", "laptop")["run_id"].tolist() == ["r1", "r2"]
    assert len(raybench.table(store.root, "tiny", scale="laptop")) == 2
    with pytest.raises(NothingMatched, match="was not run at scale 'huge'"):
        stores.plan(store.root, "tiny", "huge")
    planned(store, "r2", scale="")
    assert stores.scales(store.root, "tiny")[0] == "default"


def test_a_run_that_the_plan_names_twice_is_measured_once(store: SuiteStore) -> None:
    store.write_part("b", rows("r1"), metrics("r1"))
    store.write_plan(
        "laptop", [{"run_id": "r1", "label.case": "a"}, {"run_id": "r1", "label.case": "b"}]
    )
    assert raybench.table(store.root, "tiny")["label.case"].tolist() == ["a", "b"]
    assert len(raybench.table(store.root, "tiny", "metrics")) == 1


@pytest.mark.parametrize(
    "name", ["../outside", "..", ".", "", "a/b", "/etc", "tiny/../tiny", "tiny\0", "*", "tiny\n"]
)
def test_no_name_leads_out_of_the_store(store: SuiteStore, name: str) -> None:
    store.write_part("b", rows("r1"))
    planned(store, "r1")
    SuiteStore(Path(store.root).parent, "outside").write_part("b", rows("r1"))
    for reader in (raybench.table, stores.plan, stores.scales):
        with pytest.raises(NothingMatched, match="has no suite"):
            reader(store.root, name)


@pytest.mark.parametrize("name", ["../outside", "..", "a/b", ""])
def test_nothing_is_written_out_of_the_store(tmp_path: Path, name: str) -> None:
    with pytest.raises((UnavailableError, NothingMatched, ValueError)):
        SuiteStore(tmp_path / "results", name)
    assert not (tmp_path / "outside").exists()


# The public contract.


def test_schemas_are_frozen() -> None:
    told = "\n".join(
        f"{name}: " + ", ".join(f"{field.name} {field.type}" for field in schema)
        for name, schema in SCHEMAS.items()
    )
    assert told == (
        "runs: run_id string, suite string, scale string, procedure string, status string, "
        "reason string, seed int64, num_params int64, steps int64, wall_s double, engine string, "
        "lanes int64, ranks int64, batch_id string, host string, device string, versions string, "
        "started_at timestamp[us, tz=UTC], log string\n"
        "metrics: run_id dictionary<values=string, indices=int32, ordered=0>, step int64, "
        "epoch double, split dictionary<values=string, indices=int32, ordered=0>, "
        "metric dictionary<values=string, indices=int32, ordered=0>, value double\n"
        "arrays: run_id dictionary<values=string, indices=int32, ordered=0>, step int64, "
        "name dictionary<values=string, indices=int32, ordered=0>, shape list<item: int64>, "
        "values list<item: double>"
    )
    assert stores.FINISHED[:2] == ("done", "diverged")


def test_parts_have_the_schema(store: SuiteStore) -> None:
    store.write_part("b", rows("r1", **{"config.x": 3}), metrics("r1"), arrays("r1", [1.0]))
    for name, schema in SCHEMAS.items():
        found = pq.read_schema(store.folder / name / "part-b.parquet")
        for field in schema:
            assert found.field(field.name).type == field.type, (name, field)
        codec = pq.read_metadata(store.folder / name / "part-b.parquet").row_group(0).column(0)
        assert codec.compression == "ZSTD"


def test_others_can_read_the_parts(store: SuiteStore) -> None:
    store.write_part(
        "a", rows("r1", **{"summary.test.loss": 0.5}), metrics("r1"), arrays("r1", [2.0])
    )
    store.write_part("b", rows("r2"), metrics("r2"))
    glob = f"{store.folder}/metrics/part-*.parquet"
    with duckdb.connect() as connection:
        found = connection.execute(
            f"select run_id, metric, value from '{glob}' order by run_id"
        ).fetchall()
    assert found == [("r1", "loss", 1.0), ("r2", "loss", 1.0)]
    frame = pd.read_parquet(store.folder / "runs" / "part-a.parquet")
    assert frame["run_id"].tolist() == ["r1"]
    assert frame["summary.test.loss"].tolist() == [0.5]
    assert str(frame["started_at"].dt.tz) == "UTC"
    values = pd.read_parquet(store.folder / "arrays")["values"][0]
    assert list(values) == [2.0]
    store.compact(at_least=2)
    (merged,) = (store.folder / "metrics").glob("*.parquet")
    assert re.fullmatch(r"part-all-1-[0-9a-f]{16}\.parquet", merged.name)
    assert sorted(pd.read_parquet(merged)["run_id"]) == ["r1", "r2"]
