"""Weights & Biases, offline: runs in TARGET/wandb that `wandb sync` sends, once you want that."""

from __future__ import annotations

from pathlib import Path

from raybench.exports.runs import Exported, library


class Offline:
    """Writes without a network: nothing leaves the machine."""

    def __init__(self, target: str) -> None:
        self._wandb = library("wandb", "wandb")
        self._target = Path(target)
        self._target.mkdir(parents=True, exist_ok=True)

    def write(self, run: Exported) -> None:
        """Write a run; its project is the suite, its id the run's."""
        # Neither the machine nor the code is described: they are not those of the run.
        settings = self._wandb.Settings(
            console="off", disable_code=True, disable_git=True, x_disable_stats=True, silent=True
        )
        made = self._wandb.init(
            mode="offline",
            dir=str(self._target),
            project=run.suite,
            id=run.run_id,
            name=run.run_id,
            config=dict(run.hyper),
            tags=[run.status],
            settings=settings,
        )
        for step, epoch, values in run.history:
            made.log({"epoch": epoch, **values}, step=step)
        made.summary.update(dict(run.summary))
        made.finish(exit_code=int(run.status == "failed"))
