"""A model, its data and its loss as functions of one run: what procedures on networks share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from raybench.data import Task
from raybench.errors import RaybenchError
from raybench.lanes import Lanes, Params
from raybench.models import Model
from raybench.models.base import Dropout, Memory, Noise
from raybench.probes import Probe, View
from raybench.procedures.feed import Feed, Piece
from raybench.procedures.losses import Losses, LossName
from raybench.procedures.norms import share_statistics
from raybench.procedures.stacked import Layer, chain
from raybench.ranks import Rows
from raybench.record import Recorder
from raybench.rng import Seed, rows_from


class Bound:
    """A module that is called with given weights: `functional_call` without its bookkeeping.

    The weights of the last call stay in the module, which nothing else uses.

    Attributes:
        module: that is called.
        precision: of products in the pass; None for that of the weights.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.precision: torch.dtype | None = None
        self._slots: list[tuple[dict[str, Any], str, str]] = []
        for prefix, layer in module.named_modules():
            dot = f"{prefix}." if prefix else ""
            for held in (layer._parameters, layer._buffers):
                self._slots += [(held, name, dot + name) for name in held if held[name] is not None]

    def __call__(self, params: Params, buffers: Params, x: Tensor) -> Tensor:
        """Return the module's outputs; buffers are changed in place by layers that do so."""
        for held, name, full in self._slots:
            held[name] = params[full] if full in params else buffers[full]
        if self.precision is None:
            outputs: Tensor = self.module(x)
            return outputs
        with torch.autocast(x.device.type, self.precision):
            outputs = self.module(x)
        return outputs.to(x.dtype)


_IN_CACHE = 2**20  # numbers of a measurement that are worked on together


class Network:
    """A model lifted over lanes: initial state, forward passes, gradients and measurements.

    Args:
        lanes: the runs' lanes.
        model: what the runs share.
        seeds: the runs' seeds.
        task: what the data ask for.
        loss: of one batch, the mean over its rows.
    """

    def __init__(
        self,
        lanes: Lanes,
        model: Model,
        seeds: Sequence[Seed],
        task: Task,
        loss: LossName,
        l2: float = 0.0,
    ) -> None:
        self.lanes = lanes
        self._losses = Losses(loss, task, fused=lanes.fused)
        shape = (task.inputs, task.outputs)
        skeleton = model.skeleton(*shape).eval()
        trained = copy.deepcopy(skeleton).train()
        if lanes.ranks.size > 1:
            share_statistics(trained, lanes.ranks)
        self._train = Bound(trained)
        self._eval = Bound(skeleton)
        states = [model.state(skeleton, *shape, seed) for seed in seeds]
        self.params, self.buffers = lanes.stack(states)
        self.num_params = sum(weight.numel() for weight in states[0][0].values())
        self._l2 = l2
        self._decayed = [n for n, w in states[0][0].items() if model.decays(n, w.shape)]
        self._memory = [
            f"{prefix}.state"
            for prefix, layer in skeleton.named_modules()
            if isinstance(layer, Memory)
        ]
        self._calls = [
            f"{prefix}.calls" if prefix else "calls"
            for prefix, layer in skeleton.named_modules()
            if isinstance(layer, Dropout | Noise)
        ]
        self._chain = (
            None if self._memory else chain(lanes, self._train.module, self._lifted, trains=True)
        )
        self.gradient = (
            lanes.grad(self.loss)
            if self._chain is None
            else lanes.grad(self._stacked_loss, stacked=True)
        )
        self._lane_losses = lanes.map(self._penalized_mean)
        self._eval_gradient = lanes.grad(self._eval_loss)
        own = None if self._memory else chain(lanes, skeleton, self._lifted, trains=False)
        self._forward = own or lanes.map(self._outputs)
        self._checked_noise = False

    def loss(self, params: Params, buffers: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Params]:
        """Return one run's mean loss on a batch, and its buffers after the pass."""
        if buffers:
            buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        mean = self._losses.mean(self._train(params, buffers, x), y)
        return self._penalized(mean, params), buffers

    def _stacked_loss(
        self, params: Params, buffers: Params, x: Tensor, y: Tensor
    ) -> tuple[Tensor, Params]:
        """Return the mean losses of K lanes, [K], and their buffers after the pass."""
        assert self._chain is not None
        outputs, buffers = self._chain(params, buffers, x)
        return self._lane_losses(outputs, y, params), buffers

    def _penalized_mean(self, outputs: Tensor, y: Tensor, params: Params) -> Tensor:
        return self._penalized(self._losses.mean(outputs, y), params)

    def _lifted(self, module: nn.Module) -> Layer:
        """Return the pass of K lanes through a part of the network, by vmap."""
        bound = Bound(module)

        def one(params: Params, buffers: Params, x: Tensor) -> tuple[Tensor, Params]:
            own = {name: buffer.clone() for name, buffer in buffers.items()}
            return bound(params, own, x), own

        return self.lanes.map(one)

    def lower(self, precision: torch.dtype) -> None:
        """Train with passes of lower precision; weights, losses and measurements keep theirs."""
        self._train.precision = precision
        self._chain = None
        self.gradient = self.lanes.grad(self.loss)

    @property
    def remembers(self) -> bool:
        """Whether one batch leaves something for the next."""
        return bool(self._memory)

    def forget(self, buffers: Params) -> Params:
        """Return the buffers with the memory of a recurrent network emptied."""
        if not self._memory:
            return buffers
        return buffers | {name: torch.zeros_like(buffers[name]) for name in self._memory}

    def step_gradient(
        self, params: Params, buffers: Params, pieces: Iterable[Piece]
    ) -> tuple[Params, Tensor, Params]:
        """Return gradients, losses [K] and new buffers of one batch, over its pieces and all ranks.

        Each piece counts for its share of the rows. Noise is that of the batch as a whole; batch
        norm sees the rows of one piece, on all ranks.

        Raises:
            RaybenchError: the module draws noise from PyTorch's global generator.
        """
        if self._checked_noise:
            return self.summed_gradient(pieces, params, buffers)
        self._checked_noise = True
        before = torch.get_rng_state()
        try:
            result = self.summed_gradient(pieces, params, buffers)
        except RuntimeError as error:
            if "randomness" in str(error):
                raise RaybenchError(_GLOBAL_NOISE) from error
            raise
        if not torch.equal(before, torch.get_rng_state()):
            raise RaybenchError(_GLOBAL_NOISE)
        return result

    def summed_gradient(
        self, pieces: Iterable[Piece], params: Params, buffers: Params
    ) -> tuple[Params, Tensor, Params]:
        """Do what `step_gradient` does, without looking for noise of the global generator."""
        start = {name: buffers[name] for name in self._calls}
        sums: Params = {}
        for x, y, rows in pieces:
            with rows_from(rows.start, rows.count):
                grads, loss, buffers = self.gradient(
                    params, buffers | start, x, y, share=rows.share
                )
            sums = _added(sums, {**grads, _LOSS: loss})
        sums = self.lanes.ranks.sum(sums)
        return sums, sums.pop(_LOSS), buffers

    def measure(
        self,
        probes: Sequence[Probe],
        feed: Feed,
        split: str,
        params: Params,
        buffers: Params,
    ) -> dict[str, Tensor]:
        """Return the probes' numbers on a split by metric name, each [K]."""
        passes = feed.passes(split, feed.batch_size if self._memory else None)
        numbers = sum(self._numbers(piece) for piece in passes)
        measure: Callable[..., dict[str, Tensor]] = partial(self._measured, probes)
        if self.lanes.device.type == "cpu":
            measure = self.lanes.in_blocks(measure, max(_IN_CACHE // max(numbers, 1), 1))
        return measure(passes, params, buffers)

    def _measured(
        self,
        probes: Sequence[Probe],
        passes: Sequence[Piece],
        params: Params,
        buffers: Params,
    ) -> dict[str, Tensor]:
        outputs = self._joined(self._all_outputs(passes, params, buffers), passes)
        targets = self._joined([piece.y for piece in passes], passes)
        grads: Params = {}
        if any(probe.needs_gradient for probe in probes):
            grads = self._mean_gradient(passes, params, buffers)

        def one(
            outputs: Tensor, targets: Tensor, params: Params, grads: Params
        ) -> dict[str, Tensor]:
            losses = self._penalized(self._losses.rows(outputs, targets), params)
            view = View(outputs, targets, losses, params, grads)
            return {k: v for probe in probes for k, v in probe.measure(view).items()}

        return self.lanes.map(one)(outputs, targets, params, grads)

    def _numbers(self, piece: Piece) -> int:
        """Return the most numbers of one lane's rows of a pass that any rank has."""
        most = max(rows.count for rows in self.lanes.ranks.parts(Rows.all_of(piece.rows.total)))
        return most * max(value.shape[2:].numel() for value in (piece.x, piece.y))

    def _joined(self, parts: Sequence[Tensor], passes: Sequence[Piece]) -> Tensor:
        """Return what there is for the rows of each pass, those of all ranks, in order."""
        dim = 1 if self.lanes.lifted else 0
        ranks = self.lanes.ranks
        whole = [
            ranks.gather(part, [rows.count for rows in ranks.parts(Rows.all_of(total))], dim)
            for part, total in zip(parts, (piece.rows.total for piece in passes), strict=True)
        ]
        return whole[0] if len(whole) == 1 else torch.cat(whole, dim)

    def _all_outputs(
        self, passes: Sequence[Piece], params: Params, buffers: Params
    ) -> list[Tensor]:
        if self._memory:
            buffers = self.forget(buffers)
        found = []
        for x, _, rows in passes:
            with rows_from(rows.start, rows.count):
                outputs, after = self._forward(params, buffers, x)
            buffers = after if self._memory else buffers
            found.append(outputs)
        return found

    def _outputs(self, params: Params, buffers: Params, x: Tensor) -> tuple[Tensor, Params]:
        if not self._memory:
            return self._eval(params, buffers, x), {}
        buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        return self._eval(params, buffers, x), buffers

    def _penalized(self, loss: Tensor, params: Params) -> Tensor:
        if not self._l2:
            return loss
        squares = torch.stack([params[name].square().sum() for name in self._decayed])
        return loss + self._l2 / 2 * squares.sum()

    def _mean_gradient(self, passes: Sequence[Piece], params: Params, buffers: Params) -> Params:
        total = sum(piece.rows.total for piece in passes)
        sums: Params = {}
        for x, y, rows in passes:
            with rows_from(rows.start, rows.count):
                grads, _, _ = self._eval_gradient(params, buffers, x, y, share=rows.count / total)
            sums = _added(sums, grads)
        return self.lanes.ranks.sum(sums)

    def _eval_loss(
        self, params: Params, buffers: Params, x: Tensor, y: Tensor
    ) -> tuple[Tensor, Params]:
        mean = self._losses.mean(self._eval(params, buffers, x), y)
        return self._penalized(mean, params), {}


_LOSS = ""  # no parameter is called so


def _added(sums: Params, values: Params) -> Params:
    """Return sums with some values added; the values themselves if they are the first."""
    return {name: sums[name] + value for name, value in values.items()} if sums else values


_GLOBAL_NOISE = (
    "the model draws noise from PyTorch's global generator in forward, so its results would "
    "depend on what else runs; use nn.Dropout as a submodule (it is replaced), or a buffer key "
    "and raybench.rng.uniform"
)


def record_all(
    recorder: Recorder,
    network: Network,
    feed: Feed,
    state: tuple[Params, Params],
    *,
    step: int,
    splits: Sequence[str],
    probes: Sequence[Probe],
) -> None:
    """Measure every probe where it applies, and note the lanes that have diverged."""
    epoch = step / feed.steps_per_epoch
    network.lanes.clock.record()
    for split in splits:
        on = [p for p in probes if p.on == "split" or (p.on == "train" and split == "train")]
        if on and feed.has(split):
            values = network.measure(on, feed, split, *state)
            recorder.write(step, epoch, split, values)
            if "loss" in values and split == "train":
                recorder.watch(step, values["loss"])
    if once := [p for p in probes if p.on == "model"]:
        recorder.write(step, epoch, "model", network.measure(once, feed, "train", *state))
