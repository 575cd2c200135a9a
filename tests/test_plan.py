"""From runs to batches to rows: what is planned, what crosses to a worker, what a session does."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

import raybench
from raybench import cost, sizing, work
from raybench.checkpoints import Saves
from raybench.errors import NothingMatched, RaybenchError, RefusedError
from raybench.local import LocalExecutor
from raybench.models import MODELS
from raybench.optim import OPTIMIZERS
from raybench.optim.adapter import adapt
from raybench.plan import MAX_BATCH, Batch, batches, decode, distinct, to_do
from raybench.progress import Progress
from raybench.record import Account
from raybench.session import Outcome, Session, refuse_past_runs, resolved
from raybench.spec import Steps
from raybench.store import SuiteStore
from raybench.suite import Planned, Resources, Suite, load, parse

torch.set_num_threads(1)

HEAD = """\
version: 1
name: tiny
base:
  procedure: train
  data: {name: teacher_student, dim: 4, train: 16, valid: 8, test: 8}
  model: {name: mlp, width: 4}
  optimizer: {name: sgd, lr: 0.05}
  steps: 4it
  batch_size: 8
  record: {at: {linear: 2}}
resources: {lanes: 4}
"""
WIDTHS = "sweep: [{model.width: [2, 3]}, {optimizer.lr: [0.05, 0.1]}]\nseeds: 2\n"


def suite(body: str = WIDTHS, **overrides: Any) -> Suite:
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    return load(parse(HEAD + body, "suite.yaml"), None, changes)


def made(body: str = WIDTHS, slots: int = 1, **resources: Any) -> list[Batch]:
    runs = to_do(suite(body).runs, {})
    return batches(runs, suite="tiny", scale="", resources=Resources(**resources), slots=slots)


def ids(runs: Sequence[Planned]) -> list[str]:
    return [planned.run.run_id for planned in runs]


# What is to be done.


def test_finished_runs_are_left_out() -> None:
    runs = suite().runs
    names = ids(runs)
    statuses = dict(zip(names, ["done", "diverged", "failed", "missing?"], strict=False))
    assert ids(to_do(runs, statuses)) == names[2:]
    assert ids(to_do(runs, {})) == names
    assert to_do(runs, dict.fromkeys(names, "done")) == []


def test_a_run_is_done_once_and_a_skipped_one_never() -> None:
    runs = suite(
        "sweep: [{cases: {a: {}, b: {}, c: {model.width: 3}}}]\n"
        "skip: [{if: model.width == 3, because: x}]"
    ).runs
    assert len(runs) == 3
    assert [planned.labels["case"] for planned in distinct(runs)] == ["a"]
    assert ids(to_do(runs, {})) == [runs[0].run.run_id]


# Batches.


@pytest.mark.parametrize(
    ("count", "options", "slots", "sizes"),
    [
        (20, {"batch": 6}, 1, [5, 5, 5, 5]),
        (20, {"batch": 7}, 1, [6, 7, 7]),
        (20, {"batch": 1}, 1, [1] * 20),
        (20, {"batch": 50}, 1, [20]),
        (80, {}, 1, [10] * 8),
        (80, {}, 2, [5] * 16),
        (80, {}, 1000, [1] * 80),
        (80, {"lanes": 20}, 1000, [20] * 4),
        (3000, {}, 1, [250] * 12),
        (5, {}, 0, [1] * 5),
    ],
)
def test_sizes(count: int, options: dict[str, Any], slots: int, sizes: list[int]) -> None:
    found = made(f"seeds: {count}", slots, **options)
    assert sorted(len(batch.runs) for batch in found) == sorted(sizes)
    assert max(sizes) <= MAX_BATCH
    assert ids([planned for batch in found for planned in batch.runs]) == ids(
        suite(f"seeds: {count}").runs
    )


def test_a_batch_has_one_batch_key() -> None:
    found = made(batch=100)
    assert [len(batch.runs) for batch in found] == [4, 4]
    for batch in found:
        assert len({planned.run.batch_key for planned in batch.runs}) == 1
        assert len({planned.run.procedure.columns()["model.width"] for planned in batch.runs}) == 1


def test_batch_ids_depend_on_the_runs_only() -> None:
    first = [batch.batch_id for batch in made(batch=2)]
    assert len(set(first)) == 4
    assert first == [batch.batch_id for batch in made(batch=2, lanes=1, cpu=2.0)]
    runs = to_do(suite().runs, {})
    other = batches(runs, suite="other", scale="x", resources=Resources(batch=2), slots=3)
    assert sorted(first) == sorted(batch.batch_id for batch in other)
    assert first != [batch.batch_id for batch in made(batch=1)][:4]


def test_what_takes_longest_comes_first() -> None:
    widths = "sweep: [{model.width: [4, 64, 16]}]\nseeds: 6\n"
    todo = to_do(suite(widths).runs, {})

    def order(slots: int, known: dict[str, float] | None = None) -> list[int]:
        found = batches(
            todo, suite="s", scale="", resources=Resources(batch=6), slots=slots, known=known
        )
        return [batch.runs[0].run.procedure.columns()["model.width"] for batch in found]

    assert order(slots=2) == [64, 16, 4], "a larger network is expected to take longer"
    assert order(slots=1) == [4, 64, 16], "alone, nobody waits"
    keys = list(dict.fromkeys(planned.run.batch_key for planned in todo))
    assert order(2, {keys[0]: 9.0, keys[1]: 1.0, keys[2]: 2.0}) == [4, 16, 64], "measured"


def test_batches_of_long_runs_hold_fewer_and_the_last_ones_are_small() -> None:
    todo = to_do(suite("sweep: [{model.width: [4, 8]}]\nseeds: 100\n").runs, {})
    short, long = dict.fromkeys(planned.run.batch_key for planned in todo)

    def found(**options: Any) -> list[Batch]:
        known = {short: 1.0, long: 9.0}
        resources = Resources(**options)
        return batches(todo, suite="s", scale="", resources=resources, slots=4, known=known)

    share = 1000.0 / (4 * 8)
    made = found()
    lengths = [batch.seconds * len(batch.runs) for batch in made]
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) <= share + 9.0
    assert sum(lengths) == 1000.0
    assert max(lengths[-4:]) <= share / 3, "a slot that ends first waits for little"
    assert {p.run.run_id for b in made for p in b.runs} == {p.run.run_id for p in todo}
    assert min(len(batch.runs) for batch in found(lanes=20)) >= 20, "lanes are not cut"
    assert {len(batch.runs) for batch in found(batch=25)} == {25}, "what is asked for is kept"


def test_runs_of_milliseconds_are_not_cut_to_pieces() -> None:
    todo = to_do(suite("seeds: 160\n").runs, {})
    known = {todo[0].run.batch_key: 0.01}
    made = batches(todo, suite="s", scale="", resources=Resources(), slots=2, known=known)
    assert {len(batch.runs) for batch in made} == {10}


def test_what_was_not_measured_is_compared_with_what_was() -> None:
    runs = suite("sweep: [{model.width: [16, 64, 256]}]\n").runs
    procedures = {planned.run.batch_key: planned.run.procedure for planned in runs}
    small, middle, large = procedures
    guessed = cost.seconds(procedures, {})
    assert guessed[small] < guessed[middle] < guessed[large]
    half = {small: guessed[small] / 2}
    assert cost.seconds(procedures, half) == {k: pytest.approx(v / 2) for k, v in guessed.items()}
    both = {small: 5.0, large: 7.0}
    found = cost.seconds(procedures, both)
    assert (found[small], found[large]) == (5.0, 7.0)
    ratio = (5.0 / guessed[small] + 7.0 / guessed[large]) / 2
    assert found[middle] == pytest.approx(guessed[middle] * ratio)
    assert cost.seconds(procedures, {small: float("nan")}) == guessed


def test_no_runs_make_no_batches() -> None:
    assert batches([], suite="s", scale="", resources=Resources(), slots=4) == []


# To a worker and back.


def test_a_batch_crosses_as_text() -> None:
    body = (
        "sweep:\n  - cases: {a: {optimizer: adam, search: {optimizer.lr: {uniform: [0.1, 1]}}}}\n"
        "  - model.dropout: [0.0, 0.5]\ntune: {trials: 3}\nseeds: {fix: [data, order]}\n"
    )
    for batch in [*made(body, batch=2), *made()]:
        text = batch.encode()
        json.loads(text)
        again = decode(text)
        assert again == batch
        assert ids(again.runs) == ids(batch.runs)
        assert [p.labels for p in again.runs] == [p.labels for p in batch.runs]
        assert [p.run.seed for p in again.runs] == [p.run.seed for p in batch.runs]


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (batch, *_) = made(batch=100)
    form = json.loads(batch.encode())
    form["runs"][1]["procedure"]["batch_size"] = 9
    with pytest.raises(RuntimeError, match=r"would be [0-9a-f]{16} here: .* other versions"):
        decode(json.dumps(form))
    form = json.loads(batch.encode())
    form["runs"][0]["seed"][0] += 1
    with pytest.raises(RuntimeError, match="other versions"):
        decode(json.dumps(form))
    form = json.loads(batch.encode())
    form["runs"][0]["procedure"]["model"]["name"] = "not-installed"
    with pytest.raises(RuntimeError, match=r"cannot be built here: .*not-installed"):
        decode(json.dumps(form))


# Sessions.


class Watch:
    """Notes what a session tells."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int, int]] = []
        self.progress: list[Progress] = []

    def begin(self, phase: str, total: int, finished: int, to_do: int) -> None:
        self.phases.append((phase, total, to_do))

    def update(self, progress: Progress) -> None:
        self.progress.append(progress)


def run(root: Path, body: str = WIDTHS, watch: Watch | None = None, **options: Any) -> Outcome:
    return Session(suite(body), root, LocalExecutor, watch or Watch(), **options).run()


@pytest.fixture(autouse=True)
def _fresh_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "_known", {})


def table(root: Path, name: Any = "runs") -> pd.DataFrame:
    return raybench.table(root, "tiny", name)


def test_a_suite_runs_and_then_there_is_nothing_to_do(tmp_path: Path) -> None:
    watch = Watch()
    first = run(tmp_path, watch=watch)
    assert (first.total, first.executed, first.statuses) == (8, 8, Counter(done=8))
    assert watch.phases == [("run", 8, 8)]
    assert sum((p.statuses for p in watch.progress), Counter()) == Counter(done=8)
    runs, metrics = table(tmp_path), table(tmp_path, "metrics")
    assert set(runs["status"]) == {"done"}
    assert set(runs["steps"]) == {4}
    assert runs["lanes"].between(1, 4).all()
    assert set(runs["engine"]) == {"in-process"}
    assert metrics.groupby("run_id").size().nunique() == 1
    assert set(metrics["step"]) == {0, 2, 4}
    last = metrics[(metrics.step == 4) & (metrics.split == "test") & (metrics.metric == "loss")]
    merged = runs.merge(last, on="run_id")
    assert (merged["summary.test.loss"] == merged["value"]).all()
    assert len(merged) == 8

    def forbidden() -> LocalExecutor:
        raise AssertionError("there is nothing to execute")

    before = table(tmp_path)
    again = Session(suite(), tmp_path, forbidden, Watch()).run()
    assert (again.executed, again.statuses) == (0, Counter(done=8))
    pd.testing.assert_frame_equal(table(tmp_path), before)


def test_a_wider_sweep_runs_only_what_is_new(tmp_path: Path) -> None:
    run(tmp_path)
    before = table(tmp_path).set_index("run_id")["started_at"]
    watch = Watch()
    wider = run(tmp_path, WIDTHS.replace("[2, 3]", "[2, 3, 5]"), watch)
    assert (wider.executed, wider.total) == (4, 12)
    assert watch.phases == [("run", 12, 4)]
    after = table(tmp_path).set_index("run_id")["started_at"]
    assert (after[before.index] == before).all()
    narrower = run(tmp_path, WIDTHS.replace("[2, 3]", "[2]"))
    assert (narrower.executed, narrower.total) == (0, 4)
    assert len(table(tmp_path)) == 4
    more = run(tmp_path, WIDTHS.replace("seeds: 2", "seeds: 3"))
    assert more.executed == 4


def test_packing_is_no_part_of_the_results(tmp_path: Path) -> None:
    tables = []
    for lanes, batch in ((1, 1), (4, 8), (2, 3)):
        root = tmp_path / f"{lanes}-{batch}"
        body = f"{WIDTHS}x-note: 1\n"
        changed = suite(body, resources__lanes=lanes, resources__batch=batch, dtype="float64")
        Session(changed, root, LocalExecutor, Watch()).run()
        metrics = table(root, "metrics").sort_values(["run_id", "step", "split", "metric"])
        tables.append(metrics.reset_index(drop=True))
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    pd.testing.assert_frame_equal(tables[0], tables[2], check_exact=True)


def test_skipped_runs_are_rows_with_their_reason(tmp_path: Path) -> None:
    skip = "skip: [{if: model.width == 3, because: too wide}]\n"
    outcome = run(tmp_path, WIDTHS + skip)
    assert outcome.statuses == Counter(done=4, skipped=4)
    assert (outcome.total, outcome.executed) == (8, 4)
    rows = table(tmp_path)
    assert set(rows[rows.status == "skipped"]["reason"]) == {"too wide"}
    assert set(rows[rows.status == "skipped"]["config.model.width"]) == {3}


def test_what_is_no_longer_skipped_is_run(tmp_path: Path) -> None:
    run(tmp_path, WIDTHS + "skip: [{if: model.width == 3, because: later}]\n")
    outcome = run(tmp_path)
    assert outcome.executed == 4
    assert outcome.statuses == Counter(done=8)


def test_what_is_skipped_later_keeps_its_results(tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path, WIDTHS + "skip: [{if: model.width == 3, because: later}]\n")
    outcome = run(tmp_path)
    assert outcome.statuses == Counter(done=8)
    assert len(table(tmp_path, "metrics").run_id.unique()) == 8


def test_the_resolved_suite_lies_beside_the_results(tmp_path: Path) -> None:
    run(tmp_path)
    text = (tmp_path / "tiny" / "suite.yaml").read_text()
    found = parse(text, "suite.yaml").values
    assert found["name"] == "tiny"
    assert "torch" in found["environment"]["versions"]
    assert str(Path.home()) not in resolved(suite())
    with_changes = resolved(suite(model__depth=2))
    assert parse(with_changes, "x").values["overrides"] == {"model.depth": 2}


# Failures.


class Broken(Exception):
    """What a user's code raises."""


@pytest.fixture
def width_3_is_broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A model whose constructor raises for one width."""
    original = MODELS["mlp"].module

    def module(self: Any, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        if self.width == 3:
            raise Broken("width 3 is\nbroken")
        return original(self, inputs, outputs)

    with monkeypatch.context() as patch:
        patch.setattr(MODELS["mlp"], "module", module)
        yield patch


def test_failed_runs_are_rows_with_reason_and_log(tmp_path: Path, width_3_is_broken: Any) -> None:
    watch = Watch()
    outcome = run(tmp_path, watch=watch)
    assert outcome.statuses == Counter(done=4, failed=4)
    assert outcome.executed == 8
    rows = table(tmp_path).set_index("config.model.width")
    assert set(rows.loc[2, "status"]) == {"done"}
    assert set(rows.loc[3, "status"]) == {"failed"}
    for reason, log in rows.loc[3, ["reason", "log"]].itertuples(index=False):
        assert reason.startswith("Broken: width 3 is (test_plan.py:")
        assert "Traceback" in log
        assert "width 3 is\nbroken" in log
    assert rows.loc[2, "reason"].isna().all()
    told = sum((p.reasons for p in watch.progress), Counter())
    assert sum(told.values()) == 4


def test_failed_runs_are_run_again_once_they_can(tmp_path: Path, width_3_is_broken: Any) -> None:
    run(tmp_path)
    width_3_is_broken.undo()
    outcome = run(tmp_path)
    assert outcome.executed == 4
    assert outcome.statuses == Counter(done=8)


def test_only_failed_runs_only_these(tmp_path: Path, width_3_is_broken: Any) -> None:
    run(tmp_path)
    before = table(tmp_path).set_index("run_id")
    width_3_is_broken.undo()
    outcome = run(tmp_path, WIDTHS.replace("[2, 3]", "[2, 3, 5]"), only_failed=True)
    assert outcome.executed == 4
    assert outcome.statuses == Counter(done=8, missing=4)
    after = table(tmp_path).set_index("run_id")
    done = before[before.status == "done"].index
    assert (after.loc[done, "started_at"] == before.loc[done, "started_at"]).all()
    assert set(after.loc[before.index, "status"]) == {"done"}
    with pytest.raises(NothingMatched, match="nothing failed before"):
        run(tmp_path, only_failed=True)


def test_only_some_runs_are_run_again(tmp_path: Path) -> None:
    run(tmp_path)
    before = table(tmp_path).set_index("run_id")["started_at"]
    chosen = suite().runs[3].run.run_id
    assert run(tmp_path, only=frozenset({chosen})).executed == 1
    after = table(tmp_path).set_index("run_id")["started_at"]
    assert list(after.index[after != before[after.index]]) == [chosen]
    with pytest.raises(NothingMatched):
        run(tmp_path, only=frozenset({"0" * 16}))


class Fussy(torch.optim.SGD):
    """Raises for one learning rate, at its second step."""

    def step(self, closure: Any = None) -> Any:
        self.taken = getattr(self, "taken", 0) + 1
        if self.taken == 2 and self.param_groups[0]["lr"] == 0.2:
            raise RaybenchError("no rate of 0.2, please")
        return super().step(closure)


def test_a_failing_run_does_not_take_its_batch_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fussy = adapt("fussy", Fussy)
    fussy.name = "fussy"
    monkeypatch.setitem(OPTIMIZERS._classes, "fussy", fussy)
    body = (
        "sweep: [{optimizer: [{name: fussy, lr: 0.1}, {name: fussy, lr: 0.2}, "
        "{name: fussy, lr: 0.05}]}]\nseeds: 3\nresources: {lanes: 9, batch: 9}\n"
    )
    head = HEAD.replace("resources: {lanes: 4}\n", "")
    one = load(parse(head + body, "suite.yaml"))
    assert len({planned.run.batch_key for planned in one.runs}) == 1
    outcome = Session(one, tmp_path, LocalExecutor, Watch()).run()
    assert outcome.statuses == Counter(done=6, failed=3)
    rows = table(tmp_path)
    assert rows["batch_id"].nunique() == 1
    failed = rows[rows.status == "failed"]
    assert set(failed["config.optimizer.lr"]) == {0.2}
    assert set(failed["reason"]) == {"no rate of 0.2, please"}, "a RaybenchError speaks for itself"
    assert not table(tmp_path, "metrics").run_id.isin(failed.run_id).any()


def test_diverged_runs_are_rows_and_are_not_run_again(tmp_path: Path) -> None:
    body = "sweep: [{optimizer.lr: [0.05, 1.0e+30]}]\nseeds: 2\n"
    outcome = run(tmp_path, body)
    assert outcome.statuses == Counter(done=2, diverged=2)
    rows = table(tmp_path)
    lost = rows[rows.status == "diverged"]
    assert set(lost["config.optimizer.lr"]) == {1e30}
    assert all(
        f"not finite at step {steps}" in r for r, steps in zip(lost.reason, lost.steps, strict=True)
    )
    assert run(tmp_path, body).executed == 0


# Memory.


def group_sizes(monkeypatch: pytest.MonkeyPatch, fits: int, error: Exception) -> list[int]:
    """Let groups of more than `fits` lanes fail; return the list that groups are noted in."""
    original, sizes = work._execute, []

    def execute(
        batch: Batch, group: Sequence[Planned], saves: Saves | None
    ) -> list[Account | Exception]:
        sizes.append(len(group))
        if len(group) > fits:
            raise error
        return original(batch, group, saves)

    monkeypatch.setattr(work, "_execute", execute)
    return sizes


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_halves_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    sizes = group_sizes(monkeypatch, 2, error)
    body = "seeds: 14\nresources: {lanes: 8, batch: 14}\n"
    one = load(parse(HEAD.replace("resources: {lanes: 4}\n", "") + body, "suite.yaml"))
    outcome = Session(one, tmp_path, LocalExecutor, Watch()).run()
    assert outcome.statuses == Counter(done=14)
    assert sizes == [8, 4, 2, 2, 4, 2, 2, 2, 2, 2], "what does not fit is remembered"
    assert set(table(tmp_path)["lanes"]) == {2}


def test_a_run_too_large_alone_is_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group_sizes(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory"))
    outcome = run(tmp_path, "seeds: 3\n")
    assert outcome.statuses == Counter(failed=3)
    assert table(tmp_path)["reason"].str.startswith("OutOfMemoryError: CUDA out of memory").all()


def test_an_interruption_keeps_what_was_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, count = work._execute, 0

    def execute(
        batch: Batch, group: Sequence[Planned], saves: Saves | None
    ) -> list[Account | Exception]:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return original(batch, group, saves)

    one = suite("seeds: 6\n", resources__lanes=1, resources__batch=6)
    with monkeypatch.context() as patch:
        patch.setattr(work, "_execute", execute)
        with pytest.raises(KeyboardInterrupt):
            Session(one, tmp_path, LocalExecutor, Watch()).run()
    assert SuiteStore(tmp_path, "tiny").statuses() == dict.fromkeys(ids(one.runs)[:2], "done")
    outcome = Session(one, tmp_path, LocalExecutor, Watch()).run()
    assert (outcome.executed, outcome.statuses) == (4, Counter(done=6))
    fresh = tmp_path / "fresh"
    Session(one, fresh, LocalExecutor, Watch()).run()
    order = ["run_id", "step", "split", "metric"]
    pd.testing.assert_frame_equal(
        table(tmp_path, "metrics").sort_values(order).reset_index(drop=True),
        table(fresh, "metrics").sort_values(order).reset_index(drop=True),
        check_exact=True,
    )


def test_a_batch_begun_before_goes_on_where_it_was(tmp_path: Path) -> None:
    (batch,) = made("seeds: 5\n", batch=5, lanes=1)
    store = SuiteStore(tmp_path, "tiny")
    part = Batch(batch.batch_id, "tiny", "", batch.runs[:2], batch.resources)
    list(work.run_batch(part, store, "first"))
    told = sum((p.statuses for p in work.run_batch(batch, store, "second")), Counter())
    assert told == Counter(done=3), "what was stored before was told before"
    rows = store.read_part(batch.batch_id)
    assert rows is not None
    engines = dict(
        zip(rows["runs"]["run_id"].to_pylist(), rows["runs"]["engine"].to_pylist(), strict=True)
    )
    assert [engines[run_id] for run_id in ids(batch.runs)] == ["first"] * 2 + ["second"] * 3


def test_a_run_that_an_executor_loses_is_failed(tmp_path: Path) -> None:
    class Losing(LocalExecutor):
        def run(self, batches: Any, store: Any, on_progress: Any) -> None:
            for batch in batches:
                if lost not in ids(batch.runs):
                    super().run([batch], store, on_progress)
                    continue
                tries.append(len(batch.runs))
                why = "the worker died"
                on_progress(Progress(batch.batch_id, finished=True, broken=why))

    one = suite(resources__retries=2)
    lost, tries = one.runs[3].run.run_id, []
    outcome = Session(one, tmp_path, Losing, Watch()).run()
    rows = table(tmp_path)
    failed = rows[rows.status == "failed"]
    assert len(tries) == 3
    assert lost in set(failed["run_id"])
    assert outcome.statuses == Counter(done=8 - tries[-1], failed=tries[-1])
    assert set(failed["reason"]) == {"the worker died"}
    assert run(tmp_path).statuses == Counter(done=8)


# How many lanes.


def test_lanes_are_chosen_by_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    (batch,) = made("seeds: 64\n", batch=64)
    cost = {1: 1.0, 4: 0.5, 16: 0.2, 64: 0.4}
    seen = []

    class Clock:
        steps = None

        def __init__(self, width: int) -> None:
            self.width = width

        def seconds(self) -> float:
            return cost[self.width] * self.width

    def timed(group: Sequence[Planned], device: torch.device) -> Clock:
        seen.append(len(group))
        return Clock(len(group))

    monkeypatch.setattr(sizing, "_warm", {"cpu"})
    monkeypatch.setattr(sizing, "timed", timed)
    device = torch.device("cpu")
    assert sizing.lanes(batch, batch.runs, device) == 16
    assert seen == [1, 4, 16, 64]
    assert sizing.lanes(batch, batch.runs, device) == 16
    assert seen == [1, 4, 16, 64], "measured once"
    assert sizing.lanes(batch, batch.runs[:3], device) <= 3
    sizing.remember_limit(batch, 5)
    assert sizing.lanes(batch, batch.runs, device) <= 5


def test_lanes_that_are_asked_for_are_taken() -> None:
    (batch,) = made("seeds: 9\n", batch=9, lanes=4)
    device = torch.device("cpu")
    assert sizing.lanes(batch, batch.runs, device) == 4
    assert sizing.lanes(batch, batch.runs[:2], device) == 2


def test_a_run_that_fails_fails_in_its_row_and_not_while_it_is_measured(
    tmp_path: Path, width_3_is_broken: Any
) -> None:
    one = suite(WIDTHS, resources__lanes="auto", resources__batch=8)
    outcome = Session(one, tmp_path, LocalExecutor, Watch()).run()
    assert outcome.statuses == Counter(done=4, failed=4)


def test_measuring_takes_real_steps_and_ends() -> None:
    (batch,) = made("seeds: 2\n", batch=2)
    long = [
        Planned(type(p.run)(p.run.procedure.replace(steps=Steps(10**9, "it")), p.run.seed), {})
        for p in batch.runs
    ]
    clock = sizing.timed(long, torch.device("cpu"))
    assert clock.seconds() > 0
    assert clock.steps == 10**9


# Limits.


def test_a_suite_past_its_limit_is_refused(tmp_path: Path) -> None:
    body = WIDTHS + "limits: {runs: 7}\n"
    with pytest.raises(RefusedError, match=r"tiny has 8 runs and limits\.runs is 7"):
        run(tmp_path, body)
    assert not (tmp_path / "tiny").exists()
    assert run(tmp_path, body.replace("7", "8")).executed == 8


def test_the_limit_counts_confirmations_and_not_what_is_skipped() -> None:
    tuned = (
        "search: {optimizer.lr: {uniform: [0.01, 0.1]}}\ntune: {trials: 3, confirm: {seeds: 4}}\n"
    )
    refuse_past_runs(suite(tuned + "limits: {runs: 7}\n"))
    with pytest.raises(RefusedError, match="has 7 runs"):
        refuse_past_runs(suite(tuned + "limits: {runs: 6}\n"))
    refuse_past_runs(
        suite(WIDTHS + "skip: [{if: model.width == 3, because: x}]\nlimits: {runs: 4}\n")
    )


# Tuning from end to end.


def test_a_tuned_suite_searches_and_confirms(tmp_path: Path) -> None:
    body = (
        "sweep: [{cases: {plain: {optimizer: sgd}, lost: {optimizer: {name: sgd}, "
        "search: {optimizer.lr: {choice: [1.0e+30, 1.0e+31]}}}}}]\n"
        "search: {optimizer.lr: {log_uniform: [1e-3, 0.2]}}\n"
        "tune: {trials: 4, confirm: {seeds: 3}}\n"
    )
    watch = Watch()
    outcome = run(tmp_path, body, watch)
    assert watch.phases == [
        ("search", 8 - duplicates(body), 8 - duplicates(body)),
        ("confirm", 3, 3),
    ]
    assert outcome.lost_arms == ["lost"]
    rows = table(tmp_path)
    found = rows[(rows["label.phase"] == "search") & (rows["label.arm"] == "plain")]
    best = found.loc[found["summary.valid.loss"].idxmin()]
    confirmed = rows[rows["label.phase"] == "confirm"]
    assert len(confirmed) == 3
    assert set(confirmed["label.arm"]) == {"plain"}
    assert set(confirmed["config.optimizer.lr"]) == {best["config.optimizer.lr"]}
    assert not set(confirmed["seed"]) & set(found["seed"])
    again = run(tmp_path, body)
    assert again.executed == 0
    assert again.lost_arms == ["lost"]


def duplicates(body: str) -> int:
    runs = suite(body).runs
    return len(runs) - len(distinct(runs))


def test_shuffled_runs_make_the_same_results() -> None:
    runs = to_do(suite("seeds: 6\n", dtype="float64").runs, {})
    resources = Resources(batch=3)

    def results(order: Sequence[Planned]) -> dict[str, Any]:
        found = {}
        for batch in batches(order, suite="s", scale="", resources=resources, slots=1):
            for planned, account in zip(
                batch.runs, work._execute(batch, batch.runs, None), strict=True
            ):
                found[planned.run.run_id] = account
        return found

    assert results(runs) == results(random.Random(3).sample(runs, 6))
