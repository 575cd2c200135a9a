"""Parts are merged while others write and read: nobody sees a run twice, and none is lost."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import raybench
from raybench import compaction
from raybench import store as stores
from raybench.compaction import Compactor
from raybench.parts import listed, merge, remove_leftovers
from raybench.schema import metrics_table, runs_table
from raybench.store import SuiteStore

BEGAN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
EVALUATIONS = 3


def tables(run_id: str, hour: int = 0, value: float = 1.0) -> tuple[pa.Table, pa.Table]:
    row = {
        "run_id": run_id,
        "suite": "tiny",
        "status": "done",
        "seed": 0,
        "started_at": BEGAN + dt.timedelta(hours=hour),
    }
    steps = range(EVALUATIONS)
    metrics = {
        "run_id": [run_id for _ in steps],
        "step": [*steps],
        "epoch": [0.0 for _ in steps],
        "split": ["test" for _ in steps],
        "metric": ["loss" for _ in steps],
        "value": [value for _ in steps],
    }
    return runs_table([row]), metrics_table(metrics)


@pytest.fixture
def store(tmp_path: Path) -> SuiteStore:
    return SuiteStore(tmp_path, "tiny")


def fill(store: SuiteStore, count: int, first: int = 0) -> list[str]:
    names = [f"b{index:03}" for index in range(first, first + count)]
    for name in names:
        store.write_part(name, *tables(f"run-{name}"))
    return names


def counted(store: SuiteStore) -> tuple[int, int, int]:
    sql = (
        "select (select count(*) from runs), (select count(distinct run_id) from runs), "
        "(select count(*) from metrics)"
    )
    with stores.connect(store.root) as connection:
        rows, distinct, metrics = connection.execute(sql).fetchall()[0]
    return rows, distinct, metrics


def every(count: int) -> tuple[int, int, int]:
    return count, count, EVALUATIONS * count


def raw(store: SuiteStore) -> int:
    """How many rows of runs a reader that knows nothing of merging would find."""
    with stores.connect(store.root) as connection:
        found = connection.execute("select count(*) from _runs").fetchone()
    assert found is not None
    return int(found[0])


def test_what_has_been_merged_is_read_once(store: SuiteStore) -> None:
    fill(store, 5)
    parts = listed(store.folder)
    merged = merge(store.storage, store.folder, parts, 1)
    assert len(list((store.folder / "runs").glob("part-*"))) == 6, "the sources stay"
    assert listed(store.folder) == [merged]
    assert raw(store) == 5
    assert counted(store) == every(5)


def test_a_source_written_again_counts_again(store: SuiteStore) -> None:
    fill(store, 3)
    merge(store.storage, store.folder, listed(store.folder), 1)
    store.write_part("b001", *tables("run-b001", hour=1, value=2.0))
    assert len(listed(store.folder)) == 2
    assert counted(store) == every(3)
    remove_leftovers(store.storage, store.folder)
    assert (store.folder / "runs/part-b001.parquet").exists()
    assert not (store.folder / "runs/part-b000.parquet").exists()
    with stores.connect(store.root) as connection:
        values = connection.execute("select distinct run_id, value from metrics").fetchall()
    assert sorted(values) == [("run-b000", 1.0), ("run-b001", 2.0), ("run-b002", 1.0)]


def test_merging_keeps_the_metrics_of_the_latest_attempt(store: SuiteStore) -> None:
    store.write_part("old", *tables("run", value=1.0))
    store.write_part("new", *tables("run", hour=1, value=2.0))
    store.compact(at_least=2)
    assert counted(store) == every(1)
    assert set(metrics_of(store)) == {2.0}


def metrics_of(store: SuiteStore) -> list[float]:
    with stores.connect(store.root) as connection:
        return [row[0] for row in connection.execute("select value from metrics").fetchall()]


def test_parts_are_merged_level_by_level(
    store: SuiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "FAN_IN", 4)
    before = fill(store, 9)  # of an earlier command
    with Compactor(store, grace=0.0) as compactor:
        for name in fill(store, 12, first=len(before)):
            compactor.add(name)
    names = sorted(path.name for path in listed(store.folder))
    assert [name.split("-")[1:3] for name in names[:2]] == [["all", "1"], ["all", "2"]]
    assert names[2:] == ["part-b020.parquet"]
    assert sorted(path.name for path in (store.folder / "runs").iterdir()) == names
    assert sorted(path.name for path in (store.folder / "metrics").iterdir()) == names
    assert counted(store) == every(21)


def test_only_batches_that_have_ended_are_merged(
    store: SuiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "FAN_IN", 2)
    with Compactor(store, grace=0.0) as compactor:
        names = fill(store, 3)
        compactor.add(names[0])
        compactor.add(names[2])
    assert store.read_part(names[1]) is not None, "a batch goes on from its own part"
    assert store.read_part(names[0]) is None
    assert counted(store) == every(3)


def test_an_interruption_waits_for_no_more_merges(
    store: SuiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "FAN_IN", 2)
    with pytest.raises(KeyboardInterrupt), Compactor(store) as compactor:
        for name in fill(store, 4):
            compactor.add(name)
        raise KeyboardInterrupt
    assert counted(store) == every(4)


def test_a_failure_costs_nothing_but_speed(
    store: SuiteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> Path:
        raise OSError("no space left on device")

    monkeypatch.setattr(compaction, "FAN_IN", 2)
    monkeypatch.setattr(compaction, "merge", full)
    with Compactor(store) as compactor:
        for name in fill(store, 4):
            compactor.add(name)
    assert "no space left on device" in caplog.text
    assert counted(store) == every(4)


WRITER = """
import sys
from pathlib import Path
from raybench import compaction
from raybench.compaction import Compactor
from raybench.store import SuiteStore
from tests.test_compaction import fill

compaction.FAN_IN, compaction._LAST_GRACE = 3, 0.0
store = SuiteStore(Path(sys.argv[1]), "tiny")
with Compactor(store, grace=0.0) as compactor:
    for index in range(60):
        compactor.add(fill(store, 1, first=index)[0])
        print(index + 1, flush=True)
"""


def test_a_store_is_read_while_another_process_writes_and_merges(store: SuiteStore) -> None:
    # Without any grace, so that what a reader has listed is often gone when it is read.
    every_run = [{"run_id": f"run-b{index:03}", "skipped": ""} for index in range(60)]
    store.write_plan("laptop", every_run)
    command = [sys.executable, "-c", WRITER, str(store.root)]
    root = Path(__file__).parents[1]
    written = 0
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            written = int(line)
            if written % 6 == 0:
                assert len(store.statuses()) >= written, "no run is lost"
                rows = raybench.table(store.root, "tiny", "metrics")
                assert not rows.duplicated(["run_id", "step"]).any(), "no run is seen twice"
                assert rows["run_id"].nunique() >= written
                assert len(rows) == EVALUATIONS * rows["run_id"].nunique()
        assert writer.wait(timeout=120) == 0
    assert written == 60
    assert counted(store) == every(60)
    assert len(listed(store.folder)) < 12
