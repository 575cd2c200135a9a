"""Optimizers against torch.optim, fused against single, and schedules at points done by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from raybench.lanes import Lanes
from raybench.optim import OPTIMIZERS, SCHEDULES, Optimizer
from raybench.optim.adapter import ForeignOptimizer, adapt
from raybench.optim.schedules import Constant, Cosine, InverseSqrt, Step, Warmup
from raybench.procedures.stepper import Stepper
from raybench.spec import Steps, hyper_fields

torch.set_num_threads(1)

STEPS = 50
Params = dict[str, Tensor]

REFERENCE: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": torch.optim.SGD,
    "nag": lambda p, **hypers: torch.optim.SGD(p, nesterov=True, **hypers),
    "adam": lambda p, lr, beta1=0.9, beta2=0.999, **rest: torch.optim.Adam(
        p, lr=lr, betas=(beta1, beta2), **rest
    ),
    "adamw": lambda p, lr, beta1=0.9, beta2=0.999, **rest: torch.optim.AdamW(
        p, lr=lr, betas=(beta1, beta2), **rest
    ),
    "rmsprop": lambda p, lr, decay=0.99, eps=1e-8: torch.optim.RMSprop(
        p, lr=lr, alpha=decay, eps=eps
    ),
}

# Three settings each: the first as published, the others away from every default.
SETTINGS: dict[str, list[dict[str, float]]] = {
    "sgd": [{"lr": 0.1}, {"lr": 0.3, "weight_decay": 0.05}, {"lr": 0.02, "weight_decay": 0.5}],
    "momentum": [
        {"lr": 0.05, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.05},
        {"lr": 0.01, "momentum": 0.99, "weight_decay": 0.01},
    ],
    "nag": [
        {"lr": 0.05, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.05},
        {"lr": 0.01, "momentum": 0.99, "weight_decay": 0.01},
    ],
    "adam": [
        {"lr": 0.01},
        {"lr": 0.02, "beta1": 0.8, "beta2": 0.99, "eps": 1e-4, "weight_decay": 0.05},
        {"lr": 0.003, "beta1": 0.95, "beta2": 0.9, "eps": 1e-6, "weight_decay": 0.2},
    ],
    "adamw": [
        {"lr": 0.01, "weight_decay": 0.01},
        {"lr": 0.02, "beta1": 0.8, "beta2": 0.99, "eps": 1e-4, "weight_decay": 0.5},
        {"lr": 0.003, "beta1": 0.95, "beta2": 0.9, "eps": 1e-6, "weight_decay": 0.2},
    ],
    "rmsprop": [
        {"lr": 0.01},
        {"lr": 0.005, "decay": 0.9, "eps": 1e-3},
        {"lr": 0.002, "decay": 0.8, "eps": 1e-2},
    ],
}


def problem(seed: int) -> tuple[Params, Tensor, Tensor]:
    """An MLP of 6-5-2 with tanh, and 16 rows to fit."""
    draw = torch.Generator().manual_seed(seed)
    params = {
        "0.weight": torch.randn(5, 6, generator=draw) / 2,
        "0.bias": torch.randn(5, generator=draw) / 2,
        "1.weight": torch.randn(2, 5, generator=draw) / 2,
    }
    return params, torch.randn(16, 6, generator=draw), torch.randn(16, 2, generator=draw)


def loss(params: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Params]:
    hidden = torch.tanh(x @ params["0.weight"].T + params["0.bias"])
    return (hidden @ params["1.weight"].T - y).square().mean(), {}


def train(
    rules: Sequence[Optimizer], dtype: torch.dtype = torch.float32, factor: float = 1.0
) -> list[Params]:
    """Train one lane for each rule as a procedure does; return each lane's weights."""
    lanes = Lanes(len(rules), dtype=dtype)
    params, x, y = lanes.stack([problem(seed) for seed in range(len(rules))])
    gradient = lanes.grad(loss)
    stacked = lanes.stack(rules)
    state = lanes.map(lambda rule, p: rule.init(p))(stacked, params)
    update = lanes.map(lambda rule, g, s, p: rule.update(g, s, p, rule.lr * factor))
    for _ in range(STEPS):
        grads, _, _ = gradient(params, x, y)
        params, state = update(stacked, grads, state, params)
    return [lanes.lane(params, k) for k in range(len(rules))]


def plain(make: Callable[..., torch.optim.Optimizer], seed: int, **hypers: Any) -> Params:
    """Train with a torch.optim optimizer in an ordinary loop."""
    params, x, y = problem(seed)
    leaves = {name: p.requires_grad_() for name, p in params.items()}
    optimizer = make(list(leaves.values()), **hypers)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(leaves, x, y)[0].backward()
        optimizer.step()
    return {name: p.detach() for name, p in leaves.items()}


def distance(one: Params, other: Params) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_every_optimizer_has_a_reference_and_settings() -> None:
    assert set(OPTIMIZERS.bundled) == set(REFERENCE) == set(SETTINGS)


@pytest.mark.parametrize("name", sorted(SETTINGS))
@pytest.mark.parametrize("setting", range(3))
def test_equals_torch(name: str, setting: int) -> None:
    hypers = SETTINGS[name][setting]
    ours = train([OPTIMIZERS[name](**hypers)])[0]
    theirs = plain(REFERENCE[name], 0, **hypers)
    assert distance(ours, problem(0)[0]) > 1e-2, "it did not train"
    assert distance(ours, theirs) <= 1e-6


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_defaults_equal_torch(name: str) -> None:
    rule = OPTIMIZERS[name]()
    hypers = {field: getattr(rule, field) for field in hyper_fields(type(rule))}
    assert distance(train([rule])[0], plain(REFERENCE[name], 0, **hypers)) <= 1e-6


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_fused_equals_single(name: str) -> None:
    rules = [OPTIMIZERS[name](**hypers) for hypers in SETTINGS[name]]
    fused = train(rules)
    for k, hypers in enumerate(SETTINGS[name]):
        assert distance(fused[k], plain(REFERENCE[name], k, **hypers)) <= 1e-5


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_packing_changes_no_bit_in_float64(name: str) -> None:
    rules = [OPTIMIZERS[name](**hypers) for hypers in SETTINGS[name]]
    fused, alone = train(rules, torch.float64), train(rules[:1], torch.float64)
    assert all(torch.equal(fused[0][p], alone[0][p]) for p in alone[0])


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_schedule_scales_the_rate(name: str) -> None:
    rule = OPTIMIZERS[name](lr=0.02)
    scaled = train([rule], factor=0.25)[0]
    assert distance(scaled, train([OPTIMIZERS[name](lr=0.005)])[0]) <= 1e-6
    assert distance(scaled, train([rule])[0]) > 1e-3


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_update_leaves_its_arguments_alone(name: str) -> None:
    rule = OPTIMIZERS[name]()
    params = {"w": torch.ones(3)}
    grads = {"w": torch.full((3,), 2.0)}
    state = rule.init(params)
    moved, _ = rule.update(grads, state, params, rule.lr)
    assert (moved["w"] < 1).all()
    assert torch.equal(params["w"], torch.ones(3))
    assert torch.equal(grads["w"], torch.full((3,), 2.0))
    again, _ = rule.update(grads, state, params, rule.lr)
    assert torch.equal(moved["w"], again["w"])


def test_every_hyperparameter_is_documented() -> None:
    tables = {name: OPTIMIZERS[name] for name in OPTIMIZERS.bundled}
    tables |= {name: SCHEDULES[name] for name in SCHEDULES.bundled}
    bare = [
        f"{name}.{field}"
        for name, cls in tables.items()
        for field, info in cls.model_fields.items()
        if not (info.description or "").strip()
    ]
    assert bare == []


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_wrong_values_are_refused(name: str) -> None:
    for field in hyper_fields(OPTIMIZERS[name]):
        for value in (-0.1, math.nan, math.inf, "0.1"):
            with pytest.raises(ValueError, match=field):
                OPTIMIZERS[name](**{field: value})


# A torch.optim class, adapted.

ADAGRAD = [
    {"lr": 0.1},
    {"lr": 0.05, "lr_decay": 0.01, "weight_decay": 0.05, "eps": 1e-6},
    {"lr": 0.2, "initial_accumulator_value": 0.5},
]


def train_foreign(rules: Sequence[ForeignOptimizer]) -> list[Params]:
    """Gradients are fused, each lane steps an object of its own."""
    lanes = Lanes(len(rules))
    params, x, y = lanes.stack([problem(seed) for seed in range(len(rules))])
    gradient = lanes.grad(loss)
    stepper = Stepper(lanes, rules)
    state = stepper.init(params)
    for _ in range(STEPS):
        grads, _, _ = gradient(params, x, y)
        params, state = stepper.update(grads, state, params, 1.0)
    return [lanes.lane(params, k) for k in range(len(rules))]


def test_adapted_class_has_the_constructors_parameters() -> None:
    cls = adapt("adagrad", torch.optim.Adagrad)
    assert issubclass(cls, ForeignOptimizer)
    rule = cls()
    assert (rule.lr, rule.eps) == (0.01, 1e-10)
    # `weight_decay: float = 0` in PyTorch is a number like any other, and may differ by lane.
    assert {"lr", "lr_decay", "weight_decay", "eps"} <= set(hyper_fields(cls))
    with pytest.raises(ValueError, match="lr"):
        cls(lr=-1.0)
    with pytest.raises(ValueError, match="learning_rate"):
        cls(learning_rate=0.1)


@pytest.mark.parametrize("setting", range(3))
def test_adapted_single_equals_torch(setting: int) -> None:
    cls = adapt("adagrad", torch.optim.Adagrad)
    ours = train_foreign([cls(**ADAGRAD[setting])])[0]
    assert distance(ours, plain(torch.optim.Adagrad, 0, **ADAGRAD[setting])) <= 1e-6


@pytest.mark.parametrize("make", [torch.optim.Adagrad, torch.optim.Adam])
def test_adapted_lanes_equal_torch(make: type[torch.optim.Optimizer]) -> None:
    cls = adapt("foreign", make)
    settings = ADAGRAD if make is torch.optim.Adagrad else SETTINGS["adam"][:1] * 3
    fused = train_foreign([cls(**hypers) for hypers in settings])
    for k, hypers in enumerate(settings):
        assert distance(fused[k], problem(k)[0]) > 1e-2, "it did not train"
        assert distance(fused[k], plain(make, k, **hypers)) <= 1e-5


@pytest.mark.parametrize("found", [torch.nn.Linear, torch.relu, 3])
def test_adapting_anything_else_is_refused(found: object) -> None:
    with pytest.raises(TypeError, match="Optimizer class"):
        adapt("wrong", found)


# Schedules.


def test_constant() -> None:
    assert [Constant().factor(step, 10, 5) for step in range(10)] == [1.0] * 10


def test_cosine() -> None:
    cosine = Cosine()
    assert cosine.factor(0, 100, 10) == 1.0
    assert cosine.factor(50, 100, 10) == pytest.approx(0.5)
    assert cosine.factor(25, 100, 10) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert cosine.factor(99, 100, 10) == pytest.approx(0.000247, abs=1e-6)
    floored = Cosine(final=0.2)
    assert floored.factor(0, 100, 10) == 1.0
    assert floored.factor(50, 100, 10) == pytest.approx(0.6)


def test_step() -> None:
    falls = Step(at=(0.5, 0.75), gamma=0.1)
    values = [falls.factor(step, 100, 10) for step in (0, 49, 50, 74, 75, 99)]
    assert values == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_inverse_sqrt() -> None:
    falls = InverseSqrt(every=Steps(4, "it"))
    assert [falls.factor(step, 99, 10) for step in (0, 3, 4, 12)] == pytest.approx(
        [1, 1, 2**-0.5, 0.5]
    )
    by_epoch = InverseSqrt(every=Steps(1, "ep"))
    assert [by_epoch.factor(step, 99, 10) for step in (9, 10, 30)] == pytest.approx(
        [1, 2**-0.5, 0.5]
    )
    assert InverseSqrt().factor(3 * 512, 5000, 10) == 0.5


def test_warmup() -> None:
    rise = Warmup(warmup=Steps(4, "it"))
    assert [rise.factor(step, 10, 5) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    epochs = Warmup(warmup=Steps(2, "ep"))
    assert [epochs.factor(step, 100, 5) for step in (0, 4, 9, 10)] == [0.1, 0.5, 1, 1]


def test_shape_counts_from_the_end_of_the_warmup() -> None:
    cosine = Cosine(warmup=Steps(10, "it"))
    assert cosine.factor(4, 110, 10) == 0.5
    assert cosine.factor(10, 110, 10) == 1.0
    assert cosine.factor(60, 110, 10) == pytest.approx(0.5)
    falls = Step(warmup=Steps(10, "it"), at=(0.5,))
    assert [falls.factor(step, 110, 10) for step in (59, 60)] == pytest.approx([1, 0.1])


@pytest.mark.parametrize("name", SCHEDULES.bundled)
@pytest.mark.parametrize("warmup", ["0it", "7it", "3ep", "100ep"])
@pytest.mark.parametrize(("steps", "epoch"), [(1, 1), (40, 8), (3000, 100)])
def test_factor_is_finite_and_between_0_and_1(
    name: str, warmup: str, steps: int, epoch: int
) -> None:
    schedule = SCHEDULES[name](warmup=Steps.parse(warmup))
    factors = [schedule.factor(step, steps, epoch) for step in range(steps)]
    assert all(math.isfinite(factor) and 0 <= factor <= 1 for factor in factors)
    rise = Steps.parse(warmup).resolve(epoch)
    if rise <= steps:
        assert max(factors) == 1.0
    assert factors[:rise] == sorted(factors[:rise])
    assert factors[rise:] == sorted(factors[rise:], reverse=True)
