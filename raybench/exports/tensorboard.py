"""TensorBoard: an event file a run, in TARGET/SUITE/RUN_ID."""

from __future__ import annotations

from pathlib import Path

from raybench.exports.runs import Exported, library


class TensorBoard:
    """Writes through tensorboardX, which comes with Ray Tune."""

    def __init__(self, target: str) -> None:
        self._events = library("tensorboardX", "tensorboardX")
        self._target = Path(target)

    def write(self, run: Exported) -> None:
        """Write a run's curves by step, its epochs, and its hyper-parameters."""
        folder = self._target / run.suite / run.run_id
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        # The hyper-parameters get a writer of their own, whose file would have the same name.
        with self._events.SummaryWriter(logdir=str(folder), filename_suffix=".curves") as writer:
            for step, epoch, values in run.history:
                for tag, value in {"epoch": epoch, **values}.items():
                    writer.add_scalar(tag, value, step, walltime=run.began)
            last = {f"summary/{name}": value for name, value in run.summary.items()}
            writer.add_hparams(dict(run.hyper), last, name=".")
