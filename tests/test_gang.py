"""Runs of several ranks on Ray: the numbers of one process, whatever is killed on the way.

One local Ray of two cores serves the module, so a run of two ranks needs all of it. Only processes
that descend from this one are ever ended.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raybench import store as results
from raybench import tables, usercode
from raybench.cluster import connect
from raybench.errors import UnavailableError
from raybench.local import LocalExecutor
from raybench.progress import Progress
from raybench.rounds import Executor
from raybench.session import Outcome, Session
from raybench.suite import Suite, load, parse

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# It takes its time, so that there is some to end a process in. By its rate it fails, or ends its
# process itself.
CODE = '''\
import os
import time

import torch


class Patient(torch.optim.SGD):
    """A slow optimizer."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr, momentum=0.9)

    def step(self, closure=None):
        if self.param_groups[0]["lr"] > 2:
            os.kill(os.getpid(), 9)
        if self.param_groups[0]["lr"] > 1:
            raise ValueError("this rate is too high")
        time.sleep(0.05)
        return super().step(closure)
'''
SUITE = """\
version: 1
name: gang
base:
  procedure: train
  dtype: float64
  data: {name: digits, layout: image, train: 64, valid: 0, test: 32}
  optimizer: {name: momentum, lr: 0.01}
  steps: 50it
  batch_size: 8
  record: {at: {every: 1it}, on: [train, test]}
sweep:
  - cases:
      small:
        data.layout: flat
        model: {name: mlp}
        sweep: [{model.width: [4, 6]}]
        resources: {lanes: 4, batch: 4}
      large:
        model: {name: resnet18k, width: 8}
        resources: {ranks: 2}
    as: size
seeds: {count: 1}
checkpoint: {every: 10it}
"""


class Watch:
    def __init__(self) -> None:
        self.seen: list[Progress] = []

    def begin(self, phase: str, total: int, finished: int, to_do: int) -> None:
        pass

    def update(self, progress: Progress) -> None:
        self.seen.append(progress)


class Kept:
    """An executor that a session does not close."""

    def __init__(self, executor: Executor) -> None:
        self.slots, self.run = executor.slots, executor.run

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def on_ray() -> Iterator[Executor]:
    executor = connect(cpus=2)
    yield Kept(executor)
    executor.close()


@pytest.fixture(scope="module", autouse=True)
def code(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp("code") / "patient.py"
    file.write_text(CODE)
    before = dict(tables.FILES)
    usercode.allow(file)
    yield
    tables.FILES.clear()
    tables.FILES.update(before)


def suite(overrides: Mapping[str, Any] | None = None) -> Suite:
    return load(parse(SUITE, "gang.yaml"), None, overrides)


def carried_out(
    root: Path,
    executor: Executor,
    overrides: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> Outcome:
    return Session(suite(overrides), root, lambda: executor, watch or Watch()).run()


def curves(root: Path) -> pd.DataFrame:
    frame = results.table(root, name="metrics").astype({"run_id": str, "split": str, "metric": str})
    keys = ["run_id", "step", "split", "metric"]
    assert not frame.duplicated(keys).any()
    return frame.sort_values(keys).reset_index(drop=True)


def checkpoints(root: Path) -> list[Path]:
    return sorted((root / "gang" / "checkpoints").glob("*/step-*.pt"))


ALONE = {"resources.ranks": 1}
LARGE = {"sweep": [{"cases": {"large": {"resources": {"ranks": 2}}}, "as": "size"}]}
RESNET = {**LARGE, "model": {"name": "resnet18k", "width": 8}}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one")
    carried_out(root, LocalExecutor(), ALONE)
    return root


def test_resnet_follows_one_process_beside_fused_runs(
    on_ray: Executor, one_process: Path, tmp_path: Path
) -> None:
    watch = Watch()
    outcome = carried_out(tmp_path, on_ray, watch=watch)
    assert outcome.statuses == {"done": 3}
    assert sum(progress.statuses.total() for progress in watch.seen) == 3
    assert watch.seen[-1].share == pytest.approx(1.0)
    runs = results.table(tmp_path)
    assert dict(zip(runs["label.size"], runs["ranks"], strict=True)) == {"small": 1, "large": 2}
    pd.testing.assert_frame_equal(curves(tmp_path), curves(one_process), rtol=0, atol=1e-5)
    small = set(runs["run_id"][runs["label.size"] == "small"])
    again, whole = (
        frame[frame["run_id"].isin(small)] for frame in (curves(tmp_path), curves(one_process))
    )
    pd.testing.assert_frame_equal(again, whole, check_exact=True)


def test_resnet_follows_one_process_alone(
    on_ray: Executor, one_process: Path, tmp_path: Path
) -> None:
    assert carried_out(tmp_path, on_ray, RESNET).statuses == {"done": 1}
    alone, whole = curves(tmp_path), curves(one_process)
    assert set(alone["step"]) == set(range(51))
    whole = whole[whole["run_id"].isin(alone["run_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, whole, rtol=0, atol=1e-5)


def test_a_killed_rank_takes_nothing_with_it(on_ray: Executor, tmp_path: Path) -> None:
    overrides = {
        **LARGE,
        "model": {"name": "mlp", "width": 5},
        "optimizer": {"name": "patient:Patient"},
        "optimizer.lr": 0.05,
        "checkpoint": {"every": "5it", "keep": 1},
    }
    carried_out(tmp_path / "whole", LocalExecutor(), {**overrides, **ALONE})
    killed: list[int] = []

    def kill() -> None:
        while not checkpoints(tmp_path / "broken"):
            time.sleep(0.05)
        time.sleep(0.4)
        killed.append(_worker())
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    outcome = carried_out(tmp_path / "broken", on_ray, overrides)
    thread.join()
    assert killed
    assert outcome.statuses == {"done": 1}
    pd.testing.assert_frame_equal(
        curves(tmp_path / "broken"), curves(tmp_path / "whole"), rtol=0, atol=1e-10
    )
    assert set(curves(tmp_path / "broken")["step"]) == set(range(51))
    assert not checkpoints(tmp_path / "broken")


def test_a_run_that_fails_or_kills_its_ranks_is_a_row(on_ray: Executor, tmp_path: Path) -> None:
    overrides = {
        **LARGE,
        "model": {"name": "mlp", "width": 5},
        "optimizer.name": "patient:Patient",
        "steps": "25it",
        "sweep": [
            {"optimizer.lr": [0.05, 1.5, 2.5]},
            {"cases": {"large": {"resources": {"ranks": 2}}}, "as": "size"},
        ],
        "resources.retries": 1,
    }
    assert carried_out(tmp_path, on_ray, overrides).statuses == {"done": 1, "failed": 2}
    assert set(results.table(tmp_path)["ranks"].dropna()) == {2}
    reasons = results.table(tmp_path).set_index("config.optimizer.lr")["reason"]
    assert reasons[1.5].startswith("ValueError: this rate is too high")
    assert reasons[2.5].startswith("quarantined after 2 tries: the worker process of rank")


def test_more_ranks_than_cores_are_refused(on_ray: Executor, tmp_path: Path) -> None:
    with pytest.raises(
        UnavailableError, match="room for 2 of the 3 ranks of a batch: each needs 1 CPU"
    ):
        carried_out(tmp_path, on_ray, {**RESNET, "resources.ranks": 3})


def _worker() -> int:
    """Return the process of a rank: a worker of Ray Train that descends from this process."""
    parents: dict[int, int] = {}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        parents[int(folder.name)] = int(fields[1])
        if "RayTrainWorker" in title:
            found.append(int(folder.name))

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid > 1 and ours(parents.get(pid, 0)))

    return max(pid for pid in found if ours(pid))
