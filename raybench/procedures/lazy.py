"""How far training takes a network from where it began: weights, coordinates, tangent kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import grad, vjp, vmap

from raybench.lanes import Lanes, Params
from raybench.optim import ForeignOptimizer
from raybench.procedures.bound import Bound
from raybench.procedures.losses import Losses
from raybench.procedures.network import record_all
from raybench.procedures.stepper import Stepper
from raybench.procedures.train import Course, Train
from raybench.record import Recorder
from raybench.spec import Hyper, Run

_POWER_STEPS = 40  # of the power iteration: the rate needs the curvature to a few per cent
_LOOK = 32  # steps between looks at whether any lane still trains; each look waits for the device


class Lazy(Train):
    """Train, and hold the trained network against the one at the start.

    Records what `record` asks for at the start and the end, and at the end, under split `model`:
    `moved`, |w_T - w_0| / |w_0| over all weights; `coordinate.1`, `coordinate.2`, ... and
    `coordinate.out`, mean |x_T - x_0| of what each layer of weights gives for the compared rows,
    the coordinate check of Yang et al. 2022 (arXiv:2203.03466, section D.1); `at_start.…`, mean
    |x_0|; `linear_gap`, |f_T - f_lin| / |f_T - f_0| with f_lin = f_0 + J_0 (w_T - w_0), the network
    linearized at its start; `kernel_change`, |K_T - K_0| / |K_0| in the Frobenius norm with K the
    mean over outputs of the empirical tangent kernel (Lee et al. 2019, arXiv:1902.06720, fig. 1);
    `steps_taken` and `rate`, the learning rate.
    """

    shared: ClassVar[bool] = False

    rows: int = Field(default=20, ge=2)
    """How many of the training rows, from the first on, outputs and kernels are compared on."""
    kernel: bool = True
    """Whether tangent kernels are measured."""
    curvature_rate: bool = False
    """Whether `optimizer.lr` is in units of 1 / lambda: lambda is the largest curvature of the
    training loss at the start, of the Gauss-Newton matrix J^T H J."""
    until: Hyper = Field(default=0.0, ge=0)
    """A run's weights stay as they are once its training loss, of the batch at hand, is below this;
    0 trains for all steps."""

    def check(self) -> str | None:
        """Refuse a rate that foreign optimizers cannot take, and what only `train` does."""
        if self.stop is not None:
            return "lazy compares whole trainings: instead of `stop` set `until`"
        if self.curvature_rate and isinstance(self.optimizer, ForeignOptimizer):
            return "curvature_rate sets the rate of raybench's own optimizers only"
        return None

    def execute(self, lanes: Lanes, runs: Sequence[Run[Any]], recorder: Recorder) -> None:
        """Train the runs side by side and compare each with its start."""
        course = Course(lanes, runs)
        network, feed = course.network, course.feed
        recorder.fact("num_params", network.num_params)
        tangent = _Tangent(self, lanes, course)
        lanes.clock.expect(course.total, 2)
        rates = [float(run.procedure.optimizer.lr) for run in runs]
        if self.curvature_rate:
            largest = lanes.columns(tangent.curvature(network.params, network.buffers)).tolist()
            rates = [rate / value for rate, value in zip(rates, largest, strict=True)]
        optimizers = [
            run.procedure.optimizer.replace(lr=rate) for run, rate in zip(runs, rates, strict=True)
        ]

        def record(step: int, state: tuple[Params, Params]) -> None:
            on, probes = self.record.on, self.record.probes
            record_all(recorder, network, feed, state, step=step, splits=on, probes=probes)

        before = tangent.kernels(network.params, network.buffers)
        record(0, (network.params, network.buffers))
        params, buffers, steps = self._trained(lanes, runs, course, Stepper(lanes, optimizers))
        after = tangent.kernels(params, buffers)
        record(course.total, (params, buffers))
        found = tangent.compared(network.params, params, buffers)
        if self.kernel:
            change = lanes.map(lambda a, b: {"kernel_change": (b - a).norm() / a.norm()})
            found |= change(before, after)
        found |= {"steps_taken": steps, "rate": lanes.stack([torch.tensor(rate) for rate in rates])}
        recorder.write(course.total, course.total / feed.steps_per_epoch, "model", found)

    def _trained(
        self, lanes: Lanes, runs: Sequence[Run[Any]], course: Course, stepper: Stepper
    ) -> tuple[Params, Params, Tensor]:
        """Return weights and buffers after training, and the steps that each run took, [K]."""
        params, buffers = course.network.params, course.network.buffers
        state = stepper.init(params)
        specs = lanes.stack([run.procedure for run in runs])
        keep = lanes.map(_kept)
        moving = lanes.stack([torch.ones(())] * lanes.size)
        taken = torch.zeros_like(moving)
        for step in range(course.total):
            pieces = course.feed.pieces(step, self.accumulate)
            grads, loss, new_buffers = course.network.step_gradient(params, buffers, pieces)
            factor = self.schedule.factor(step, course.total, course.feed.steps_per_epoch)
            new_params, state = stepper.update(grads, state, params, factor)
            params, buffers, moving = keep(
                specs, moving, loss, (params, buffers), (new_params, new_buffers)
            )
            taken = taken + moving
            if step % _LOOK == 0 and not bool(moving.any()):
                break
        return params, buffers, taken


def _kept(
    spec: Lazy,
    moving: Tensor,
    loss: Tensor,
    old: tuple[Params, Params],
    new: tuple[Params, Params],
) -> tuple[Params, Params, Tensor]:
    """Return the new state, or the old one for a run whose loss has been below `until`."""
    moving = moving * ~(loss < spec.until)

    def chosen(before: Params, after: Params) -> Params:
        return {name: torch.where(moving > 0, after[name], before[name]) for name in before}

    return chosen(old[0], new[0]), chosen(old[1], new[1]), moving


class _Tangent:
    """A network's outputs as functions of its weights: derivatives and what changes with them.

    Args:
        spec: what is compared.
        lanes: the runs' lanes.
        course: the runs' network and rows.
    """

    def __init__(self, spec: Lazy, lanes: Lanes, course: Course) -> None:
        task = course.feed.task
        self._spec, self._lanes = spec, lanes
        self._outputs_count = task.outputs
        module = spec.model.skeleton(task.inputs, task.outputs).eval()
        self._bound = Bound(module)
        self._losses = Losses(spec.loss, task)
        self._all = course.feed.split("train")[0]
        x = self._all[0]
        self._rows = x[:, : spec.rows] if lanes.lifted else x[: spec.rows]
        tapped = spec.model.skeleton(task.inputs, task.outputs).eval()
        self._tapped = Bound(tapped)
        self._seen: list[Tensor] = []
        for layer in tapped.modules():
            if next(layer.parameters(recurse=False), None) is not None:
                layer.register_forward_hook(self._see)

    def kernels(self, params: Params, buffers: Params) -> Tensor:
        """Return each run's empirical tangent kernel of the compared rows, [K, N, N] stacked."""
        if not self._spec.kernel:
            return torch.empty(0)
        return self._lanes.map(self._kernel)(params, buffers, self._rows)

    def curvature(self, params: Params, buffers: Params) -> Tensor:
        """Return the largest eigenvalue of J^T H J of the training loss, [K] when stacked.

        By power iteration from the gradient; of a split in several passes the first one counts.
        """
        return self._lanes.map(self._largest)(params, buffers, *self._all)

    def compared(self, start: Params, params: Params, buffers: Params) -> dict[str, Tensor]:
        """Return what changed between weights `start` and `params`, each [K] when stacked."""
        return self._lanes.map(self._changes)(start, params, buffers, self._rows)

    def _kernel(self, params: Params, buffers: Params, x: Tensor) -> Tensor:
        total = x.new_zeros(len(x), len(x))
        for place in range(self._outputs_count):

            def output(params: Params, row: Tensor, place: int = place) -> Tensor:
                return self._bound(params, buffers, row[None])[0, place]

            jacobian = vmap(grad(output), in_dims=(None, 0))(params, x)
            for part in jacobian.values():
                flat = part.flatten(1)
                total = total + flat @ flat.T
        return total / self._outputs_count

    def _largest(self, params: Params, buffers: Params, x: Tensor, y: Tensor) -> Tensor:
        def outputs(weights: Params) -> Tensor:
            return self._bound(weights, buffers, x)

        def loss(values: Tensor) -> Tensor:
            return self._losses.mean(values, y)

        values, back = vjp(outputs, params)[:2]
        first, curved = vjp(grad(loss), values)[:2]
        (vector,) = back(first)
        size = _norm(vector)
        for _ in range(_POWER_STEPS):
            vector = {name: part / size for name, part in vector.items()}
            moved = _pushed(back, values, vector)
            (bent,) = curved(moved)
            (vector,) = back(bent)
            size = _norm(vector)
        return size

    def _changes(
        self, start: Params, params: Params, buffers: Params, x: Tensor
    ) -> dict[str, Tensor]:
        step = {name: params[name] - start[name] for name in params}
        before, back = vjp(lambda weights: self._bound(weights, buffers, x), start)[:2]
        slope = _pushed(back, before, step)
        after = self._bound(params, buffers, x)
        found = {
            "moved": _norm(step) / _norm(start),
            "linear_gap": (after - before - slope).norm() / (after - before).norm(),
        }
        first, last = (self._coordinates(weights, buffers, x) for weights in (start, params))
        names = [*(str(place + 1) for place in range(len(first) - 1)), "out"]
        for name, one, other in zip(names, first, last, strict=True):
            found[f"coordinate.{name}"] = (other - one).abs().mean()
            found[f"at_start.{name}"] = one.abs().mean()
        return found

    def _coordinates(self, params: Params, buffers: Params, x: Tensor) -> list[Tensor]:
        """Return what each layer with weights gives for rows `x`, in the order of the pass."""
        self._seen.clear()
        self._tapped(params, buffers, x)
        seen = list(self._seen)
        self._seen.clear()
        return seen

    def _see(self, layer: nn.Module, inputs: tuple[Any, ...], outputs: Tensor) -> None:
        self._seen.append(outputs)


def _pushed(back: Callable[..., Any], values: Tensor, vector: Params) -> Tensor:
    """Return J v for outputs `values` of which `back` gives u -> J^T u.

    J^T u is linear in u, so its own transpose is J: two reverse passes, where forward mode would
    load torch's scripted decompositions first.
    """
    _, push = vjp(lambda u: back(u)[0], torch.zeros_like(values))[:2]
    (moved,) = push(vector)
    return cast("Tensor", moved)


def _norm(values: Params) -> Tensor:
    return torch.stack([value.square().sum() for value in values.values()]).sum().sqrt()
