"""One result file, with its defects repaired: non-strict JSON, doubled entries, filled-up ends.

When the last batch loss that DeepOBS logs in an epoch is not finite it stops, and fills every list
up with the value that it began with. What was filled in is not a measurement and is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from raybench.deepobs import naming

if TYPE_CHECKING:
    from raybench.spec import Json

Numbers: TypeAlias = npt.NDArray[np.float64]

SPLITS: Final = ("train", "valid", "test")
LOGGED_EVERY: Final = 10
"""Steps between two batch losses that DeepOBS logs, the first of them at the epoch's first step."""
LARGEST: Final = 64 * 2**20
"""Bytes that a file may have; the published ones have at most some 200 thousand."""
_ROWS: Final[Mapping[str, tuple[int, ...]]] = {
    # Training rows by the first word of a problem's name, with and without a validation split. A
    # row of tolstoi is a sequence of 50 characters.
    "quadratic": (1_000,),
    "two": (10_000,),
    "mnist": (50_000, 60_000),
    "fmnist": (50_000, 60_000),
    "cifar10": (40_000, 50_000),
    "cifar100": (40_000, 50_000),
    "svhn": (47_225, 73_257),
    "tolstoi": (39_194,),
}


class UnreadableError(ValueError):
    """A file that does not hold a run; the message says why."""


@dataclass(frozen=True)
class Result:
    """A run of DeepOBS.

    Attributes:
        optimizer: the class's name, of which a variant may have the name of its base.
        hyperparameters: as they were given to the optimizer.
        l2: strength of the penalty that was asked for; None for the problem's own.
        schedule: what the list of learning-rate factors is.
        curves: by split and metric (`loss`, `error`), a value before training and one after each
            epoch, up to where the run diverged.
        steps_per_epoch: None where it cannot be derived.
        diverged_at: the first step whose loss is known not to be finite; counted in epochs where
            `steps_per_epoch` is None.
    """

    problem: str
    optimizer: str
    hyperparameters: dict[str, Json]
    batch_size: int | None
    epochs: int
    seed: int
    l2: float | None
    schedule: str
    curves: dict[tuple[str, str], Numbers]
    steps_per_epoch: int | None
    diverged_at: int | None

    @property
    def score(self) -> float:
        """The last validation error, or loss where there is none; infinite if the run diverged."""
        for metric in ("error", "loss"):
            curve = self.curves.get(("valid", metric))
            if self.diverged_at is None and curve is not None:
                return float(curve[-1])
        return math.inf


def read(path: Path) -> Result:
    """Read a result file.

    Raises:
        UnreadableError: it is not what DeepOBS writes, or not whole.
    """
    form = _load(path)
    problem, optimizer = _text(form, "testproblem"), _text(form, "optimizer_name")
    losses = _curves(form, "losses")
    if not losses:
        raise UnreadableError("has no losses")
    accuracies = _curves(form, "accuracies")
    epochs = _whole(form, "num_epochs")
    lengths = {len(curve) for curve in (*losses.values(), *accuracies.values())}
    if epochs is None or lengths != {epochs + 1}:
        raise UnreadableError(
            f"has lists of {', '.join(map(str, sorted(lengths)))} values for {epochs} epochs"
        )
    batch_size, seed = _whole(form, "batch_size"), _whole(form, "random_seed")
    if seed is None:
        raise UnreadableError("has no random_seed")
    course = _Course(losses, _numbers(form.get("minibatch_train_losses") or []))
    per_epoch = course.steps_per_epoch(problem, batch_size)
    at = course.diverged_at(per_epoch)
    curves = {(split, "loss"): curve for split, curve in losses.items()}
    curves |= {(split, "error"): 1 - curve for split, curve in accuracies.items()}
    if at is not None:
        kept = math.ceil(at / (per_epoch or 1))
        curves = {key: curve[:kept] for key, curve in curves.items()}
    return Result(
        problem,
        optimizer,
        _settings(form),
        batch_size,
        epochs,
        seed,
        _penalty(form),
        _schedule(form, epochs),
        curves,
        per_epoch,
        at,
    )


class _Course:
    """What the loss did over time.

    Args:
        losses: of each split, [epochs + 1].
        batches: of single batches, as they were logged.
    """

    def __init__(self, losses: Mapping[str, Numbers], batches: Numbers) -> None:
        table = np.stack(list(losses.values()))
        self._epochs: int = table.shape[1] - 1
        self._has_valid = "valid" in losses
        bad = ~np.isfinite(table).all(axis=0)
        self._bad_epoch = int(bad.argmax()) if bad.any() else None
        self._batches = batches
        moved = (table != table[:, :1]).any(axis=0)
        last = int(moved.nonzero()[0][-1]) if moved.any() else 0
        finite = self._bad_epoch is None and np.isfinite(batches).all()
        # With neither infinity nor a log of batches, a way back to the very first numbers on every
        # split tells of a run that was filled up.
        returned = not len(batches) and 0 < last < self._epochs
        self.diverged = bool(not finite or returned)
        filled = self._epochs - last if self.diverged else 0
        self._trained = min(last + 1, self._epochs) if self.diverged else self._epochs
        self._logged = _undoubled(batches[: max(0, len(batches) - filled)])

    def steps_per_epoch(self, problem: str, batch_size: int | None) -> int | None:
        """Return the whole batches in the training rows, if the log of batches agrees."""
        rows = _ROWS.get(problem.partition("_")[0], ())
        counts = [n // batch_size for n in rows if batch_size and n >= batch_size]
        if not counts:
            return None
        for count in counts:
            if math.ceil(count / LOGGED_EVERY) * self._trained == len(self._logged):
                return count
        if not len(self._batches) or self.diverged:
            return counts[0] if self._has_valid else counts[-1]
        return None

    def diverged_at(self, per_epoch: int | None) -> int | None:
        """Return the first step known to have a loss that is not finite, or None."""
        if not self.diverged:
            return None
        stride = per_epoch or 1
        seen: list[int] = [self._trained * stride]
        if self._bad_epoch is not None:
            seen.append(self._bad_epoch * stride)
        bad = (~np.isfinite(self._logged)).nonzero()[0]
        if per_epoch is not None and len(bad):
            epoch, entry = divmod(int(bad[0]), math.ceil(per_epoch / LOGGED_EVERY))
            seen.append(epoch * stride + entry * LOGGED_EVERY)
        return min(seen)


def _undoubled(logged: Numbers) -> Numbers:
    """Return a log without its repetitions, if every entry in it stands twice."""
    twice = len(logged) % 2 == 0 and np.array_equal(logged[::2], logged[1::2], equal_nan=True)
    return logged[::2] if twice else logged


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise UnreadableError(f"is larger than {LARGEST / 2**20:.0f} MiB")
        form = json.loads(path.read_bytes())
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"is not JSON: {error}") from error
    if not isinstance(form, dict):
        raise UnreadableError("is not a mapping")
    return form


def _curves(form: Mapping[str, Any], what: str) -> dict[str, Numbers]:
    found = {split: form.get(f"{split}_{what}") for split in SPLITS}
    return {split: _numbers(values) for split, values in found.items() if values}


def _numbers(values: object) -> Numbers:
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnreadableError("has something else than numbers in a list") from error
    if numbers.ndim != 1:
        raise UnreadableError("has something else than numbers in a list")
    return numbers


def _text(form: Mapping[str, Any], key: str) -> str:
    value = form.get(key)
    if not isinstance(value, str) or not value:
        raise UnreadableError(f"has no {key}")
    return value


def _settings(form: Mapping[str, Any]) -> dict[str, Json]:
    given = form.get("optimizer_hyperparams")
    if not isinstance(given, dict):
        raise UnreadableError("has no optimizer_hyperparams")
    try:
        # Half of a surrogate pair can be in JSON, and in no table.
        json.dumps(given, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UnreadableError("has hyperparameters that are not text") from error
    return dict(given)


def _whole(form: Mapping[str, Any], key: str) -> int | None:
    value = form.get(key)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62:
        return int(value)
    raise UnreadableError(f"has {key} {str(value)[:40]!r}, which is not a whole number")


def _penalty(form: Mapping[str, Any]) -> float | None:
    # The first runs of 2019 call it weight_decay, later ones l2_reg.
    value = form.get("l2_reg", form.get("weight_decay"))
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if known else None


def _schedule(form: Mapping[str, Any], total: int) -> str:
    params = form.get("training_params")
    params = params if isinstance(params, dict) else {}
    epochs, factors = params.get("lr_sched_epochs") or [], params.get("lr_sched_factors") or []
    if not (_holds_numbers(epochs) and _holds_numbers(factors)) or len(epochs) != len(factors):
        return "listed"
    return naming.schedule([int(epoch) for epoch in epochs], factors, total)


def _holds_numbers(values: object) -> bool:
    return isinstance(values, Sequence) and all(
        isinstance(value, int | float) and math.isfinite(value) for value in values
    )
