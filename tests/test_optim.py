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


def library(name: str, **fixed: Any) -> Callable[..., torch.optim.Optimizer]:
    """A class of pytorch_optimizer by name, with some of its parameters fixed."""

    def make(p: Any, **hypers: Any) -> torch.optim.Optimizer:
        package = pytest.importorskip("pytorch_optimizer")
        return getattr(package, name)(p, **fixed, **hypers)

    return make


def betas(make: Callable[..., Any], beta1: float = 0.9, beta2: float = 0.999) -> Callable[..., Any]:
    """Give `beta1` and `beta2` as the pair `betas`."""

    def made(p: Any, beta1: float = beta1, beta2: float = beta2, **rest: Any) -> Any:
        return make(p, betas=(beta1, beta2), **rest)

    return made


def ahead(inner: Callable[..., Any]) -> Callable[..., Any]:
    def made(p: Any, k: float = 5, alpha: float = 0.5, **rest: Any) -> Any:
        return library("Lookahead", k=int(k), alpha=alpha, pullback_momentum="none")(
            inner(p, **rest)
        )

    return made


class PaperLamb(torch.optim.Optimizer):
    """You et al. 2020, algorithm 2, with the package's cap on the weights' norm."""

    def __init__(self, p: Any, **hypers: float) -> None:
        super().__init__(p, {"eps": 1e-6, "weight_decay": 0.0, "max_norm": 10.0, **hypers})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                own = self.state[p]
                t = own["t"] = own.get("t", 0) + 1
                m = own["m"] = b1 * own.get("m", 0) + (1 - b1) * p.grad
                v = own["v"] = b2 * own.get("v", 0) + (1 - b2) * p.grad**2
                r = m / (1 - b1**t) / ((v / (1 - b2**t)) ** 0.5 + group["eps"])
                r += group["weight_decay"] * p
                trust = min(float(p.norm()), group["max_norm"]) / (r.norm() + group["eps"])
                p -= group["lr"] * trust * r


class MuonAndAdamW:
    """torch.optim's Muon for matrices beside its AdamW, Newton-Schulz in the weights' own type."""

    def __init__(
        self,
        p: Sequence[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        adamw_lr: float = 3e-4,
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-10,
    ) -> None:
        both = {"weight_decay": weight_decay}
        matrices, vectors = [w for w in p if w.dim() > 1], [w for w in p if w.dim() < 2]
        self.muon = torch.optim.Muon(matrices, lr=lr, momentum=momentum, **both)
        self.adamw = torch.optim.AdamW(vectors, adamw_lr, (beta1, beta2), eps, **both)

    def zero_grad(self) -> None:
        self.muon.zero_grad()
        self.adamw.zero_grad()

    def step(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            # PyTorch rounds to bfloat16 here, 3 digits; all the rest is its own code.
            patch.setattr(Tensor, "bfloat16", Tensor.clone)
            self.muon.step()
        self.adamw.step()


def adafactor(
    p: Any, decay: float = 0.8, eps1: float = 2**-23, eps2: float = 1e-3, **rest: Any
) -> Any:
    rest["d"] = rest.pop("clip", 1.0)
    return torch.optim.Adafactor(p, beta2_decay=-decay, eps=(eps1, eps2), **rest)


def adagrad(p: Any, initial_accumulator: float = 0.0, **rest: Any) -> Any:
    return torch.optim.Adagrad(p, initial_accumulator_value=initial_accumulator, **rest)


REFERENCE: dict[str, Callable[..., Any]] = {
    "sgd": torch.optim.SGD,
    "momentum": torch.optim.SGD,
    "nag": lambda p, **hypers: torch.optim.SGD(p, nesterov=True, **hypers),
    "adam": betas(torch.optim.Adam),
    "adamw": betas(torch.optim.AdamW),
    "rmsprop": lambda p, lr, decay=0.99, eps=1e-8: torch.optim.RMSprop(
        p, lr=lr, alpha=decay, eps=eps
    ),
    "amsgrad": betas(lambda p, **rest: torch.optim.Adam(p, amsgrad=True, **rest)),
    "amsbound": betas(library("AdaBound", ams_bound=True, weight_decouple=False)),
    "adabound": betas(library("AdaBound", weight_decouple=False)),
    "adabelief": betas(library("AdaBelief", rectify=True, degenerated_to_sgd=True)),
    "adadelta": torch.optim.Adadelta,
    "adagrad": adagrad,
    "adamax": betas(torch.optim.Adamax),
    "nadam": betas(torch.optim.NAdam),
    "radam": betas(torch.optim.RAdam),
    "lookahead_momentum": ahead(torch.optim.SGD),
    "lookahead_radam": ahead(betas(torch.optim.RAdam)),
    "lion": betas(library("Lion"), beta2=0.99),
    "lamb": betas(PaperLamb),
    "adafactor": adafactor,
    "muon": MuonAndAdamW,
    "schedule_free_adamw": betas(library("ScheduleFreeAdamW")),
    "prodigy": betas(library("Prodigy")),
}
# What PyTorch has no twin of: test_optim_published.py has the formulas.
PUBLISHED = ("adam_tf", "amsgrad_tf", "nadam_tf", "adagrad_tf", "rmsprop_tf")

_ADAM: list[dict[str, float]] = [
    {"lr": 0.01},
    {"lr": 0.02, "beta1": 0.8, "beta2": 0.99, "eps": 1e-4, "weight_decay": 0.05},
    {"lr": 0.003, "beta1": 0.95, "beta2": 0.9, "eps": 1e-6, "weight_decay": 0.2},
]
_MOMENTUM: list[dict[str, float]] = [
    {"lr": 0.05, "momentum": 0.9},
    {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.05},
    {"lr": 0.01, "momentum": 0.99, "weight_decay": 0.01},
]
_BOUND: list[dict[str, float]] = [
    {"lr": 0.01},
    {"lr": 0.02, "final_lr": 0.05, "gamma": 0.1, "beta1": 0.8, "beta2": 0.99, "eps": 1e-4},
    {"lr": 0.003, "final_lr": 0.3, "gamma": 0.01, "beta2": 0.9, "weight_decay": 0.2},
]


def _with(settings: list[dict[str, float]], **more: list[float]) -> list[dict[str, float]]:
    return [
        hypers | {name: values[i] for name, values in more.items()}
        for i, hypers in enumerate(settings)
    ]


# Three settings each: the first as published, the others away from every default.
SETTINGS: dict[str, list[dict[str, float]]] = {
    "sgd": [{"lr": 0.1}, {"lr": 0.3, "weight_decay": 0.05}, {"lr": 0.02, "weight_decay": 0.5}],
    "momentum": _MOMENTUM,
    "nag": _MOMENTUM,
    "adam": _ADAM,
    "adamw": _with(_ADAM, weight_decay=[0.01, 0.5, 0.2]),
    "rmsprop": [
        {"lr": 0.01},
        {"lr": 0.005, "decay": 0.9, "eps": 1e-3},
        {"lr": 0.002, "decay": 0.8, "eps": 1e-2},
    ],
    "amsgrad": _ADAM,
    "amsbound": _BOUND,
    "adabound": _BOUND,
    # The second trusts its scale after 8 steps, the third (beta2 0.6: rho_inf = 4) never.
    "adabelief": _with(_ADAM, beta2=[0.999, 0.9, 0.6], eps=[1e-14, 1e-8, 1e-10]),
    "adadelta": [
        {"lr": 1.0},
        {"lr": 0.5, "rho": 0.95, "eps": 1e-4, "weight_decay": 0.05},
        {"lr": 2.0, "rho": 0.5, "eps": 1e-5},
    ],
    "adagrad": [
        {"lr": 0.1},
        {"lr": 0.05, "lr_decay": 0.01, "weight_decay": 0.05, "eps": 1e-6},
        {"lr": 0.2, "initial_accumulator": 0.5},
    ],
    "adamax": _ADAM,
    "nadam": _with(_ADAM, momentum_decay=[0.004, 0.1, 1.0]),
    "radam": _with(_ADAM, lr=[0.1, 0.02, 0.1], beta2=[0.999, 0.9, 0.6]),
    "lookahead_momentum": _with(_MOMENTUM, k=[5, 3, 7], alpha=[0.5, 0.8, 0.1]),
    "lookahead_radam": _with(
        _ADAM, lr=[0.1, 0.02, 0.1], beta2=[0.999, 0.9, 0.6], k=[5, 1, 7], alpha=[0.5, 0.8, 0.9]
    ),
    "lion": [
        {"lr": 0.002},
        {"lr": 0.01, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.5},
        {"lr": 0.004, "beta1": 0.95, "beta2": 0.98, "weight_decay": 0.1},
    ],
    "lamb": _with(_ADAM, max_norm=[10.0, 0.7, 2.0]),
    "adafactor": [
        {"lr": 0.01},
        {"lr": 0.5, "decay": 0.5, "clip": 1.2, "weight_decay": 0.1},
        {"lr": 0.05, "eps1": 1e-2, "eps2": 0.5, "clip": 2.0},
    ],
    "muon": [
        {"lr": 0.02},
        {"lr": 0.01, "momentum": 0.8, "weight_decay": 0.5, "adamw_lr": 0.01, "eps": 1e-6},
        {"lr": 0.03, "weight_decay": 0.0, "adamw_lr": 0.03, "beta1": 0.5, "beta2": 0.9},
    ],
    "schedule_free_adamw": _ADAM,
    "prodigy": [
        {"lr": 1.0, "d0": 1e-3},
        {"lr": 0.5, "d0": 1e-2, "beta1": 0.8, "beta2": 0.9, "eps": 1e-4, "weight_decay": 0.1},
        {"lr": 2.0, "d0": 1e-3, "d_coef": 0.5},
    ],
    "adam_tf": _ADAM,
    "amsgrad_tf": _ADAM,
    "nadam_tf": _ADAM,
    "adagrad_tf": [
        {"lr": 0.1},
        {"lr": 0.05, "initial_accumulator": 0.01, "eps": 1e-3},
        {"lr": 0.2, "initial_accumulator": 1.0, "lr_decay": 0.1},
    ],
    "rmsprop_tf": [
        {"lr": 0.01},
        {"lr": 0.05, "decay": 0.99, "eps": 1e-3},
        {"lr": 0.02, "decay": 0.5, "eps": 1e-2},
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
    rules: Sequence[Optimizer],
    dtype: torch.dtype = torch.float32,
    factor: float = 1.0,
    *,
    exact: bool | None = None,
    first: int = 0,
) -> list[Params]:
    """Train one lane for each rule as a procedure does; return the weights to measure with."""
    lanes = Lanes(len(rules), dtype=dtype, exact=exact)
    params, x, y = lanes.stack([problem(first + lane) for lane in range(len(rules))])
    gradient = lanes.grad(loss)
    stacked = lanes.stack(rules)
    state = lanes.map(lambda rule, p: rule.init(p))(stacked, params)
    update = lanes.map(lambda rule, g, s, p: rule.update(g, s, p, rule.lr * factor))
    for _ in range(STEPS):
        grads, _, _ = gradient(params, x, y)
        params, state = update(stacked, grads, state, params)
    measured = lanes.map(lambda rule, s, p: rule.evaluated(s, p))(stacked, state, params)
    return [lanes.lane(measured, k) for k in range(len(rules))]


def plain(
    make: Callable[..., Any], seed: int, dtype: torch.dtype = torch.float32, **hypers: Any
) -> Params:
    """Train with a torch.optim optimizer in an ordinary loop."""
    params, x, y = (_typed(part, dtype) for part in problem(seed))
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # NAdam and Prodigy have numbers of their own in this type
    try:
        leaves = {name: p.requires_grad_() for name, p in params.items()}
        optimizer = make(list(leaves.values()), **hypers)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss(leaves, x, y)[0].backward()
            optimizer.step()
        if hasattr(optimizer, "eval"):
            optimizer.eval()
    finally:
        torch.set_default_dtype(usual)
    return {name: p.detach() for name, p in leaves.items()}


def _typed(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype)
    return {name: tensor.to(dtype) for name, tensor in value.items()}


def distance(one: Params, other: Params) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


# On this problem these amplify rounding, PyTorch's own classes too: float64 shows them equal.
ROUGH = {"adabelief", "adadelta", "adafactor", "muon", "nadam", "prodigy"}


def tolerance(name: str, dtype: torch.dtype) -> float:
    if dtype == torch.float64:
        return 1e-8
    return 1e-3 if name in ROUGH else 1e-6


BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def test_every_optimizer_has_a_reference_and_settings() -> None:
    assert set(OPTIMIZERS.bundled) == set(REFERENCE) | set(PUBLISHED) == set(SETTINGS)
    assert not set(REFERENCE) & set(PUBLISHED)


@BOTH
@pytest.mark.parametrize("name", sorted(REFERENCE))
@pytest.mark.parametrize("setting", range(3))
def test_equals_torch(name: str, setting: int, dtype: torch.dtype) -> None:
    hypers = SETTINGS[name][setting]
    ours = train([OPTIMIZERS[name](**hypers)], dtype)[0]
    theirs = plain(REFERENCE[name], 0, dtype, **hypers)
    assert distance(ours, problem(0)[0]) > 1e-2, "it did not train"
    # What rounding comes to depends on the processor: PyTorch's own class shows how much it is.
    rounded = distance(theirs, plain(REFERENCE[name], 0, torch.float64, **hypers))
    assert distance(ours, theirs) <= max(tolerance(name, dtype), 3 * rounded)


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_defaults_equal_torch(name: str) -> None:
    rule = OPTIMIZERS[name]()
    hypers = {field: getattr(rule, field) for field in hyper_fields(type(rule))}
    ours, theirs = (
        train([rule], torch.float64)[0],
        plain(REFERENCE[name], 0, torch.float64, **hypers),
    )
    assert distance(ours, problem(0)[0]) > 0
    assert distance(ours, theirs) <= 1e-8


# Fields that say which of several forms a rule has: name, Hypers, the form, its reference.
FORMS: list[tuple[str, dict[str, float], dict[str, bool], Callable[..., Any]]] = [
    ("adabelief", {"lr": 0.02}, {"rectify": False}, library("AdaBelief", rectify=False)),
    (
        "adabelief",
        {"lr": 0.02, "beta2": 0.9},
        {"degenerated_to_sgd": False},
        library("AdaBelief", rectify=True, degenerated_to_sgd=False),
    ),
    (
        "lamb",
        {"lr": 0.02, "weight_decay": 0.1},
        {"bias_correction": False},
        library("Lamb", weight_decouple=False, adam_debias=True),
    ),
    (
        "prodigy",
        {"lr": 0.5, "d0": 0.01},
        {"bias_correction": True},
        library("Prodigy", bias_correction=True),
    ),
    (
        "prodigy",
        {"lr": 0.5, "d0": 0.01},
        {"safeguard_warmup": True},
        library("Prodigy", safeguard_warmup=True),
    ),
]


@pytest.mark.parametrize(("name", "hypers", "form", "make"), FORMS)
def test_forms_equal_the_library(
    name: str, hypers: dict[str, float], form: dict[str, bool], make: Callable[..., Any]
) -> None:
    ours = train([OPTIMIZERS[name](**hypers, **form)], torch.float64)[0]
    assert distance(ours, plain(betas(make), 0, torch.float64, **hypers)) <= 1e-8
    # The default form is another one.
    assert distance(ours, train([OPTIMIZERS[name](**hypers)], torch.float64)[0]) > 1e-3


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_fused_equals_single(name: str) -> None:
    rules = [OPTIMIZERS[name](**hypers) for hypers in SETTINGS[name]]
    fused = train(rules)
    for k, rule in enumerate(rules):
        single = train([rule], first=k)[0]
        assert distance(fused[k], single) <= (1e-3 if name in ROUGH else 1e-5)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_tensors_and_numbers_agree(name: str) -> None:
    # Fused lanes get tensors for what differs, exact ones get Python's numbers.
    rules = [OPTIMIZERS[name](**hypers) for hypers in SETTINGS[name]]
    fused = train(rules, torch.float64, exact=False)
    for one, other in zip(fused, train(rules, torch.float64, exact=True), strict=True):
        assert distance(one, other) <= 1e-9


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_equal_lanes_share_numbers(name: str) -> None:
    rule = OPTIMIZERS[name](**SETTINGS[name][1])
    fused = train([rule, rule], torch.float64, exact=False)
    for k in range(2):
        assert distance(fused[k], train([rule], torch.float64, first=k)[0]) <= 1e-9


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_packing_changes_no_bit_in_float64(name: str) -> None:
    rules = [OPTIMIZERS[name](**hypers) for hypers in SETTINGS[name]]
    fused, alone = train(rules, torch.float64), train(rules[:1], torch.float64)
    assert all(torch.equal(fused[0][p], alone[0][p]) for p in alone[0])


# A second rate of these is scaled with the first.
SECOND_RATE = {"adabound": "final_lr", "amsbound": "final_lr", "muon": "adamw_lr"}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_schedule_scales_the_rate(name: str) -> None:
    cls = OPTIMIZERS[name]
    second = SECOND_RATE.get(name)
    whole, part = {"lr": 0.02}, {"lr": 0.005}
    if second:
        whole[second], part[second] = 0.02, 0.005
    scaled = train([cls(**whole)], torch.float64, factor=0.25)[0]
    assert distance(scaled, train([cls(**part)], torch.float64)[0]) <= 1e-9
    assert distance(scaled, train([cls(**whole)], torch.float64)[0]) > 1e-5


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_update_leaves_its_arguments_alone(name: str) -> None:
    rule = OPTIMIZERS[name]()
    params = {"w": torch.ones(3), "m": torch.eye(2) + 1}
    grads = {"w": torch.full((3,), 2.0), "m": torch.eye(2) + 1}
    state = rule.init(params)
    moved, _ = rule.update(grads, state, params, rule.lr)
    assert (moved["w"] < 1).all()
    assert list(moved) == ["w", "m"]
    assert torch.equal(params["w"], torch.ones(3))
    assert torch.equal(params["m"], torch.eye(2) + 1)
    assert torch.equal(grads["w"], torch.full((3,), 2.0))
    assert torch.equal(grads["m"], torch.eye(2) + 1)
    again, _ = rule.update(grads, state, params, rule.lr)
    assert all(torch.equal(moved[part], again[part]) for part in moved)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_no_gradient_is_no_accident(name: str) -> None:
    # Dead weights have zero gradients from the first step on: nothing may become NaN.
    rule = OPTIMIZERS[name]()
    params = {"w": torch.ones(3), "m": torch.zeros(2, 3)}
    grads = {"w": torch.zeros(3), "m": torch.zeros(2, 3)}
    state = rule.init(params)
    for _ in range(8):
        params, state = rule.update(grads, state, params, rule.lr)
    assert all(value.isfinite().all() for value in rule.evaluated(state, params).values())
    decay = getattr(rule, "weight_decay", 0.0)
    assert ((params["w"] - 1).abs() <= 10 * rule.lr * decay).all()


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


RISES_AGAIN = {"cosine_restarts", "trapezoidal", "trapezoidal_published"}


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
    if name not in RISES_AGAIN:
        assert factors[rise:] == sorted(factors[rise:], reverse=True)
