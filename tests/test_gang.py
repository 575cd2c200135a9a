"""Runs of several ranks on Ray: the numbers of one process, whatever is killed on the way.

One local Ray of two cores serves the module, so a run of two ranks needs all of it. Only processes
that descend from this one are ever ended.
"""

from __future__ import annotations

import os
import random
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

# It takes its time, so that there is some to end a process in. By its rate it fails, hangs on one
# of the ranks, or ends that one's process.
CODE = '''\
import os
import time

import torch
import torch.distributed as dist


class Patient(torch.optim.SGD):
    """A slow optimizer."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr, momentum=0.9)

    def step(self, closure=None):
        lr = self.param_groups[0]["lr"]
        if 1 < lr < 2:
            raise ValueError("this rate is too high")
        if 2 < lr < 3 and dist.get_rank() == 1:
            os.kill(os.getpid(), 9)
        if 3 < lr and dist.get_rank() == 1:
            time.sleep(1000)
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


@pytest.mark.parametrize("shard", ["none", "full"])
def test_resnet_follows_one_process_alone(
    shard: str, on_ray: Executor, one_process: Path, tmp_path: Path
) -> None:
    divided = {**RESNET, "resources.shard": shard}
    assert carried_out(tmp_path, on_ray, divided).statuses == {"done": 1}
    alone, whole = curves(tmp_path), curves(one_process)
    assert set(alone["step"]) == set(range(51))
    whole = whole[whole["run_id"].isin(alone["run_id"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, whole, rtol=0, atol=1e-5)


KILLED = {
    **LARGE,
    "model": {"name": "mlp", "width": 5},
    "optimizer": {"name": "patient:Patient"},
    "optimizer.lr": 0.05,
    "checkpoint": {"every": "5it", "keep": 1},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    carried_out(root, LocalExecutor(), {**KILLED, **ALONE})
    return root


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_rank_takes_nothing_with_it(
    seed: int, on_ray: Executor, undisturbed: Path, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    step, later, which = 5 * chance.randint(0, 7), chance.uniform(0, 0.3), chance.randint(0, 1)
    killed: list[int] = []

    def kill() -> None:
        while not journals(tmp_path) or _step(tmp_path) < step:
            time.sleep(0.02)
        time.sleep(later)
        killed.append(_workers()[which])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    watch = Watch()
    outcome = carried_out(tmp_path, on_ray, KILLED, watch)
    thread.join()
    assert killed
    assert len(broken(watch)) == 1
    assert outcome.statuses == {"done": 1}
    pd.testing.assert_frame_equal(curves(tmp_path), curves(undisturbed), rtol=0, atol=1e-10)
    assert set(curves(tmp_path)["step"]) == set(range(51))
    assert not checkpoints(tmp_path)


def by_rate(*lr: float) -> dict[str, Any]:
    """Return a suite whose runs of two ranks are one batch."""
    return {
        "model": KILLED["model"],
        "optimizer.name": "patient:Patient",
        "steps": "25it",
        "sweep": [{"optimizer.lr": list(lr)}],
        "resources": {"ranks": 2, "retries": 1, "batch": len(lr)},
    }


def reasons(root: Path) -> pd.Series:
    return results.table(root).set_index("config.optimizer.lr")["reason"]


def test_a_run_that_fails_or_kills_a_rank_is_a_row(on_ray: Executor, tmp_path: Path) -> None:
    outcome = carried_out(tmp_path, on_ray, by_rate(2.5, 0.05, 1.5))
    assert outcome.statuses == {"done": 1, "failed": 2}
    assert set(results.table(tmp_path)["ranks"].dropna()) == {2}
    assert reasons(tmp_path)[1.5].startswith("ValueError: this rate is too high")
    assert reasons(tmp_path)[2.5].startswith("quarantined after 2 tries: ")


def test_a_rank_that_hangs_is_tried_once(on_ray: Executor, tmp_path: Path) -> None:
    watch = Watch()
    overrides = {**by_rate(0.05, 3.5, 0.06), "limits.wall_s": 20}
    assert carried_out(tmp_path, on_ray, overrides, watch).statuses == {"done": 2, "failed": 1}
    assert reasons(tmp_path)[3.5] == "wall limit: still going after 20 s (limits.wall_s)"
    assert len(broken(watch)) == 1
    log = results.table(tmp_path).set_index("config.optimizer.lr")["log"][3.5]
    assert "distributed_c10d.py" in log  # where the first rank waited for the other


def test_more_ranks_than_cores_are_refused(on_ray: Executor, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="each of the 3 ranks of a batch needs 1 CPU"):
        carried_out(tmp_path, on_ray, {**RESNET, "resources.ranks": 3})


def broken(watch: Watch) -> list[Progress]:
    """Return how batches broke that were tried again."""
    return [each for each in watch.seen if each.reasons and not each.statuses]


def journals(root: Path) -> list[Path]:
    return list((root / "gang" / "journal").glob("*/*.jsonl"))


def _step(root: Path) -> int:
    """Return how far the checkpoints go."""
    return max((int(path.stem.removeprefix("step-")) for path in checkpoints(root)), default=0)


def _workers() -> list[int]:
    """Return the processes of the ranks: workers of Ray Train that descend from this process."""
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

    return sorted(pid for pid in found if ours(pid))
