"""raybench measured against its peers, on the same runs, on the same cluster, in one command."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from raybench.cluster import connect
from raybench.plan import batches, distinct
from raybench.store import SuiteStore
from raybench.suite import Suite, load, parse
from raybench.work import Progress

_ONE_STEP: Final = """
version: 1
name: selfbench
base:
  procedure: train
  data: {name: digits, train: 256, test: 256}
  model: {name: mlp, width: 16}
  optimizer: {name: sgd, lr: 0.1}
  steps: 1it
  batch_size: 64
  record: {at: {linear: 1}, on: [test], probes: [loss]}
seeds: %d
"""


class _Counted:
    """Notes when the first results arrive: what comes before is starting up."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.done = 0

    def update(self, progress: Progress) -> None:
        self.first = self.first or time.perf_counter()
        self.done += sum(progress.statuses.values())


def overhead(runs: int, peers: int, note: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return a row for raybench and one for naive Ray Tune: wall milliseconds a run of one step.

    Args:
        runs: how many runs raybench carries out; their batches are also what it stores.
        peers: how many of them naive Ray Tune carries out, which takes seconds each.
        note: told what is being measured.
    """
    suite = load(parse(_ONE_STEP % (runs + _WARM_UP), "selfbench"))
    began = time.perf_counter()
    executor = connect()
    started = time.perf_counter() - began
    try:
        with tempfile.TemporaryDirectory(prefix="raybench-") as folder:
            store = SuiteStore(Path(folder), suite.name)
            note(f"{_WARM_UP} runs to start the workers ...")
            _carry_out(suite, slice(0, _WARM_UP), executor, store)
            note(f"raybench: {runs:,} runs of one step ...")
            seconds, done = _carry_out(suite, slice(_WARM_UP, None), executor, store)
            num_bytes = sum(p.stat().st_size for p in Path(folder).rglob("*.parquet"))
        rows: list[dict[str, Any]] = [
            {
                "what": "raybench",
                "runs": done,
                "ms a run": 1000 * seconds / done,
                "runs/s": done / seconds,
                "bytes a run": num_bytes / (done + _WARM_UP),
            }
        ]
        if peers:
            from raybench.cluster.peers import naive_tune

            note(f"naive Ray Tune: {peers} of the same runs ...")
            sample = batches(
                distinct(suite.runs)[:peers],
                suite=suite.name,
                scale="",
                resources=suite.resources.replace(batch=peers),
                slots=1,
            )
            naive = naive_tune(sample[0].encode())
            rows.append(
                {
                    "what": "naive Ray Tune",
                    "runs": peers,
                    "ms a run": 1000 * naive / peers,
                    "runs/s": peers / naive,
                    "bytes a run": None,
                }
            )
    finally:
        executor.close()
    note(f"Ray itself started in {started:.1f} s, which is in neither row")
    for row in rows:
        row["times raybench"] = row["ms a run"] / rows[0]["ms a run"]
    return rows


_WARM_UP: Final = 64


def _carry_out(suite: Suite, part: slice, executor: Any, store: SuiteStore) -> tuple[float, int]:
    made = batches(
        distinct(suite.runs)[part],
        suite=suite.name,
        scale=suite.scale,
        resources=suite.resources,
        slots=executor.slots,
    )
    counted = _Counted()
    began = time.perf_counter()
    executor.run(made, store, counted.update)
    return time.perf_counter() - began, counted.done
