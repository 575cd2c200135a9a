"""Packing never changes a result, and a result is what an ordinary PyTorch loop gives.

In float64 the rows of a run are equal to the last bit, however runs are grouped; in float32 they
are close. One lane of one run is compared with a loop written by hand.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from raybench import work
from raybench.errors import Problem
from raybench.lanes import Lanes
from raybench.models.adapter import adapt as adapt_module
from raybench.optim import OPTIMIZERS
from raybench.optim.adapter import adapt as adapt_optimizer
from raybench.plan import Batch
from raybench.procedures import PROCEDURES
from raybench.procedures.base import DTYPES
from raybench.procedures.feed import Feed, Piece
from raybench.procedures.train import Train
from raybench.record import Account, Recorder
from raybench.rng import Seed, stream
from raybench.spec import Run, hyper_fields
from raybench.suite import Planned, Resources
from raybench.tables import build

torch.set_num_threads(1)

DIGITS: dict[str, Any] = {"name": "digits", "train": 47, "valid": 13, "test": 29}
IMAGES: dict[str, Any] = {**DIGITS, "layout": "image"}
TEACHER: dict[str, Any] = {
    "name": "teacher_student",
    "dim": 6,
    "train": 47,
    "valid": 13,
    "test": 29,
}
MLP: dict[str, Any] = {"name": "mlp", "width": 7}
CNN: dict[str, Any] = {"name": "cnn", "width": 3}
PROBES = ["loss", "error", "grad_norm", "weight_norm"]
TRAIN: dict[str, Any] = {
    "name": "train",
    "data": DIGITS,
    "model": MLP,
    "optimizer": {"name": "momentum", "lr": 0.05},
    "steps": "20it",
    "batch_size": 10,  # 4 full batches and one of 7: three epochs and a bit
    "record": {"at": {"linear": 4}, "probes": PROBES},
}

# What is trained: data, model and what else is special about it.
SUBJECTS: dict[str, dict[str, Any]] = {
    "mlp on digits": {},
    "mlp on teacher_student": {"data": TEACHER, "optimizer": {"name": "momentum", "lr": 0.005}},
    "deep tanh mlp": {"model": {"name": "mlp", "width": 5, "depth": 2, "activation": "tanh"}},
    "gelu mlp": {"model": {"name": "mlp", "width": 9, "activation": "gelu"}},
    "mlp with dropout": {"model": {**MLP, "dropout": 0.3}},
    "cnn with batch norm": {"data": IMAGES, "model": CNN},
    "cnn with augmentation": {
        "data": {**IMAGES, "augment": ["crop", "flip", "cutout", "noise"]},
        "model": CNN,
    },
    "cnn without batch norm": {"data": IMAGES, "model": {**CNN, "batch_norm": False}},
    "random features": {"model": {"name": "random_features", "width": 20}},
    "random features on teacher_student": {
        "data": TEACHER,
        "model": "random_features",
        "optimizer": {"name": "momentum", "lr": 0.002},
    },
    "linear, mse, full batch": {"model": "linear", "loss": "mse", "batch_size": None},
    "schedule": {"schedule": {"name": "cosine", "warmup": "3it"}, "drop_last": True},
}
NATIVE = sorted(OPTIMIZERS.bundled)
FOREIGN = {
    "Adam": adapt_optimizer("foreign_adam", torch.optim.Adam),
    "SGD": adapt_optimizer("foreign_sgd", torch.optim.SGD),
    "Adagrad": adapt_optimizer("foreign_adagrad", torch.optim.Adagrad),
}
SHARES = {"momentum": 0.9, "decay": 0.99, "beta1": 0.9, "beta2": 0.999}


def spec(dtype: str = "float64", **changes: Any) -> Train:
    problems: list[Problem] = []
    made = build(PROCEDURES, {**TRAIN, "dtype": dtype, **changes}, (), problems)
    assert isinstance(made, Train), problems
    return made


def arms(base: Train, count: int) -> list[Run[Train]]:
    """`count` runs of one batch key that differ in every way that one batch allows."""
    runs = []
    for k in range(count):
        hypers: dict[str, float] = {"lr": base.optimizer.lr * (1 + k / 7)}
        for field, near in SHARES.items():
            if field in hyper_fields(type(base.optimizer)):
                hypers[field] = near - 0.01 * (k % 3)
        if "weight_decay" in hyper_fields(type(base.optimizer)):
            hypers["weight_decay"] = 0.01 * (k % 3)
        optimizer = base.optimizer.replace(**hypers)
        data = base.data.replace(label_noise=0.1 * (k % 4))
        runs.append(Run(base.replace(optimizer=optimizer, data=data), Seed(k // 2)))
    assert len({run.batch_key for run in runs}) == 1
    assert len({run.run_id for run in runs}) == count
    return runs


def execute(runs: Sequence[Run[Train]]) -> list[Account]:
    """The runs as one group."""
    batch = Batch("test", "test", "", tuple(Planned(run, {}) for run in runs), Resources())
    accounts = work._execute(batch, batch.runs, None)
    assert all(isinstance(account, Account) for account in accounts)
    return cast("list[Account]", accounts)


def grouped(runs: Sequence[Run[Train]], sizes: Sequence[int]) -> dict[str, Account]:
    """The runs in groups of the given sizes, by run id."""
    assert sum(sizes) == len(runs)
    found: dict[str, Account] = {}
    start = 0
    for size in sizes:
        group = runs[start : start + size]
        found |= dict(zip([run.run_id for run in group], execute(group), strict=True))
        start += size
    return found


def assert_close(one: dict[str, Account], other: dict[str, Account], rtol: float) -> None:
    assert one.keys() == other.keys()
    for run_id, account in one.items():
        others = other[run_id].metrics
        assert len(account.metrics) == len(others)
        for a, b in zip(account.metrics, others, strict=True):
            assert (a.step, a.split, a.name) == (b.step, b.split, b.name)
            if a.name != "error":  # a row on the border may fall to either side
                assert a.value == pytest.approx(b.value, rel=rtol, abs=1e-6), (a, b)


def check_packing(base: Train) -> None:
    """Alone, together, shuffled and regrouped: the same accounts, to the last bit."""
    runs = arms(base, 9)
    alone = grouped(runs, [1] * 9)
    losses = [m for account in alone.values() for m in account.metrics if m.name == "loss"]
    assert len({m.value for m in losses if m.step == 20}) > 9, "the runs should differ"
    assert grouped(runs, [7, 2]) == alone
    assert grouped(runs, [9]) == alone
    shuffled = random.Random(0).sample(runs, 9)
    assert grouped(shuffled, [2, 3, 4]) == alone


# However they are packed.


@pytest.mark.parametrize("subject", sorted(SUBJECTS))
def test_packing_changes_no_bit_of_float64(subject: str) -> None:
    check_packing(spec(**SUBJECTS[subject]))


@pytest.mark.parametrize("optimizer", NATIVE)
def test_packing_changes_no_bit_with_any_optimizer(optimizer: str) -> None:
    check_packing(spec(optimizer={"name": optimizer, "lr": 0.01}))


@pytest.mark.parametrize("optimizer", sorted(FOREIGN))
def test_packing_changes_no_bit_with_a_foreign_optimizer(optimizer: str) -> None:
    check_packing(spec().replace(optimizer=FOREIGN[optimizer](lr=0.01)))


def test_numbers_of_a_foreign_optimizer_may_differ_within_a_batch() -> None:
    expected = {
        "Adam": {"lr", "eps", "weight_decay"},
        "SGD": {"lr", "momentum", "dampening", "weight_decay"},
        "Adagrad": {"lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"},
    }
    assert {name: set(hyper_fields(cls)) for name, cls in FOREIGN.items()} == expected
    for cls in FOREIGN.values():
        assert getattr(cls(weight_decay=5e-4), "weight_decay") == 5e-4  # noqa: B009


class Net(nn.Module):
    """A module that knows nothing of raybench, with stock dropout."""

    def __init__(self, in_features: int, num_classes: int, width: int = 6) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(in_features, width), nn.LayerNorm(width), nn.ReLU(), nn.Dropout(0.2)
        )
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.body(x))
        return outputs


class Normed(Net):
    """The same with batch norm over flat rows, whose fused kernel rounds in another way."""

    def __init__(self, in_features: int, num_classes: int, width: int = 6) -> None:
        super().__init__(in_features, num_classes, width)
        self.body[1] = nn.BatchNorm1d(width)


@pytest.mark.parametrize("module", [Net, Normed])
def test_packing_changes_no_bit_of_a_foreign_module(module: type[nn.Module]) -> None:
    check_packing(spec().replace(model=adapt_module("net", module)()))


@pytest.mark.parametrize("subject", sorted(SUBJECTS))
def test_fused_lanes_round_and_nothing_else(subject: str) -> None:
    # Exact lanes are looped over; fused in float64, where a mistake cannot hide behind rounding.
    runs = arms(spec(**SUBJECTS[subject]), 7)
    lanes = Lanes(7, dtype=torch.float64, exact=False)
    recorder = Recorder(lanes)
    runs[0].procedure.execute(lanes, runs, recorder)
    fused = dict(zip([run.run_id for run in runs], recorder.accounts(), strict=True))
    assert_close(fused, grouped(runs, [1] * 7), 1e-9)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_many_lanes_change_no_bit(optimizer: str) -> None:
    # More lanes than numbers in a vector register, and not a multiple of them.
    runs = arms(spec(optimizer={"name": optimizer, "lr": 0.01}, steps="5it"), 37)
    alone = grouped(runs, [1] * 37)
    assert grouped(runs, [37]) == alone
    assert grouped(runs, [16, 21]) == alone


@pytest.mark.parametrize("subject", sorted(SUBJECTS))
def test_packing_changes_little_in_float32(subject: str) -> None:
    runs = arms(spec("float32", **SUBJECTS[subject]), 7)
    alone = grouped(runs, [1] * 7)
    assert_close(grouped(runs, [7]), alone, 1e-4)
    assert_close(grouped(random.Random(1).sample(runs, 7), [3, 4]), alone, 1e-4)


@pytest.mark.parametrize("optimizer", [*NATIVE, *FOREIGN])
def test_packing_changes_little_in_float32_with_any_optimizer(optimizer: str) -> None:
    base = spec("float32", model={**MLP, "activation": "tanh"})
    cls = FOREIGN.get(optimizer) or OPTIMIZERS[optimizer]
    # Away from the steep start of 1 / sqrt(s), which multiplies a rounding error without bound.
    eps = {"eps": 1e-3} if "eps" in cls.model_fields else {}
    runs = arms(base.replace(optimizer=cls(lr=0.01, **eps)), 7)
    assert_close(grouped(runs, [7]), grouped(runs, [1] * 7), 1e-4)


def test_a_run_twice_is_the_same_twice() -> None:
    for dtype in ("float32", "float64"):
        runs = arms(spec(dtype, **SUBJECTS["cnn with augmentation"]), 3)
        assert execute(runs) == execute(runs)


def test_both_types_train_the_same_run() -> None:
    single, double = (execute(arms(spec(dtype), 1)) for dtype in DTYPES)
    for a, b in zip(single[0].metrics, double[0].metrics, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-3, abs=1e-5)


# Against a loop written by hand.


TORCH: dict[str, Any] = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "nag": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True),
    "adam": lambda p, lr: torch.optim.Adam(p, lr=lr),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.01),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr),
}


def plain_loop(run: Run[Train]) -> tuple[dict[str, float], list[float]]:
    """Final loss and error by split, and the loss of each step, as anyone would write it."""
    procedure, seed = run.procedure, run.seed
    data = procedure.data.draw(seed)
    module = procedure.model.module(data.task.inputs, data.task.outputs)
    skeleton = procedure.model.skeleton(data.task.inputs, data.task.outputs)
    params, buffers = procedure.model.state(skeleton, data.task.inputs, data.task.outputs, seed)
    module.load_state_dict({**params, **buffers})
    optimizer = TORCH[procedure.optimizer.name](module.parameters(), procedure.optimizer.lr)
    criterion = nn.CrossEntropyLoss() if data.task.classes else nn.MSELoss()
    x, y = data.x[data.rows["train"]], data.y["train"]
    order = stream(seed, "order/epochs")
    losses: list[float] = []
    while len(losses) < procedure.steps.count:
        for chosen in torch.randperm(len(x), generator=order).split(procedure.batch_size or 0):
            module.train()
            optimizer.zero_grad()
            loss = criterion(module(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == procedure.steps.count or not math.isfinite(losses[-1]):
                break
        if not math.isfinite(losses[-1]):
            break
    module.eval()
    final: dict[str, float] = {}
    with torch.no_grad():
        for split, rows in data.rows.items():
            outputs = module(data.x[rows])
            final[f"{split}.loss"] = criterion(outputs, data.y[split]).item()
            if data.task.classes:
                wrong = outputs.argmax(1) != data.y[split]
                final[f"{split}.error"] = wrong.float().mean().item()
    return final, losses


def final_metrics(account: Account) -> dict[str, float]:
    return {
        f"{m.split}.{m.name}": m.value
        for m in account.metrics
        if m.step == account.steps and m.name in ("loss", "error")
    }


@pytest.mark.parametrize("optimizer", sorted(TORCH))
@pytest.mark.parametrize(
    "subject", ["mlp on digits", "mlp on teacher_student", "cnn with batch norm", "random features"]
)
def test_equals_a_plain_loop(subject: str, optimizer: str) -> None:
    base = spec("float32", **{**SUBJECTS[subject], "optimizer": {"name": optimizer, "lr": 3e-3}})
    for seed in (0, 3):
        run = Run(base, Seed(seed))
        (account,) = execute([run])
        final, losses = plain_loop(run)
        assert len(losses) == account.steps == 20
        start = next(m.value for m in account.metrics if m.split == "train" and m.name == "loss")
        assert final["train.loss"] < start, "it should have trained"
        assert final_metrics(account) == pytest.approx(final, abs=1e-5, rel=1e-5)


def test_label_noise_reaches_training_rows_and_no_others() -> None:
    clean, noisy = (
        Run(spec("float32", data={**DIGITS, "label_noise": level}), Seed(1)) for level in (0.0, 0.6)
    )
    for run in (clean, noisy):
        (account,) = execute([run])
        assert final_metrics(account) == pytest.approx(plain_loop(run)[0], abs=1e-5)
    for split in ("valid", "test"):
        labels = [run.procedure.data.draw(run.seed).y[split] for run in (clean, noisy)]
        assert torch.equal(*labels)


# Divergence.


def losing(dtype: str) -> tuple[list[Run[Train]], Run[Train]]:
    base = spec(dtype, data=TEACHER, optimizer={"name": "sgd", "lr": 0.05}, steps="40it")
    runs = arms(base, 4)
    lost = Run(base.replace(optimizer=base.optimizer.replace(lr=1e6)), Seed(2))
    return runs, lost


def test_a_diverging_run_is_recorded_with_its_step() -> None:
    runs, lost = losing("float32")
    (account,) = execute([lost])
    _, losses = plain_loop(lost)
    expected = len(losses) - 1  # the first step whose loss is not finite
    assert 0 < expected < 39
    assert account.diverged_at == account.steps == expected
    assert account.metrics
    assert all(m.step < expected for m in account.metrics)
    together = execute([*runs[:2], lost, *runs[2:]])
    assert [a.diverged_at for a in together] == [None, None, expected, None, None]
    assert together[2].metrics == pytest.approx(account.metrics) or together[2].steps == expected


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_diverging_run_leaves_its_neighbours_alone(dtype: str) -> None:
    runs, lost = losing(dtype)
    without = grouped(runs, [4])
    beside = grouped([*runs[:2], lost, *runs[2:]], [5])
    own = beside.pop(lost.run_id)
    assert own.diverged_at is not None
    if dtype == "float64":
        assert beside == without
        assert own == execute([lost])[0]
    else:
        assert_close(beside, without, 1e-4)


def test_all_runs_of_a_group_may_diverge() -> None:
    base = spec(data=TEACHER, optimizer={"name": "sgd", "lr": 1e6}, steps="200it")
    runs = [Run(base, Seed(seed)) for seed in range(3)]
    together = execute(runs)
    assert all(account.diverged_at for account in together)
    assert together == [execute([run])[0] for run in runs]


# Pairing: what differs between arms is what the arms say, and nothing else.


def orders(monkeypatch: pytest.MonkeyPatch, run: Run[Train]) -> list[Tensor]:
    """The rows of each step of a run."""
    seen: list[Tensor] = []
    original = Feed.pieces

    def pieces(self: Feed, step: int, number: int = 1) -> Iterator[Piece]:
        for piece in original(self, step, number):
            seen.append(piece.x.flatten(1).clone())
            yield piece

    with monkeypatch.context() as patch:
        patch.setattr(Feed, "pieces", pieces)
        execute([run])
    return seen


def test_order_follows_the_seed_and_not_the_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = spec("float32")
    other = spec("float32", model={"name": "mlp", "width": 3}, optimizer="adam", loss="mse")
    first = orders(monkeypatch, Run(arm, Seed(0)))
    again = orders(monkeypatch, Run(other, Seed(0)))
    another = orders(monkeypatch, Run(arm, Seed(1)))
    assert len(first) == 20
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, another, strict=True))


def test_every_epoch_sees_every_row_once_in_its_own_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = orders(monkeypatch, Run(spec("float32"), Seed(0)))
    assert [len(rows) for rows in seen] == [10, 10, 10, 10, 7] * 4
    epochs = [torch.cat(seen[start : start + 5]) for start in range(0, 20, 5)]
    assert not torch.equal(epochs[0], epochs[1])
    for epoch in epochs[1:]:
        assert sorted(epoch.tolist()) == sorted(epochs[0].tolist())


def test_drop_last_leaves_the_small_batch_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = orders(monkeypatch, Run(spec("float32", drop_last=True), Seed(0)))
    assert [len(rows) for rows in seen] == [10] * 20


def test_a_fixed_stream_is_shared_by_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = spec("float32")
    first, second = (
        orders(monkeypatch, Run(arm, Seed(value, 0, ("data", "order")))) for value in (1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    data_only = orders(monkeypatch, Run(arm, Seed(2, 0, ("data",))))
    assert not torch.equal(first[0], data_only[0])
    ends = [execute([Run(arm, Seed(value, 0, ("data", "order")))])[0] for value in (1, 2)]
    assert ends[0].metrics != ends[1].metrics, "initial weights still follow the seed"


def test_all_streams_fixed_make_one_run() -> None:
    streams = ("data", "init", "noise", "order")
    arm = spec(model={**MLP, "dropout": 0.3})
    one, other = (execute([Run(arm, Seed(value, 0, streams))])[0] for value in (1, 2))
    assert one.metrics == other.metrics
    assert one.metrics == execute([Run(arm, Seed(0))])[0].metrics


def test_dropout_follows_stream_noise_and_acts_in_training_only() -> None:
    arm = spec(model={**MLP, "dropout": 0.3})
    same = ("data", "init", "order")
    one, other = (execute([Run(arm, Seed(value, 0, same))])[0] for value in (1, 2))
    begin = [[m for m in account.metrics if m.step == 0] for account in (one, other)]
    assert begin[0] == begin[1]
    assert one.metrics != other.metrics
    plain = execute([Run(spec(), Seed(1, 0, same))])[0]
    assert [m for m in plain.metrics if m.step == 0] == begin[0], "not while measuring"


# What is recorded.


def test_what_is_recorded_and_when() -> None:
    (account,) = execute([Run(spec(), Seed(0))])
    steps = [0, 5, 10, 15, 20]
    found = {(m.step, m.split, m.name) for m in account.metrics}
    expected = {
        (step, split, name)
        for step in steps
        for split in ("train", "valid", "test")
        for name in ("loss", "error")
    }
    expected |= {(step, "train", "grad_norm") for step in steps}
    expected |= {(step, "model", "weight_norm") for step in steps}
    assert found == expected
    assert len(account.metrics) == len(expected)
    assert account.facts["num_params"] == 64 * 7 + 7 + 7 * 10 + 10
    assert {m.epoch for m in account.metrics} == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_a_run_without_probes_is_a_run() -> None:
    (account,) = execute([Run(spec(record={"probes": []}), Seed(0))])
    assert account.metrics == []
    assert account.steps == 20


def test_recording_changes_nothing() -> None:
    often = spec(record={"at": {"every": "1it"}, "probes": PROBES}, model={**MLP, "dropout": 0.3})
    seldom = spec(record={"probes": ["loss"], "on": ["test"]}, model={**MLP, "dropout": 0.3})
    ends = [
        final_metrics(execute([Run(base, Seed(0))])[0])["test.loss"] for base in (often, seldom)
    ]
    assert ends[0] == ends[1]


def test_no_steps_measure_the_untrained_network() -> None:
    (account,) = execute([Run(spec(steps="0it"), Seed(0))])
    assert {m.step for m in account.metrics} == {0}
