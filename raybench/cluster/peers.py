"""What raybench is measured against: Ray Tune as its tutorials use it, and with reused actors."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ray import tune

Train: TypeAlias = Callable[[Mapping[str, Any]], dict[str, float]]
"""Carries out one run, which is a dict of plain values, and returns its last numbers."""


def naive_tune(runs: Sequence[Mapping[str, Any]], train: Train) -> float:
    """Return the seconds that Ray Tune takes for runs, one trial and one process each.

    A function trainable, `grid_search` over the runs, default settings: what a user writes first.
    A cluster must be connected.
    """

    def train_one(config: dict[str, Any]) -> None:
        tune.report(train(config["run"]))

    began = time.perf_counter()
    _fit(train_one, runs, tune.TuneConfig())
    return time.perf_counter() - began


def reused_tune(runs: Sequence[Mapping[str, Any]], train: Train) -> tuple[float, int, float]:
    """Carry out runs by Ray Tune, one trial each, in actors that go on with the next trial.

    A class trainable with `reuse_actors=True`; the other settings are the defaults. A cluster must
    be connected.

    Returns:
        Seconds, without the first run of each actor: the mean over actors of the time that is left
        when it has ended. How many runs they are for. Seconds until then.
    """

    class TrainOne(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self._run = config["run"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._run = new_config["run"]
            return True

        def step(self) -> dict[str, Any]:
            return {**train(self._run), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            pass

        def load_checkpoint(self, checkpoint: object) -> None:
            pass

    first = _First()
    began = time.perf_counter()
    _fit(TrainOne, runs, tune.TuneConfig(reuse_actors=True), [first])
    ended = time.perf_counter()
    warm = sum(first.seen.values()) / len(first.seen)
    return ended - warm, len(runs) - len(first.seen), warm - began


class _First(tune.Callback):  # type: ignore[misc]
    """Notes when each process reported first."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.seen.setdefault(result["pid"], time.perf_counter())


def _fit(
    trainable: Any,
    runs: Sequence[Mapping[str, Any]],
    config: tune.TuneConfig,
    callbacks: Sequence[tune.Callback] = (),
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="raybench-peer-"))
    try:
        results = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            param_space={"run": tune.grid_search([*runs])},
            tune_config=config,
            run_config=tune.RunConfig(
                storage_path=str(folder), name="peer", verbose=0, callbacks=[*callbacks]
            ),
        ).fit()
        if results.num_errors:
            raise RuntimeError(f"{results.num_errors} trials of Ray Tune failed")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
