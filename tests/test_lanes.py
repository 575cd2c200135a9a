"""The verbs that lift one run to K: what they do to nested values, and that lanes do not touch."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from raybench import rng
from raybench.clock import Clock
from raybench.lanes import Lanes
from raybench.optim import OPTIMIZERS
from raybench.record import Recorder
from raybench.rng import Seed
from raybench.spec import Hyper, Spec, Steps

torch.set_num_threads(1)


class Pair(NamedTuple):
    left: Tensor
    right: Any


def value(k: int) -> dict[str, Any]:
    """Something with a leaf of every kind in it."""
    return {
        "matrix": torch.arange(6.0).reshape(2, 3) + k,
        "pair": Pair(torch.tensor(k), [torch.full((2,), float(k)), "text", None]),
        "inside": {"flag": torch.tensor(k % 2 == 0), "empty": {}, "number": 7},
    }


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        same = type(one) is type(other) and len(one) == len(other)
        return same and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


# Stacking.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_lane_undoes_stack(size: int, dtype: torch.dtype) -> None:
    lanes = Lanes(size, dtype=dtype)
    stacked = lanes.stack([value(k) for k in range(size)])
    assert stacked["matrix"].shape == ((size, 2, 3) if lanes.lifted else (2, 3))
    assert isinstance(stacked["pair"], Pair)
    for k in range(size):
        own = lanes.lane(stacked, k)
        expected = value(k)
        expected["matrix"] = expected["matrix"].to(dtype)
        expected["pair"].right[0] = expected["pair"].right[0].to(dtype)
        assert equal(own, expected)


def test_stack_keeps_whole_numbers_and_truth_values() -> None:
    stacked = Lanes(2, dtype=torch.float64).stack([value(0), value(1)])
    assert stacked["pair"].left.dtype == torch.int64
    assert stacked["inside"]["flag"].dtype == torch.bool
    assert stacked["matrix"].dtype == torch.float64


def test_a_lane_has_memory_of_its_own() -> None:
    lanes = Lanes(3)
    stacked = lanes.stack([torch.zeros(2) for _ in range(3)])
    lanes.lane(stacked, 1).add_(1)
    assert stacked.tolist() == [[0, 0], [0, 0], [0, 0]]


def test_stack_refuses() -> None:
    with pytest.raises(ValueError, match="2 values for 3 lanes"):
        Lanes(3).stack([1, 1])
    with pytest.raises(ValueError, match="differ in 'a'"):
        Lanes(2).stack(["a", "b"])
    with pytest.raises(ValueError, match="differ in 1"):
        Lanes(2).stack([{"x": 1}, {"x": 2}])
    with pytest.raises(ValueError, match="at least one lane"):
        Lanes(0)


class Inner(Spec):
    level: Hyper = 0.5
    size: int = 3


class Outer(Spec):
    rate: Hyper = 0.1
    other: Hyper = 0.2
    width: int = 8
    length: Steps = Steps(3, "ep")
    inner: Inner = Inner()


def test_agreeing_hypers_stay_numbers_and_differing_ones_become_tensors() -> None:
    specs = [Outer(rate=0.1 * (k + 1), inner=Inner(level=k / 3)) for k in range(3)]
    for dtype in (torch.float32, torch.float64):
        stacked = Lanes(3, dtype=dtype, exact=False).stack(specs)
        assert isinstance(stacked, Outer)
        rate: Any = stacked.rate
        level: Any = stacked.inner.level
        assert type(stacked.other) is float
        assert stacked.other == 0.2
        assert rate.dtype == level.dtype == torch.float64
        assert rate.tolist() == [spec.rate for spec in specs], "not rounded to the lanes' type"
        assert level.tolist() == [0.0, 1 / 3, 2 / 3]
        assert (stacked.width, stacked.length, stacked.inner.size) == (8, Steps(3, "ep"), 3)


def test_hypers_of_exact_lanes_stay_numbers() -> None:
    lanes = Lanes(2, dtype=torch.float64)
    stacked = lanes.stack([Outer(rate=0.1), Outer(rate=0.2)])
    assert [lanes.lane(stacked, k).rate for k in range(2)] == [0.1, 0.2]
    seen: list[object] = []
    lanes.map(lambda spec, x: (seen.append(spec.rate), x)[1])(stacked, torch.ones(2))
    assert seen == [0.1, 0.2]


def test_hypers_of_a_lane() -> None:
    lanes = Lanes(2)
    stacked = lanes.stack([Outer(rate=0.1), Outer(rate=0.2)])
    assert [float(lanes.lane(stacked, k).rate) for k in range(2)] == [0.1, 0.2]
    seen = lanes.map(lambda spec, x: x * spec.rate + spec.other)(stacked, torch.ones(2))
    assert seen.tolist() == pytest.approx([0.3, 0.4])


def test_one_spec_is_itself() -> None:
    spec = Outer(rate=0.3)
    assert Lanes(1).stack([spec]) is spec
    assert Lanes(1, dtype=torch.float64).stack([spec]) == spec


# Mapping.


def test_one_lane_is_not_lifted() -> None:
    def fn(x: Tensor) -> Tensor:
        return x + 1

    lanes = Lanes(1)
    assert not lanes.lifted
    assert lanes.map(fn) is fn
    x = torch.ones(3)
    assert lanes.stack([x]) is x
    assert lanes.lane(x, 0) is x


def test_float64_lifts_one_lane_as_well() -> None:
    lanes = Lanes(1, dtype=torch.float64)
    shapes = []

    def fn(x: Tensor) -> Tensor:
        shapes.append(x.shape)
        return x + 1

    assert lanes.lifted
    stacked = lanes.stack([torch.ones(3)])
    assert stacked.shape == (1, 3)
    assert lanes.map(fn)(stacked).shape == (1, 3)
    assert shapes == [(3,)], "fn itself sees one run"
    assert lanes.columns(torch.zeros(1)).shape == (1,)
    assert Lanes(1).columns(torch.zeros(())).shape == (1,)


def test_map_sees_one_run_and_keeps_the_nesting() -> None:
    lanes = Lanes(4)
    stacked = lanes.stack([value(k) for k in range(4)])

    def fn(one: dict[str, Any], y: Tensor, *, scale: float) -> dict[str, Any]:
        assert one["matrix"].shape == (2, 3)
        assert one["pair"].right[1:] == ["text", None]
        assert one["inside"]["number"] == 7
        return {
            "sum": one["matrix"].sum() * scale,
            "pair": Pair(one["pair"].left + 1, "kept"),
            "list": [y, (y * 2,)],
        }

    result = lanes.map(fn)(stacked, torch.arange(4.0), scale=2.0)
    assert result["sum"].tolist() == [(15 + 6 * k) * 2 for k in range(4)]
    assert result["pair"].left.tolist() == [1, 2, 3, 4]
    assert result["pair"].right == "kept"
    assert result["list"][1][0].tolist() == [0, 2, 4, 6]


def test_map_calls_anew_each_time() -> None:
    lanes = Lanes(2)
    lifted = lanes.map(lambda x: {"a": x, "b": (x.sum(),)})
    for width in (1, 3, 2):
        result = lifted(torch.ones(2, width))
        assert result["a"].shape == (2, width)
        assert result["b"][0].tolist() == [width, width]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "draw",
    [torch.rand_like, torch.randn_like, lambda x: torch.nn.functional.dropout(x, 0.5, True)],
)
def test_randomness_in_lifted_code_is_an_error(draw: Any, dtype: torch.dtype) -> None:
    lanes = Lanes(2, dtype=dtype)
    with pytest.raises(RuntimeError, match="randomness"):
        lanes.map(lambda x: draw(x))(torch.ones(2, 3))


def test_noise_from_keys_is_allowed_and_differs_by_lane() -> None:
    lanes = Lanes(3)
    keys = lanes.stack([rng.key(Seed(k), "noise") for k in range(3)])
    noise = lanes.map(lambda key: rng.uniform(rng.fold(key, 4), (5,)))(keys)
    assert noise.unique().numel() == 15
    for k in range(3):
        expected = rng.uniform(rng.fold(rng.key(Seed(k), "noise"), 4), (5,))
        assert torch.equal(noise[k], expected)


def test_each_goes_lane_by_lane() -> None:
    lanes = Lanes(3)
    stacked = lanes.stack([{"x": torch.tensor(float(k))} for k in range(3)])
    found = lanes.each(lambda k, own, same: (k, float(own["x"]), same), stacked, "same")
    assert found == [(0, 0.0, "same"), (1, 1.0, "same"), (2, 2.0, "same")]


# Gradients.


def case(k: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    draw = torch.Generator().manual_seed(k)
    params = {
        "first": torch.randn(5, 4, generator=draw),
        "bias": torch.randn(5, generator=draw),
        "last": torch.randn(3, 5, generator=draw),
        "unused": torch.randn(2, generator=draw),
    }
    return params, torch.randn(8, 4, generator=draw), torch.randint(0, 3, (8,), generator=draw)


def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    outputs = torch.tanh(x @ params["first"].T + params["bias"]) @ params["last"].T
    return torch.nn.functional.cross_entropy(outputs, y), {"outputs": outputs}


def by_autograd(k: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    params, x, y = case(k)
    leaves = {name: p.to(dtype).requires_grad_() for name, p in params.items()}
    value, aux = loss(leaves, x.to(dtype), y)
    value.backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in leaves.items()}
    return grads, value.detach(), aux["outputs"].detach()


@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_grad_is_autograd_in_each_lane(size: int, dtype: torch.dtype, within: float) -> None:
    lanes = Lanes(size, dtype=dtype)
    grads, value, aux = lanes.grad(loss)(*lanes.stack([case(k) for k in range(size)]))
    assert lanes.columns(value).shape == (size,)
    assert not value.requires_grad
    assert not aux["outputs"].requires_grad
    for k in range(size):
        own, own_value, own_outputs = by_autograd(k, dtype)
        found = lanes.lane(grads, k)
        assert found.keys() == own.keys()
        for name in own:
            torch.testing.assert_close(found[name], own[name], rtol=0, atol=within)
        torch.testing.assert_close(lanes.columns(value)[k], own_value, rtol=0, atol=within)
        torch.testing.assert_close(
            lanes.lane(aux, k)["outputs"], own_outputs, rtol=0, atol=10 * within
        )


def test_grad_changes_no_weight_and_leaves_no_graph() -> None:
    lanes = Lanes(2)
    params, x, y = lanes.stack([case(0), case(1)])
    before = {name: p.clone() for name, p in params.items()}
    lanes.grad(loss)(params, x, y)
    assert equal(params, before)
    assert not any(p.requires_grad or p.grad is not None for p in params.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e38])
def test_a_lane_that_is_lost_leaves_the_others_bitwise(poison: float, dtype: torch.dtype) -> None:
    lanes = Lanes(4, dtype=dtype)
    rules = [OPTIMIZERS["adam"](lr=0.01 * (k + 1)) for k in range(4)]
    update = lanes.map(lambda rule, g, s, p: rule.update(g, s, p, rule.lr))

    def train(cases: list[Any]) -> tuple[dict[str, Tensor], Tensor]:
        params, x, y = lanes.stack(cases)
        rule = lanes.stack(rules)
        state = lanes.map(lambda one, p: one.init(p))(rule, params)
        for _ in range(5):
            grads, value, _ = lanes.grad(loss)(params, x, y)
            params, state = update(rule, grads, state, params)
        return params, value

    cases = [case(k) for k in range(4)]
    healthy, values = train(cases)
    params, x, y = case(2)
    broken = [*cases[:2], ({**params, "last": params["last"] * poison}, x, y), cases[3]]
    beside, beside_values = train(broken)
    for k in (0, 1, 3):
        assert equal(lanes.lane(healthy, k), lanes.lane(beside, k))
        assert values[k] == beside_values[k]
    assert not equal(lanes.lane(healthy, 2), lanes.lane(beside, 2))


# The clock, and what lanes record.


def test_the_clock_ends_a_group_after_its_steps() -> None:
    clock = Clock(stop_after=3)
    lanes = Lanes(2, clock=clock)
    clock.expect(100, 2)
    gradient, arguments = lanes.grad(loss), lanes.stack([case(0), case(1)])
    taken = 0
    with pytest.raises(Clock.Enough):
        for _ in range(10):
            gradient(*arguments)
            taken += 1
    assert taken == 3
    assert clock.seconds() >= 100 * clock.seconds_per_step() > 0


def test_a_clock_without_an_end_never_ends_a_group() -> None:
    lanes = Lanes(1)
    gradient = lanes.grad(loss)
    for _ in range(10):
        gradient(*case(0))
    assert lanes.clock.seconds_per_step() == 0


def test_recorder_gives_each_lane_its_own() -> None:
    recorder = Recorder(Lanes(3))
    recorder.fact("num_params", 5)
    recorder.fact("own", [1, 2, 3])
    recorder.watch(0, torch.tensor([1.0, 2.0, 3.0]))
    recorder.write(0, 0.0, "train", {"loss": torch.tensor([1.0, 2.0, 3.0])})
    recorder.array(0, "spectrum", torch.arange(6.0).reshape(3, 2))
    recorder.watch(1, torch.tensor([1.0, float("nan"), float("inf")]))
    recorder.watch(2, torch.tensor([float("nan"), float("nan"), 1.0]))
    assert recorder.left() == []
    recorder.write(1, 0.5, "train", {"loss": torch.tensor([0.5, 0.0, 0.0])})
    recorder.write(2, 1.0, "train", {"loss": torch.tensor([0.1, 0.0, 0.0])})
    recorder.array(2, "spectrum", torch.ones(3, 2))
    first, second, third = recorder.accounts()
    assert [a.diverged_at for a in (first, second, third)] == [2, 1, 1]
    assert [a.steps for a in (first, second, third)] == [2, 1, 1]
    assert [m.value for m in first.metrics] == [1.0, 0.5]
    assert [m.value for m in second.metrics] == [2.0]
    assert second.facts == {"num_params": 5, "own": 2}
    assert third.arrays[0].values == [4.0, 5.0]
    assert third.arrays[0].shape == [2]


def test_arrays_end_where_metrics_end() -> None:
    # A group stops once all its lanes have diverged: beside a healthy lane a lost one goes on, and
    # must not have more to show for it.
    recorder = Recorder(Lanes(2))
    for step in range(3):
        recorder.watch(step, torch.tensor([1.0, float("nan") if step == 2 else 1.0]))
        recorder.write(step, 0.0, "train", {"loss": torch.zeros(2)})
        recorder.array(step, "spectrum", torch.ones(2, 3))
    healthy, lost = recorder.accounts()
    assert [array.step for array in healthy.arrays] == [0, 1, 2]
    assert [array.step for array in lost.arrays] == [metric.step for metric in lost.metrics]
    assert [array.step for array in lost.arrays] == [0, 1]


def test_not_all_have_diverged_while_one_trains() -> None:
    recorder = Recorder(Lanes(2))
    recorder.watch(3, torch.tensor([float("nan"), 1.0]))
    assert recorder.left() == [1]


def test_a_run_that_measures_nothing_is_still_a_run() -> None:
    recorder = Recorder(Lanes(2))
    recorder.watch(3, torch.tensor([0.0, float("nan")]))
    assert [account.diverged_at for account in recorder.accounts()] == [None, 3]


@pytest.mark.parametrize("most", [1, 2, 3, 5, 9])
def test_blocks_of_lanes_give_what_all_lanes_give(most: int) -> None:
    lanes = Lanes(5)
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 4, generator=draw), torch.randn(5, 4, 3, generator=draw)
    sizes = []

    def product(values: dict[str, Tensor], b: Tensor) -> dict[str, Tensor]:
        sizes.append(len(b))
        return {"sum": lanes.map(lambda a, b: (a @ b).sum())(values["a"], b), "rows": b[:, 0]}

    whole, parts = product({"a": a}, b), lanes.in_blocks(product, most)({"a": a}, b)
    assert torch.allclose(parts["sum"], whole["sum"])
    assert torch.equal(parts["rows"], whole["rows"])
    assert max(sizes[1:]) == min(most, 5)


def test_a_busy_clock_counts_its_own_thread_only() -> None:
    clock = Clock(stop_after=2, busy=True)
    clock.expect(10, 1)
    with pytest.raises(Clock.Enough):
        while True:
            clock.tick(torch.device("cpu"))
            time.sleep(0.05)
    assert clock.seconds_per_step() < 0.04
