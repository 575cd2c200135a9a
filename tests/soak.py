# ruff: noqa: T201
"""Kill workers and drivers at random moments, and see whether anything is lost: `make soak`.

In each repetition a suite of short runs is begun on a Ray of its own and a random worker process is
SIGKILLed at a random moment; in every second one the driver is too, and the same command is given
again. The table must then be that of an undisturbed suite. Not a test of pytest's: it takes minutes
and ends with a row for benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import math
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from test_cluster import called, descendants, gone, workers

from raybench import store as results
from raybench.session import environment

SUITE = """\
version: 1
name: soak
base:
  procedure: train
  dtype: float64
  data: {name: teacher_student, dim: 4, train: 16, valid: 0, test: 8}
  model: {name: mlp, width: 2}
  optimizer: {name: sgd, lr: 0.1}
  steps: 20it
  batch_size: 8
sweep: [{optimizer.lr: [0.01, 0.02, 0.03, 0.04]}]
resources: {lanes: 5, batch: 25}
"""
NAMES = {
    "workers": "kills of workers",
    "drivers": "kills of drivers",
    "runs": "runs",
    "lost": "lost",
    "double": "double",
    "differing": "differing",
    "redone": "redone",
}


@dataclass
class Counts:
    """What was done to suites, and what became of their runs.

    Attributes:
        workers: kills of worker processes.
        drivers: kills of drivers.
        runs: that were asked for.
        lost: without a row that is done.
        double: rows of the table beyond one a run.
        differing: runs whose metrics are not those of the undisturbed suite.
        redone: runs that were carried out again though a row of theirs was stored.
    """

    workers: int = 0
    drivers: int = 0
    runs: int = 0
    lost: int = 0
    double: int = 0
    differing: int = 0
    redone: int = 0

    def add(self, other: Counts) -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def __str__(self) -> str:
        return ", ".join(f"{value:,} {name}" for name, value in vars(self).items())


class Command:
    """The suite as one calls it, on a Ray of its own."""

    def __init__(self, folder: Path, seeds: int) -> None:
        # Sockets of Ray lie in here, and their paths must be short: not in `folder`.
        self._temporary = Path(tempfile.mkdtemp(prefix="soak-"))
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RAYBENCH_"))}
        env = {**clean, "HOME": str(self._temporary), "TMPDIR": str(self._temporary)}
        words = ["run", "soak.yaml", "-j", "2", f"seeds={seeds}"]
        self._said = folder / "said.txt"
        with self._said.open("a") as said:
            self._driver = subprocess.Popen(
                [sys.executable, "-m", "raybench", *words], cwd=folder, env=env, stdout=said,
                stderr=subprocess.STDOUT,
            )  # fmt: skip

    def workers(self) -> list[int]:
        """Wait for processes that train and return them; none if the driver has ended."""
        while self._driver.poll() is None:
            if found := workers(self._driver.pid):
                return found
            time.sleep(0.02)
        return []

    def kill_worker(self, chance: random.Random) -> bool:
        """SIGKILL a process that trains; return whether there was one."""
        found = self.workers()
        if found:
            os.kill(chance.choice(sorted(found)), signal.SIGKILL)
        return bool(found)

    def kill_driver(self) -> bool:
        """SIGKILL the driver, and wait for what it started; return whether it still ran."""
        own = descendants(self._driver.pid)
        if self._driver.poll() is not None:
            return False
        self._driver.kill()
        self._driver.wait()
        if not gone({pid for pid, line in own.items() if "Agent" not in line}):
            raise SystemExit("processes of a killed driver are still there after a minute")
        for pid, line in own.items():  # Ray's agents need a minute or two to notice
            if "Agent" in line and pid in called(line):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._temporary, ignore_errors=True)
        return True

    def end(self) -> None:
        """Wait for the end of the suite, which must be a good one."""
        if self._driver.wait(timeout=600) != 0:
            said = self._said.read_text()[-3000:]
            raise SystemExit(f"exit code {self._driver.returncode} of raybench:\n{said}")
        shutil.rmtree(self._temporary, ignore_errors=True)


def disturbed(
    folder: Path, seeds: int, victims: list[str], runs: int, chance: random.Random
) -> Counts:
    """Carry out the suite, with a kill of each victim once so and so many runs are stored."""
    counts = Counts()
    kept: dict[str, dt.datetime] = {}
    command = Command(folder, seeds)
    moments = sorted(chance.randrange(0, runs * 4 // 5) for _ in victims)
    for victim, moment in zip(victims, moments, strict=True):
        while command.workers() and stored(folder) < moment:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.3))  # what is stored comes in batches
        if victim == "worker":
            counts.workers += command.kill_worker(chance)
        elif command.kill_driver():
            counts.drivers += 1
            kept = started(folder)
            command = Command(folder, seeds)
    command.end()
    now = started(folder)
    found = rows(folder)
    counts.redone = sum(now[run_id] > at for run_id, at in kept.items())
    counts.redone += len(found) - found["run_id"].nunique()
    return counts


def stored(folder: Path) -> int:
    """Return how many rows the parts have so far."""
    parts = (folder / "results" / "soak" / "runs").glob("*.parquet")
    return sum(pq.read_metadata(part).num_rows for part in parts)


def rows(folder: Path) -> pd.DataFrame:
    """Return the rows of all parts, those too that the table leaves out for a newer one."""
    parts = (folder / "results" / "soak" / "runs").glob("*.parquet")
    found = [pq.read_table(part, columns=["run_id", "started_at"]).to_pandas() for part in parts]
    if not found:
        return pd.DataFrame(columns=["run_id", "started_at"])
    return pd.concat(found).drop_duplicates()  # what is merged lies beside its sources a while


def started(folder: Path) -> dict[str, dt.datetime]:
    """Return when the latest try of each stored run began."""
    latest: dict[str, dt.datetime] = rows(folder).groupby("run_id")["started_at"].max().to_dict()
    return latest


def metrics(folder: Path) -> Counter[tuple[object, ...]]:
    """Return all rows of metrics, with how often each is there."""
    frame = results.table(folder / "results", "soak", "metrics")
    columns = frame[["run_id", "split", "metric", "step", "value"]]
    return Counter(columns.itertuples(index=False, name=None))


def differing(found: Counter[tuple[object, ...]], expected: Counter[tuple[object, ...]]) -> int:
    """Return how many runs have a row of metrics that is missing, too much, or another."""
    return len({row[0] for row in (found - expected) + (expected - found)})


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(": `")[0])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--runs", type=int, default=400, help="of a suite; a multiple of 4")
    parser.add_argument("--seed", type=int, help="of the moments and victims; random by default")
    help_minutes = "after which no repetition begins"
    parser.add_argument("--minutes", type=float, default=math.inf, help=help_minutes)
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    print(f"--seed {seed}", flush=True)
    commit = environment()["git"]
    chance, seeds = random.Random(seed), given.runs // 4
    total = Counts()
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        undisturbed = made(Path(place) / "undisturbed")
        command = Command(undisturbed, seeds)
        command.end()
        expected = metrics(undisturbed)
        ids = {str(row[0]) for row in expected}
        print(f"undisturbed: {len(ids):,} runs, {time.monotonic() - began:.0f} s", flush=True)
        done = 0
        for repetition in range(1, given.repetitions + 1):
            if time.monotonic() - began > given.minutes * 60:
                break
            folder = made(Path(place) / str(repetition))
            victims = ["worker"] if repetition % 2 else ["worker", "driver"]
            chance.shuffle(victims)
            counts = disturbed(folder, seeds, victims, len(ids), chance)
            table = results.table(folder / "results", "soak")
            counts.runs = len(ids)
            counts.lost = len(ids - set(table[table["status"] == "done"]["run_id"]))
            counts.double = len(table) - table["run_id"].nunique()
            counts.differing = differing(metrics(folder), expected)
            total.add(counts)
            done = repetition
            print(f"{repetition}/{given.repetitions}: {counts}", flush=True)
            if not counts.lost + counts.double + counts.differing:
                shutil.rmtree(folder)
        seconds = time.monotonic() - began
    hardware = f"{os.cpu_count()} cores {platform.machine()}"
    row = [dt.datetime.now(dt.UTC).date(), commit, hardware, done]
    columns = ["date", "commit", "hardware", "repetitions", *NAMES.values(), "seconds"]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    counted = [f"{getattr(total, name):,}" for name in NAMES]
    print(f"| {' | '.join(map(str, [*row, *counted, round(seconds)]))} |")
    sys.exit(1 if total.lost + total.double + total.differing else 0)


def made(folder: Path) -> Path:
    """Return a new folder with the suite in it."""
    folder.mkdir()
    (folder / "soak.yaml").write_text(SUITE)
    return folder


if __name__ == "__main__":
    main()
