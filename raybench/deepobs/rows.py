"""A run that was read, as rows of the tables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from raybench.deepobs import naming
from raybench.deepobs.protocol import Candidate, Role
from raybench.deepobs.result import Result
from raybench.deepobs.tree import Place

if TYPE_CHECKING:
    from raybench.spec import Json

SCALE: Final = "published"
"""The scale that imported runs belong to, and their `label.source`."""

Cell: TypeAlias = tuple[str, str, str]
"""Problem, optimizer, schedule: what runs are compared within."""


@dataclass(frozen=True)
class Found:
    """A run that was read.

    Attributes:
        budgets: whose folders hold the file.
        setting: equal for runs that differ in the seed alone.
    """

    place: Place
    result: Result
    budgets: frozenset[str]
    schedule: str
    run_id: str
    setting: str

    @property
    def candidate(self) -> Candidate:
        """What its role is told by."""
        place = self.place
        score = self.result.score
        return Candidate(self.run_id, self.budgets, self.setting, place.seed, place.ended, score)


def digest(form: Json) -> str:
    """Return 16 hex digits of a hash, as `spec.digest` does without loading torch."""
    text = json.dumps(form, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def found(place: Place, result: Result, budgets: frozenset[str]) -> Found:
    """Return a run with its identity: the config as far as the file has it, seed and end."""
    # Runs that were tuned and repeated have rounded numbers in one of the two.
    settings: dict[str, Json] = {
        name: f"{float(str(value)):.9e}" if _is_number(value) else str(value)
        for name, value in result.hyperparameters.items()
    }
    setting: dict[str, Json] = {
        "hyperparameters": settings,
        "batch_size": result.batch_size,
        "epochs": result.epochs,
        "l2": None if result.l2 is None else repr(result.l2),
    }
    schedule = place.schedule or result.schedule
    identity: dict[str, Json] = {
        "source": SCALE,
        "problem": place.problem,
        "optimizer": place.optimizer,
        "schedule": schedule,
        "seed": place.seed,
        # A repetition has the same config, and yet other numbers wherever the seed did not reach.
        "ended": place.ended,
        **setting,
    }
    return Found(place, result, budgets, schedule, digest(identity), digest(setting))


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def labels(cell: Cell, role: Role) -> dict[str, Any]:
    """Return the labels of a run in a role."""
    problem, optimizer, schedule = cell
    given = {
        "source": SCALE,
        "problem": problem,
        "optimizer": optimizer,
        "schedule": schedule,
        **role.labels,
        "arm": "/".join(cell),
    }
    return {f"label.{name}": value for name, value in given.items()}


def row(run: Found, suite: str, part: str, labelled: dict[str, Any]) -> dict[str, Any]:
    """Return the row of `runs`, with the columns that `work` writes as far as they are known."""
    result = run.result
    per_epoch, at = result.steps_per_epoch, result.diverged_at
    unit = "epoch" if per_epoch is None else "step"
    steps = None if per_epoch is None else result.epochs * per_epoch if at is None else at
    config: dict[str, Any] = {
        "steps": f"{result.epochs}ep",
        "batch_size": result.batch_size,
        "l2": result.l2,
        "schedule.name": run.schedule,
        "optimizer.name": labelled["label.optimizer"],
    }
    settings = naming.hyperparameters(result.hyperparameters)
    config |= {f"optimizer.{name}": value for name, value in settings.items()}
    return {
        "run_id": run.run_id,
        "suite": suite,
        "scale": SCALE,
        "procedure": "train",
        "status": "done" if at is None else "diverged",
        "reason": None if at is None else f"loss not finite at {unit} {at}",
        "seed": run.place.seed,
        "steps": steps,
        "engine": "deepobs",
        "batch_id": part,
        "started_at": run.place.ended_at,
        **{f"config.{name}": value for name, value in config.items() if value is not None},
        **labelled,
        **_summary(result),
    }


def _summary(result: Result) -> dict[str, float]:
    """Return the last and the lowest value of each curve."""
    found: dict[str, float] = {}
    for (split, metric), curve in result.curves.items():
        if len(curve):
            found[f"summary.{split}.{metric}"] = float(curve[-1])
            found[f"summary.{split}.{metric}.best"] = float(curve.min())
    return found


def metrics(runs: Sequence[Found]) -> dict[str, list[Any]]:
    """Return the columns of `metrics`: every curve, with a value at the start of each epoch."""
    columns: dict[str, list[Any]] = {
        name: [] for name in ("run_id", "step", "epoch", "split", "metric", "value")
    }
    for run in runs:
        stride = run.result.steps_per_epoch or 1
        for (split, metric), curve in run.result.curves.items():
            count = len(curve)
            columns["run_id"] += [run.run_id] * count
            columns["split"] += [split] * count
            columns["metric"] += [metric] * count
            columns["step"] += range(0, count * stride, stride)
            columns["epoch"] += range(count)
            columns["value"] += curve.tolist()
    return columns
