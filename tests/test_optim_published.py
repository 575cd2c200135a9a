"""Update rules against the formulas they were published with, written out in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybench.optim import OPTIMIZERS, Optimizer
from raybench.optim.muon import orthogonalized
from raybench.optim.rectified import rectification
from raybench.spec import hyper_fields

torch.set_num_threads(1)

STEPS = 50
Vector = NDArray[np.float64]
Params = dict[str, Tensor]

# A bowl that is 100 times as steep in one direction as in another, and its lowest point.
STEEPNESS = np.geomspace(0.1, 10, 6)
LOWEST = np.array([0.5, -0.3, 0.2, 1.0, -1.0, 0.1])


def slope(theta: Vector) -> Vector:
    """Gradients that also change sign with time, as those of batches do."""
    return STEEPNESS * (theta - LOWEST) + 0.1 * np.sin(7 * theta)


def moments(theta: Vector, own: dict[str, Any], b1: float, b2: float) -> tuple[Vector, Vector, int]:
    """Advance t, and the slots m and v, as TensorFlow 1's ApplyAdam does."""
    g = slope(theta)
    own["t"] = own.get("t", 0) + 1
    own["m"] = own.get("m", 0) + (g - own.get("m", 0)) * (1 - b1)
    own["v"] = own.get("v", 0) + (g * g - own.get("v", 0)) * (1 - b2)
    return own["m"], own["v"], own["t"]


def adam(
    theta: Vector, own: dict[str, Any], lr: float, beta1: float, beta2: float, eps: float
) -> Vector:
    m, v, t = moments(theta, own, beta1, beta2)
    rate = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t)
    return theta - rate * m / (np.sqrt(v) + eps)


def amsgrad(
    theta: Vector, own: dict[str, Any], lr: float, beta1: float, beta2: float, eps: float
) -> Vector:
    m, v, t = moments(theta, own, beta1, beta2)
    own["vhat"] = np.maximum(own.get("vhat", 0), v)
    rate = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t)
    return theta - rate * m / (np.sqrt(own["vhat"]) + eps)


def nadam(
    theta: Vector, own: dict[str, Any], lr: float, beta1: float, beta2: float, eps: float
) -> Vector:
    m, v, t = moments(theta, own, beta1, beta2)
    rate = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t)
    return theta - rate * (m * beta1 + slope(theta) * (1 - beta1)) / (np.sqrt(v) + eps)


def adagrad(theta: Vector, own: dict[str, Any], lr: float, initial_accumulator: float) -> Vector:
    g = slope(theta)
    own["a"] = own.get("a", initial_accumulator) + g * g
    return theta - lr * g / np.sqrt(own["a"])


def rmsprop(theta: Vector, own: dict[str, Any], lr: float, decay: float, eps: float) -> Vector:
    g = slope(theta)
    own["ms"] = own.get("ms", np.ones_like(g))
    own["ms"] = own["ms"] + (g * g - own["ms"]) * (1 - decay)
    return theta - lr * g / np.sqrt(own["ms"] + eps)


def adadelta(theta: Vector, own: dict[str, Any], lr: float, rho: float, eps: float) -> Vector:
    g = slope(theta)
    own["a"] = rho * own.get("a", 0) + (1 - rho) * g * g
    update = np.sqrt(own.get("u", 0) + eps) / np.sqrt(own["a"] + eps) * g
    own["u"] = rho * own.get("u", 0) + (1 - rho) * update**2
    return theta - lr * update


def rectified(t: int, beta2: float) -> float | None:
    """The factor r_t of Liu et al. 2020, algorithm 2; None for "not yet"."""
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * t * beta2**t / (1 - beta2**t)
    if length < 5:
        return None
    whole = (longest - 4) * (longest - 2) * length
    return float(np.sqrt((length - 4) * (length - 2) * longest / whole))


def radam(
    theta: Vector, own: dict[str, Any], lr: float, beta1: float, beta2: float, eps: float
) -> Vector:
    m, v, t = moments(theta, own, beta1, beta2)
    hat, factor = m / (1 - beta1**t), rectified(t, beta2)
    if factor is None:
        return theta - lr * hat
    return theta - lr * factor * hat / (np.sqrt(v / (1 - beta2**t)) + eps)


def adabelief(
    theta: Vector, own: dict[str, Any], lr: float, beta1: float, beta2: float, eps: float
) -> Vector:
    g = slope(theta)
    t = own["t"] = own.get("t", 0) + 1
    m = own["m"] = beta1 * own.get("m", 0) + (1 - beta1) * g
    v = own["v"] = beta2 * own.get("v", 0) + (1 - beta2) * (g - m) ** 2 + eps
    hat, factor = m / (1 - beta1**t), rectified(t, beta2)
    if factor is None:
        return theta - lr * hat
    return theta - lr * factor * hat / (np.sqrt(v / (1 - beta2**t)) + eps)


FORMULA: dict[str, Callable[..., Vector]] = {
    "adam_tf": adam,
    "amsgrad_tf": amsgrad,
    "nadam_tf": nadam,
    "adagrad_tf": adagrad,
    "rmsprop_tf": rmsprop,
    "adadelta": adadelta,
    "radam": radam,
    "adabelief": adabelief,
}

ADAM = [
    {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    {"lr": 0.05, "beta1": 0.965, "beta2": 0.94, "eps": 1e-3},
    {"lr": 0.003, "beta1": 0.6, "beta2": 0.8, "eps": 0.1},
]
SETTINGS: dict[str, list[dict[str, float]]] = {
    "adam_tf": ADAM,
    "amsgrad_tf": ADAM,
    "nadam_tf": ADAM,
    "adagrad_tf": [
        {"lr": 0.01, "initial_accumulator": 0.1},
        {"lr": 0.3, "initial_accumulator": 1.0},
        {"lr": 0.1, "initial_accumulator": 1e-3},
    ],
    "rmsprop_tf": [
        {"lr": 0.001, "decay": 0.9, "eps": 1e-10},
        {"lr": 0.1, "decay": 0.99, "eps": 0.5},
        {"lr": 0.01, "decay": 0.3, "eps": 1e-3},
    ],
    "adadelta": [
        {"lr": 0.001, "rho": 0.95, "eps": 1e-8},
        {"lr": 1.0, "rho": 0.9, "eps": 1e-3},
        {"lr": 0.5, "rho": 0.99, "eps": 1e-6},
    ],
    # Where eps is beside the root's correction PyTorch's form has another place for it: equal
    # only for an eps as small as the published one.
    "radam": [
        {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-7},
        {"lr": 0.05, "beta1": 0.96, "beta2": 0.94, "eps": 1e-10},
        {"lr": 0.01, "beta1": 0.6, "beta2": 0.6, "eps": 1e-7},
    ],
    "adabelief": [
        {"lr": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-14},
        {"lr": 0.05, "beta1": 0.96, "beta2": 0.94, "eps": 1e-14},
        {"lr": 0.01, "beta1": 0.6, "beta2": 0.6, "eps": 1e-14},
    ],
}
# adabelief subtracts nearly equal numbers, and divides by what is left.
TOLERANCE = {"radam": 1e-6, "adabelief": 1e-6}


def course(rule: Optimizer) -> Vector:
    """Every place that a rule comes to from the origin: [STEPS, 6]."""
    params = {"theta": torch.zeros(6, dtype=torch.float64)}
    state = rule.init(params)
    places = []
    for _ in range(STEPS):
        grads = {"theta": torch.from_numpy(slope(params["theta"].numpy()))}
        params, state = rule.update(grads, state, params, rule.lr)
        places.append(params["theta"].numpy())
    return np.stack(places)


def written_out(formula: Callable[..., Vector], hypers: dict[str, float]) -> Vector:
    theta, own, places = np.zeros(6), {}, []
    for _ in range(STEPS):
        theta = formula(theta, own, **hypers)
        places.append(theta)
    return np.stack(places)


@pytest.mark.parametrize("name", sorted(FORMULA))
@pytest.mark.parametrize("setting", range(3))
def test_equals_the_formula(name: str, setting: int) -> None:
    hypers = SETTINGS[name][setting]
    ours = course(OPTIMIZERS[name](**hypers))
    theirs = written_out(FORMULA[name], hypers)
    assert np.abs(ours[-1]).max() > 1e-5, "it did not move"
    assert np.abs(ours - theirs).max() <= TOLERANCE.get(name, 1e-12)


@pytest.mark.parametrize("name", sorted(name for name in FORMULA if name.endswith("_tf")))
def test_defaults_are_those_of_tensorflow(name: str) -> None:
    published = {"lr": 0.01 if name in ("amsgrad_tf", "adagrad_tf") else 0.001}
    hypers = SETTINGS[name][0] | published
    rule = OPTIMIZERS[name]()
    assert {field: getattr(rule, field) for field in hypers} == hypers


@pytest.mark.parametrize("name", ["adam", "amsgrad", "nadam", "rmsprop", "adagrad"])
def test_forms_of_tensorflow_are_forms_of_their_own(name: str) -> None:
    cls, twin = OPTIMIZERS[name], OPTIMIZERS[f"{name}_tf"]
    hypers = {
        field: value
        for field, value in SETTINGS[f"{name}_tf"][1].items()
        if field in hyper_fields(cls) and field != "initial_accumulator"
    }
    difference = np.abs(course(cls(**hypers)) - course(twin(**hypers))).max()
    assert difference > 1e-4


def test_rectification_begins_after_five_steps() -> None:
    for step in range(1, 30):
        trusted, factor = rectification(0.999, 0.999**step, step)
        assert trusted == (step > 5)
        power = torch.tensor(0.999**step, dtype=torch.float64)
        by_tensor, _ = rectification(torch.tensor(0.999, dtype=torch.float64), power, step)
        assert bool(by_tensor) == trusted
        if trusted:
            assert 0 < float(factor) < 1
            assert float(factor) == pytest.approx(rectified(step, 0.999), rel=1e-12)
    assert float(rectification(0.9, 0.9**500, 500)[1]) == pytest.approx(1)


# Slow weights.


@pytest.mark.parametrize("name", ["lookahead_momentum", "lookahead_radam"])
def test_lookahead_of_one_whole_step_is_its_inner_rule(name: str) -> None:
    inner = OPTIMIZERS[name.removeprefix("lookahead_")](lr=0.01)
    assert np.abs(course(OPTIMIZERS[name](lr=0.01, k=1, alpha=1.0)) - course(inner)).max() <= 1e-15


def test_lookahead_sets_back_every_k_steps() -> None:
    rule, k = OPTIMIZERS["lookahead_momentum"](lr=0.05, momentum=0.9, k=4, alpha=0.25), 4
    places = course(rule)
    slow, fast, velocity = np.zeros(6), np.zeros(6), np.zeros(6)
    for step in range(STEPS):
        velocity = 0.9 * velocity + slope(fast)
        fast = fast - 0.05 * velocity
        if (step + 1) % k == 0:
            slow = slow + 0.25 * (fast - slow)
            fast = slow
        assert np.abs(places[step] - fast).max() <= 1e-12


@pytest.mark.parametrize("k", [0.0, 2.5, -1.0])
def test_lookahead_takes_whole_numbers_of_steps(k: float) -> None:
    with pytest.raises(ValueError, match="k"):
        OPTIMIZERS["lookahead_momentum"](k=k)


# Averages.


def test_schedule_free_is_measured_at_the_mean_of_its_iterates() -> None:
    rule = OPTIMIZERS["schedule_free_adamw"](lr=0.05, beta1=0.8)
    params = {"theta": torch.zeros(6, dtype=torch.float64)}
    state, seen = rule.init(params), []
    for _ in range(STEPS):
        grads = {"theta": torch.from_numpy(slope(params["theta"].numpy()))}
        params, state = rule.update(grads, state, params, rule.lr)
        seen.append(state["z"]["theta"].numpy())
        x = rule.evaluated(state, params)["theta"].numpy()
        assert np.abs(x - np.mean(seen, axis=0)).max() <= 1e-12
        y = 0.2 * seen[-1] + 0.8 * x
        assert np.abs(params["theta"].numpy() - y).max() <= 1e-12
    assert np.abs(x - seen[-1]).max() > 1e-2


def test_schedule_free_weighs_iterates_by_the_largest_rate_so_far() -> None:
    rule = OPTIMIZERS["schedule_free_adamw"](lr=0.05)
    params = {"theta": torch.zeros(6, dtype=torch.float64)}
    state, seen = rule.init(params), []
    for factor in (0.2, 0.6, 1.0, 0.5):
        grads = {"theta": torch.from_numpy(slope(params["theta"].numpy()))}
        params, state = rule.update(grads, state, params, rule.lr * factor)
        seen.append(state["z"]["theta"].numpy())
    x = rule.evaluated(state, params)["theta"].numpy()
    assert np.abs(x - np.average(seen, axis=0, weights=[0.04, 0.36, 1.0, 1.0])).max() <= 1e-12


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS.bundled) - {"schedule_free_adamw"}))
def test_others_are_measured_where_they_train(name: str) -> None:
    rule = OPTIMIZERS[name]()
    params = {"theta": torch.ones(3)}
    assert rule.evaluated(rule.init(params), params) is params


# Whole layers, and all weights at once.


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (4, 4), (1, 6), (6, 1)])
def test_newton_schulz_is_a_polynomial_of_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, v = np.linalg.svd(matrix.numpy(), full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert np.abs(orthogonalized(matrix).numpy() - u * s @ v).max() <= 1e-12


def test_muon_is_near_pytorchs_in_bfloat16() -> None:
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(8, 20, generator=draw)
    weight = start.clone().requires_grad_()
    theirs = torch.optim.Muon([weight], lr=0.02, weight_decay=0.0)
    rule = OPTIMIZERS["muon"](lr=0.02, weight_decay=0.0)
    params: Params = {"w": start}
    state = rule.init(params)
    for _ in range(10):
        grad = torch.randn(8, 20, generator=draw)
        weight.grad = grad
        theirs.step()
        params, state = rule.update({"w": grad}, state, params, rule.lr)
    moved = (params["w"] - start).norm()
    assert (params["w"] - weight.detach()).norm() <= 0.02 * moved


def random_steps(rule: Optimizer, params: Params, steps: int = 5) -> Params:
    draw = torch.Generator().manual_seed(3)
    state = rule.init(params)
    for _ in range(steps):
        grads = {
            name: torch.randn(p.shape, generator=draw, dtype=p.dtype) for name, p in params.items()
        }
        params, state = rule.update(grads, state, params, rule.lr)
    return params


def test_muon_sees_kernels_as_matrices() -> None:
    kernel = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    rule = OPTIMIZERS["muon"](lr=0.02)
    flat = random_steps(rule, {"w": kernel.flatten(1)})["w"]
    assert torch.equal(random_steps(rule, {"w": kernel})["w"].flatten(1), flat)


def test_adafactor_factors_the_last_two_axes_of_kernels() -> None:
    kernel = torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(0)).double()
    ours = random_steps(OPTIMIZERS["adafactor"](lr=0.1), {"w": kernel})["w"]
    weight = kernel.clone().requires_grad_()
    theirs = torch.optim.Adafactor([weight], lr=0.1, eps=(2**-23, 1e-3))
    draw = torch.Generator().manual_seed(3)
    for _ in range(5):
        weight.grad = torch.randn(kernel.shape, generator=draw, dtype=torch.float64)
        theirs.step()
    assert (ours - kernel).abs().max() > 1e-2
    assert (ours - weight.detach()).abs().max() <= 1e-12


@pytest.mark.parametrize(
    "name", sorted(name for name in OPTIMIZERS.bundled if OPTIMIZERS[name].elementwise)
)
def test_one_vector_is_as_good_as_weights_by_name(name: str) -> None:
    rule = OPTIMIZERS[name](**({"d0": 0.01} if name == "prodigy" else {}))
    start = torch.linspace(-1, 1, 7, dtype=torch.float64)
    target = torch.linspace(2, -1, 7, dtype=torch.float64)

    def walk(params: Params, targets: Params) -> Tensor:
        state = rule.init(params)
        for _ in range(20):
            grads = {part: params[part] - targets[part] for part in params}
            params, state = rule.update(grads, state, params, rule.lr)
        return torch.cat(list(params.values()))

    parts = walk(
        dict(zip("ab", start.split(4), strict=True)), dict(zip("ab", target.split(4), strict=True))
    )
    whole = walk({"all": start}, {"all": target})
    assert (whole - start).abs().max() > 1e-6
    assert (parts - whole).abs().max() <= 1e-12
