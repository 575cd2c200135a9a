"""Runs that end before their steps are over, and lanes that leave a group when their runs end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from raybench.errors import Problem, SuiteError
from raybench.lanes import Lanes
from raybench.optim.adapter import adapt as adapt_optimizer
from raybench.plan import Batch, decode, to_do
from raybench.procedures import PROCEDURES
from raybench.procedures.base import DTYPES
from raybench.record import Account, Recorder
from raybench.rng import Seed
from raybench.spec import Duration, Run, plain_config
from raybench.store import SuiteStore
from raybench.suite import Planned, Resources, load, read
from raybench.tables import build
from raybench.work import run_batch

torch.set_num_threads(1)

DIGITS: dict[str, Any] = {"name": "digits", "train": 47, "valid": 13, "test": 29}
IMAGES: dict[str, Any] = {**DIGITS, "layout": "image"}
BASE: dict[str, Any] = {
    "name": "train",
    "data": DIGITS,
    "model": {"name": "mlp", "width": 7},
    "optimizer": {"name": "momentum", "lr": 0.02},
    "steps": "24it",
    "batch_size": 10,
    "record": {"at": {"every": "3it"}},
}
SUBJECTS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "adam": {"optimizer": {"name": "adam", "lr": 0.01}},
    "muon": {"optimizer": {"name": "muon", "lr": 0.01}},
    "schedule-free": {"optimizer": {"name": "schedule_free_adamw", "lr": 0.02}},
    "dropout": {"model": {"name": "mlp", "width": 7, "dropout": 0.3}},
    "cnn, batch norm, augmentation": {
        "data": {**IMAGES, "augment": ["crop", "flip", "noise"]},
        "model": {"name": "cnn", "width": 3},
    },
    "fixed order": {"order": "fixed", "record": {"at": {"every": "3it"}, "train_rows": 20}},
    "label noise": {"data": {**DIGITS, "label_noise": 0.2}},
    "generated data": {
        "data": {"name": "teacher_student", "dim": 6, "train": 47, "valid": 13, "test": 29},
        "optimizer": {"name": "momentum", "lr": 0.003},
    },
    "full batch": {"batch_size": None},
}
RATES = (1.0, 0.1, 3.0, 0.3, 2.0, 0.03)


def procedure(**changes: Any) -> Any:
    problems: list[Problem] = []
    made = build(PROCEDURES, {"dtype": "float64", **BASE, **changes}, (), problems)
    assert not problems, problems
    return made


def runs_of(made: Any, *, one_seed: bool = False) -> list[Run[Any]]:
    rule = made.optimizer
    return [
        Run(made.replace(optimizer=rule.replace(lr=rule.lr * rate)), Seed(0 if one_seed else k))
        for k, rate in enumerate(RATES)
    ]


def carried_out(runs: Sequence[Run[Any]]) -> tuple[list[Account], Lanes]:
    lanes = Lanes(len(runs), dtype=DTYPES[runs[0].procedure.dtype])
    recorder = Recorder(lanes)
    runs[0].procedure.execute(lanes, runs, recorder)
    return recorder.accounts(), lanes


def middle_loss(runs: Sequence[Run[Any]]) -> float:
    """A training loss that some of the runs reach, at different times, and others do not."""
    accounts, _ = carried_out(runs)
    lowest = [min(m.value for m in a.metrics if (m.split, m.name) == TRAIN_LOSS) for a in accounts]
    return sorted(lowest)[len(lowest) // 2 + 1]


TRAIN_LOSS = ("train", "loss")


# Lanes that leave.


@pytest.mark.parametrize("one_seed", [False, True], ids=["seeds", "one seed"])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_leaving_lanes_change_no_number_of_the_others(subject: str, one_seed: bool) -> None:
    changes = SUBJECTS[subject]
    whole = runs_of(procedure(**changes), one_seed=one_seed)
    target = {"train/loss": middle_loss(whole)}
    runs = runs_of(procedure(**changes, stop={"target": target}), one_seed=one_seed)
    accounts, lanes = carried_out(runs)
    stopped = [account for account in accounts if account.stopped]
    assert 3 <= len(stopped) < len(runs)
    assert len(lanes.members) == lanes.size < len(runs), "no lane has left"
    for run, account in zip(runs, accounts, strict=True):
        assert account == carried_out([run])[0][0]


def test_lanes_of_a_foreign_optimizer_leave_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cls = adapt_optimizer("foreign_adam", torch.optim.Adam)
    made = procedure()
    runs = runs_of(made.replace(optimizer=cls(lr=0.01)))
    target = {"target": {"train/loss": middle_loss(runs)}}
    runs = runs_of(procedure(stop=target).replace(optimizer=cls(lr=0.01)))
    accounts, lanes = carried_out(runs)
    assert lanes.size < len(runs)
    for run, account in zip(runs, accounts, strict=True):
        assert account == carried_out([run])[0][0]


def test_fused_lanes_that_leave_change_others_within_rounding() -> None:
    whole = runs_of(procedure(dtype="float32"))
    target = {"train/loss": middle_loss(whole)}
    runs = runs_of(procedure(dtype="float32", stop={"target": target}))
    accounts, lanes = carried_out(runs)
    assert lanes.lifted and lanes.size < len(runs)
    for run, account in zip(runs, accounts, strict=True):
        (alone,), _ = carried_out([run])
        assert (account.steps, account.stopped) == (alone.steps, alone.stopped)
        ours, theirs = ([m.value for m in a.metrics] for a in (account, alone))
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_diverged_lanes_leave() -> None:
    made = procedure(optimizer={"name": "sgd", "lr": 1e300}, loss="mse")
    rates = (1e300, 0.01, 1e300, 1e300, 0.02, 1e300)
    runs = [
        Run(made.replace(optimizer=made.optimizer.replace(lr=rate)), Seed(k))
        for k, rate in enumerate(rates)
    ]
    accounts, lanes = carried_out(runs)
    assert lanes.members == (1, 4)
    for run, account in zip(runs, accounts, strict=True):
        assert account == carried_out([run])[0][0]
    assert [account.diverged_at is None for account in accounts] == [r < 1 for r in rates]


def test_a_group_ends_with_its_last_run() -> None:
    runs = runs_of(procedure(stop={"target": {"train/loss": 1e9}}))
    accounts, _ = carried_out(runs)
    assert [(a.steps, a.stopped) for a in accounts] == [
        (0, "train/loss reached 1e+09 at step 0")
    ] * len(runs)


def test_what_lanes_share_stays_shared_when_some_leave() -> None:
    lanes = Lanes(4, exact=False)
    shared = torch.arange(3.0).expand(4, 3)
    own = lanes.stack([torch.full((2,), float(k)) for k in range(4)])
    kept_shared, kept_own = lanes.take((shared, own), [1, 3])
    assert kept_shared.shape == (2, 3) and kept_shared.data_ptr() == shared.data_ptr()
    assert kept_own[:, 0].tolist() == [1.0, 3.0]
    lanes.narrow([1, 3])
    lanes.narrow([1])
    assert (lanes.size, lanes.members) == (1, (3,))


def test_the_recorder_knows_whose_numbers_it_is_given() -> None:
    lanes = Lanes(3, exact=False)
    recorder = Recorder(lanes)

    def write(step: int, values: Sequence[float]) -> None:
        recorder.write(step, 0.0, "train", {"loss": torch.tensor(values)})
        recorder.array(step, "twice", 2 * torch.tensor(values)[:, None])

    write(0, [1.0, 2.0, 3.0])
    recorder.stop(0, {1: "enough"})
    assert recorder.left() == [0, 2]
    write(1, [4.0, 5.0, 6.0])  # the second one is still there, and no longer counts
    lanes.narrow([0, 2])
    write(2, [7.0, 8.0])
    recorder.watch(2, torch.tensor([1.0, float("nan")]))
    first, second, third = recorder.accounts()
    assert [m.value for m in first.metrics] == [1.0, 4.0, 7.0]
    assert [m.value for m in second.metrics] == [2.0]
    assert [a.values for a in second.arrays] == [[4.0]]
    assert [m.value for m in third.metrics] == [3.0, 6.0]
    assert (second.stopped, second.steps, third.diverged_at) == ("enough", 0, 2)


# Targets, times and steps.


def test_a_target_ends_a_run_at_the_first_recording_that_reaches_it() -> None:
    (whole,), _ = carried_out([Run(procedure(), Seed(1))])
    losses = {m.step: m.value for m in whole.metrics if (m.split, m.name) == ("valid", "loss")}
    most = losses[12]
    first = min(step for step, value in losses.items() if value <= most)
    (account,), _ = carried_out([Run(procedure(stop={"target": {"valid/loss": most}}), Seed(1))])
    assert account.steps == first
    assert account.stopped == f"valid/loss reached {most:g} at step {first}"
    assert account.metrics == [m for m in whole.metrics if m.step <= first]


def test_all_targets_have_to_be_reached() -> None:
    target = {"train/loss": 1e9, "valid/error": -1.0}
    (account,), _ = carried_out([Run(procedure(stop={"target": target}), Seed(1))])
    assert (account.stopped, account.steps) == ("", 24)


def test_a_target_that_is_reached_at_the_end_stops_nothing() -> None:
    (whole,), _ = carried_out([Run(procedure(record={"at": {}}), Seed(1))])
    last = whole.metrics[-1].value
    target = {"target": {"train/loss": 1e9}}
    made = procedure(record={"at": {}, "on": ["train"]}, stop=target, steps="0it")
    (account,), _ = carried_out([Run(made, Seed(1))])
    assert account.stopped == "" and last > 0


def test_stopped_at_a_step_a_run_is_the_beginning_of_the_whole_one() -> None:
    schedule = {"schedule": {"name": "cosine"}}
    (whole,), _ = carried_out([Run(procedure(**schedule), Seed(3))])
    (part,), _ = carried_out([Run(procedure(**schedule, stop={"at": "2ep"}), Seed(3))])
    assert part.stopped == "at step 10, as stop.at says" and part.steps == 10
    assert {m.step for m in part.metrics} == {0, 3, 6, 9, 10}
    early = [m for m in whole.metrics if m.step < 10]
    assert [m for m in part.metrics if m.step < 10] == early


def test_past_the_end_there_is_nothing_to_stop() -> None:
    (whole,), _ = carried_out([Run(procedure(), Seed(3))])
    (part,), _ = carried_out([Run(procedure(stop={"at": "9ep"}), Seed(3))])
    assert part == whole


def test_the_wall_time_ends_a_group_and_measures_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr("raybench.procedures.stop.time.perf_counter", lambda: float(next(ticks)))
    accounts, _ = carried_out(runs_of(procedure(stop={"wall": "5s"}, record={"at": {}})))
    assert len({account.steps for account in accounts}) == 1
    assert 0 < accounts[0].steps < 24
    for account in accounts:
        assert account.stopped == f"wall time 5s is over at step {account.steps}"
        assert {m.step for m in account.metrics} == {0, account.steps}


def test_a_target_must_be_measured() -> None:
    problems: list[Problem] = []
    stop = {"target": {"valid/loss": 1.0}}
    changes = {"stop": stop, "record": {"on": ["train"]}}
    assert build(PROCEDURES, BASE | changes, (), problems) is None
    assert [(p.path, p.message) for p in problems] == [
        (("stop",), "target valid/loss is not measured: add its split to record.on")
    ]
    with pytest.raises(Exception, match="valid/eror is not measured; measured: train/error, "):
        carried_out([Run(procedure(stop={"target": {"valid/eror": 0.1}}), Seed(0))])


@pytest.mark.parametrize(
    ("stop", "where", "message"),
    [
        ("{target: {test/error: 0.1}}", 5, "should match pattern"),
        ("{target: {valid/error: low}}", 5, "'low'"),
        ("{wall: 60}", 5, "write 60s"),
        ("{wall: 0s}", 5, "not a time above 0"),
        ("{at: 10}", 5, "write 10it or 10ep"),
        ("{when: 10it}", 5, "unknown key 'when'"),
    ],
)
def test_mistakes_have_their_place(tmp_path: Path, stop: str, where: int, message: str) -> None:
    text = (
        "version: 1\nname: early\nbase:\n  procedure: train\n"
        f"  stop: {stop}\n"
        "  data: digits\n  model: mlp\n  optimizer: adam\n  steps: 3ep\n"
    )
    path = tmp_path / "early.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SuiteError) as raised:
        _ = load(read(path, "early.yaml")).runs
    assert any(f"early.yaml:{where}:" in line and message in line for line in raised.value.lines)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1.5h", 5400), ("10min", 600)])
def test_durations(text: str, seconds: float) -> None:
    assert Duration.parse(text).seconds == seconds
    assert str(Duration.parse(text)) == text


# Rows.


def test_a_run_without_stop_keeps_its_id() -> None:
    assert "stop" not in procedure().canonical
    assert Run(procedure(), Seed(0)).run_id == Run(procedure(stop=None), Seed(0)).run_id
    assert Run(procedure(), Seed(0)).run_id != Run(procedure(stop={"at": "9it"}), Seed(0)).run_id


def test_a_stopped_run_is_a_row_that_is_not_run_again(tmp_path: Path) -> None:
    stop = {"target": {"train/loss": 1e9}, "wall": "9min", "at": "9it"}
    made = procedure(stop=stop)
    planned = Planned(Run(made, Seed(0)), {})
    batch = decode(Batch("b", "s", "", (planned,), Resources()).encode())
    assert plain_config(batch.runs[0].run.procedure)["stop"] == stop
    store = SuiteStore(tmp_path, "s")
    *_, progress = run_batch(batch, store, "in-process")
    assert progress.statuses == {"stopped": 1}
    part = store.read_part("b")
    assert part is not None
    (row,) = part["runs"].to_pylist()
    assert (row["status"], row["steps"]) == ("stopped", 0)
    assert row["reason"] == "train/loss reached 1e+09 at step 0"
    assert row["config.stop.wall"] == "9min"
    assert to_do([planned], store.statuses()) == []
    assert store.summaries("train.loss")[row["run_id"]] == row["summary.train.loss"]


def test_lazy_has_no_stop() -> None:
    problems: list[Problem] = []
    lazy: Mapping[str, Any] = {**BASE, "name": "lazy", "stop": {"at": "9it"}}
    made: Any = build(PROCEDURES, lazy, (), problems)
    assert "until" in made.check()
