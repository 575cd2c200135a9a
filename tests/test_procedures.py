"""The procedure seam carries what comes later: shown by two procedures, both on lanes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from raybench.data import DATA, Data
from raybench.lanes import Lanes, Params
from raybench.optim import OPTIMIZERS, Optimizer
from raybench.procedures import PROCEDURES
from raybench.procedures.base import DTYPES, Procedure
from raybench.procedures.feed import Feed
from raybench.procedures.stepper import Stepper
from raybench.procedures.train import Course, Train
from raybench.record import Account, Recorder, Times
from raybench.rng import Seed, fold, key, normal, stream
from raybench.spec import Hyper, Run, Steps
from raybench.tables import Part, build, construct

torch.set_num_threads(1)


class Lottery(Train):
    """Iterative magnitude pruning with rewinding to the initial weights (arXiv:1803.03635)."""

    name: ClassVar[str] = "lottery"
    levels: int = Field(default=3, ge=0)
    fraction: Hyper = Field(default=0.2, gt=0, lt=1)

    def execute(self, lanes: Lanes, runs: Sequence[Run[Any]], recorder: Recorder) -> None:
        course = Course(lanes, runs)
        start, buffers = course.network.params, course.network.buffers
        specs = lanes.stack([run.procedure for run in runs])
        masks = {n: torch.ones_like(p) for n, p in start.items() if n.endswith("weight")}
        for level in range(self.levels + 1):
            offset = level * (course.total + 1)
            trained, _ = course.fit(start, buffers, recorder, masks=masks, offset=offset)
            density = lanes.map(lambda m: torch.cat([v.flatten() for v in m.values()]).mean())
            recorder.write(offset + course.total, level, "model", {"density": density(masks)})
            recorder.array(
                level, "weights", torch.cat([w.flatten(-2) for w in _of(trained, masks)], -1)
            )
            masks = lanes.map(prune)(specs, trained, masks)


def prune(spec: Lottery, trained: Params, masks: Params) -> Params:
    """Zero the `fraction` of the surviving weights of each layer that is smallest."""
    pruned = {}
    for name, mask in masks.items():
        size = torch.where(mask > 0, trained[name].abs(), torch.inf)
        rank = size.flatten().argsort().argsort().reshape(mask.shape)
        pruned[name] = mask * (rank >= (spec.fraction * mask.sum()).floor())
    return pruned


def _of(values: Params, names: Params) -> list[Tensor]:
    return [values[name] for name in names]


class Gan(Procedure):
    """Two players with an optimizer each: a generator learns a Gaussian that it never sees."""

    name: ClassVar[str] = "gan"
    data: Annotated[Data, Part(DATA)]
    generator_optimizer: Annotated[Optimizer, Part(OPTIMIZERS)]
    critic_optimizer: Annotated[Optimizer, Part(OPTIMIZERS)]
    penalty: Hyper = 0.1
    num_steps: int = 30

    def execute(self, lanes: Lanes, runs: Sequence[Run[Any]], recorder: Recorder) -> None:
        seeds = [run.seed for run in runs]
        feed = Feed(lanes, [r.procedure.data for r in runs], seeds, batch_size=32)
        dim = feed.task.inputs[0]
        generator, critic = nn.Linear(4, dim), nn.Linear(dim, 1)
        params_g = lanes.stack([weights(generator, s, "g") for s in seeds])
        params_c = lanes.stack([weights(critic, s, "c") for s in seeds])
        specs = lanes.stack([run.procedure for run in runs])
        noise = lanes.stack([key(s, "noise/latent") for s in seeds])
        step_g = Stepper(lanes, [run.procedure.generator_optimizer for run in runs])
        step_c = Stepper(lanes, [run.procedure.critic_optimizer for run in runs])
        state_g, state_c = step_g.init(params_g), step_c.init(params_c)

        def critic_loss(
            c: Params, g: Params, spec: Gan, x: Tensor, k: Tensor
        ) -> tuple[Tensor, Any]:
            fake = functional_call(generator, g, (normal(k, (len(x), 4), x.dtype),))
            gap = (
                functional_call(critic, c, (fake,)).mean() - functional_call(critic, c, (x,)).mean()
            )
            return gap + spec.penalty * sum(p.square().sum() for p in c.values()), {}

        def generator_loss(
            g: Params, c: Params, spec: Gan, x: Tensor, k: Tensor
        ) -> tuple[Tensor, Any]:
            fake = functional_call(generator, g, (normal(k, (len(x), 4), x.dtype),))
            return -functional_call(critic, c, (fake,)).mean(), {}

        grad_c, grad_g = lanes.grad(critic_loss), lanes.grad(generator_loss)
        for step in range(self.num_steps):
            x, _ = feed.batch(step)
            k = lanes.map(lambda n, now=step: fold(n, now))(noise)
            grads, loss, _ = grad_c(params_c, params_g, specs, x, k)
            params_c, state_c = step_c.update(grads, state_c, params_c, 1.0)
            grads, _, _ = grad_g(params_g, params_c, specs, x, k)
            params_g, state_g = step_g.update(grads, state_g, params_g, 1.0)
            recorder.write(step, 0, "train", {"critic": loss})
        recorder.watch(self.num_steps, loss)


def weights(layer: nn.Module, seed: Seed, purpose: str) -> Params:
    draw = stream(seed, f"init/{purpose}")
    return {n: torch.randn(p.shape, generator=draw) * 0.3 for n, p in layer.named_parameters()}


def accounts(runs: Sequence[Run[Any]], width: int) -> list[Account]:
    found: list[Account] = []
    for start in range(0, len(runs), width):
        group = runs[start : start + width]
        lanes = Lanes(len(group), dtype=DTYPES[group[0].procedure.dtype])
        recorder = Recorder(lanes)
        group[0].procedure.execute(lanes, group, recorder)
        found += recorder.accounts()
    return found


def made(
    cls: type[Procedure], seeds: int, hyper: str, values: Sequence[float], **fields: Any
) -> list:
    problems: list[Any] = []
    runs = []
    for index in range(seeds):
        spec = construct(cls, {**fields, hyper: values[index % len(values)]}, (), problems)
        assert not problems, problems
        runs.append(Run(spec, Seed(index)))
    return runs


TRAIN = {
    "data": {"name": "digits", "train": 100},
    "model": {"name": "mlp", "width": 12},
    "optimizer": {"name": "adam", "lr": 0.01},
    "steps": "20it",
    "batch_size": 25,
    "record": {"at": {"linear": 1}, "on": ["train"]},
    "dtype": "float64",
}
GAN = {
    "data": {"name": "gaussian", "dim": 3, "train": 64, "test": 1},
    "generator_optimizer": {"name": "adam", "lr": 0.02},
    "critic_optimizer": {"name": "momentum", "lr": 0.05},
    "dtype": "float64",
}


@pytest.mark.parametrize(
    "runs",
    [
        made(Lottery, 5, "fraction", [0.2, 0.4], **TRAIN),
        made(Gan, 5, "penalty", [0.1, 0.5], **GAN),
    ],
    ids=["lottery", "gan"],
)
def test_a_procedure_gives_the_same_alone_and_on_lanes(runs: list[Run[Any]]) -> None:
    assert len({run.batch_key for run in runs}) == 1
    alone, fused = accounts(runs, 1), accounts(runs, 5)
    assert [dataclasses.astuple(a) for a in alone] == [dataclasses.astuple(a) for a in fused]


def test_lottery_prunes_as_asked_and_rewinds() -> None:
    run, other = made(Lottery, 2, "fraction", [0.2, 0.4], **TRAIN)
    for one, fraction in ((run, 0.2), (other, 0.4)):
        (account,) = accounts([one], 1)
        density = [m.value for m in account.metrics if m.name == "density"]
        assert density == pytest.approx([(1 - fraction) ** level for level in range(4)], abs=0.01)
        pruned = [{i for i, w in enumerate(a.values) if w == 0} for a in account.arrays]
        assert all(before <= after for before, after in itertools.pairwise(pruned))
        assert [len(zeros) / len(account.arrays[0].values) for zeros in pruned] == pytest.approx(
            [1 - d for d in density]
        )
        losses = [m.value for m in account.metrics if m.name == "loss"]
        first, last = losses[0::2], losses[1::2]
        assert all(after < before for before, after in zip(first, last, strict=True))


def test_two_optimizers_take_turns() -> None:
    (run,) = made(Gan, 1, "penalty", [0.1], **GAN)
    slow = {**GAN, "generator_optimizer": {"name": "adam", "lr": 1e-9}}
    (still,) = made(Gan, 1, "penalty", [0.1], **slow)
    moved = [m.value for m in accounts([run], 1)[0].metrics]
    fixed = [m.value for m in accounts([still], 1)[0].metrics]
    assert moved[0] == fixed[0]
    assert fixed[-1] < fixed[0]  # the critic alone finds the gap
    assert abs(moved[-1]) < abs(fixed[-1])  # a generator that moves closes it


def test_times_include_start_and_end() -> None:
    assert Times(log=3).steps(100, 10) == [0, 1, 5, 22, 100]
    assert Times(linear=2).steps(100, 10) == [0, 50, 100]
    assert Times(every=Steps(3, "ep")).steps(100, 10) == [0, 30, 60, 90, 100]
    assert Times().steps(0, 10) == [0]


def test_the_bundled_table_builds_train() -> None:
    problems: list[Any] = []
    spec = build(PROCEDURES, {"name": "train", **TRAIN}, (), problems)
    assert isinstance(spec, Train)
    assert not problems
