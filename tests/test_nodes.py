"""Several nodes: what is lost with one of them is done elsewhere, and tables do not change.

The cluster (tests/cluster/nodes.py) and the driver are processes of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

import raybench
from raybench import store as results
from tests.test_storage import Server

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SUITE = """\
version: 1
name: many
base:
  procedure: train
  dtype: float64
  data: {name: teacher_student, dim: 4, train: 16, valid: 0, test: 8}
  model: {name: mlp, width: 2}
  optimizer: {name: sgd, lr: 0.1}
  steps: 20it
  batch_size: 8
sweep: [{optimizer.lr: [0.01, 0.02, 0.03, 0.04]}]
seeds: 500
resources: {lanes: 5, batch: 25}
"""
# It takes its time, so that there is some to lose a node in.
SLOW = '''\
import time

import torch


class Slow(torch.optim.SGD):
    """A slow optimizer."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr, momentum=0.9)

    def step(self, closure=None):
        time.sleep(0.05)
        return super().step(closure)
'''
SHARED = """\
version: 1
name: many
base:
  procedure: train
  dtype: float64
  data: {name: teacher_student, dim: 4, train: 16, valid: 0, test: 8}
  model: {name: mlp, width: 2}
  optimizer: {name: "slow:Slow", lr: 0.01}
  steps: 60it
  batch_size: 8
  record: {at: {every: 1it}, on: [train, test]}
sweep: [{optimizer.lr: [0.01, 0.02, 0.03, 0.04]}]
resources: {ranks: 2, lanes: 1, batch: 16, retries: 0}
checkpoint: {every: 5it}
"""


RUN = [sys.executable, "-m", "raybench", "run", "many.yaml", "--allow-code", "slow.py"]


class Nodes:
    """A cluster, and drivers on it, which have `more` in their environment."""

    def __init__(self, folder: Path, **more: str) -> None:
        (folder / "ray").mkdir()
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RAYBENCH_"))}
        self.env = {
            **clean,
            "HOME": str(folder),
            "RAY_TMPDIR": str(folder),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
            **more,
        }
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "cluster" / "nodes.py"), str(folder)],
            env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.address = self._answer()

    def __call__(self, *words: object) -> Any:
        assert self._process.stdin is not None
        print(*words, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=120)

    def run(
        self, folder: Path, *words: str, suite: str = SUITE, **more: str
    ) -> subprocess.Popen[str]:
        (folder / "many.yaml").write_text(suite)
        (folder / "slow.py").write_text(SLOW)
        command = [*RUN, *words]
        return subprocess.Popen(
            [*command, "--address", self.address], cwd=folder, env={**self.env, **more},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


@contextlib.contextmanager
def started(**more: str) -> Iterator[Nodes]:
    folder = Path(tempfile.mkdtemp(prefix="rb-"))
    made = Nodes(folder, **more)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with started() as made:
        yield made


def stored(root: Path) -> list[str]:
    parts = (root / "many" / "runs").glob("part-*.parquet")
    return [run for part in parts for run in pq.read_table(part)["run_id"].to_pylist()]


def metrics(root: Path) -> pd.DataFrame:
    keys = ["run_id", "split", "metric"]
    frame = results.table(root, "many", "metrics").astype(dict.fromkeys(keys, str))
    return frame.sort_values([*keys, "step"]).reset_index(drop=True)


def until(count: int, driver: subprocess.Popen[str], root: Path) -> None:
    """Wait until so many runs have been stored, in the middle of a suite."""
    while driver.poll() is None and len(set(stored(root))) < count:
        time.sleep(0.2)
    assert driver.poll() is None


def as_if_undisturbed(folder: Path, seeds: int) -> None:
    frame = results.table(folder / "results", "many")
    assert len(frame) == frame["run_id"].nunique() == 4 * seeds
    assert set(frame["status"]) == {"done"}
    # Nor in the parts, of which the table shows the latest: what is lost has not been stored.
    assert len(stored(folder / "results")) == 4 * seeds
    (folder / "alone").mkdir()
    shutil.copy(folder / "many.yaml", folder / "alone")
    command = [
        sys.executable,
        "-m",
        "raybench",
        "run",
        "many.yaml",
        "--in-process",
        f"seeds={seeds}",
    ]
    subprocess.run(command, cwd=folder / "alone", check=True, capture_output=True)
    there = metrics(folder / "alone" / "results")
    pd.testing.assert_frame_equal(metrics(folder / "results"), there, check_exact=True)


SAYS = {"kill": "died with its node", "drain": "the node is being taken away"}


@pytest.mark.parametrize(
    ("loss", "seeds", "chance"),
    [("kill", 500, 0), ("drain", 100, 3)],
)
def test_a_lost_node_is_made_up_for(
    loss: str, seeds: int, chance: int, nodes: Nodes, tmp_path: Path
) -> None:
    says, drawn = SAYS[loss], random.Random(chance)
    for _ in range(2):
        nodes("add", 1)
    driver = nodes.run(tmp_path, f"seeds={seeds}")
    # Both nodes work at any of these moments: a batch is 25 runs, and there are four a seed.
    until(drawn.randrange(25, 3 * seeds), driver, tmp_path / "results")
    nodes(loss, drawn.randrange(2))
    said, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    assert says in said, said
    as_if_undisturbed(tmp_path, seeds)


@pytest.mark.parametrize("chance", range(2))
def test_a_lost_head_costs_the_cluster_and_no_run(
    chance: int, nodes: Nodes, tmp_path: Path
) -> None:
    nodes("add", 2)
    driver = nodes.run(tmp_path, "seeds=100")
    moment = random.Random(chance).randrange(10, 200)
    until(moment, driver, tmp_path / "results")
    nodes("behead")
    said, _ = driver.communicate(timeout=180)
    assert driver.returncode != 0, said  # Ray itself ends the process
    before = set(stored(tmp_path / "results"))
    assert moment <= len(before) < 400
    with started() as others:
        others("add", 2)
        again = others.run(tmp_path, "seeds=100")
        said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert f"{400 - len(before)} runs carried out; in all 400 done" in said
    as_if_undisturbed(tmp_path, 100)


def test_a_batch_waits_for_the_node_that_it_needs(nodes: Nodes, tmp_path: Path) -> None:
    nodes("add", 1)
    driver = nodes.run(tmp_path, "resources.custom={gadget: 1}", "seeds=5")
    while driver.poll() is None and not nodes("demand"):
        time.sleep(0.2)
    assert {"CPU": 1.0, "gadget": 1.0} in nodes("demand")
    waits = tmp_path / "results" / "many" / "journal"
    while driver.poll() is None and not list(waits.glob("*/waiting")):
        time.sleep(0.2)
    nodes("add", 1, "gadget=1")
    said, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, said
    assert "a batch needs 1 CPU + 1 gadget on one node" in said
    assert "no node has it" in said
    assert len(results.table(tmp_path / "results", "many")) == 20


# Runs of several ranks.


def as_if_in_one_process(folder: Path, count: int, *words: str) -> None:
    frame = results.table(folder / "results", "many")
    assert len(frame) == frame["run_id"].nunique() == len(stored(folder / "results")) == count
    assert set(frame["status"]) == {"done"}
    assert set(frame["ranks"]) == {2}
    command = [*RUN, "-o", "alone", "--in-process", "resources.ranks=1", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    there = metrics(folder / "alone")
    pd.testing.assert_frame_equal(metrics(folder / "results"), there, rtol=0, atol=1e-10)


def test_ranks_that_lose_a_node_go_on_elsewhere(nodes: Nodes, tmp_path: Path) -> None:
    chance = random.Random(1)
    for _ in range(3):
        nodes("add", 1)
    driver = nodes.run(tmp_path, suite=SHARED)
    saved = tmp_path / "results" / "many" / "checkpoints"
    while driver.poll() is None and not list(saved.glob("*/step-*.pt")):
        time.sleep(0.1)
    time.sleep(chance.uniform(0, 6))
    assert driver.poll() is None
    used = nodes("used")
    assert len(used) == 2
    nodes("kill", chance.choice(used))
    said, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    assert "died with its node" in said, said
    as_if_in_one_process(tmp_path, 4)


def test_ranks_leave_a_node_that_will_be_gone(nodes: Nodes, tmp_path: Path) -> None:
    for _ in range(3):
        nodes("add", 1)
    driver = nodes.run(tmp_path, "seeds=2", suite=SHARED)
    until(1, driver, tmp_path / "results")
    nodes("drain", nodes("used")[0])
    said, _ = driver.communicate(timeout=600)
    assert driver.returncode == 0, said
    assert "the node of a rank is being taken away" in said, said
    as_if_in_one_process(tmp_path, 8, "seeds=2")


def test_ranks_wait_for_the_nodes_that_they_need(nodes: Nodes, tmp_path: Path) -> None:
    nodes("add", 1)
    driver = nodes.run(
        tmp_path,
        "sweep=[{cases: {one: {model.width: 3, resources: {ranks: 1}}, two: {}}, as: size}]",
        "seeds=4",
        suite=SHARED,
    )

    def until_it(holds: Callable[[], bool]) -> None:
        while driver.poll() is None and not holds():
            time.sleep(0.2)
        assert driver.poll() is None, driver.communicate()

    waits = tmp_path / "results" / "many" / "journal"
    until_it(lambda: nodes("demand").count({"CPU": 1.0}) == 2)
    until(4, driver, tmp_path / "results")  # all that one process can do
    until_it(lambda: bool(list(waits.glob("*/waiting"))))
    asked = [sys.executable, "-m", "raybench", "status", "results"]
    told = subprocess.run(asked, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "each of the 2 ranks of a batch needs 1 CPU on one node" in told.stdout
    assert "which is room for 1 (too few nodes have it)" in told.stdout
    nodes("add", 1)
    until_it(lambda: not list(waits.glob("*/waiting")))
    said, _ = driver.communicate(timeout=200)
    assert driver.returncode == 0, said
    assert "waiting for a node: each of the 2 ranks" in said
    frame = results.table(tmp_path / "results", "many")
    assert dict(frame["ranks"].value_counts()) == {1: 4, 2: 4}
    assert set(frame["status"]) == {"done"}


# A driver that shares neither its folders nor its code with the nodes.

CRASH = """\
import ctypes

import torch


class Crash(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)

    def step(self, closure=None):
        if self.param_groups[0]["lr"] == 0.03:
            ctypes.string_at(0)
        return super().step(closure)
"""


@contextlib.contextmanager
def bucket() -> Iterator[tuple[str, dict[str, str]]]:
    """Give the URL of a store in a bucket of its own, and the environment that opens it."""
    server = Server()
    known = {
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://{server.address}",
    }
    try:
        fs.S3FileSystem(
            endpoint_override=server.address, scheme="http", allow_bucket_creation=True,
            access_key="tester", secret_key="secret", request_timeout=60,
        ).create_dir("shared")  # fmt: skip
        yield "s3://shared/results", known
    finally:
        server.close()


def test_why_a_worker_crashed_is_told_on_other_machines(tmp_path: Path) -> None:
    with bucket() as (url, known), started(**known, RAYBENCH_CACHE=str(tmp_path / "far")) as nodes:
        nodes("add", 1)
        (tmp_path / "crash.py").write_text(CRASH)
        words = ["optimizer.name=crash:Crash", "--allow-code", "crash.py", "resources.retries=0"]
        near = {"RAYBENCH_CACHE": str(tmp_path / "near")}
        driver = nodes.run(tmp_path, *words, "seeds=1", "-o", url, **near)
        said, _ = driver.communicate(timeout=240)
        assert driver.returncode == 1, said
        elsewhere = {**nodes.env, "RAYBENCH_CACHE": str(tmp_path / "elsewhere")}

        def ask(*words: str) -> str:
            command = [sys.executable, "-m", "raybench", *words]
            return subprocess.run(
                command, env=elsewhere, check=True, capture_output=True, text=True
            ).stdout

        (row,) = json.loads(ask("runs", "ls", url, "--where", "status = 'failed'", "--json"))
        logs = ask("runs", "logs", row["run_id"], url)
    assert "quarantined after 1 try: the process crashed: Segmentation fault" in said
    assert "Fatal Python error: Segmentation fault" in logs
    assert "string_at" in logs, "where it crashed"


@pytest.mark.parametrize("travels", [True, False])
def test_the_package_of_the_driver_goes_to_the_nodes(
    travels: bool, nodes: Nodes, tmp_path: Path
) -> None:
    nodes("add", 1)
    place = tmp_path / "changed" / "raybench"
    shutil.copytree(Path(raybench.__file__).parent, place)
    family = place / "optim" / "sgd.py"
    before = family.read_text()
    after = before.replace("class SGD(Optimizer):\n", "class SGD(Optimizer):\n    revision = 2\n")
    assert after != before
    family.write_text(after)
    work = tmp_path / "work"
    work.mkdir()
    other = {"PYTHONPATH": str(place.parent)}
    if not travels:
        other["RAY_JOB_CONFIG_JSON_ENV_VAR"] = "{}"  # as where it has travelled with a job
    driver = nodes.run(work, "seeds=2", "resources.retries=0", **other)
    said, _ = driver.communicate(timeout=240)
    frame = results.table(work / "results", "many")
    if travels:
        assert driver.returncode == 0, said
        assert set(frame["status"]) == {"done"}
        assert len(frame) == 8
    else:
        assert driver.returncode == 1, said
        assert set(frame["status"]) == {"failed"}
        assert "the worker has other versions of raybench" in said
