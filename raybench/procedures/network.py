"""A model, its data and its loss as functions of one run: what procedures on networks share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from raybench.data import Task
from raybench.errors import RaybenchError
from raybench.lanes import Lanes, Params
from raybench.models import Model
from raybench.models.base import Dropout, Memory, Noise
from raybench.probes import Probe, View
from raybench.procedures.bound import Bound
from raybench.procedures.feed import Feed, Piece
from raybench.procedures.losses import Losses, LossName
from raybench.procedures.norms import share_statistics
from raybench.procedures.sharded import Sharded, Shards, units
from raybench.procedures.stacked import Layer, chain
from raybench.ranks import Rows, Sums
from raybench.record import Recorder
from raybench.rng import Seed, rows_from

_IN_CACHE = 2**20  # numbers of a measurement that are worked on together


class Network:
    """A model lifted over lanes: initial state, forward passes, gradients and measurements.

    Args:
        lanes: the runs' lanes.
        model: what the runs share.
        seeds: the runs' seeds.
        task: what the data ask for.
        loss: of one batch, the mean over its rows.
        l2: adds l2 / 2 |W|^2 over weights, not biases, to the loss.

    Attributes:
        params: the initial weights; this rank's rows of them, where ranks divide them.
        buffers: the initial buffers.
        num_params: numbers in the weights of one run.
        shards: how ranks divide the weights; None if they do not.
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
        shapes = {name: weight.shape for name, weight in skeleton.named_parameters()}
        self.shards = Shards(lanes.ranks, shapes) if lanes.ranks.divides_weights else None
        keep = (self.shards.own,) if self.shards else ()
        states = [model.state(skeleton, *shape, seed, *keep) for seed in seeds]
        self.params, self.buffers = lanes.stack(states)
        self.num_params = sum(shape.numel() for shape in shapes.values())
        self._l2 = l2
        self._decayed = [name for name, shape in shapes.items() if model.decays(name, shape)]
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
        self._sharded: Sharded | None = None
        if self.shards:
            self._sharded = Sharded(trained, units(skeleton, task.inputs, lanes.ranks), lanes)
            self._forward = self._sharded.outputs
        self._checked_noise = False
        # Exact lanes have their gradients one after the other.
        looped = lanes.lifted and not lanes.fused
        self._overlaps = lanes.ranks.size > 1 and not looped and Sums.pay(self.params)

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
        if self._sharded is not None:
            self._sharded.precision = precision
        self._train.precision = precision
        self._chain = None
        self.gradient = self.lanes.grad(self.loss)

    def whole(self, params: Params) -> Params:
        """Return weights as they are on one rank: where ranks divide them, on the first one only.

        Collective then, and nothing on the others.
        """
        if self.shards is None:
            return params
        found = {}
        for name, weight in self.shards.whole(params).items():
            if self.lanes.ranks.first:
                found[name] = weight.cpu()
        return found

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
        if self._sharded is not None:
            shares = ((piece, piece.rows.share) for piece in pieces)
            return self._sharded_gradient(self._sharded, shares, (params, buffers), training=True)
        start = {name: buffers[name] for name in self._calls}
        sums: Params = {}
        losses: Params = {}
        for (x, y, rows), last in _with_last(pieces):
            early = {"earlier": sums} if last and self._overlaps else {}
            with rows_from(rows.start, rows.count):
                grads, loss, buffers = self.gradient(
                    params, buffers | start, x, y, share=rows.share, **early
                )
            sums = grads if early else _added(sums, grads)
            losses = _added(losses, {_LOSS: loss})
        if self._overlaps:
            return sums, self.lanes.ranks.sum(losses)[_LOSS], buffers
        sums = self.lanes.ranks.sum(sums | losses)
        return sums, sums.pop(_LOSS), buffers

    def _sharded_gradient(
        self,
        sharded: Sharded,
        pieces: Iterable[tuple[Piece, float]],
        state: tuple[Params, Params],
        *,
        training: bool,
    ) -> tuple[Params, Tensor, Params]:
        """Return this rank's rows of gradients, the loss [1], and the buffers after the passes.

        Args:
            sharded: the network.
            pieces: each with what a mean over it counts for.
            state: parameters and buffers before the first pass.
            training: whether these are passes of training; else each begins with those buffers.
        """
        params, buffers = state
        start = {name: buffers[name] for name in self._calls}
        losses: Params = {}
        for (x, y, rows), share in pieces:
            self.lanes.clock.tick(self.lanes.device)
            with rows_from(rows.start, rows.count):
                outputs, after = sharded.traced(params, buffers | start, x, training=training)
                loss = self._losses.mean(outputs, y) * share
                loss.backward()  # type: ignore[no-untyped-call]
            buffers = after if training else buffers
            losses = _added(losses, {_LOSS: loss.detach()})
        grads = sharded.gradients()
        for name in self._decayed if self._l2 else ():  # of this rank's rows alone
            losses[_LOSS] = losses[_LOSS] + self._l2 / 2 * params[name].square().sum()
            grads[name] = grads[name] + self._l2 * params[name]
        return grads, self.lanes.ranks.sum(losses)[_LOSS], buffers

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
            outputs: Tensor,
            targets: Tensor,
            params: Mapping[str, Tensor],
            grads: Mapping[str, Tensor],
        ) -> dict[str, Tensor]:
            losses = self._penalized(self._losses.rows(outputs, targets), params)
            view = View(outputs, targets, losses, params, grads)
            return {k: v for probe in probes for k, v in probe.measure(view).items()}

        measured = self.lanes.map(one)
        if self.shards is not None:
            return measured(outputs, targets, self.shards.whole(params), self.shards.whole(grads))
        return measured(outputs, targets, params, grads)

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

    def _penalized(self, loss: Tensor, params: Mapping[str, Tensor]) -> Tensor:
        if not self._l2:
            return loss
        squares = torch.stack([params[name].square().sum() for name in self._decayed])
        return loss + self._l2 / 2 * squares.sum()

    def _mean_gradient(self, passes: Sequence[Piece], params: Params, buffers: Params) -> Params:
        total = sum(piece.rows.total for piece in passes)
        if self._sharded is not None:
            shares = [(piece, piece.rows.count / total) for piece in passes]
            state = params, buffers
            return self._sharded_gradient(self._sharded, shares, state, training=False)[0]
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


def _with_last(pieces: Iterable[Piece]) -> Iterator[tuple[Piece, bool]]:
    """Yield pieces, each with whether it is the last."""
    rest = iter(pieces)
    piece = next(rest)
    for following in rest:
        yield piece, False
        piece = following
    yield piece, True


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
