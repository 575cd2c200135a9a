"""Measure a suite of 100,000 runs: planning it, and reading its store.

    python benchmarks/scale.py make STORE      a store as `run` would have written it
    python benchmarks/scale.py read STORE      what the reading verbs take on it
    python benchmarks/scale.py plan STORE      what planning takes, up to the first batch

Nothing is trained: metrics are drawn, with 50 evaluations of two metrics a run. Times hold the
start of Python; CPU seconds are the figure, since wall time on a shared machine tells little.

"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from raybench import suite
from raybench.compaction import Compactor
from raybench.plan import Batch, batches, distinct
from raybench.schema import SCHEMAS, runs_table
from raybench.session import Session, resolved
from raybench.store import SuiteStore
from raybench.suite import Suite
from raybench.work import identity

SUITE = Path(__file__).with_name("scale.yaml")
EVALUATIONS, METRICS = 50, ("loss", "error")
BEGAN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def make(root: Path, slots: int = 2) -> None:
    """Write the store of the suite, one part a batch as workers do, merged as a session does."""
    made = loaded("repeated")
    store = SuiteStore(root, made.name)
    store.write_suite(resolved(made))
    store.write_plan(
        made.scale,
        [
            {
                "run_id": p.run.run_id,
                "skipped": "",
                **{f"label.{k}": v for k, v in p.labels.items()},
            }
            for p in made.runs
        ],
    )
    parts = batches(
        distinct(made.runs), suite=made.name, scale="", resources=made.resources, slots=slots
    )
    with Compactor(store) as compactor:
        for number, batch in enumerate(parts):
            rows, metrics = part(made, batch, np.random.default_rng(number))
            store.write_part(batch.batch_id, rows, metrics)
            compactor.add(batch.batch_id)


def part(made: Suite, batch: Batch, draw: np.random.Generator) -> tuple[pa.Table, pa.Table]:
    """Return `runs` and `metrics` of a batch with drawn numbers."""
    count = len(batch.runs)
    values = np.sort(draw.random((count, EVALUATIONS, len(METRICS))), axis=1)[:, ::-1]
    status = np.where(draw.random(count) < 0.02, "diverged", "done").tolist()
    rows = runs_table(
        [
            {
                **identity(planned),
                "suite": made.name,
                "scale": made.scale,
                "status": status[place],
                "num_params": 1000,
                "steps": EVALUATIONS,
                "wall_s": 0.5,
                "engine": "ray",
                "lanes": count,
                "ranks": 1,
                "batch_id": batch.batch_id,
                "host": "host",
                "device": "cpu",
                "versions": '{"python": "3.11", "raybench": "0"}',
                "started_at": BEGAN + dt.timedelta(seconds=place),
                **{
                    f"summary.test.{name}{end}": float(values[place, -1, which])
                    for which, name in enumerate(METRICS)
                    for end in ("", ".best")
                },
            }
            for place, planned in enumerate(batch.runs)
        ]
    )
    shape = values.shape
    at = np.indices(shape).reshape(3, -1)

    def coded(index: np.ndarray, names: Sequence[str]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(index, pa.int32()), pa.array(names))

    metrics = pa.table(
        [
            coded(at[0], rows["run_id"].to_pylist()),
            pa.array(at[1], pa.int64()),
            pa.array(at[1] / 10, pa.float64()),
            coded(np.zeros(values.size, dtype=np.int32), ["test"]),
            coded(at[2], METRICS),
            pa.array(values.reshape(-1), pa.float64()),
        ],
        schema=SCHEMAS["metrics"],
    )
    return rows, metrics


def measured(what: str, *command: str) -> None:
    """Run a command in a process of its own, and print what it took."""
    began = time.monotonic()
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{what}: exit code {process.returncode}")
    row = (
        f"{what:22} {used.ru_utime:6.2f} s user  {used.ru_stime:5.2f} s system  "
        f"{wall:6.2f} s wall  {used.ru_maxrss / 1024:6.0f} MB"
    )
    sys.stdout.write(row + "\n")


def read(root: Path) -> None:
    """Measure the verbs that read, and the tables."""
    for verb in ("status", "runs ls", "figures"):
        measured(verb, "-m", "raybench", *verb.split(), str(root))
    for name in ("runs", "metrics"):
        code = f"import raybench; raybench.table({str(root)!r}, name={name!r})"
        measured(f"table {name}", "-c", code)


def plan(root: Path) -> None:
    """Measure the verb `plan`, and `run` up to the first batch."""
    for scale in ("repeated", "distinct"):
        words = ("plan", str(SUITE), "--scale", scale, "-o", str(root))
        measured(f"plan, {scale}", "-m", "raybench", *words)
        measured(f"run begins, {scale}", __file__, "begin", str(root), scale)


class Begun(Exception):  # noqa: N818  (no error)
    """The first batch would start now."""


class Idle:
    """An executor and a watcher that do nothing."""

    slots = 2

    def run(self, batches: Sequence[Batch], *_: object) -> None:
        """Stop, once the first batch could be sent."""
        batches[0].encode()
        raise Begun

    def close(self) -> None:
        """Do nothing."""

    def begin(self, *_: object) -> None:
        """Do nothing."""

    def update(self, _: object) -> None:
        """Do nothing."""


def begin(root: Path, scale: str) -> None:
    """Do what `run` does before its first batch starts."""
    with contextlib.suppress(Begun):
        Session(loaded(scale), root, Idle, Idle()).run()


def loaded(scale: str) -> Suite:
    """Return the suite at a scale."""
    return suite.load(suite.read(SUITE, SUITE.name), scale, {})


def main() -> None:
    """Carry out what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["make", "read", "plan", "begin"])
    parser.add_argument("store", type=Path)
    parser.add_argument("scale", nargs="?", default="repeated", help="for begin")
    asked = parser.parse_args()
    if asked.what == "begin":
        begin(asked.store, asked.scale)
    else:
        {"make": make, "read": read, "plan": plan}[asked.what](asked.store)


if __name__ == "__main__":
    main()
