"""Whatever becomes of a process, each run has a row: the one at fault says why, others are done.

The culprit is an optimizer out of a file of the user's: its learning rate says what it does to its
process. It does so in one run of a group, beside runs that do nothing of the kind.
"""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from raybench import store as results
from raybench import tables, usercode, work
from raybench.checkpoints import Saves
from raybench.cluster import connect
from raybench.errors import RefusedError
from raybench.journal import Journal, Journals, folder_of
from raybench.local import LocalExecutor
from raybench.plan import PIECES, Batch, distinct
from raybench.progress import Progress
from raybench.record import Account
from raybench.rounds import Executor, most_failures, narrowed
from raybench.schema import runs_table
from raybench.session import Outcome, Session
from raybench.store import SuiteStore
from raybench.suite import Planned, Suite, load, parse
from raybench.suite.sections import Limits

CULPRIT = '''\
import collections
import ctypes
import itertools
import os
import time

import torch


class Culprit(torch.optim.SGD):
    """What it does depends on its learning rate."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)
        self.steps = 0

    def step(self, closure=None):
        given = self.param_groups[0]["lr"]
        lr = round(given)
        if lr in (2, 4, 5) and self.steps < round(100 * (given - lr)):
            lr = 0
        self.steps += 1
        if lr == 2:
            os.kill(os.getpid(), 9)
        if lr == 3:
            time.sleep(1000)
        if lr == 4:  # in C, with the interpreter locked: no signal is heard
            collections.deque(itertools.repeat(0), maxlen=0)
        if lr == 5:
            ctypes.string_at(0)
        if lr == 6:
            raise ValueError(f"lane {id(self)} is broken")
        if lr == 7:
            time.sleep(0.3)
        if lr == 8:
            os.kill(os.getpid(), 19)
        return super().step(closure)
'''
KILL, NAP, STUCK, CRASH, BROKEN, SLOW, HALT = 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0
SUITE = """\
version: 1
name: tiny
base:
  procedure: train
  data: {name: teacher_student, dim: 4, train: 16, valid: 0, test: 8}
  model: {name: mlp, width: 2}
  optimizer: {name: "culprit:Culprit"}
  steps: 3it
  batch_size: 8
  record: {at: {linear: 1}}
sweep: [{optimizer.lr: [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]}]
resources: {lanes: 3, batch: 6, retries: 1}
"""


def rates(*lr: float) -> dict[str, Any]:
    return {"sweep": [{"optimizer.lr": list(lr)}]}


@pytest.fixture(scope="module", autouse=True)
def culprit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    file = tmp_path_factory.mktemp("code") / "culprit.py"
    file.write_text(CULPRIT)
    before = dict(tables.FILES)
    usercode.allow(file)
    yield file
    tables.FILES.clear()
    tables.FILES.update(before)


@pytest.fixture(scope="module")
def on_ray() -> Iterator[Executor]:
    executor = connect(cpus=2)
    yield executor
    executor.close()


class Kept:
    """An executor that a session does not close."""

    def __init__(self, executor: Executor) -> None:
        self.slots, self.run = executor.slots, executor.run

    def close(self) -> None:
        pass


class Watch:
    def __init__(self) -> None:
        self.phases: list[str] = []
        self.statuses: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()

    def begin(self, phase: str, total: int, finished: int, to_do: int) -> None:
        self.phases.append(phase)

    def update(self, progress: Progress) -> None:
        self.statuses.update(progress.statuses)
        self.reasons.update(progress.reasons)


def suite(overrides: Mapping[str, Any] | None = None) -> Suite:
    return load(parse(SUITE, "tiny.yaml"), None, overrides)


def run(
    root: Path,
    overrides: Mapping[str, Any] | None = None,
    executor: Callable[[], Executor] = LocalExecutor,
    watch: Watch | None = None,
    **options: Any,
) -> Outcome:
    return Session(suite(overrides), root, executor, watch or Watch(), **options).run()


def table(root: Path) -> pd.DataFrame:
    frame = results.table(root, "tiny")
    return frame.set_index("config.optimizer.lr").sort_index()


def left(root: Path) -> list[Path]:
    """What sessions have left of their journals."""
    return list((root / "tiny" / "journal").iterdir())


# The journal.


def death_of(batch: str, runs: Sequence[str], journals: Journals, root: Path, engine: str) -> None:
    """What a process leaves that dies in the second half of a batch."""
    journal = Journal(folder_of(root, journals.session), batch, runs, engine)
    half = len(runs) // 2
    for group in (runs[:half], runs[half:]):
        if group:
            journal.begin(group)


def test_a_journal_says_who_was_in_flight(tmp_path: Path) -> None:
    journals = Journals(tmp_path / "journal")
    death_of("b1", ["a", "b", "c", "d"], journals, tmp_path, "in-process")
    between = Journal(folder_of(tmp_path, journals.session), "b2", ["e", "f"], "in-process")
    between.begin(["e", "f"])
    between.end()
    ended = Journal(folder_of(tmp_path, journals.session), "b3", ["g"], "in-process")
    ended.begin(["g"])
    ended.close()
    (death,) = journals.deaths()
    assert (death.batch_id, death.run_ids, death.engine) == ("b1", ("c", "d"), "in-process")
    assert not death.slow
    journals.close()
    assert list((tmp_path / "journal").iterdir()) == []


def test_a_line_that_is_cut_off_is_passed_over(tmp_path: Path) -> None:
    journals = Journals(tmp_path / "journal")
    death_of("b1", ["a", "b"], journals, tmp_path, "in-process")
    (file,) = (tmp_path / "journal" / journals.session).glob("*.jsonl")
    file.write_text(file.read_text() + '{"begin": 0, "cou')
    (death,) = journals.deaths()
    assert death.run_ids == ("b",)
    journals.close()


@pytest.mark.parametrize(
    ("engine", "runs", "kept"),
    [("in-process", "ab", ["b"]), ("ray", "ab", []), ("ray", "abcd", ["c", "d"])],
)
def test_dead_sessions_are_taken_over_and_living_ones_are_not(
    engine: str, runs: str, kept: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "journal"
    first = Journals(folder)
    death_of("b1", list(runs), first, tmp_path, engine)
    second = Journals(folder)
    assert second.deaths() == [], "the first one lives"
    second.close()
    assert first._lock is not None
    first._lock.close()  # as when its process dies
    third = Journals(folder)
    assert [run_id for death in third.deaths() for run_id in death.run_ids] == kept
    third.close()
    assert list(folder.iterdir()) == []


# Rounds, without processes.


class Mortal:
    """An executor whose processes die under some runs, as the journal and the store see it."""

    slots = 2

    def __init__(self, deadly: set[str], lanes: int, together: int = 1) -> None:
        self.deadly, self.lanes, self.together = deadly, lanes, together
        self.tries: Counter[str] = Counter()

    def run(
        self,
        batches: Sequence[Batch],
        store: SuiteStore,
        on_progress: Callable[[Progress], None],
    ) -> None:
        for batch in batches:
            on_progress(self._died_or_not(batch, store))

    def _died_or_not(self, batch: Batch, store: SuiteStore) -> Progress:
        runs = [planned.run.run_id for planned in batch.runs]
        folder = folder_of(store.folder, batch.session)
        journal = Journal(folder, batch.batch_id, runs, "in-process")
        rows = []
        for start in range(0, len(runs), self.lanes):
            group = runs[start : start + self.lanes]
            journal.begin(group)
            self.tries.update(group)
            if len(self.deadly & set(group)) >= self.together:
                store.write_part(batch.batch_id, runs_table(rows))
                return Progress(batch.batch_id, finished=True, broken="it died")
            rows += [
                {**work.identity(planned), "suite": "tiny", "status": "done"}
                for planned in batch.runs
                if planned.run.run_id in group
            ]
        journal.close()
        store.write_part(batch.batch_id, runs_table(rows))
        return Progress(batch.batch_id, Counter(done=len(runs)), finished=True)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("lanes", [1, 3, 64])
def test_whoever_ends_its_process_is_found(lanes: int, seed: int, tmp_path: Path) -> None:
    many = {**rates(0.1), "seeds": 150, "resources.batch": 64, "resources.retries": 2}
    ids = [planned.run.run_id for planned in distinct(suite(many).runs)]
    draw = random.Random(seed)
    deadly = set(draw.sample(ids[20:], 4)) | set(ids[10:12])
    mortal, watch = Mortal(deadly, lanes), Watch()
    outcome = run(tmp_path, many, lambda: mortal, watch)
    assert outcome.statuses == Counter(done=144, failed=6)
    assert outcome.quarantined == 6
    rows = results.table(tmp_path, "tiny").set_index("run_id")
    assert set(rows[rows.status == "failed"].index) == deadly
    assert set(rows.loc[list(deadly), "reason"]) == {"quarantined after 3 tries: it died"}
    assert left(tmp_path) == []
    # Pieces of eight: a group of 64 is one run after two deaths; then its tries alone.
    depth = math.ceil(math.log(max(lanes, 2), PIECES))
    assert max(mortal.tries[run_id] for run_id in deadly) <= 6 * (depth + 1) + 3
    assert len(watch.phases) <= 6 * (depth + 1) + 3


def test_runs_that_die_only_together_are_all_done(tmp_path: Path) -> None:
    many = {**rates(0.1), "seeds": 40, "resources.batch": 40}
    ids = [planned.run.run_id for planned in distinct(suite(many).runs)]
    mortal = Mortal(set(ids), lanes=40, together=20)
    assert run(tmp_path, many, lambda: mortal).statuses == Counter(done=40)


class OutOfReach(Mortal):
    """An executor that gives up a process which stores its first run in the end."""

    def __init__(self) -> None:
        super().__init__(set(), lanes=4)
        self.late: tuple[str, Any] | None = None

    def _died_or_not(self, batch: Batch, store: SuiteStore) -> Progress:
        if self.late is None:
            row = {**work.identity(batch.runs[0]), "suite": "tiny", "status": "done"}
            self.late = batch.batch_id, runs_table([row])
            return Progress(batch.batch_id, finished=True, broken="it was lost", excused=True)
        done = super()._died_or_not(batch, store)
        store.write_part(*self.late)
        return done


def test_what_a_process_that_was_given_up_stores_late_replaces_nothing(tmp_path: Path) -> None:
    outcome = run(tmp_path, {**rates(0.1), "seeds": 4, "resources.batch": 4}, OutOfReach)
    assert outcome.statuses == Counter(done=4)
    assert len(table(tmp_path)) == 4


def test_nor_does_one_whose_driver_died_replace_what_the_next_has_stored(tmp_path: Path) -> None:
    four = {**rates(0.1), "seeds": 4, "resources.batch": 4}
    left_behind: list[tuple[str, Any]] = []

    class Dying(Mortal):
        def _died_or_not(self, batch: Batch, store: SuiteStore) -> Progress:
            row = {**work.identity(batch.runs[0]), "suite": "tiny", "status": "done"}
            left_behind.append((batch.batch_id, runs_table([row])))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, four, lambda: Dying(set(), 4))
    assert run(tmp_path, four, lambda: Mortal(set(), 4)).statuses == Counter(done=4)
    for late in left_behind:
        SuiteStore(tmp_path, "tiny").write_part(*late)
    assert len(table(tmp_path)) == 4


def test_runs_are_suspects_in_the_smallest_group_they_died_in(tmp_path: Path) -> None:
    planned = distinct(suite({**rates(0.1), "seeds": 20}).runs)
    names = [each.run.run_id for each in planned]
    journals = Journals(tmp_path / "journal")
    death_of("b1", names[:18], journals, tmp_path, "in-process")
    found = narrowed(planned, journals.deaths(), retries=1)
    assert found.clear == planned[:9] + planned[18:]
    assert [len(group) for group in found.suspects] == [1, 2, 2, 2, 2]
    death_of("b2", [names[17]], journals, tmp_path, "in-process")
    found = narrowed(planned, journals.deaths(), retries=1)
    assert [planned[17]] in found.suspects
    assert found.guilty == []
    death_of("b2", [names[17]], journals, tmp_path, "in-process")
    found = narrowed(planned, journals.deaths(), retries=1)
    assert [each for each, _ in found.guilty] == [planned[17]]
    journals.close()


# In process.


def command(store: Path, culprit: Path, *words: str) -> list[str]:
    (store / "tiny.yaml").write_text(SUITE)
    raybench = [sys.executable, "-m", "raybench", "run", "tiny.yaml", "-o", "results"]
    return [*raybench, "--in-process", "--allow-code", str(culprit), *words]


def test_a_process_that_was_killed_is_made_up_for(culprit: Path, tmp_path: Path) -> None:
    lr = rates(0.01, 0.02, KILL, 0.04, 0.05, 0.06)
    words = [f"sweep={json.dumps(lr['sweep'])}", "resources.retries=0"]
    first = subprocess.run(
        command(tmp_path, culprit, *words), cwd=tmp_path, capture_output=True, check=False
    )
    assert first.returncode == -signal.SIGKILL
    store = tmp_path / "results"
    assert len(left(store)) == 1
    once = {**lr, "resources.retries": 0}
    watch = Watch()
    second = run(store, once, watch=watch)
    assert second.statuses == watch.statuses == Counter(done=5, failed=1)
    assert second.quarantined == 1
    assert left(store) == []
    rows = table(store)
    assert rows.loc[KILL, "reason"] == (
        "quarantined after 1 try: the process died (SIGKILL, or out of memory)"
    )
    others = rows.drop(KILL)
    assert set(others["status"]) == {"done"}
    assert set(others.loc[[0.01, 0.02], "engine"]) == {"subprocess"}, "they were beside it"
    assert set(others.loc[[0.04, 0.05, 0.06], "engine"]) == {"in-process"}
    assert run(store, once).executed == 0
    asked_for = run(store, once, only_failed=True)
    assert (asked_for.executed, asked_for.quarantined) == (1, 1), "and this process lives"
    assert table(store).loc[KILL, "started_at"] > rows.loc[KILL, "started_at"]


def test_sigterm_keeps_what_has_finished(culprit: Path, tmp_path: Path) -> None:
    sweep = f"sweep=[{{optimizer.lr: [{', '.join(str(6.8 + i / 100) for i in range(12))}]}}]"
    words = [sweep, "resources.lanes=1", "resources.batch=12"]
    with subprocess.Popen(
        command(tmp_path, culprit, *words), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as driver:
        parts = tmp_path / "results" / "tiny" / "runs"
        while driver.poll() is None and not list(parts.glob("part-*.parquet")):
            time.sleep(0.02)
        driver.send_signal(signal.SIGTERM)
        _, said = driver.communicate(timeout=120)
    assert driver.returncode == 130, said
    assert "what has finished is kept" in said
    assert 0 < len(table(tmp_path / "results")) < 12
    assert left(tmp_path / "results") == []


def test_a_hang_is_ended_at_the_wall_limit(tmp_path: Path) -> None:
    run(tmp_path / "warm")  # what is loaded at the first step counts too
    outcome = run(tmp_path, {**rates(0.01, NAP), "limits.wall_s": 3})
    assert outcome.statuses == Counter(done=1, failed=1)
    assert outcome.quarantined == 0
    row = table(tmp_path).loc[NAP]
    assert row["reason"] == "wall limit: still going after 3 s (limits.wall_s)"
    assert "in step" in row["log"], "where it hung"
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


# One cause too often.


def test_a_suite_stops_when_one_cause_repeats(tmp_path: Path) -> None:
    broken = {
        "sweep": [{"optimizer.lr": [BROKEN, 0.01]}],
        "seeds": 30,
        "resources.lanes": 1,
        "resources.batch": 1,
        "limits.failures": 12,
    }
    with pytest.raises(RefusedError) as stopped:
        run(tmp_path, broken)
    said = str(stopped.value)
    assert "tiny was stopped: 13 runs failed by one cause, and limits.failures is 12" in said
    assert "ValueError: lane … is broken" in said
    assert "13 failed" in said
    rows = table(tmp_path)
    assert (rows["status"] == "failed").sum() == 13
    assert left(tmp_path) == []
    every = {**broken, "limits.failures": None}
    assert run(tmp_path, every).statuses == Counter(done=30, failed=30)
    with pytest.raises(RefusedError):
        run(tmp_path, broken, only_failed=True)


def test_how_many_may_fail() -> None:
    assert most_failures(Limits(), 1000) == 250
    assert most_failures(Limits(), 20) == 10
    assert most_failures(Limits(failures=3), 1000) == 3
    assert most_failures(Limits(failures=None), 1000) == math.inf


# Memory.


def test_memory_is_free_again_before_the_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Weights:
        pass

    original = work._execute
    held: list[weakref.ref[Weights]] = []

    def execute(batch: Batch, group: Sequence[Planned], saves: Saves | None) -> list[Account]:
        assert [ref for ref in held if ref() is not None] == []
        if len(group) > 2:
            weights = Weights()
            held.append(weakref.ref(weights))
            raise torch.OutOfMemoryError("tried to allocate 3 GiB")
        return original(batch, group, saves)

    monkeypatch.setattr(work, "_execute", execute)
    eight = {**rates(0.1), "seeds": 16, "resources.lanes": 8, "resources.batch": 16}
    eight["model.width"] = 11  # of a cost that no other test has measured
    outcome = run(tmp_path, eight)
    assert outcome.statuses == Counter(done=16)
    assert len(held) == 2 + 1, "8 lanes, 4 lanes twice; then what fits is known"
    rows = results.table(tmp_path, "tiny")
    assert set(rows["lanes"]) == {2}
    assert rows["log"].str.contains("4 lanes did not fit in memory").all()
    assert rows["log"].str.contains("at most 2 at once").all()


# On Ray.


@pytest.mark.ray
def test_on_ray_only_those_at_fault_fail(on_ray: Executor, tmp_path: Path) -> None:
    awful = {**rates(0.01, 0.02, KILL, 0.04, 0.05, 0.06, 0.07, CRASH), "resources.batch": 4}
    awful["resources.retries"] = 0
    watch = Watch()
    outcome = run(tmp_path, awful, lambda: Kept(on_ray), watch)
    assert outcome.statuses == Counter(done=6, failed=2)
    assert watch.statuses == outcome.statuses, "each was told once"
    assert outcome.quarantined == 2
    rows = table(tmp_path)
    assert rows[rows["status"] == "failed"]["reason"].to_dict() == {
        KILL: "quarantined after 1 try: the worker process died (killed, or out of memory)",
        CRASH: "quarantined after 1 try: the process crashed: Segmentation fault",
    }
    assert "string_at" in rows.loc[CRASH, "log"], "where it crashed"
    assert left(tmp_path) == []
    assert set(watch.phases) == {"run", "retried"}
    assert run(tmp_path, awful, lambda: Kept(on_ray)).executed == 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_on_ray_whoever_ends_or_holds_up_its_process_changes_no_other_run(
    seed: int, on_ray: Executor, tmp_path: Path
) -> None:
    drawn = random.Random(seed)
    # Each does it at a step of its own (the part of the rate behind the point).
    culprits = [kind + drawn.randrange(3) / 100 for kind in (KILL, CRASH, STUCK)]
    good = [0.01 * number for number in range(1, 13)]
    lr = drawn.sample([*good, *culprits], len(good) + len(culprits))
    many = {**rates(*lr), "dtype": "float64", "resources.batch": 5, "limits.wall_s": 8}
    outcome = run(tmp_path / "ray", many, lambda: Kept(on_ray))
    assert outcome.statuses == Counter(done=12, failed=3), table(tmp_path / "ray")["reason"]
    failed = table(tmp_path / "ray").query("status == 'failed'")
    assert set(failed.index) == set(culprits)
    assert "wall limit" in failed.loc[culprits[2], "reason"]
    assert failed.loc[culprits[:2], "reason"].str.startswith("quarantined after 2 tries").all()
    run(tmp_path / "alone", {**many, **rates(*good)})
    keys = ["run_id", "split", "metric", "step"]
    here, there = (
        results.table(root, "tiny", "metrics").astype(dict.fromkeys(keys[:3], str))
        for root in (tmp_path / "ray", tmp_path / "alone")
    )
    pd.testing.assert_frame_equal(
        here.sort_values(keys, ignore_index=True), there.sort_values(keys, ignore_index=True)
    )


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray_what_hears_no_signal_is_ended_too(on_ray: Executor, tmp_path: Path) -> None:
    stuck = {**rates(0.01, STUCK, 0.03), "resources.lanes": 1, "limits.wall_s": 6}
    outcome = run(tmp_path, stuck, lambda: Kept(on_ray))
    assert outcome.statuses == Counter(done=2, failed=1)
    assert outcome.quarantined == 0
    row = table(tmp_path).loc[STUCK]
    assert row["reason"] == "wall limit: still going after 6 s (limits.wall_s)"
    assert "in step" in row["log"], "where it hung"


@pytest.mark.ray
@pytest.mark.slow
def test_on_ray_a_process_that_was_stopped_is_ended(on_ray: Executor, tmp_path: Path) -> None:
    halted = {
        **rates(0.01, HALT, 0.03),
        "resources.lanes": 1,
        "resources.retries": 0,
        "limits.wall_s": 15,  # first imports take seconds too
    }
    outcome = run(tmp_path, halted, lambda: Kept(on_ray))
    rows = table(tmp_path)
    assert outcome.statuses == Counter(done=2, failed=1), rows["reason"].to_dict()
    assert "the worker process did not answer for" in rows.loc[HALT, "reason"]


@pytest.mark.ray
def test_on_ray_a_suite_stops_when_one_cause_repeats(on_ray: Executor, tmp_path: Path) -> None:
    broken = {
        "sweep": [{"optimizer.lr": [BROKEN, 0.01]}],
        "seeds": 8,
        "resources.lanes": 1,
        "resources.batch": 1,
        "limits.failures": 3,
    }
    with pytest.raises(RefusedError, match="runs failed by one cause"):
        run(tmp_path, broken, lambda: Kept(on_ray))
    assert 3 < len(table(tmp_path)) < 16
    after = run(tmp_path, {**broken, "limits.failures": None}, lambda: Kept(on_ray))
    assert after.statuses == Counter(done=8, failed=8), "the cluster is as good as before"
