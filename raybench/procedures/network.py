"""A model, its data and its loss as functions of one run: what procedures on networks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raybench.data import Task
from raybench.errors import RaybenchError
from raybench.lanes import Lanes, Params
from raybench.models import Model
from raybench.probes import Probe, View
from raybench.procedures.feed import Feed
from raybench.record import Recorder
from raybench.rng import Seed

LossName = Literal["auto", "cross_entropy", "mse"]


class Losses:
    """A loss by name, of each row and of a whole batch.

    `mse` is the mean over outputs of squared differences, from one-hot targets for classes.

    Args:
        name: `auto` is cross_entropy for classes, mse for regression.
        task: what the targets are.
    """

    def __init__(self, name: LossName, task: Task) -> None:
        self._classes = task.classes
        self._entropy = name == "cross_entropy" or (name == "auto" and task.classes > 0)
        if self._entropy and not task.classes:
            raise RaybenchError("loss cross_entropy needs classes; set loss: mse for regression")

    def rows(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each row, [N], from outputs [N, O]."""
        if self._entropy:
            return nn.functional.cross_entropy(outputs, y, reduction="none")
        return (outputs - self._targets(outputs, y)).square().mean(-1)

    def mean(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        if self._entropy:
            return nn.functional.cross_entropy(outputs, y)
        return (outputs - self._targets(outputs, y)).square().mean()

    def _targets(self, outputs: Tensor, y: Tensor) -> Tensor:
        if not self._classes:
            return y
        return (y[:, None] == torch.arange(self._classes, device=y.device)).to(outputs.dtype)


class Bound:
    """A module that is called with given weights: `functional_call` without its bookkeeping.

    The weights of the last call stay in the module, which nothing else uses.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._slots: list[tuple[dict[str, Any], str, str]] = []
        for prefix, layer in module.named_modules():
            dot = f"{prefix}." if prefix else ""
            for held in (layer._parameters, layer._buffers):
                self._slots += [(held, name, dot + name) for name in held if held[name] is not None]

    def __call__(self, params: Params, buffers: Params, x: Tensor) -> Tensor:
        """Return the module's outputs; buffers are changed in place by layers that do so."""
        for held, name, full in self._slots:
            held[name] = params[full] if full in params else buffers[full]
        outputs: Tensor = self._module(x)
        return outputs


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
        self, lanes: Lanes, model: Model, seeds: Sequence[Seed], task: Task, loss: LossName
    ) -> None:
        self.lanes = lanes
        self._losses = Losses(loss, task)
        shape = (task.inputs, task.outputs)
        skeleton = model.skeleton(*shape).eval()
        self._train = Bound(model.skeleton(*shape).train())
        self._eval = Bound(skeleton)
        states = [model.state(skeleton, *shape, seed) for seed in seeds]
        self.params, self.buffers = lanes.stack(states)
        self.num_params = sum(weight.numel() for weight in states[0][0].values())
        self.gradient = lanes.grad(self.loss)
        self._eval_gradient = lanes.grad(self._eval_loss)
        self._forward = lanes.map(self._eval)
        self._checked_noise = False

    def loss(self, params: Params, buffers: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Params]:
        """Return one run's mean loss on a batch, and its buffers after the pass."""
        if buffers:
            buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        return self._losses.mean(self._train(params, buffers, x), y), buffers

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
        passes = feed.split(split)
        outputs = torch.cat(
            [self._forward(params, buffers, x) for x, _ in passes],
            dim=1 if self.lanes.lifted else 0,
        )
        targets = torch.cat([y for _, y in passes], dim=1 if self.lanes.lifted else 0)
        grads: Params = {}
        if any(probe.needs_gradient for probe in probes):
            grads = self._mean_gradient(passes, params, buffers)

        def one(
            outputs: Tensor, targets: Tensor, params: Params, grads: Params
        ) -> dict[str, Tensor]:
            view = View(outputs, targets, self._losses.rows(outputs, targets), params, grads)
            return {k: v for probe in probes for k, v in probe.measure(view).items()}

        return self.lanes.map(one)(outputs, targets, params, grads)

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
        return self._losses.mean(self._eval(params, buffers, x), y), {}


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
