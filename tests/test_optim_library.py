"""The optimizers of pytorch_optimizer: each that is offered steps, in lanes as on its own."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from raybench.errors import MissingError
from raybench.lanes import Lanes
from raybench.optim import OPTIMIZERS, ForeignOptimizer, library
from raybench.optim.adapter import adapt
from raybench.procedures.stepper import Stepper

torch.set_num_threads(1)

Params = dict[str, Tensor]
INSTALLED = importlib.util.find_spec(library.PACKAGE) is not None
NAMES = library.names()
needed = pytest.mark.skipif(not INSTALLED, reason='needs pip install "raybench[optim]"')

# These wait before they move: for a past gradient, for a distance that shows in float32, or until
# they trust their scale.
PATIENT = {"AdaShift": 12, "DAdaptSGD": 12, "RAdam": 8, "ScheduleFreeRAdam": 8}


def problem(seed: int) -> tuple[Params, Tensor, Tensor]:
    """A network with weights of one, two and four axes, one of them a single row."""
    draw = torch.Generator().manual_seed(seed)
    params = {
        "conv.weight": torch.randn(4, 2, 3, 3, generator=draw) / 4,
        "conv.bias": torch.randn(4, generator=draw) / 4,
        "norm.weight": torch.ones(4),
        "0.weight": torch.randn(5, 64, generator=draw) / 8,
        "0.bias": torch.randn(5, generator=draw) / 8,
        "1.weight": torch.randn(1, 5, generator=draw) / 2,
    }
    return params, torch.randn(8, 2, 6, 6, generator=draw), torch.randn(8, 1, generator=draw)


def loss(params: Params, x: Tensor, y: Tensor) -> tuple[Tensor, Params]:
    h = torch.nn.functional.conv2d(x, params["conv.weight"], params["conv.bias"])
    h = torch.tanh(h) * params["norm.weight"][:, None, None]
    h = torch.tanh(h.flatten(1) @ params["0.weight"].T + params["0.bias"])
    return (h @ params["1.weight"].T - y).square().mean(), {}


def train(rules: Sequence[Any], steps: int, dtype: torch.dtype, first: int = 0) -> list[Params]:
    lanes = Lanes(len(rules), dtype=dtype)
    params, x, y = lanes.stack([problem(first + lane) for lane in range(len(rules))])
    gradient, stepper = lanes.grad(loss), Stepper(lanes, rules)
    state = stepper.init(params)
    for _ in range(steps):
        grads, _, _ = gradient(params, x, y)
        params, state = stepper.update(grads, state, params, 1.0)
    return [lanes.lane(params, k) for k in range(len(rules))]


def ordinary(cls: Any, steps: int, dtype: torch.dtype) -> Params:
    """Train in an ordinary loop, with ordinary gradients."""
    start, x, y = problem(0)
    params = {part: weight.to(dtype).requires_grad_() for part, weight in start.items()}
    optimizer = cls(list(params.values()))
    for _ in range(steps):
        optimizer.zero_grad()
        loss(params, x.to(dtype), y.to(dtype))[0].backward()
        optimizer.step()
    return {part: weight.detach() for part, weight in params.items()}


@needed
@pytest.mark.parametrize("name", NAMES)
def test_every_rule_steps_in_lanes_as_on_its_own(name: str) -> None:
    cls = adapt(f"{library.PACKAGE}:{name}", library.find(name))
    assert issubclass(cls, ForeignOptimizer)
    rule, steps = cls(), PATIENT.get(name, 3)
    before = torch.get_rng_state()
    fused = train([rule, rule], steps, torch.float32)
    for k, lane in enumerate(fused):
        start = problem(k)[0]
        assert all(weight.isfinite().all() for weight in lane.values())
        assert all(not torch.equal(lane[part], start[part]) for part in lane), "it did not move"
    # In float64 to the bit: a state that lanes shared would show.
    exact = train([rule, rule], steps, torch.float64)
    for k, lane in enumerate(exact):
        single = train([rule], steps, torch.float64, first=k)[0]
        assert all(torch.equal(lane[part], single[part]) for part in lane)
    plain = ordinary(library.find(name), steps, torch.float64)
    worst = max((plain[part] - exact[0][part]).abs().max().item() for part in plain)
    assert worst <= 1e-9
    assert torch.equal(before, torch.get_rng_state()), "it drew from the global generator"


@needed
def test_what_is_offered() -> None:
    assert sorted(NAMES) == NAMES
    assert {"SOAP", "Shampoo", "Lion", "Prodigy", "ScheduleFreeAdamW"} <= set(NAMES)
    assert len(NAMES) > 90
    assert not set(NAMES) & set(library.EXCLUDED)
    assert library.find("SOAP") is importlib.import_module(library.PACKAGE).SOAP


@needed
def test_the_table_has_them_by_prefix() -> None:
    cls = OPTIMIZERS["pytorch_optimizer:SOAP"]
    assert cls.name == "pytorch_optimizer:SOAP"
    assert cls(lr=0.01).columns()["name"] == "pytorch_optimizer:SOAP"
    assert "pytorch_optimizer:SAM" not in OPTIMIZERS
    assert "pytorch_optimizer" in OPTIMIZERS.origin("pytorch_optimizer:SOAP")


@needed
@pytest.mark.parametrize("name", sorted(library.EXCLUDED))
def test_every_exclusion_is_a_class_that_would_be_offered_otherwise(name: str) -> None:
    cls = getattr(importlib.import_module(library.PACKAGE), name)
    assert "params" in inspect.signature(cls).parameters
    with pytest.raises(KeyError, match="cannot be used: "):
        library.find(name)


def failure(name: str) -> str:
    """Return what goes wrong when an excluded rule is used like any other."""
    cls = getattr(importlib.import_module(library.PACKAGE), name)
    before = torch.get_rng_state()
    try:
        if "lr" not in cls([torch.ones(2, 2)]).param_groups[0]:
            return "has no rate"
        for dtype in (torch.float32, torch.float64):
            moved = ordinary(cls, 3, dtype)
            if any(torch.equal(moved[part], p.to(dtype)) for part, p in problem(0)[0].items()):
                return "does not move"
    except (RuntimeError, TypeError, ValueError, ImportError) as error:
        return f"fails: {error}"
    finally:
        drew = not torch.equal(before, torch.get_rng_state())
        torch.set_rng_state(before)
    return "draws" if drew else ""


@needed
@pytest.mark.parametrize("name", sorted(library.EXCLUDED))
def test_every_exclusion_is_true(name: str) -> None:
    found = failure(name)
    assert found, f"{name} works: offer it"
    assert (found == "draws") == ("generator" in library.EXCLUDED[name])


@needed
@pytest.mark.parametrize("name", ["SAM", "Lookahead", "Ranger21", "LOMO"])
def test_wrappers_and_the_like_are_refused_with_the_reason(name: str) -> None:
    assert name not in NAMES
    with pytest.raises(KeyError, match="its constructor needs more"):
        library.find(name)


@needed
@pytest.mark.parametrize("name", ["Nonsense", "", "sgd", "torch", "get_supported_optimizers"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(KeyError, match="does not exist"):
        library.find(name)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert library.names() == []
    with pytest.raises(MissingError, match=r"raybench\[optim\]"):
        library.find("SOAP")


# What an adapted class is measured at.


@needed
@pytest.mark.parametrize("name", ["ScheduleFreeSGD", "ScheduleFreeAdamW", "SPlus"])
def test_a_class_with_modes_is_measured_in_eval(name: str) -> None:
    make = library.find(name)
    rule = adapt(name, make)(lr=0.05)
    params = {part: weight.clone() for part, weight in problem(0)[0].items()}
    state = rule.init(params)
    twins = {part: weight.clone().requires_grad_() for part, weight in problem(0)[0].items()}
    twin: Any = make(list(twins.values()), lr=0.05)
    draw = torch.Generator().manual_seed(0)
    for _ in range(4):
        grads = {part: torch.randn(p.shape, generator=draw) for part, p in params.items()}
        for part, weight in twins.items():
            weight.grad = grads[part].clone()
        twin.step()
        params, state = rule.update(grads, state, params, 0.05)
        # Measuring on the way changes nothing, not even a bit.
        rule.evaluated(state, params)
    assert all(torch.equal(params[part], twins[part].detach()) for part in params)
    measured = rule.evaluated(state, params)
    twin.eval()
    assert list(measured) == list(params)
    assert all(torch.equal(measured[part], twins[part].detach()) for part in params)
    assert any(not torch.equal(measured[part], params[part]) for part in params)


def test_a_class_without_modes_is_measured_where_it_is() -> None:
    rule = adapt("sgd", torch.optim.SGD)()
    params = {"w": torch.ones(2)}
    assert rule.evaluated(rule.init(params), params) is params


class Halving(torch.optim.SGD):
    """Halves the rate it is given, and again at every step."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr / 2)

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        self.param_groups[0]["lr"] /= 2


def test_rates_are_the_objects_own_where_no_schedule_changes_them() -> None:
    params, grads = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    rule = adapt("halving", Halving)(lr=0.8)
    state = rule.init(params)
    for place in (-0.4, -0.6, -0.7):
        rule.update(grads, state, params, 0.8)
        assert params["w"].item() == pytest.approx(place)
    # A schedule at half the rate begins at half of what the object began with.
    rule.update(grads, state, params, 0.4)
    assert params["w"].item() == pytest.approx(-0.9)


def test_a_default_without_limit_is_no_field() -> None:
    class Bounded(torch.optim.SGD):
        def __init__(self, params: Any, lr: float = 0.1, limit: float = float("inf")) -> None:
            super().__init__(params, lr=lr)
            self.limit = limit

    cls = adapt("bounded", Bounded)
    assert "limit" not in cls.model_fields
    state = cls().init({"w": torch.ones(2)})
    assert state["optimizer"].limit == float("inf")
