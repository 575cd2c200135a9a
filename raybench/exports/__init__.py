"""Results written for other programs: TensorBoard, Weights & Biases, MLflow.

Each writer needs its own library, which is asked for when it is made. The history of every metric
goes over completely, with configuration and labels as hyper-parameters.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from raybench.exports.runs import Exported, Writer, exported
from raybench.store import suites

WRITERS: Final = {"tensorboard": "TensorBoard", "wandb": "Offline", "mlflow": "Tracking"}
"""Name, which is that of the module here, to the class in it."""


def export(
    kind: str,
    store: Path,
    target: str,
    suite: str | None = None,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write the runs of a store for another program, and return how many there were.

    Args:
        kind: a key of WRITERS.
        store: the store's folder.
        target: where to; a folder, or for mlflow also the URI of a tracking server.
        suite: None for all suites.
        told: how many runs of how many are written.

    Raises:
        MissingError: the library is not installed.
        NothingMatched: there are no such results.
    """
    writer: Writer = getattr(importlib.import_module(f"raybench.exports.{kind}"), WRITERS[kind])(
        target
    )
    count = 0
    for name in [suite] if suite else suites(store):
        for run, total in exported(store, name):
            writer.write(run)
            count += 1
            told(count, total)
    return count


__all__ = ["WRITERS", "Exported", "Writer", "export", "exported"]
