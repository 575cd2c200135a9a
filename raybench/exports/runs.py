"""A run as other programs see it: hyper-parameters, last values, and curves."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raybench.errors import MissingError
from raybench.store import table


@dataclass(frozen=True)
class Exported:
    """A run.

    Attributes:
        hyper: config and labels; what is not a number or a truth value is text.
        summary: last and best values.
        history: for each recorded step, in order: step, epoch, and `split/metric` to value.
        began: seconds since 1970.
        took: seconds.
    """

    suite: str
    run_id: str
    status: str
    hyper: Mapping[str, str | int | float | bool]
    summary: Mapping[str, float]
    history: Sequence[tuple[int, float, Mapping[str, float]]]
    began: float
    took: float


class Writer(Protocol):
    """Writes runs for one program; a run that is written again replaces itself."""

    def write(self, run: Exported) -> None:
        """Write a run."""
        ...


def library(name: str, package: str) -> Any:
    """Return a module that the caller cannot do without.

    Raises:
        MissingError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingError(f"this export needs {package}: pip install {package}") from error


def exported(store: Path, suite: str) -> Iterator[tuple[Exported, int]]:
    """Yield the runs of a suite that have been carried out, and how many there are."""
    runs = table(store, suite).drop_duplicates("run_id")
    runs = runs[runs["status"] != "skipped"]
    metrics = table(store, suite, "metrics")
    curves = dict(iter(metrics.groupby("run_id", observed=True)))
    for row in runs.to_dict("records"):
        own = {str(name): value for name, value in row.items() if value is not None}
        own = {name: value for name, value in own.items() if value == value}  # nan is "no value"
        run = Exported(
            suite,
            own["run_id"],
            own["status"],
            {"seed": own["seed"], **{k: _plain(v) for k, v in own.items() if _is_hyper(k)}},
            {k.removeprefix("summary."): float(v) for k, v in own.items() if _is_summary(k)},
            _history(curves.get(own["run_id"])),
            own["started_at"].timestamp() if "started_at" in own else 0.0,
            float(own.get("wall_s", 0.0)),
        )
        yield run, len(runs)


def _is_hyper(name: str) -> bool:
    return name.startswith(("config.", "label."))


def _is_summary(name: str) -> bool:
    return name.startswith("summary.")


def _plain(value: Any) -> str | int | float | bool:
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, str | int | float | bool) else str(value)


def _history(rows: Any) -> list[tuple[int, float, dict[str, float]]]:
    found: dict[int, tuple[int, float, dict[str, float]]] = {}
    if rows is not None:
        columns = (rows[name].tolist() for name in ("step", "epoch", "split", "metric", "value"))
        for step, epoch, split, metric, value in zip(*columns, strict=True):
            found.setdefault(step, (step, epoch, {}))[2][f"{split}/{metric}"] = value
    return [found[step] for step in sorted(found)]
