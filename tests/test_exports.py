"""Exports, read again by what would read them: every value of every curve is there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raybench import store as results
from raybench.errors import MissingError
from raybench.exports import export, exported
from raybench.local import LocalExecutor
from raybench.session import Session
from raybench.suite import load, parse

SUITE = """\
version: 1
name: tiny
base:
  procedure: train
  data: {name: digits, train: 60, valid: 20, test: 40}
  model: {name: mlp, width: 5}
  optimizer: {name: sgd, lr: 0.05}
  steps: 8it
  batch_size: 16
  record: {at: {linear: 4}}
sweep:
  - cases: {slow: {optimizer.lr: 0.01}, fast: {optimizer.lr: 0.1}}
seeds: 2
"""


class Quiet:
    def begin(self, phase: str, total: int, finished: int, to_do: int) -> None:
        pass

    def update(self, progress: Any) -> None:
        pass


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exports")
    Session(load(parse(SUITE, "tiny.yaml")), root, LocalExecutor, Quiet()).run()
    return root


@pytest.fixture(scope="module")
def curves(store: Path) -> dict[tuple[str, str, int], float]:
    rows = results.table(store, "tiny", "metrics")
    tags = rows["split"].astype(str) + "/" + rows["metric"].astype(str)
    return dict(
        zip(zip(rows["run_id"], tags, rows["step"], strict=True), rows["value"], strict=True)
    )


def test_a_run_takes_its_configuration_labels_and_history_along(
    store: Path, curves: dict[tuple[str, str, int], float]
) -> None:
    runs = [run for run, total in exported(store, "tiny") if total == 4]
    assert len(runs) == 4
    found = {
        (run.run_id, tag, step): value
        for run in runs
        for step, _, values in run.history
        for tag, value in values.items()
    }
    assert found == curves
    assert {run.hyper["label.case"] for run in runs} == {"slow", "fast"}
    rates = {run.hyper["label.case"]: run.hyper["config.optimizer.lr"] for run in runs}
    assert rates == {"slow": 0.01, "fast": 0.1}
    assert all(run.summary["test.loss"] > 0 and run.began > 0 for run in runs)


def test_tensorboard_has_every_point(
    store: Path, curves: dict[tuple[str, str, int], float], tmp_path: Path
) -> None:
    from tensorboardX.proto.event_pb2 import Event

    for _ in range(2):  # again replaces what is there
        assert export("tensorboard", store, str(tmp_path)) == 4
    found: dict[tuple[str, str, int], list[float]] = {}
    hyper: set[str] = set()
    for file in tmp_path.glob("tiny/*/events.out.tfevents.*"):
        for record in records(file):
            event = Event.FromString(record)
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "hparams":
                    hyper.add(file.parent.name)
                elif not value.tag.startswith(("summary/", "epoch")):
                    key = (file.parent.name, value.tag, event.step)
                    found.setdefault(key, []).append(value.simple_value)
    assert hyper == {key[0] for key in curves}
    assert {key: len(values) for key, values in found.items()} == dict.fromkeys(curves, 1)
    for key, values in found.items():
        assert values == pytest.approx([curves[key]], rel=1e-6, nan_ok=True)


def records(file: Path) -> list[bytes]:
    """The records of an event file: length, checksum, bytes, checksum."""
    rest, found = file.read_bytes(), []
    while rest:
        length = int.from_bytes(rest[:8], "little")
        found.append(rest[12 : 12 + length])
        rest = rest[16 + length :]
    return found


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_mlflow_has_every_point(
    store: Path, curves: dict[tuple[str, str, int], float], tmp_path: Path
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    for _ in range(2):
        assert export("mlflow", store, str(tmp_path)) == 4
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny").experiment_id
    made = {run.data.tags["raybench.run_id"]: run for run in client.search_runs([experiment])}
    assert set(made) == {run_id for run_id, _, _ in curves}
    for run_id, run in made.items():
        assert run.data.params["config.optimizer.lr"] in ("0.01", "0.1")
        for tag in {t for r, t, _ in curves if r == run_id}:
            found = {m.step: m.value for m in client.get_metric_history(run.info.run_id, tag)}
            assert found == {s: v for (r, t, s), v in curves.items() if (r, t) == (run_id, tag)}


@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_runs_without_a_network(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert export("wandb", store, str(tmp_path)) == 4
    ids = {run.run_id for run, _ in exported(store, "tiny")}
    files = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert {file.stem.removeprefix("run-") for file in files} == ids
    assert all(b"test/loss" in file.read_bytes() for file in files)


@pytest.mark.parametrize(
    ("kind", "module"),
    [("tensorboard", "tensorboardX"), ("wandb", "wandb"), ("mlflow", "mlflow.entities")],
)
def test_a_library_that_is_not_there_is_named(
    kind: str, module: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingError, match="pip install") as said:
        export(kind, store, str(tmp_path))
    assert said.value.exit_code == 7


def test_a_curve_without_rows_is_empty(store: Path) -> None:
    from raybench.exports.runs import _history

    assert _history(None) == []
    rows = pd.DataFrame(
        {"step": [4, 0, 4], "epoch": [1.0, 0.0, 1.0], "split": ["train"] * 3,
         "metric": ["loss", "loss", "error"], "value": [1.0, 2.0, 3.0]}
    )  # fmt: skip
    assert _history(rows) == [
        (0, 0.0, {"train/loss": 2.0}),
        (4, 1.0, {"train/loss": 1.0, "train/error": 3.0}),
    ]
