"""Train one network: the loop that every other procedure is a variation of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from raybench.data import DATA, Data
from raybench.lanes import Lanes
from raybench.models import MODELS, Model
from raybench.optim import OPTIMIZERS, SCHEDULES, Optimizer, Schedule
from raybench.optim.schedules import Constant
from raybench.probes import PROBES, Probe
from raybench.probes.loss import Error, Loss
from raybench.procedures.base import Procedure
from raybench.procedures.feed import Feed
from raybench.procedures.network import LossName, Network, record_all
from raybench.procedures.stepper import Stepper
from raybench.record import Recorder, Times
from raybench.spec import Run, Spec, Steps
from raybench.tables import Part


class Record(Spec):
    """What is measured, on which rows, and when."""

    at: Times = Times(log=20)
    """When: {log: 20}, {linear: 10} or {every: 1ep}."""
    on: tuple[Literal["train", "valid", "test"], ...] = ("train", "valid", "test")
    """Splits; those without rows are passed over."""
    probes: Annotated[tuple[Probe, ...], Part(PROBES)] = (Loss(), Error())
    """What to measure."""


class Train(Procedure):
    """Train a model on a data set with an optimizer, and record probes on the way."""

    data: Annotated[Data, Part(DATA)]
    """Data set."""
    model: Annotated[Model, Part(MODELS)]
    """Network."""
    optimizer: Annotated[Optimizer, Part(OPTIMIZERS)]
    """Update rule."""
    schedule: Annotated[Schedule, Part(SCHEDULES)] = Constant()
    """Learning rate over time."""
    loss: LossName = "auto"
    """`auto` is cross_entropy for classes and mse for regression."""
    steps: Steps
    """How long: 160ep or 500it."""
    batch_size: int | None = Field(default=128, ge=1)
    """Rows in a batch; null for all of them."""
    drop_last: bool = False
    """Whether the smaller batch at the end of an epoch is left out."""
    record: Record = Record()
    """What is measured."""

    def execute(self, lanes: Lanes, runs: Sequence[Run[Any]], recorder: Recorder) -> None:
        """Train the runs side by side."""
        seeds = [run.seed for run in runs]
        feed = Feed(
            lanes,
            [run.procedure.data.draw(run.seed) for run in runs],
            seeds,
            batch_size=self.batch_size,
            drop_last=self.drop_last,
            augmentations=self.data.augment,
        )
        network = Network(lanes, self.model, seeds, feed.task, self.loss)
        recorder.fact("num_params", network.num_params)
        optimizer = Stepper(lanes, [run.procedure.optimizer for run in runs])
        params, buffers = network.params, network.buffers
        state = optimizer.init(params)
        total, epoch = self.steps.resolve(feed.steps_per_epoch), feed.steps_per_epoch
        due = set(self.record.at.steps(total, epoch))
        lanes.clock.expect(total, len(due))
        for step in range(total + 1):
            if step in due:
                record_all(
                    recorder,
                    network,
                    feed,
                    (params, buffers),
                    step=step,
                    splits=self.record.on,
                    probes=self.record.probes,
                )
                if recorder.all_diverged():
                    break
            if step == total:
                break
            x, y = feed.batch(step)
            grads, loss, buffers = network.step_gradient(params, buffers, x, y)
            factor = self.schedule.factor(step, total, epoch)
            params, state = optimizer.update(grads, state, params, factor)
            recorder.watch(step, loss)
