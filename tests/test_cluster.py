"""Ray changes nothing but the time: equal tables, and every run there whatever is killed.

One local Ray serves the module. Only processes that descend from this one are ever ended.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from raybench import store as results
from raybench.cluster import connect
from raybench.errors import UnavailableError
from raybench.local import LocalExecutor
from raybench.optim import OPTIMIZERS
from raybench.plan import Batch, distinct
from raybench.progress import Progress
from raybench.session import Climber, Executor, Outcome, Session
from raybench.store import SuiteStore
from raybench.suite import Suite, load, parse
from raybench.work import run_batch

pytestmark = pytest.mark.ray

COMMAND = Path(sys.executable).parent / "raybench"
INTERRUPTIBLE = [
    sys.executable,
    "-c",
    "import os, signal, sys\n"
    "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    "os.execv(sys.argv[1], sys.argv[1:])",
]
"""Before a command that is to hear of SIGINT: a shell's background jobs are started deaf to it."""
SUITE = """\
version: 1
name: both
base:
  procedure: train
  dtype: float64
  data: {name: digits, train: 60, valid: 20, test: 40}
  model: {name: mlp, width: 5}
  optimizer: {name: momentum, lr: 0.05}
  steps: 15it
  batch_size: 16
  record: {at: {linear: 3}}
sweep:
  - cases:
      clean: {data.label_noise: 0.0}
      noisy: {data.label_noise: 0.2}
    as: labels
  - model.width: [4, 6]
seeds: 5
"""
# Optimizers of a third party: one takes its time, the other ends its process above a rate of 1.
PLUGIN = """\
import os
import time

import torch


class Slow(torch.optim.SGD):
    def __init__(self, params, lr=0.1, nap: float = 0.02):
        super().__init__(params, lr=lr)
        self.nap = nap

    def step(self, closure=None):
        time.sleep(self.nap)
        return super().step(closure)


class Deadly(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)

    def step(self, closure=None):
        if self.param_groups[0]["lr"] > 1:
            os.kill(os.getpid(), 9)
        return super().step(closure)
"""
SLOW = {
    "optimizer.name": "slow",
    "optimizer.nap": 0.02,
    "resources.lanes": 1,
    "resources.batch": 5,
}


class Watch:
    """A watcher that passes progress on."""

    def __init__(self, then: Callable[[Progress], None] = lambda progress: None) -> None:
        self.update = then

    def begin(self, phase: str, total: int, finished: int, to_do: int) -> None:
        pass


def suite(overrides: Mapping[str, Any] | None = None) -> Suite:
    return load(parse(SUITE, "both.yaml"), None, overrides)


def carried_out(
    executor: Executor,
    root: Path,
    overrides: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
) -> Outcome:
    made = suite(overrides)
    # The module's Ray is closed once, at the end.
    kept = _Kept(executor)
    return Session(made, root, lambda: kept, watch or Watch()).run()


class _Kept:
    def __init__(self, executor: Executor) -> None:
        self.slots = executor.slots
        self.run = executor.run
        if isinstance(executor, Climber):
            self.climb = executor.climb

    def close(self) -> None:
        pass


def metrics(root: Path) -> pd.DataFrame:
    frame = results.table(root, "both", "metrics")
    keys = ["run_id", "split", "metric"]
    frame = frame.astype(dict.fromkeys(keys, str))
    return frame.sort_values([*keys, "step"]).reset_index(drop=True)


def stored_ids(root: Path) -> list[str]:
    """The run ids in all parts, repetitions included."""
    parts = sorted((root / "both" / "runs").glob("part-*.parquet"))
    return sorted(run_id for part in parts for run_id in pq.read_table(part)["run_id"].to_pylist())


def ids(overrides: Mapping[str, Any] | None = None) -> list[str]:
    return sorted(planned.run.run_id for planned in distinct(suite(overrides).runs))


# Processes, as /proc has them.


def parents() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text()
                found[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def descendants(ancestor: int) -> dict[int, str]:
    """The command lines of all processes under one, by pid."""
    tree, found = parents(), {}
    for pid in tree:
        above = pid
        while above in tree and above != ancestor:
            above = tree[above]
        if above == ancestor and pid != ancestor:
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[pid] = line.strip()
    return found


def workers(ancestor: int) -> list[int]:
    """The processes in which batches train."""
    return [
        pid for pid, line in descendants(ancestor).items() if line.startswith("ray::BatchTrainable")
    ]


def called(line: str) -> set[int]:
    """The processes with this command line, wherever their parents have gone."""
    found = set()
    for pid in parents():
        with contextlib.suppress(OSError):
            own = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if own.strip() == line:
                found.add(pid)
    return found


def listening(pids: set[int]) -> set[str]:
    """The addresses on which these processes listen, in the hexadecimal of /proc/net."""
    sockets: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets.add(str(descriptor.readlink()))
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].rpartition(":")[0])
    return found


def gone(pids: set[int], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(_alive(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


# Ray, once.


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a distribution that registers the optimizers `slow` and `deadly`."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "slow_and_deadly.py").write_text(PLUGIN)
    info = folder / "slow_and_deadly-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-and-deadly\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(
        "[raybench.optim]\nslow = slow_and_deadly:Slow\ndeadly = slow_and_deadly:Deadly\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder))  # for the workers
        yield folder
    for name in ("slow", "deadly"):
        OPTIMIZERS._classes.pop(name, None)


@pytest.fixture(scope="module")
def on_ray(plugin: Path) -> Iterator[Executor]:
    others = set(descendants(os.getpid()))  # of other tests, such as Python's resource tracker
    executor = connect(cpus=2)
    yield executor
    own = set(descendants(os.getpid())) - others
    folder = executor._folder
    executor.close()
    assert folder is not None
    assert not folder.exists()
    assert gone(own), descendants(os.getpid())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the suite was carried out one run at a time, without Ray."""
    root = tmp_path_factory.mktemp("alone")
    outcome = carried_out(LocalExecutor(), root, {"resources.lanes": 1})
    assert outcome.statuses == {"done": 20}
    return root


@pytest.mark.parametrize(
    "lanes", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 7)), "auto"]
)
def test_ray_gives_what_one_process_gives(
    lanes: Any, on_ray: Executor, alone: Path, tmp_path: Path
) -> None:
    outcome = carried_out(on_ray, tmp_path, {"resources.lanes": lanes})
    assert (outcome.executed, outcome.statuses) == (20, {"done": 20})
    assert stored_ids(tmp_path) == stored_ids(alone) == ids()
    pd.testing.assert_frame_equal(metrics(tmp_path), metrics(alone), check_exact=True)
    keep = ["run_id", "status", "seed", "steps", "num_params", "label.labels"]
    here, there = (
        results.table(root, "both").sort_values("run_id").reset_index(drop=True)
        for root in (tmp_path, alone)
    )
    config = [name for name in here if name.startswith(("config.", "summary."))]
    assert set(here.columns) == set(there.columns)
    pd.testing.assert_frame_equal(here[[*keep, *config]], there[[*keep, *config]])
    assert set(here["label.labels"]) == {"clean", "noisy"}
    assert set(here["engine"]) == {"ray"}
    if lanes == 1:
        assert set(here["lanes"]) == {1}
    elif lanes == 7:
        assert here["lanes"].max() > 1


CLIMBING = """\
tune:
  trials: 7
  halving: {min_steps: 2it, eta: 3, asynchronous: true}
  confirm: {seeds: 1}
search: {optimizer.lr: {log_uniform: [1e-3, 1]}}
"""


def test_asynchronous_halving_stores_each_rung_as_the_run_that_it_is(
    on_ray: Executor, tmp_path: Path
) -> None:
    text = SUITE.partition("sweep:")[0] + CLIMBING
    kept = _Kept(on_ray)
    made = load(parse(text, "both.yaml"))
    outcome = Session(made, tmp_path, lambda: kept, Watch()).run()
    frame = results.table(tmp_path, "both")
    rungs = frame[frame["label.phase"].isin(["rung", "search"])]
    by_rung = {rung: set(own["label.trial"]) for rung, own in rungs.groupby("label.rung")}
    # Rungs of 2, 6 and 15 steps: who went on had been there before, and somebody came to the end.
    assert by_rung[1] == set(range(7))
    assert by_rung[1] > by_rung[2] >= by_rung[3] > set()
    assert dict(rungs.groupby("label.rung")["steps"].max()) == {1: 2, 2: 6, 3: 15}
    assert set(rungs.loc[rungs["label.rung"] < 3, "status"]) == {"stopped"}
    assert set(rungs.loc[rungs["label.rung"] == 3, "status"]) == {"done"}
    last = rungs[rungs["label.rung"] == 3].set_index("label.trial")["summary.valid.loss"]
    assert frame.loc[frame["label.phase"] == "confirm", "label.trial"].tolist() == [last.idxmin()]
    assert outcome.executed == len(frame) == outcome.total
    # Every row is what the same run gives by itself, and none is carried out again.
    ours = frame.set_index("run_id")["summary.test.loss"]
    alone = SuiteStore(tmp_path / "alone", "both")
    batch = Batch("alone", "both", "", tuple(made.runs), made.resources)
    assert [progress.statuses for progress in run_batch(batch, alone, "in-process")]
    assert {run: ours[run] for run in alone.summaries("test.loss")} == alone.summaries("test.loss")
    again = Session(load(parse(text, "both.yaml")), tmp_path, lambda: kept, Watch())
    assert again.run().executed == 0


def test_float32_agrees_within_rounding(on_ray: Executor, tmp_path: Path) -> None:
    single = {"dtype": "float32", "model.width": [6]}
    carried_out(LocalExecutor(), tmp_path / "here", {**single, "resources.lanes": 1})
    carried_out(on_ray, tmp_path / "ray", {**single, "resources.lanes": 7})
    here, there = metrics(tmp_path / "here"), metrics(tmp_path / "ray")
    keys = ["run_id", "split", "metric", "step"]
    assert here[keys].equals(there[keys])
    losses = here["metric"] == "loss"
    assert (here["value"] - there["value"])[losses].abs().max() < 1e-4


def test_it_listens_on_loopback_only(on_ray: Executor) -> None:
    found = listening({os.getpid(), *descendants(os.getpid())})
    assert found
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    assert found <= loopback


def test_its_folder_is_closed_to_others(on_ray: Any) -> None:
    assert on_ray._folder.stat().st_mode & 0o077 == 0


def test_what_the_cluster_lacks_is_said(on_ray: Executor, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"needs 64 CPU on one node; nodes: 1 with 2 CPU"):
        carried_out(on_ray, tmp_path, {"resources.cpu": 64})
    with pytest.raises(UnavailableError, match=r"needs 1 CPU \+ 99 GPU on one node; nodes: 1"):
        carried_out(on_ray, tmp_path, {"resources.gpu": 99})
    with pytest.raises(UnavailableError, match=r"1 with 2 CPU \+ 0 gadget; lower `resources`"):
        carried_out(on_ray, tmp_path, {"resources.custom": {"gadget": 0.5}})


@pytest.fixture(scope="module")
def slow_alone(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the suite was carried out with the slow optimizer, without Ray."""
    root = tmp_path_factory.mktemp("slow")
    carried_out(LocalExecutor(), root, SLOW)
    return root


@pytest.mark.parametrize(
    "chance", [0, *(pytest.param(each, marks=pytest.mark.slow) for each in (1, 2))]
)
def test_a_killed_worker_is_made_up_for(
    chance: int, on_ray: Executor, slow_alone: Path, tmp_path: Path
) -> None:
    drawn = random.Random(chance)
    told = drawn.randrange(1, 4)
    killed: list[int] = []

    def kill_once(progress: Progress) -> None:
        nonlocal told
        told -= 1
        if told == 0:
            time.sleep(drawn.uniform(0, 0.5))
            found = sorted(workers(os.getpid()))
            killed.extend(drawn.sample(found, drawn.randint(1, len(found))))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    slow = {**SLOW, "resources.batch": 10}  # 10 runs of 0.3 s: more than one flush
    outcome = carried_out(on_ray, tmp_path / "store", slow, Watch(kill_once))
    assert killed
    assert outcome.statuses == {"done": 20}
    assert stored_ids(tmp_path / "store") == ids(slow)
    assert gone(set(killed))
    pd.testing.assert_frame_equal(
        metrics(tmp_path / "store"), metrics(slow_alone), check_exact=True
    )


@pytest.mark.slow
def test_a_run_that_kills_its_process_fails_and_the_others_do_not(
    on_ray: Executor, tmp_path: Path, plugin: Path
) -> None:
    overrides = {
        "optimizer.name": "deadly",
        "sweep": [{"cases": {"tame": {"optimizer.lr": 0.1}, "wild": {"optimizer.lr": 2.0}}}],
        "seeds": 3,
        "resources.lanes": 1,
        "resources.batch": 3,
        "resources.retries": 1,
    }
    outcome = carried_out(on_ray, tmp_path, overrides)
    assert outcome.statuses == {"done": 3, "failed": 3}
    frame = results.table(tmp_path, "both").set_index("run_id")
    assert sorted(frame.index) == ids(overrides)
    wild = frame["config.optimizer.lr"] > 1
    assert set(frame[wild]["status"]) == {"failed"}
    assert set(frame[~wild]["status"]) == {"done"}
    assert frame[wild]["reason"].str.contains("process died").all()
    assert (frame[wild]["label.case"] == "wild").all()


# A Ray of another process.


@pytest.fixture
def elsewhere(plugin: Path) -> Iterator[dict[str, str]]:
    """An environment with a home and a folder for temporary files of its own, both short."""
    folder = Path(tempfile.mkdtemp(prefix="rb-"))
    (folder / "tmp").mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAYBENCH_", "RAY_"))}
    yield {**kept, "HOME": str(folder), "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(plugin)}
    shutil.rmtree(folder, ignore_errors=True)


def words(overrides: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in overrides.items()]


def test_nothing_is_left_behind(elsewhere: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "both.yaml").write_text(SUITE)
    done = subprocess.run(
        [COMMAND, "run", "both.yaml", "-j", "1", "seeds=1"],
        cwd=tmp_path,
        env=elsewhere,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "4 done" in done.stdout
    assert stored_ids(tmp_path / "results") == ids({"seeds": 1})
    assert not (Path(elsewhere["HOME"]) / ".ray").exists()
    left = [path.name for path in Path(elsewhere["TMPDIR"]).iterdir()]
    assert not [name for name in left if "ray" in name], left


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "chance"),
    [(signal.SIGKILL, 0), (signal.SIGINT, 2), (signal.SIGTERM, 3)],
)
def test_a_killed_driver_is_made_up_for(
    ending: signal.Signals,
    chance: int,
    elsewhere: dict[str, str],
    slow_alone: Path,
    tmp_path: Path,
) -> None:
    drawn = random.Random(chance)
    moment = drawn.randrange(1, 10)
    (tmp_path / "both.yaml").write_text(SUITE)
    command = [*INTERRUPTIBLE, COMMAND, "run", "both.yaml", "-j", "2", *words(SLOW)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=elsewhere, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as driver:
        while driver.poll() is None and len(stored_ids(tmp_path / "results")) < moment:
            time.sleep(drawn.uniform(0, 0.2))
        own = descendants(driver.pid)
        assert driver.poll() is None
        driver.send_signal(ending)
        _, said = driver.communicate(timeout=120)
    assert driver.returncode == (-ending if ending == signal.SIGKILL else 130), said.decode()
    assert b"Traceback" not in said
    working = {pid for pid, line in own.items() if "Agent" not in line}
    assert working
    assert gone(working), {pid: own[pid] for pid in working if _alive(pid)}
    for pid, line in own.items():  # Ray's agents need a minute or two to notice
        if "Agent" in line and pid in called(line):
            os.kill(pid, signal.SIGKILL)
    before = stored_ids(tmp_path / "results")
    assert 0 < len(before) < 20
    if ending != signal.SIGKILL:
        assert not [path.name for path in Path(elsewhere["TMPDIR"]).glob("raybench-*")]
    again = subprocess.run(
        command, cwd=tmp_path, env=elsewhere, capture_output=True, text=True, timeout=300
    )
    assert again.returncode == 0, again.stderr
    assert f"{20 - len(before)} runs carried out" in again.stdout
    assert stored_ids(tmp_path / "results") == ids(SLOW)
    pd.testing.assert_frame_equal(
        metrics(tmp_path / "results"), metrics(slow_alone), check_exact=True
    )
