"""Asynchronous successive halving: each trial of a suite is a Tune trial that climbs its rungs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

from raybench.cluster.executor import Relay
from raybench.errors import UnavailableError
from raybench.plan import Climb, decode
from raybench.progress import Progress
from raybench.store import ENDED, SuiteStore
from raybench.work import run_batch

_LOST = 1e300  # the score of a lost trial: worse than any, and percentiles of it stay finite


class Climber(tune.Trainable):  # type: ignore[misc]
    """A climb as Tune sees it: each step carries out one rung and reports its score."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the climb in `config`."""
        self._config = config
        self._rung = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another climb in the same process, whose data and measurements are kept."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Carry out the next rung, if it is not stored, and return how it ended."""
        rung, self._rung = self._rung, self._rung + 1
        score = self._config["scores"][rung]
        statuses: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        unstored = ""
        if score is None:
            batch = decode(self._config["rungs"][rung])
            store = SuiteStore(self._config["store"], batch.suite)
            try:
                for progress in run_batch(batch, store, "ray"):
                    statuses += progress.statuses
                    reasons += progress.reasons
                score = self._score(store, batch.batch_id)
            except UnavailableError as error:  # a store that takes nothing: no other try will do
                score, unstored = _LOST, str(error)
        score = min(score, _LOST)
        return {
            "score": score,
            "resource": self._config["eta"] ** rung,
            "statuses": dict(statuses),
            "reasons": dict(reasons),
            "unstored": unstored,
            "done": score == _LOST or self._rung == len(self._config["rungs"]),
        }

    def _score(self, store: SuiteStore, batch_id: str) -> float:
        part = store.read_part(batch_id)
        assert part is not None
        scores = []
        for row in part["runs"].to_pylist():
            value = row.get(f"summary.{self._config['column']}")
            lost = row["status"] not in ENDED or value is None or math.isnan(value)
            scores.append(_LOST if lost else self._config["sign"] * value)
        return sum(scores) / len(scores)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: what is stored in Parquet is the checkpoint."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Load nothing; see `save_checkpoint`."""


class Brackets(FIFOScheduler):  # type: ignore[misc]
    """One AsyncHyperBandScheduler for each bracket: trials of different arms are not compared."""

    def __init__(self, climbs: Sequence[Climb]) -> None:
        super().__init__()
        self._of = {
            climb.bracket: AsyncHyperBandScheduler(
                time_attr="resource",
                metric="score",
                mode="min",
                max_t=climb.eta ** (len(climb.rungs) - 1),
                grace_period=1,
                reduction_factor=climb.eta,
            )
            for climb in climbs
        }

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Put a trial into its bracket."""
        self._own(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Let its bracket say whether a trial goes on."""
        return str(self._own(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Tell its bracket of the last result of a trial."""
        self._own(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Leave the bracket as it is: the rung of a trial whose process died counts for nobody."""

    def _own(self, trial: Any) -> Any:
        return self._of[trial.config["bracket"]]


class OfClimbs(Relay):
    """Passes on what climbs report."""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Report what a rung has stored."""
        statuses, reasons = Counter(result["statuses"]), Counter(result["reasons"])
        made = Progress(trial.trial_id, statuses, reasons, True, unstored=result["unstored"])
        self.pass_on(made)


def configs(climbs: Sequence[Climb], store: SuiteStore) -> Iterator[Mapping[str, Any]]:
    """Yield what crosses to a worker for each climb."""
    for climb in climbs:
        yield {
            "bracket": climb.bracket,
            "eta": climb.eta,
            "column": climb.column,
            "sign": climb.sign,
            "scores": list(climb.scores),
            "rungs": [batch.encode() for batch in climb.rungs],
            "store": store.root,
        }
