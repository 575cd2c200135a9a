"""Chains of layers on stacked values give what each run gives by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raybench.errors import Problem
from raybench.lanes import Lanes, Params
from raybench.procedures import PROCEDURES
from raybench.procedures.bound import Bound
from raybench.procedures.stacked import Dense, Kind, Layer, chain
from raybench.procedures.train import Course
from raybench.record import Recorder
from raybench.rng import Seed
from raybench.spec import Run
from raybench.tables import build

K, N = 3, 7


def lifting(lanes: Lanes, seen: list[nn.Module]) -> Callable[[nn.Module], Layer]:
    def lifted(module: nn.Module) -> Layer:
        seen.append(module)
        bound = Bound(module)

        def one(params: Params, buffers: Params, x: Tensor) -> tuple[Tensor, Params]:
            own = {name: buffer.clone() for name, buffer in buffers.items()}
            return bound(params, own, x), own

        return lanes.map(one)

    return lifted


class Square(nn.Module):
    """A layer that the chain does not know."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x^2 - 1."""
        return x.square() - 1


CHAINS: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
    "dense": (nn.Sequential(nn.Flatten(), nn.Linear(6, 4)), (6,), 0),
    "no bias": (nn.Sequential(nn.Linear(6, 40, bias=False)), (6,), 0),
    "relu between": (
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3)),
        (6,),
        0,
    ),
    "relu at the ends": (nn.Sequential(nn.ReLU(), nn.Linear(6, 5), nn.ReLU()), (6,), 0),
    "two in a row": (nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2), nn.Tanh()), (6,), 0),
    "nested": (
        nn.Sequential(nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Sequential(nn.Linear(5, 2))),
        (6,),
        0,
    ),
    "wide outputs": (nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 50)), (6,), 0),
    "unknown inside": (
        nn.Sequential(nn.Linear(6, 5), Square(), nn.LayerNorm(5), nn.Linear(5, 2), Square()),
        (6,),
        2,
    ),
    "after a relu, unknown": (
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), Square(), nn.Linear(5, 2)),
        (6,),
        1,
    ),
    "convolution": (
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(3, 4),
        ),
        (2, 4, 4),
        2,
    ),
    "rows of sequences": (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), (4, 6), 0),
}


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_each_run_by_itself(name: str, trains: bool) -> None:
    module, row, parts = CHAINS[name]
    module = module.double().train(trains)
    lanes = Lanes(K, dtype=torch.float64, exact=False)
    seen: list[nn.Module] = []
    forward = chain(lanes, module, lifting(lanes, seen), trains=trains)
    assert forward is not None
    assert len(seen) == parts
    draw = torch.Generator().manual_seed(0)

    def some(shape: Any) -> Tensor:
        return torch.randn(K, *shape, generator=draw, dtype=torch.float64)

    params = {n: some(p.shape).requires_grad_() for n, p in module.named_parameters()}
    buffers = {n: torch.stack([b.detach().clone()] * K) for n, b in module.named_buffers()}
    x = some((N, *row)).requires_grad_()
    outputs, after = forward(params, buffers, x)
    weight = some(outputs.shape[1:])
    grads = torch.autograd.grad((outputs * weight).sum(), [x, *params.values()])
    bound = Bound(module)
    for k in range(K):
        lane = {n: p[k].detach().requires_grad_() for n, p in params.items()}
        own = {n: b[k].clone() for n, b in buffers.items()}
        rows = x[k].detach().requires_grad_()
        alone = bound(lane, own, rows)
        assert torch.allclose(outputs[k], alone, atol=1e-12)
        for found, expected in zip(
            grads,
            torch.autograd.grad((alone * weight[k]).sum(), [rows, *lane.values()]),
            strict=True,
        ):
            assert torch.allclose(found[k], expected, atol=1e-11)
        for n, value in own.items():
            assert torch.allclose(after[n][k], value)


def test_inputs_are_left_as_they_are() -> None:
    module = nn.Sequential(nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    lanes = Lanes(K)
    forward = chain(lanes, module, lifting(lanes, []), trains=True)
    assert forward is not None
    x = torch.randn(K, N, 6)
    before = x.clone()
    params = {n: torch.randn(K, *p.shape, requires_grad=True) for n, p in module.named_parameters()}
    outputs, _ = forward(params, {}, x)
    outputs.sum().backward()
    assert torch.equal(x, before)


def test_where_vmap_does_as_well_there_is_no_chain() -> None:
    module = nn.Sequential(nn.Linear(6, 5))
    for lanes in (Lanes(1), Lanes(K, dtype=torch.float64)):
        assert chain(lanes, module, lifting(lanes, []), trains=True) is None
    lanes = Lanes(K)
    assert chain(lanes, nn.Linear(6, 5), lifting(lanes, []), trains=True) is None
    assert chain(lanes, nn.Sequential(Square()), lifting(lanes, []), trains=True) is None


def test_a_dense_layer_has_its_gradient_in_each_form() -> None:
    draw = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64, requires_grad=True)

    x, weight, bias = some(K, N, 6), some(K, 5, 6), some(K, 5)
    apply: Callable[..., Tensor] = Dense.apply
    for kind in (Kind(), Kind(as_columns=True)):
        assert torch.autograd.gradcheck(lambda *a, k=kind: apply(*a, k), (x, weight, bias))
        assert torch.autograd.gradcheck(lambda *a, k=kind: apply(*a, None, k), (x, weight))


@pytest.mark.parametrize("model", ["mlp", "cnn", "linear", "cnn_2c2d"])
def test_lanes_train_as_each_run_by_itself(model: str) -> None:
    problems: list[Problem] = []
    config = {
        "name": "train",
        "data": {"name": "digits", "layout": "image", "train": 96, "valid": 0, "test": 40},
        "model": {"name": model},
        "optimizer": {"name": "momentum", "lr": 0.05},
        "steps": "6it",
        "batch_size": 32,
    }
    procedure = build(PROCEDURES, config, (), problems)
    assert not problems
    runs = [Run(procedure, Seed(seed)) for seed in range(4)]

    def trained(some: list[Run[Any]]) -> dict[str, Tensor]:
        lanes = Lanes(len(some))
        course = Course(lanes, some)
        params, _ = course.fit(course.network.params, course.network.buffers, Recorder(lanes))
        return {n: lanes.columns(p) if not lanes.lifted else p for n, p in params.items()}

    together = trained(runs)
    for k, run in enumerate(runs):
        for name, weight in trained([run]).items():
            assert torch.allclose(together[name][k], weight.squeeze(0), atol=2e-4), name
