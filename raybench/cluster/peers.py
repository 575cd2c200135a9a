"""What raybench is measured against: Ray Tune as its tutorials use it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune

from raybench.lanes import Lanes
from raybench.plan import decode
from raybench.procedures.base import DTYPES
from raybench.record import Recorder


def naive_tune(runs: Sequence[str]) -> float:
    """Return the seconds that Ray Tune takes for runs, one trial each.

    A function trainable, `grid_search` over the runs, default settings: what a user writes first.
    A cluster must be connected.

    Args:
        runs: encoded batches of one run each.
    """
    folder = Path(tempfile.mkdtemp(prefix="raybench-naive-"))

    def train_one(config: dict[str, Any]) -> None:
        (planned,) = decode(config["batch"]).runs
        procedure = planned.run.procedure
        lanes = Lanes(1, dtype=DTYPES[procedure.dtype])
        recorder = Recorder(lanes)
        procedure.execute(lanes, [planned.run], recorder)
        tune.report({"loss": recorder.accounts()[0].metrics[-1].value})

    began = time.perf_counter()
    try:
        tuner = tune.Tuner(
            tune.with_resources(train_one, {"cpu": 1}),
            param_space={"batch": tune.grid_search(list(runs))},
            run_config=tune.RunConfig(storage_path=str(folder), name="naive", verbose=0),
        )
        results = tuner.fit()
        if results.num_errors:
            raise RuntimeError(f"{results.num_errors} trials of naive Ray Tune failed")
        return time.perf_counter() - began
    finally:
        shutil.rmtree(folder, ignore_errors=True)
