"""A model, its data and its loss as functions of one run: what procedures on networks share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raybench.data import Task
from raybench.errors import RaybenchError
from raybench.lanes import Lanes, Params
from raybench.models import Model
from raybench.models.base import Memory
from raybench.probes import Probe, View
from raybench.procedures.feed import Feed
from raybench.procedures.stacked import Layer, chain
from raybench.record import Recorder
from raybench.rng import Seed

LossName = Literal["auto", "cross_entropy", "mse", "half_squares", "elbo", "output"]


class Losses:
    """A loss by name, of each row and of a whole batch.

    `mse` is the mean over outputs of squared differences, from one-hot targets for classes;
    `half_squares` is half their sum. `elbo` is that of a variational autoencoder whose outputs are
    [reconstruction D, mean L, log deviation s L] for targets [D]: the sum of squared differences,
    and -1/2 sum(1 + 2 s - mean^2 - exp(2 s))  (Kingma and Welling 2014, appendix B). `output`: the
    model's one output is the loss of the row.

    Args:
        name: `auto` is cross_entropy for classes, mse for regression.
        task: what the targets are.
        fused: whether it is lifted over lanes: then there is a faster way than PyTorch's own.
    """

    def __init__(self, name: LossName, task: Task, *, fused: bool = False) -> None:
        self._classes, self._fused = task.classes, fused
        if name == "auto":
            name = "cross_entropy" if task.classes else "mse"
        if name == "cross_entropy" and not task.classes:
            raise RaybenchError("loss cross_entropy needs classes; set loss: mse for regression")
        if name == "elbo" and task.classes:
            raise RaybenchError("loss elbo compares with the input; set data.target: input")
        self._name = name

    def rows(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each row, [N], from outputs [N, O] or [N, T, O]."""
        if self._name == "cross_entropy":
            if y.dim() == 1:
                return self._of_classes(outputs, y)
            each = nn.functional.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none")
            return each.view(y.shape).mean(-1)
        if self._name == "mse":
            return (outputs - self._targets(outputs, y)).square().mean(-1)
        if self._name == "half_squares":
            return (outputs - self._targets(outputs, y)).square().sum(-1) / 2
        return _elbo(outputs, y) if self._name == "elbo" else outputs.squeeze(-1)

    def mean(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        if self._name == "cross_entropy" and y.dim() == 1 and not self._fused:
            return nn.functional.cross_entropy(outputs, y)
        if self._name == "mse":
            return (outputs - self._targets(outputs, y)).square().mean()
        return self.rows(outputs, y).mean()

    def _of_classes(self, outputs: Tensor, y: Tensor) -> Tensor:
        if not self._fused:
            return nn.functional.cross_entropy(outputs, y, reduction="none")
        # Over the first axis: PyTorch vectorizes a softmax over other axes than the last, which
        # makes it up to thirty times faster for few classes.
        return -outputs.T.contiguous().log_softmax(0).gather(0, y[None]).squeeze(0)

    def _targets(self, outputs: Tensor, y: Tensor) -> Tensor:
        if not self._classes:
            return y
        return (y[:, None] == torch.arange(self._classes, device=y.device)).to(outputs.dtype)


def _elbo(outputs: Tensor, y: Tensor) -> Tensor:
    width = y.shape[-1]
    if outputs.shape[-1] <= width or (outputs.shape[-1] - width) % 2:
        raise RaybenchError(
            f"loss elbo needs outputs [reconstruction, mean, log deviation] for {width} numbers, "
            f"and the model has {outputs.shape[-1]}; use model: vae"
        )
    mean, log_std = outputs[..., width:].chunk(2, dim=-1)
    divergence = -0.5 * (1 + 2 * log_std - mean.square() - (2 * log_std).exp()).sum(-1)
    return (outputs[..., :width] - y).square().sum(-1) + divergence


class Bound:
    """A module that is called with given weights: `functional_call` without its bookkeeping.

    The weights of the last call stay in the module, which nothing else uses.

    Attributes:
        module: that is called.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._slots: list[tuple[dict[str, Any], str, str]] = []
        for prefix, layer in module.named_modules():
            dot = f"{prefix}." if prefix else ""
            for held in (layer._parameters, layer._buffers):
                self._slots += [(held, name, dot + name) for name in held if held[name] is not None]

    def __call__(self, params: Params, buffers: Params, x: Tensor) -> Tensor:
        """Return the module's outputs; buffers are changed in place by layers that do so."""
        for held, name, full in self._slots:
            held[name] = params[full] if full in params else buffers[full]
        outputs: Tensor = self.module(x)
        return outputs


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
        self._train = Bound(copy.deepcopy(skeleton).train())
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

    def forget(self, buffers: Params) -> Params:
        """Return the buffers with the memory of a recurrent network emptied."""
        if not self._memory:
            return buffers
        return buffers | {name: torch.zeros_like(buffers[name]) for name in self._memory}

    def step_gradient(
        self, params: Params, buffers: Params, x: Tensor, y: Tensor
    ) -> tuple[Params, Tensor, Params]:
        """Return gradients, losses [K] and new buffers; refuse a module that draws global noise."""
        if self._checked_noise:
            return self.gradient(params, buffers, x, y)
        self._checked_noise = True
        before = torch.get_rng_state()
        try:
            result = self.gradient(params, buffers, x, y)
        except RuntimeError as error:
            if "randomness" in str(error):
                raise RaybenchError(_GLOBAL_NOISE) from error
            raise
        if not torch.equal(before, torch.get_rng_state()):
            raise RaybenchError(_GLOBAL_NOISE)
        return result

    def measure(
        self,
        probes: Sequence[Probe],
        feed: Feed,
        split: str,
        params: Params,
        buffers: Params,
    ) -> dict[str, Tensor]:
        """Return the probes' numbers on a split by metric name, each [K]."""
        passes = feed.split(split, feed.batch_size if self._memory else None)
        numbers = sum(max(x[0].numel(), y[0].numel()) for x, y in passes)
        measure: Callable[..., dict[str, Tensor]] = partial(self._measured, probes)
        if self.lanes.device.type == "cpu":
            measure = self.lanes.in_blocks(measure, max(_IN_CACHE // max(numbers, 1), 1))
        return measure(passes, params, buffers)

    def _measured(
        self,
        probes: Sequence[Probe],
        passes: Sequence[tuple[Tensor, Tensor]],
        params: Params,
        buffers: Params,
    ) -> dict[str, Tensor]:
        dim = 1 if self.lanes.lifted else 0
        outputs = _joined(self._all_outputs(passes, params, buffers), dim)
        targets = _joined([y for _, y in passes], dim)
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

    def _all_outputs(
        self, passes: Sequence[tuple[Tensor, Tensor]], params: Params, buffers: Params
    ) -> list[Tensor]:
        if self._memory:
            buffers = self.forget(buffers)
        found = []
        for x, _ in passes:
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

    def _mean_gradient(
        self, passes: Sequence[tuple[Tensor, Tensor]], params: Params, buffers: Params
    ) -> Params:
        dim = 1 if self.lanes.lifted else 0
        total = sum(y.shape[dim] for _, y in passes)
        sums = {name: torch.zeros_like(p) for name, p in params.items()}
        for x, y in passes:
            grads, _, _ = self._eval_gradient(params, buffers, x, y)
            for name, grad in grads.items():
                sums[name] = sums[name] + grad * (y.shape[dim] / total)
        return sums

    def _eval_loss(
        self, params: Params, buffers: Params, x: Tensor, y: Tensor
    ) -> tuple[Tensor, Params]:
        mean = self._losses.mean(self._eval(params, buffers, x), y)
        return self._penalized(mean, params), {}


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


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
