"""Compiled steps: the same results, taken only where they pay, and done without where they fail."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from raybench import compiling, sizing
from raybench.compiling import Experience, NotCompiled
from raybench.deadline import WallLimit
from raybench.errors import Problem
from raybench.lanes import Compiling, Lanes
from raybench.optim.adapter import adapt
from raybench.plan import batches, decode
from raybench.procedures import PROCEDURES, advance
from raybench.record import Account, Recorder
from raybench.rng import Seed
from raybench.spec import Run
from raybench.suite import Planned, Resources
from raybench.tables import build

ON = Compiling("on")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests have compiled is forgotten."""
    monkeypatch.setattr(compiling, "experience", Experience())
    monkeypatch.setattr(advance, "_kinds", {})


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Sequence[Tensor]]]:
    """Graphs are carried out as they were traced; what each was traced for."""
    made: list[Sequence[Tensor]] = []

    def carried_out(
        graph: torch.fx.GraphModule, values: Sequence[Tensor], device: str
    ) -> Callable[..., Sequence[Tensor]]:
        made.append(values)
        strides = [value.stride() for value in values]

        def call(*values: Tensor) -> Sequence[Tensor]:
            assert [value.stride() for value in values] == strides
            with torch.no_grad():
                return tuple(graph(*values))

        return call

    monkeypatch.setattr(compiling, "_inductor", carried_out)
    yield made


def procedure(**changes: Any) -> Any:
    problems: list[Problem] = []
    config = {
        "procedure": "train",
        "data": {"name": "teacher_student", "train": 48, "test": 16},
        "model": {"name": "mlp", "width": 8},
        "optimizer": {"name": "adam", "lr": 0.01},
        "steps": "30it",
        "batch_size": 16,
        "record": {"at": {"linear": 3}, "probes": ["loss"]},
        **changes,
    }
    made = build(PROCEDURES, {"name": config.pop("procedure"), **config}, (), problems)
    assert not problems, problems
    return made


def train(
    spec: Any, told: Compiling, *, rates: Sequence[float] = (0.01, 0.02, 0.03)
) -> list[Account]:
    runs = [
        Run(spec.replace(optimizer=spec.optimizer.replace(lr=rate)), Seed(place))
        for place, rate in enumerate(rates)
    ]
    lanes = Lanes(len(runs), compiling=told)
    recorder = Recorder(lanes)
    runs[0].procedure.execute(lanes, runs, recorder)
    return recorder.accounts()


def losses(accounts: Sequence[Account]) -> Tensor:
    rows = [[metric.value for metric in account.metrics] for account in accounts]
    return torch.tensor(rows, dtype=torch.float64)


SLOW = pytest.mark.slow  # there are many of them, and others go the same ways


@pytest.mark.parametrize(
    "rates",
    [(0.01,), pytest.param((0.01, 0.01), marks=SLOW), (0.01, 0.02, 0.03)],
    ids=["1", "2", "3"],
)
@pytest.mark.parametrize(
    "optimizer",
    [
        "adam",
        "lookahead_radam",
        "prodigy",
        "muon",
        "schedule_free_adamw",
        *(pytest.param(name, marks=SLOW) for name in ("sgd", "radam", "nadam")),
    ],
)
def test_a_traced_step_is_the_step(
    optimizer: str, rates: Sequence[float], graphs: list[Sequence[Tensor]]
) -> None:
    spec = procedure(optimizer={"name": optimizer}, schedule="cosine")
    own, other = train(spec, Compiling(), rates=rates), train(spec, ON, rates=rates)
    assert len(graphs) == 1  # one, though the rate changes at each step
    torch.testing.assert_close(losses(other), losses(own), rtol=1e-4, atol=1e-6)


def test_other_numbers_of_the_same_kind_are_not_compiled_again(
    graphs: list[Sequence[Tensor]],
) -> None:
    train(procedure(), ON, rates=(0.01, 0.01))
    spec = procedure(schedule="cosine", optimizer={"name": "adam", "beta1": 0.5}, steps="20it")
    other = train(spec, ON, rates=(0.02, 0.03))
    assert len(graphs) == 1
    own = train(spec, Compiling(), rates=(0.02, 0.03))
    torch.testing.assert_close(losses(other), losses(own), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({"batch_size": 20}, 2),  # 20, 20, 8
        ({"l2": 0.01}, 1),
        ({"model": {"name": "mlp", "width": 8, "dropout": 0.2}}, 1),
    ],
    ids=["ragged", "l2", "dropout"],
)
def test_what_else_is_in_a_step(
    change: dict[str, Any], count: int, graphs: list[Sequence[Tensor]]
) -> None:
    spec = procedure(**change)
    own, other = train(spec, Compiling()), train(spec, ON)
    assert len(graphs) == count
    torch.testing.assert_close(losses(other), losses(own), rtol=1e-4, atol=1e-6)


def test_lanes_narrow_after_a_step_was_compiled(graphs: list[Sequence[Tensor]]) -> None:
    spec = procedure(optimizer={"name": "momentum"})
    rates = (0.01, 1e30, 1e30)  # two diverge at once
    own, other = train(spec, Compiling(), rates=rates), train(spec, ON, rates=rates)
    assert [account.diverged_at for account in other] == [a.diverged_at for a in own]
    assert other[1].diverged_at is not None
    torch.testing.assert_close(losses(other[:1]), losses(own[:1]), rtol=1e-4, atol=1e-6)
    assert [values[0].shape[0] for values in graphs] == [3, 1]


@pytest.mark.parametrize(
    "change",
    [{"dtype": "float64"}, {"optimizer": adapt("rprop", torch.optim.Rprop)()}],
    ids=["float64", "foreign"],
)
def test_exact_lanes_and_foreign_optimizers_are_not_compiled(
    change: dict[str, Any], graphs: list[Sequence[Tensor]]
) -> None:
    spec = procedure(**change)
    runs = [Run(spec, Seed(place)) for place in range(2)]
    lanes = Lanes(2, dtype=getattr(torch, spec.dtype), compiling=ON)
    spec.execute(lanes, runs, Recorder(lanes))
    assert not graphs


def test_compiling_must_clearly_pay() -> None:
    assert compiling.pays(steps=10_000, seconds=0.01, compiling=10, saved=0.5)  # 50 s for 10
    assert not compiling.pays(steps=1_000, seconds=0.01, compiling=10, saved=0.5)  # 5 s
    assert not compiling.pays(steps=3_000, seconds=0.01, compiling=10, saved=0.5)  # 15 s
    assert not compiling.pays(steps=10_000, seconds=0.01, compiling=10, saved=-0.1)


def test_what_was_measured_counts_from_then_on() -> None:
    past = Experience()
    assert past.seconds(1000) > past.seconds(10) == past.seconds() > 0
    past.rates += [0.5, 0.1]
    assert past.seconds(10) == 5
    past.shares += [0.2, 0.4]
    assert past.saved() == pytest.approx(0.3)


def slow(monkeypatch: pytest.MonkeyPatch, own: float, other: float) -> None:
    """Let steps seem to take seconds: `own` while they are as they were, `other` compiled."""

    def seconds_of(function: Callable[[], object], device: torch.device) -> float:
        function()
        kind = getattr(function, "func", None)
        return other if getattr(kind, "__name__", "") == "_called" else own

    monkeypatch.setattr(compiling, "seconds_of", seconds_of)


def test_auto_asks_whether_it_pays(
    graphs: list[Sequence[Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow(monkeypatch, own=1.0, other=0.5)
    caplog.set_level(logging.INFO, logger="raybench")
    train(procedure(), Compiling("auto"))  # 30 steps of a second: not worth it
    train(procedure(), Compiling("auto", runs=9_000, within=10.0))  # no time for it
    train(procedure(stop={"wall": "1h"}), Compiling("auto", runs=9_000))  # would count as training
    assert not graphs
    assert caplog.text.count("not compiled: 24 are expected, of 1e+03 ms each") == 1
    train(procedure(), Compiling("auto", runs=9_000))
    assert len(graphs) == 1
    assert "500 ms compiled and 1e+03 ms as it is" in caplog.text
    assert "compiled from here on" in caplog.text


def test_auto_keeps_what_is_faster(
    graphs: list[Sequence[Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow(monkeypatch, own=1.0, other=1.0)
    caplog.set_level(logging.INFO, logger="raybench")
    for _ in range(2):
        train(procedure(), Compiling("auto", runs=9_000))
    assert len(graphs) == 1  # and it is not asked again
    assert caplog.text.count("not compiled") == 1


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_without_a_compiler_steps_are_as_they_were(
    mode: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = itertools.count()

    def broken(*args: object) -> None:
        next(calls)
        raise FileNotFoundError("no C++ compiler")

    monkeypatch.setattr(compiling, "_inductor", broken)
    slow(monkeypatch, own=1.0, other=0.5)
    told = Compiling(mode, runs=9_000)
    for width in (8, 9):
        spec = procedure(model={"name": "mlp", "width": width})
        assert torch.equal(losses(train(spec, told)), losses(train(spec, Compiling())))
    assert next(calls) == 1  # asked once, and remembered
    assert caplog.text.count("no C++ compiler") == 1


def test_a_step_that_cannot_be_traced_is_as_it_was(
    graphs: list[Sequence[Tensor]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def decides(values: Tensor) -> tuple[Tensor]:
        return (values if values.sum() > 0 else -values,)

    with pytest.raises(NotCompiled, match="Error"):
        compiling.traced(decides, [torch.ones(2)])
    assert not compiling.experience.broken  # another one may be


def test_other_results_are_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(graph: Any, values: Sequence[Tensor], device: str) -> Any:
        return lambda *values: tuple(1.01 * result.detach() for result in graph(*values))

    monkeypatch.setattr(compiling, "_inductor", wrong)
    spec = procedure()
    assert torch.equal(losses(train(spec, ON)), losses(train(spec, Compiling())))
    assert "results differ" in caplog.text


def test_a_compiled_step_that_fails_is_taken_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = itertools.count()

    def fails_later(graph: Any, values: Sequence[Tensor], device: str) -> Any:
        def call(*values: Tensor) -> Sequence[Tensor]:
            if next(calls) == 12:
                raise RuntimeError("out of luck")
            with torch.no_grad():
                return tuple(graph(*values))

        return call

    monkeypatch.setattr(compiling, "_inductor", fails_later)
    spec = procedure()
    own, other = train(spec, Compiling()), train(spec, ON)
    assert caplog.text.count("out of luck") == 1
    assert next(calls) == 13  # never called again
    torch.testing.assert_close(losses(other), losses(own), rtol=1e-4, atol=1e-6)


def test_the_wall_limit_of_a_group_is_heard_while_compiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def late(*args: object) -> None:
        raise WallLimit("over")

    monkeypatch.setattr(compiling, "_inductor", late)
    with pytest.raises(WallLimit):
        train(procedure(), ON)
    assert len(train(procedure(), ON)) == 3  # the next try does without


def test_a_batch_tells_how_many_runs_a_process_has_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = procedure()
    runs = [Planned(Run(spec, Seed(place)), {}) for place in range(12)]
    resources = Resources(batch=3, compile="auto")
    made = batches(runs, suite="s", scale="d", resources=resources, slots=2)
    batch = decode(made[0].encode())
    assert batch.alike == 6
    monkeypatch.setattr(sizing, "_trained", sizing.Counter())
    assert sizing.compiling(batch, 2) == Compiling("auto", 4, None)
    sizing.remember_trained(batch, 2, 0)
    sizing.remember_trained(batch, 3, 0)
    assert sizing.compiling(batch, 1).runs == 0
    sizing.remember_trained(batch, 3, 0)  # some were tried again
    assert sizing.compiling(batch, 1).runs == 0


def test_groups_are_as_wide_as_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "_known", {})
    runs = [Planned(Run(procedure(), Seed(place)), {}) for place in range(8)]
    [batch] = batches(runs, suite="s", scale="d", resources=Resources(batch=8), slots=1)
    monkeypatch.setattr(sizing, "_best", lambda *args: 8)
    sizing.remember_trained(batch, 3, 3)  # a rest of a batch, or lanes that had narrowed
    assert sizing.lanes(batch, runs, torch.device("cpu")) == 8
    sizing.remember_trained(batch, 5, 5)
    sizing.remember_trained(batch, 3, 3)
    assert sizing.lanes(batch, runs, torch.device("cpu")) == 5
    assert sizing.lanes(batch, runs[:4], torch.device("cpu")) == 4


@pytest.mark.slow  # a compiler takes seconds, minutes on a busy machine
@pytest.mark.parametrize("rates", [(0.01,), (0.01, 0.02, 0.03)], ids=len)
def test_really_compiled_steps_give_the_same_results(
    rates: Sequence[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="raybench")
    spec = procedure(schedule="cosine")
    own, other = train(spec, Compiling(), rates=rates), train(spec, ON, rates=rates)
    assert caplog.text.count("compiled from here on") == 1
    torch.testing.assert_close(losses(other), losses(own), rtol=1e-4, atol=1e-6)
