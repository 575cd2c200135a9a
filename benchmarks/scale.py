"""Measure a suite of 100,000 runs: planning it, and reading its store.

    python benchmarks/scale.py make STORE         a store as a run would have written it (seconds)
    python benchmarks/scale.py read STORE         CPU seconds and peak memory of each reading verb
    python benchmarks/scale.py plan [SUITE]       the same of `plan`, and of `run` up to the first batch

Nothing is trained: metrics are drawn, with 50 evaluations of two metrics a run.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from raybench import suite
from raybench.plan import Batch, batches, distinct
from raybench.schema import SCHEMAS, runs_table
from raybench.session import resolved
from raybench.store import SuiteStore
from raybench.suite import Suite
from raybench.work import identity

SUITE = Path(__file__).with_name("scale.yaml")
EVALUATIONS, METRICS = 50, ("loss", "error")
BEGAN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def make(root: Path, slots: int = 2) -> None:
    """Write the store of the suite, one part a batch, as workers would."""
    made = suite.load(suite.read(SUITE, SUITE.name), None, {})
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
    for number, batch in enumerate(parts):
        rows, metrics = part(made, batch, np.random.default_rng(number))
        store.write_part(batch.batch_id, rows, metrics)


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


def main() -> None:
    """Carry out what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["make"])
    parser.add_argument("where", nargs="?", type=Path)
    asked = parser.parse_args()
    if asked.what == "make":
        make(asked.where)


if __name__ == "__main__":
    main()
