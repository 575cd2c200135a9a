"""Train one network: the loop that every other procedure is a variation of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Final, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator

from raybench.checkpoints import Saved, Saves
from raybench.data import DATA, Data
from raybench.errors import RaybenchError
from raybench.lanes import Lanes, Params
from raybench.models import MODELS, Model, operations
from raybench.models.base import size
from raybench.optim import OPTIMIZERS, SCHEDULES, ForeignOptimizer, Optimizer, Schedule
from raybench.optim.schedules import Constant
from raybench.probes import PROBES, Probe
from raybench.probes.loss import Error, Loss
from raybench.procedures.advance import Advance, Place, masked
from raybench.procedures.base import Procedure
from raybench.procedures.feed import Extent, Feed, Order
from raybench.procedures.losses import LossName
from raybench.procedures.network import Network, record_all
from raybench.procedures.stepper import Stepper
from raybench.procedures.stop import Stop, Watch, ending
from raybench.record import Recorder, Times
from raybench.spec import Json, Run, Spec, Steps
from raybench.tables import Part


class Record(Spec):
    """What is measured, on which rows, and when."""

    at: Times = Times(log=20)
    """When: {log: 20}, {linear: 10} or {every: 1ep}."""
    on: tuple[Literal["train", "valid", "test"], ...] = ("train", "valid", "test")
    """Splits; those without rows are passed over."""
    probes: Annotated[tuple[Probe, ...], Part(PROBES)] = (Loss(), Error())
    """What to measure."""
    train_rows: int | None = Field(default=None, ge=1)
    """On how many training rows `train` is measured; null for all of them."""
    whole_batches: bool = False
    """Whether rows that do not fill a batch are left out of measurements, as DeepOBS does."""


_USUAL_ROWS: Final = 50_000  # of a set whose number of training rows is not given
_STEP_ALONE: Final = 1e6  # operations that could be done in the time of an empty step


class Train(Procedure):
    """Train a model on a data set with an optimizer, and record probes on the way."""

    shared: ClassVar[bool] = True

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
    accumulate: int = Field(default=1, ge=1)
    """In how many pieces a batch is worked on, one after the other, for batches that do not fit in
    memory. Noise and gradients are those of the whole batch; batch norm sees one piece."""
    precision: Literal["full", "bfloat16"] = "full"
    """Of the products in the passes of training: `bfloat16` on weights that stay float32. Losses
    and measurements are of full precision."""
    drop_last: bool = False
    """Whether the smaller batch at the end of an epoch is left out."""
    order: Order = "reshuffled"
    """Order of the training rows: drawn anew for each epoch, or once for all epochs. Rows of a text
    always keep theirs."""
    l2: float = Field(default=0.0, ge=0)
    """Adds l2 / 2 |W|^2 over weights, not biases, to the loss that is trained and reported."""
    record: Record = Record()
    """What is measured."""
    stop: Stop | None = None
    """What ends a run before its steps are over, besides divergence."""

    @field_validator("stop")
    @classmethod
    def _target_is_measured(cls, stop: Stop | None, info: ValidationInfo) -> Stop | None:
        splits = info.data["record"].on if "record" in info.data else ()
        for name in (stop.target or {}) if stop and splits else ():
            if name.partition("/")[0] not in splits:
                raise ValueError(f"target {name} is not measured: add its split to record.on")
        return stop

    @field_validator("precision")
    @classmethod
    def _lowers_float32(cls, precision: str, info: ValidationInfo) -> str:
        if precision != "full" and info.data.get("dtype") == "float64":
            raise ValueError(f"{precision} lowers float32: leave dtype: float64 out")
        return precision

    def require(self) -> None:
        """Ask the data set."""
        self.data.require()

    def missing(self) -> str | None:
        """Ask the data set."""
        return self.data.missing()

    def cost_form(self) -> Json:
        """Leave out lengths and schedule; of optimizers tell only fused ones from foreign ones."""
        foreign = isinstance(self.optimizer, ForeignOptimizer)
        kept = {k: v for k, v in self.batch_form.items() if k not in ("schedule", "steps", "stop")}
        return {**kept, "optimizer": self.optimizer.batch_form if foreign else None}

    def operations(self) -> float | None:
        """Count three forward passes for each row of each step, one for each row measured."""
        expected = self.data.expected()
        if expected is None:
            return None
        task, rows = expected
        batch = min(self.batch_size or rows["train"], rows["train"])
        epoch = max(rows["train"] // batch if self.drop_last else -(-rows["train"] // batch), 1)
        total = self.steps.resolve(epoch)
        measured = rows | {"train": min(self.record.train_rows or rows["train"], rows["train"])}
        recordings = len(self.record.at.steps(total, epoch))
        passes = 3 * total * batch + recordings * sum(measured[split] for split in self.record.on)
        return passes * operations.forward(self.model, task.inputs, task.outputs)

    def rough_operations(self) -> float:
        """Return steps x (weights x rows x 6), a step costing something by itself."""
        train = self.data.train or _USUAL_ROWS
        rows = self.batch_size or train
        steps = self.steps.resolve(math.ceil(train / rows))
        return max(steps, 1) * (_STEP_ALONE + 6.0 * size(self.model) * rows)

    def execute(self, lanes: Lanes, runs: Sequence[Run[Any]], recorder: Recorder) -> None:
        """Train the runs side by side."""
        course = Course(lanes, runs)
        lanes.clock.expect(course.end, len(course.due))
        course.fit(
            course.network.params,
            course.network.buffers,
            recorder,
            narrow=True,
            saves=recorder.saves,
        )


class Course:
    """The parts of `Train` put together for K runs; a procedure may go through it several times.

    Args:
        lanes: the runs' lanes.
        runs: their procedures have the fields of `Train`.

    Attributes:
        network: with the initial weights and buffers.
        feed: with the runs' rows.
        total: steps of one fit.
        end: the step after which none is trained, as far as it is known before.
        due: steps at which it records.
    """

    def __init__(self, lanes: Lanes, runs: Sequence[Run[Any]]) -> None:
        self._spec: Train = runs[0].procedure
        self._optimizers = [run.procedure.optimizer for run in runs]
        self._lanes = lanes
        seeds = [run.seed for run in runs]
        self.feed = Feed(
            lanes,
            [run.procedure.data for run in runs],
            seeds,
            batch_size=self._spec.batch_size,
            drop_last=self._spec.drop_last,
            order=self._spec.order,
            extent=Extent(self._spec.record.train_rows, self._spec.record.whole_batches),
        )
        self.network = Network(
            lanes, self._spec.model, seeds, self.feed.task, self._spec.loss, self._spec.l2
        )
        self._form = self._step_form()
        if self._spec.precision == "bfloat16":
            self.network.lower(torch.bfloat16)
        if self.network.remembers and (lanes.ranks.size > 1 or self._spec.accumulate > 1):
            raise RaybenchError(
                f"model {self._spec.model.name} carries what it has seen of a batch to the next, "
                "row by row, so batches stay whole; set resources.ranks: 1 and accumulate: 1"
            )
        self.total = self._spec.steps.resolve(self.feed.steps_per_epoch)
        epoch = self.feed.steps_per_epoch
        self.end = ending(self._spec.stop, self.total, epoch)
        times = self._spec.record.at.steps(self.total, epoch)
        self.due = {step for step in times if step < self.end} | {self.end}

    def _step_form(self) -> Json:
        """Return what the work of a step depends on; None for steps that are not compiled."""
        if self._spec.accumulate > 1 or self._spec.precision != "full":
            return None
        stop = self._spec.stop
        if stop is not None and stop.wall is not None and self._lanes.compiling.mode == "auto":
            return None  # the time is for steps, of which a result then holds as many as there were
        others = ("schedule", "steps", "stop", "record")
        form = {k: v for k, v in self._spec.batch_form.items() if k not in others}
        return [self._spec.name, form]

    def fit(
        self,
        params: Params,
        buffers: Params,
        recorder: Recorder,
        *,
        masks: Params | None = None,
        offset: int = 0,
        narrow: bool = False,
        saves: Saves | None = None,
    ) -> tuple[Params, Params]:
        """Train from given weights and return the trained ones, with the buffers.

        Each fit begins with a fresh optimizer and the same order of the rows.

        Args:
            params: where training starts.
            buffers: likewise.
            recorder: takes what is measured.
            masks: zeros for weights that are kept at 0, ones for the others; None for no masks.
            offset: added to the steps that are recorded, for procedures of several fits.
            narrow: whether lanes whose runs have ended leave the group, once at most half are left;
                what is returned is then of the others, and the course is theirs from there on.
            saves: checkpoints that are written on the way, and of which the furthest is where it
                goes on; for a procedure of one fit without masks that may narrow its lanes.
        """
        recorder.fact("num_params", self.network.num_params)
        epoch, record = self.feed.steps_per_epoch, self._spec.record
        optimizer = Stepper(self._lanes, self._optimizers, self.network.shards)
        self.feed.restart()
        params = masked(params, masks)
        state = optimizer.init(params)
        advance = Advance(self._lanes, self.network, optimizer, self._form)
        first, every = 0, self.end + 1
        if saves is not None:
            every = saves.every.resolve(epoch)
            if saved := saves.load():
                first = saved.step
                params, buffers, state = self._restored(saved, recorder, optimizer)
                if not self._lanes.size:
                    return params, buffers
        before = saves.before if saves else 0.0
        watch = Watch(self._spec.stop, recorder, self.total, self.end, before)
        for step in range(first, self.end + 1):
            if saves is not None and step > first and step % every == 0 and step < self.end:
                saves.save(step, self._plain(params, buffers, recorder, optimizer.plain(state)))
            recorder.reach(offset + step)
            if step % epoch == 0:
                buffers = self.network.forget(buffers)
            over = step > 0 and watch.late()
            if step in self.due or over or self._lanes.clock.samples(step):
                record_all(
                    recorder,
                    self.network,
                    self.feed,
                    (optimizer.evaluated(state, params), buffers),
                    step=offset + step,
                    splits=record.on,
                    probes=record.probes,
                )
                left = watch.look(step, offset + step)
                if not left:
                    break
                if narrow and 2 * len(left) <= self._lanes.size:
                    self._lanes.narrow(left)
                    self.feed.take(left)
                    params, buffers, masks = self._lanes.take((params, buffers, masks), left)
                    state = optimizer.take(state, params, left)
            if step == self.end:
                break
            pieces = self.feed.pieces(step, self._spec.accumulate)
            factor = self._spec.schedule.factor(step, self.total, epoch)
            at = Place(params, state, buffers, masks)
            at, loss = advance.step(at, pieces, factor, self.end - step)
            params, state, buffers, _ = at
            recorder.watch(offset + step, loss)
        return params, buffers

    def _plain(
        self, params: Params, buffers: Params, recorder: Recorder, optimizer: Any
    ) -> dict[str, Any]:
        """Return all that a step depends on but the configs and seeds, to be stored.

        Orders and noise are not in it: they follow from the seeds and the step. What ranks divide
        is whole on the first of them, which stores it, so any number of ranks can go on from it.
        """
        return {
            "lifted": self._lanes.lifted,
            "members": self._lanes.members,
            "weights": self._lanes.plain((self.network.whole(params), buffers)),
            "optimizer": optimizer,
            "recorder": recorder.plain(),
        }

    def _restored(
        self, saved: Saved, recorder: Recorder, optimizer: Stepper
    ) -> tuple[Params, Params, Any]:
        """Narrow the lanes to those that were left; return weights, buffers, optimizer state."""
        state = saved.state
        members: tuple[int, ...] = state["members"]
        recorder.restore(state["recorder"], saved.places)
        left = [lane for lane, place in enumerate(saved.places) if place in members]
        rows = [members.index(saved.places[lane]) for lane in left]
        self._lanes.narrow(left)
        if not left:
            return {}, {}, None
        self.feed.take(left)
        lifted = state["lifted"]
        weights, others = state["weights"]
        keep = self.network.shards.own if self.network.shards else None
        params = self._lanes.restored(weights, rows, lifted=lifted, keep=keep)
        buffers = self._lanes.restored(others, rows, lifted=lifted)
        return (
            params,
            buffers,
            optimizer.restored(state["optimizer"], params, left, rows, lifted=lifted),
        )
