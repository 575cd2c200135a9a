"""What training can be told: order of the rows, rows that are measured, the L2 term, losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from raybench.data import DATA, Task
from raybench.errors import Problem, RaybenchError
from raybench.lanes import Lanes
from raybench.procedures import PROCEDURES
from raybench.procedures.base import DTYPES
from raybench.procedures.feed import Extent, Feed
from raybench.procedures.losses import Losses
from raybench.record import Account, Recorder
from raybench.rng import Seed
from raybench.spec import Run
from raybench.tables import build

torch.set_num_threads(1)

SMALL = {"name": "teacher_student", "dim": 4, "train": 22, "valid": 9, "test": 8}
BASE: dict[str, Any] = {
    "name": "train",
    "data": SMALL,
    "model": {"name": "mlp", "width": 5},
    "optimizer": {"name": "sgd", "lr": 0.1},
    "steps": "3ep",
    "batch_size": 5,
    "drop_last": True,
    "record": {"at": {"every": "1ep"}},
}


def procedure(**changes: Any) -> Any:
    problems: list[Problem] = []
    made = build(PROCEDURES, BASE | changes, (), problems)
    assert not problems, problems
    return made


def carried_out(made: Any, seeds: Sequence[int] = (0,)) -> list[Account]:
    lanes = Lanes(len(seeds), dtype=DTYPES[made.dtype])
    recorder = Recorder(lanes)
    made.execute(lanes, [Run(made, Seed(seed)) for seed in seeds], recorder)
    return recorder.accounts()


def values(account: Account, split: str, metric: str = "loss") -> list[float]:
    return [m.value for m in account.metrics if (m.split, m.name) == (split, metric)]


def feed(data: dict[str, Any] = SMALL, lanes: int = 1, **options: Any) -> Feed:
    problems: list[Problem] = []
    spec: Any = build(DATA, data, (), problems)
    assert not problems
    seeds = [Seed(k) for k in range(lanes)]
    return Feed(Lanes(lanes), [spec] * lanes, seeds, batch_size=5, **options)


def epochs(made: Feed, count: int) -> list[Tensor]:
    steps = made.steps_per_epoch
    return [
        torch.cat([made.batch(e * steps + s)[0] for s in range(steps)], -2) for e in range(count)
    ]


# Order.


def test_a_fixed_order_is_the_same_in_every_epoch() -> None:
    first, second = epochs(feed(order="fixed"), 2)
    assert torch.equal(first, second)
    first, second = epochs(feed(), 2)
    assert not torch.equal(first, second)


def test_a_fixed_order_is_the_first_order_of_a_reshuffled_one() -> None:
    assert torch.equal(epochs(feed(order="fixed"), 1)[0], epochs(feed(), 1)[0])


def test_what_a_fixed_order_leaves_out_is_not_measured() -> None:
    made = feed(order="fixed", drop_last=True)
    (trained,) = epochs(made, 1)
    measured = torch.cat([x for x, _ in made.split("train")])
    assert len(measured) == 20
    assert torch.equal(measured, trained)
    assert sum(len(x) for x, _ in feed(drop_last=True).split("train")) == 22


def test_measured_rows_can_be_bounded() -> None:
    whole = feed(extent=Extent(whole_batches=True))
    assert [sum(len(x) for x, _ in whole.split(s)) for s in ("train", "valid", "test")] == [
        20,
        5,
        5,
    ]
    bounded = feed(extent=Extent(train_rows=7))
    assert [sum(len(x) for x, _ in bounded.split(s)) for s in ("train", "valid")] == [7, 9]
    (first, _), *_ = feed().split("train")
    (some, _), *_ = bounded.split("train")
    assert torch.equal(first[:7], some)


@pytest.mark.parametrize("lanes", [1, 3])
def test_lanes_measure_and_train_on_their_own_rows(lanes: int) -> None:
    data = {"name": "digits", "train": 40, "valid": 10, "test": 20}
    made = feed(data, lanes, order="fixed")
    for k in range(lanes):
        spec: Any = build(DATA, data, (), [])
        alone = Feed(Lanes(1), [spec], [Seed(k)], batch_size=5, order="fixed")
        for step in range(3):
            for one, other in zip(made.batch(step), alone.batch(step), strict=True):
                assert torch.equal(one[k] if lanes > 1 else one, other)
        for split in ("train", "valid", "test"):
            for one, other in zip(made.split(split)[0], alone.split(split)[0], strict=True):
                assert torch.equal(one[k] if lanes > 1 else one, other)


def test_rows_of_a_text_keep_their_order() -> None:
    data = {"name": "text", "length": 6, "streams": 5, "characters": 2000}
    spec: Any = build(DATA, data, (), [])
    made = Feed(Lanes(1), [spec], [Seed(3)], batch_size=5, drop_last=True)
    first, second = made.batch(0), made.batch(1)
    # The target of a stream's last character is the first character of its next row.
    assert torch.equal(first[1][:, -1], second[0][:, 0])
    assert torch.equal(made.batch(made.steps_per_epoch)[0], first[0])


# The L2 term.


def test_the_l2_term_is_trained_and_reported() -> None:
    plain, decayed = procedure(), procedure(l2=0.3)
    seed = Seed(0)
    model, data = plain.model, plain.data
    task = data.draw(seed).task
    skeleton = model.skeleton(task.inputs, task.outputs)
    weights, _ = model.state(skeleton, task.inputs, task.outputs, seed)
    squares = sum(float(w.square().sum()) for n, w in weights.items() if n.endswith("weight"))
    (without,), (with_l2,) = carried_out(plain), carried_out(decayed)
    for split in ("train", "valid", "test"):
        extra = values(with_l2, split)[0] - values(without, split)[0]
        assert extra == pytest.approx(0.15 * squares, rel=1e-5)
    # The gradient of l2 / 2 |W|^2 is l2 W: coupled weight decay, for a network without biases.
    linear = {"name": "linear", "bias": False}
    (one,) = carried_out(procedure(model=linear, l2=0.3, dtype="float64"))
    rule = {"name": "sgd", "lr": 0.1, "weight_decay": 0.3}
    (other,) = carried_out(procedure(model=linear, optimizer=rule, dtype="float64"))
    final = values(one, "test")[-1] - values(other, "test")[-1]
    assert 0 < final < 0.3 * squares
    (probed,) = carried_out(
        procedure(
            model=linear,
            l2=0.3,
            record={"at": {"every": "1ep"}, "probes": ["loss", "weight_norm"]},
            dtype="float64",
        )
    )
    norm = values(probed, "model", "weight_norm")[-1]
    assert final == pytest.approx(0.15 * norm**2, rel=1e-9)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_options_do_not_break_lanes(seeds: tuple[int, ...]) -> None:
    made = procedure(l2=0.1, order="fixed", record={"at": {"every": "1ep"}, "whole_batches": True})
    together = carried_out(made, seeds)
    for seed, account in zip(seeds, together, strict=True):
        (alone,) = carried_out(made, [seed])
        assert values(account, "test") == pytest.approx(values(alone, "test"), rel=1e-5)


# Losses.


def test_half_squares() -> None:
    losses = Losses("half_squares", Task((3,), 2, 0))
    outputs, y = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert losses.rows(outputs, y).tolist() == [2.5, 12.5]
    assert losses.mean(outputs, y).item() == 7.5


def test_elbo_is_the_divergence_between_two_gaussians() -> None:
    draw = torch.Generator().manual_seed(0)
    y, seen = torch.rand(4, 6, generator=draw), torch.rand(4, 6, generator=draw)
    mean, log_std = torch.randn(4, 3, generator=draw), torch.randn(4, 3, generator=draw) / 2
    rows = Losses("elbo", Task((6,), 6, 0)).rows(torch.cat([seen, mean, log_std], -1), y)
    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(
        normal(mean, log_std.exp()), normal(torch.zeros(3), torch.ones(3))
    ).sum(-1)
    assert torch.allclose(rows, (seen - y).square().sum(-1) + divergence, rtol=1e-5)


def test_sequences_have_the_mean_over_time() -> None:
    draw = torch.Generator().manual_seed(0)
    outputs = torch.randn(4, 7, 5, generator=draw)
    y = torch.randint(0, 5, (4, 7), generator=draw)
    losses = Losses("auto", Task((7,), 5, 5))
    expected = nn.functional.cross_entropy(outputs.transpose(1, 2), y, reduction="none").mean(-1)
    assert torch.allclose(losses.rows(outputs, y), expected)
    assert torch.allclose(losses.mean(outputs, y), expected.mean())


def test_the_output_can_be_the_loss() -> None:
    losses = Losses("output", Task((2,), 1, 0))
    outputs = torch.tensor([[1.0], [-2.0]])
    assert losses.rows(outputs, torch.zeros(2, 1)).tolist() == [1.0, -2.0]


@pytest.mark.parametrize(
    ("name", "task", "says"),
    [
        ("cross_entropy", Task((3,), 2, 0), "needs classes"),
        ("elbo", Task((3,), 2, 2), "data.target: input"),
    ],
)
def test_losses_that_do_not_fit(name: Any, task: Task, says: str) -> None:
    with pytest.raises(RaybenchError, match=says):
        Losses(name, task)


def test_elbo_needs_a_model_with_a_latent_space() -> None:
    losses = Losses("elbo", Task((3,), 3, 0))
    with pytest.raises(RaybenchError, match="use model: vae"):
        losses.rows(torch.zeros(2, 3), torch.zeros(2, 3))


# Targets and images.


def test_an_autoencoder_s_target_is_its_input() -> None:
    spec: Any = build(DATA, {"name": "digits", "train": 30, "target": "input"}, (), [])
    drawn = spec.draw(Seed(0))
    assert drawn.task == Task((64,), 64, 0)
    assert torch.equal(drawn.y["train"], drawn.x[drawn.rows["train"]])


def test_images_are_standardised_by_themselves_in_every_split() -> None:
    data = {"name": "digits", "layout": "image", "pixels": "unit", "train": 20, "test": 10}
    made = feed(data | {"per_image": True}, 2)
    for x, _ in [*made.split("train"), *made.split("test"), made.batch(0)]:
        flat = x.flatten(2)
        assert torch.allclose(flat.mean(-1), torch.zeros(()), atol=1e-5)
        assert torch.allclose(flat.std(-1, correction=0), torch.ones(()), atol=1e-4)


def test_own_validation_rows_are_the_first_ones() -> None:
    spec: Any = build(DATA, {"name": "quadratic_deep", "valid": 896}, (), [])
    drawn = spec.draw(Seed(5))
    assert drawn.rows["valid"].tolist() == list(range(1000, 1896))
    assert sorted(drawn.rows["train"].tolist()) == list(range(1000))
    assert drawn.rows["test"].tolist() == list(range(2000, 3000))


# P1 of Schmidt et al. 2021, as published.


def test_the_quadratic_problem_starts_at_the_published_losses() -> None:
    made = procedure(
        data={"name": "quadratic_deep"},
        model="quadratic_deep",
        loss="half_squares",
        batch_size=128,
        order="fixed",
        steps="1ep",
        record={"at": {"every": "1ep"}, "whole_batches": True, "probes": ["loss"]},
    )
    accounts = carried_out(made, [42, 43])
    for account in accounts:
        assert values(account, "valid")[0] == pytest.approx(353.8127659388951, rel=3e-7)
        assert values(account, "test")[0] == pytest.approx(353.44676426478793, rel=3e-7)
        assert max(m.step for m in account.metrics) == 7
    assert not math.isclose(values(accounts[0], "test")[1], values(accounts[1], "test")[1])


def test_a_diverged_run_can_count_as_untrained(tmp_path: Any) -> None:
    from raybench import table
    from raybench.local import LocalExecutor
    from raybench.plan import batches
    from raybench.store import SuiteStore
    from raybench.suite import Resources, load, parse

    text = """\
version: 1
name: lost
base:
  procedure: train
  data: {name: teacher_student, dim: 4, train: 16, test: 8}
  model: {name: mlp, width: 4}
  optimizer: sgd
  steps: 40ep
  batch_size: 8
  record: {at: {every: 1ep}}
sweep: [{optimizer.lr: [0.01, 1e6]}]
"""
    suite = load(parse(text, "lost.yaml"))
    store = SuiteStore(tmp_path, "lost")
    work = batches(suite.runs, suite="lost", scale="", resources=Resources(), slots=1)
    LocalExecutor().run(work, store, lambda progress: None)
    store.write_plan("", [{"run_id": p.run.run_id, "skipped": ""} for p in suite.runs])
    runs, filled = table(tmp_path), table(tmp_path, diverged="untrained")
    lost = runs["status"] == "diverged"
    assert lost.sum() == 1
    metrics, curves = (
        table(tmp_path, name="metrics"),
        table(tmp_path, name="metrics", diverged="untrained"),
    )
    (own_id,) = runs.loc[lost, "run_id"]

    def test_loss(frame: pd.DataFrame) -> list[float]:
        own = frame[(frame["run_id"] == own_id) & (frame["split"] == "test")]
        return own[own["metric"] == "loss"].sort_values("step")["value"].tolist()

    initial, *rest = test_loss(metrics)
    assert filled.loc[lost, "summary.test.loss"].tolist() == [initial]
    assert filled.loc[~lost].equals(runs.loc[~lost])
    assert test_loss(curves) == [initial, *rest, *[initial] * (40 - len(rest))]
    assert len(rest) < 40


@pytest.mark.parametrize("order", ["fixed", "reshuffled"])
def test_lanes_of_one_seed_share_their_batches(order: Any) -> None:
    spec: Any = build(DATA, {"name": "quadratic_deep"}, (), [])
    seeds = [Seed(3), Seed(3), Seed(3)]
    together = Feed(Lanes(3), [spec] * 3, seeds, batch_size=128, drop_last=True, order=order)
    alone = Feed(Lanes(1), [spec], seeds[:1], batch_size=128, drop_last=True, order=order)
    for step in range(9):  # into the second epoch
        for ours, own in zip(together.batch(step), alone.batch(step), strict=True):
            assert ours.stride(0) == 0  # the same memory for all lanes
            assert all(torch.equal(lane, own) for lane in ours)
