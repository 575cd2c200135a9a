"""Searches that depend on their own results: successive halving, and trials that tpe chooses."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import raybench
from raybench.catalog import suite_schema
from raybench.cli import app
from raybench.climbs import climbs
from raybench.errors import MissingError, SuiteError
from raybench.local import LocalExecutor
from raybench.plan import Climb
from raybench.progress import Progress
from raybench.session import Outcome, Session
from raybench.spec import Steps
from raybench.store import SuiteStore
from raybench.suite import Planned, Suite, load, parse
from raybench.suite.later import Later
from raybench.suite.protocol import Arm, Trial
from raybench.suite.sections import Halving

torch.set_num_threads(1)

HEAD = """\
version: 1
name: halved
base:
  procedure: train
  dtype: float64
  data: {name: teacher_student, dim: 4, train: 24, valid: 12, test: 12}
  model: linear
  loss: mse
  optimizer: sgd
  steps: 27it
  batch_size: null
  record: {at: {linear: 1}}
search: {optimizer.lr: {log_uniform: [1e-4, 0.3]}}
"""
TUNE = """\
tune:
  trials: 9
  halving: {min_steps: 3it, eta: 3}
  confirm: {seeds: 2}
"""


class Silent:
    def __init__(self) -> None:
        self.phases: list[tuple[str, int, int]] = []

    def begin(self, phase: str, total: int, finished: int, to_do: int) -> None:
        self.phases.append((phase, total, to_do))

    def update(self, progress: Progress) -> None:
        pass


def suite(tune: str = TUNE, head: str = HEAD) -> Suite:
    return load(parse(head + tune, "suite.yaml"))


def told(tune: str, head: str = HEAD) -> str:
    with pytest.raises(SuiteError) as error:
        suite(tune, head).runs  # noqa: B018
    return str(error.value)


def carried_out(made: Suite, root: Path, watcher: Silent | None = None) -> Outcome:
    return Session(made, root, LocalExecutor, watcher or Silent()).run()


def ended(runs: Sequence[Planned], score: Mapping[int, float]) -> dict[str, float]:
    """Values of runs by the number of their trial."""
    return {p.run.run_id: score[int(p.labels["trial"])] for p in runs}


def trials(runs: Sequence[Planned], rung: int) -> list[Any]:
    return [p.labels["trial"] for p in runs if p.labels["rung"] == rung]


def stops(runs: Sequence[Planned]) -> list[str]:
    return [str(getattr(p.run.procedure, "stop").at) for p in runs]  # noqa: B009


# Rungs.


@pytest.mark.parametrize(
    ("first", "eta", "steps", "lengths"),
    [
        ("1ep", 3, "27ep", ["1ep", "3ep", "9ep"]),
        ("1ep", 3, "28ep", ["1ep", "3ep", "9ep", "27ep"]),
        ("10it", 4, "11it", ["10it"]),
        ("2ep", 2, "8ep", ["2ep", "4ep"]),
    ],
)
def test_rungs_grow_by_eta_up_to_all_steps(
    first: str, eta: int, steps: str, lengths: list[str]
) -> None:
    halving = Halving(min_steps=Steps.parse(first), eta=eta)
    assert [str(length) for length in halving.rungs(Steps.parse(steps))] == lengths


def test_the_first_rung_is_all_trials_stopped_early() -> None:
    made = suite()
    assert Counter(p.labels["phase"] for p in made.runs) == {"rung": 9}
    assert set(stops(made.runs)) == {"3it"}
    assert made.num_promotions == 3 + 1
    assert made.num_later == 3 + 1 + 2


def test_the_best_go_on_until_one_trains_for_all_steps() -> None:
    made = suite()
    later = Later(made)
    score = {trial: float(abs(trial - 6)) for trial in range(9)}
    values = ended(made.runs, score)
    second = later.search(values)
    assert trials(second, 2) == [5, 6, 7] and set(stops(second)) == {"9it"}
    assert later.confirm(values) == ([], [])
    values |= ended(second, {5: 3.0, 6: 2.0, 7: 1.0})
    *_, last = later.search(values)
    assert (last.labels["trial"], last.labels["rung"], last.labels["phase"]) == (7, 3, "search")
    whole = load(parse(HEAD + "tune: {trials: 9}\n", "suite.yaml"))
    assert last.run.run_id in {p.run.run_id for p in whole.runs}, "the full search has this run"
    values |= {last.run.run_id: 9.0}  # worse than it was, and it is still the one that went on
    confirmed, lost = later.confirm(values)
    assert {p.labels["trial"] for p in confirmed} == {7} and len(confirmed) == 2 and not lost


def test_a_rung_that_is_not_over_promotes_nobody() -> None:
    made = suite()
    values = ended(made.runs[:-1], dict.fromkeys(range(9), 1.0))
    assert Later(made).search(values) == []


def test_lost_trials_do_not_go_on() -> None:
    made = suite()
    score = dict.fromkeys(range(9), math.inf) | {4: 1.0, 5: 2.0}
    values = ended(made.runs, score)
    assert trials(Later(made).search(values), 2) == [4, 5]
    assert Later(made).confirm(ended(made.runs, dict.fromkeys(range(9), math.inf))) == ([], ["all"])


def test_a_stopped_trial_is_picked_only_if_all_that_went_on_were_lost() -> None:
    made = suite()
    later = Later(made)
    values = ended(made.runs, {trial: float(trial) for trial in range(9)})
    second = later.search(values)
    values |= ended(second, {0: math.inf, 1: 5.0, 2: 6.0})
    *_, last = later.search(values)
    values |= {last.run.run_id: math.inf}
    confirmed, lost = later.confirm(values)
    assert {p.labels["trial"] for p in confirmed} == {2} and not lost


def test_each_budget_has_a_bracket_of_its_own() -> None:
    tune = TUNE.replace("trials: 9", "budgets: {small: 3, large: 9}")
    made = suite(tune)
    later = Later(made)
    # The small budget's trials are the worst of the large one, and one of them goes on for it.
    values = ended(made.runs, {trial: float(9 - trial) for trial in range(9)})
    second = later.search(values)
    assert trials(second, 2) == [2, 6, 7, 8]
    values |= ended(second, {2: 4.0, 6: 3.0, 7: 2.0, 8: 1.0})
    last = [p for p in later.search(values) if p.labels["rung"] == 3]
    assert trials(last, 3) == [2, 8]
    values |= ended(last, {2: 4.0, 8: 1.0})
    confirmed, _ = later.confirm(values)
    assert {(p.labels["budget"], p.labels["trial"]) for p in confirmed} == {
        ("small", 2),
        ("large", 8),
    }


def test_seeds_of_a_trial_go_on_together() -> None:
    made = suite(TUNE.replace("trials: 9", "trials: 4, seeds: 2".replace(", ", "\n  ")))
    assert len(made.runs) == 8
    values = {p.run.run_id: float(k) for k, p in enumerate(made.runs)}
    values[made.runs[0].run.run_id] = 100.0  # the mean of trial 0 is now the worst
    assert trials(Later(made).search(values), 2) == [1, 1]


def test_an_arm_with_one_trial_has_no_rungs() -> None:
    head = HEAD.replace(
        "search: {optimizer.lr: {log_uniform: [1e-4, 0.3]}}\n",
        "sweep:\n  - cases:\n"
        "      sgd: {search: {optimizer.lr: {log_uniform: [1e-4, 0.3]}}}\n"
        "      fixed: {optimizer: {name: sgd, lr: 0.01}}\n",
    )
    made = suite(TUNE, head)
    phases = Counter((p.labels["arm"], p.labels["phase"]) for p in made.runs)
    assert phases == {("sgd", "rung"): 9, ("fixed", "search"): 1}
    confirmed, _ = made.confirmations({p.run.run_id: 1.0 for p in made.runs})
    assert [p.labels["arm"] for p in confirmed] == ["fixed", "fixed"]


def test_an_arm_without_trials_has_nothing_to_halve() -> None:
    made = suite(TUNE.replace("trials: 9", "budgets: {}\n  one_shot: 2"))
    assert Later(made).search({}) == [] and made.num_later == 0


@pytest.mark.parametrize(
    ("tune", "head", "message"),
    [
        ("{halving: {eta: 3}}", HEAD, "needs a value for 'min_steps'"),
        (
            "{halving: {min_steps: 3it, eta: 1}}",
            HEAD,
            "14:39: tune.halving.eta: 1: input should be",
        ),
        ("{halving: {min_steps: 3}}", HEAD, "tune.halving.min_steps: 3 is not a length"),
        ("{halving: {min_steps: 3ep}}", HEAD, "min_steps 3ep and steps 27it must have one unit"),
        ("{halving: {min_steps: 27it}}", HEAD, "must be above 0 and less than steps 27it"),
        ("{halving: {min_steps: 3it, etta: 4}}", HEAD, "unknown key 'etta'"),
        ("{halving: {min_steps: 3it}, method: tpe}", HEAD, "halving and tpe"),
        (
            "{halving: {min_steps: 3it}, refine: {after: 10}}",
            HEAD,
            "halving and refine",
        ),
        (
            "{halving: {min_steps: 3it, asynchronous: true}, budgets: {small: 3}}",
            HEAD,
            "asynchronous halving has one bracket",
        ),
        ("{at_once: 3}", HEAD, "at_once is for method tpe"),
        (
            "{halving: {min_steps: 3it}}",
            HEAD.replace("  steps: 27it", "  steps: 27it\n  stop: {at: 9it}"),
            "stop.at is what halving sets",
        ),
        (
            "{halving: {min_steps: 3it}}",
            HEAD.replace("{optimizer.lr:", "{steps: {choice: [9it, 27it]}, optimizer.lr:"),
            "`steps` cannot be searched",
        ),
    ],
)
def test_mistakes_have_their_place(tune: str, head: str, message: str) -> None:
    said = told(f"tune: {tune}\n", head)
    assert message in said
    assert "suite.yaml:1" in said


def test_the_schema_knows_the_grammar() -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator(suite_schema())
    document = parse(HEAD + TUNE, "suite.yaml").values
    assert not list(validator.iter_errors(document))
    document["tune"]["halving"]["etta"] = 3
    assert list(validator.iter_errors(document))


# A search that is carried out.


def steps_of(frame: pd.DataFrame) -> int:
    return int(frame.loc[frame["label.phase"].isin(["rung", "search"]), "steps"].sum())


def picked(frame: pd.DataFrame) -> set[int]:
    return set(frame.loc[frame["label.phase"] == "confirm", "label.trial"].astype(int))


def test_halving_picks_what_the_full_search_picks_on_a_convex_problem(tmp_path: Path) -> None:
    """Linear regression by gradient descent: rates that are behind early stay behind."""
    halved = suite(TUNE.replace("trials: 9", "trials: 27"))
    full = load(parse(HEAD + "tune: {trials: 27, confirm: {seeds: 2}}\n", "suite.yaml"))
    outcome = carried_out(halved, tmp_path / "halved")
    carried_out(full, tmp_path / "full")
    ours = raybench.table(tmp_path / "halved")
    theirs = raybench.table(tmp_path / "full")
    assert picked(ours) == picked(theirs)
    assert steps_of(theirs) == 27 * 27
    # 27 trials of 3 steps, 9 of 9, and 3 of 27, less what diverged on the way.
    assert steps_of(ours) <= 27 * 3 + 9 * 9 + 3 * 27 < steps_of(theirs) / 2
    stopped = ours[ours["status"] == "stopped"]
    assert set(stopped["reason"]) <= {
        "at step 3, as stop.at says",
        "at step 9, as stop.at says",
    }
    assert outcome.statuses["stopped"] == len(stopped) > 0
    assert stopped["summary.valid.loss"].notna().all()


@pytest.mark.parametrize("resources", ["{lanes: 1}", "{lanes: 4, batch: 5}", "{lanes: 64}"])
def test_who_goes_on_does_not_depend_on_packing(tmp_path: Path, resources: str) -> None:
    reference = suite(TUNE + "resources: {lanes: 9}\n")
    other = suite(TUNE + f"resources: {resources}\n")
    tables = []
    for place, made in enumerate((reference, other)):
        carried_out(made, tmp_path / str(place))
        frame = raybench.table(tmp_path / str(place))
        columns = ["run_id", "status", "steps", "label.phase", "label.rung", "summary.test.loss"]
        tables.append(frame[columns].sort_values("run_id").reset_index(drop=True))
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_a_search_goes_on_where_it_was_left(tmp_path: Path) -> None:
    watcher = Silent()
    made = suite()
    carried_out(made, tmp_path, watcher)
    assert [phase for phase, _, _ in watcher.phases] == ["search", "rung", "search", "confirm"]
    again = Silent()
    outcome = carried_out(suite(), tmp_path, again)
    assert outcome.executed == 0
    assert [(phase, to_do) for phase, _, to_do in again.phases] == [
        ("search", 0),
        ("rung", 0),
        ("search", 0),
        ("confirm", 0),
    ]
    # A row that is lost is the only one that is carried out again.
    part = next((tmp_path / "halved" / "runs").glob("part-*.parquet"))
    gone = len(pd.read_parquet(part))
    part.unlink()
    before = raybench.table(tmp_path)
    assert carried_out(suite(), tmp_path).executed == gone
    after = raybench.table(tmp_path)
    assert set(before["run_id"]) < set(after["run_id"])


def test_a_failed_run_that_succeeds_at_last_takes_its_place(tmp_path: Path) -> None:
    carried_out(suite(), tmp_path)
    whole = raybench.table(tmp_path)
    (best,) = whole.loc[whole["label.phase"] == "search", "label.trial"]
    own = whole[(whole["label.trial"] == best) & (whole["label.rung"] > 1)]
    failed, gone = own.sort_values("label.rung")["run_id"]
    for part in (tmp_path / "halved" / "runs").glob("part-*.parquet"):
        rows = pq.read_table(part)
        rows = rows.filter(pc.not_equal(rows["run_id"], gone))
        status = pc.if_else(pc.equal(rows["run_id"], failed), "failed", rows["status"])
        rows = rows.set_column(rows.column_names.index("status"), "status", status)
        pq.write_table(rows, part)
    # While it counts as lost another trial goes on; once it is there, it does.
    carried_out(suite(), tmp_path)
    after = raybench.table(tmp_path)
    assert set(after.loc[after["label.phase"] == "search", "label.trial"]) == {best}
    assert picked(after) == picked(whole) == {best}


# Rungs that are not waited for.

ASYNCHRONOUS = TUNE.replace("eta: 3", "eta: 3, asynchronous: true")


def test_without_ray_asynchronous_halving_waits_for_its_rungs(tmp_path: Path) -> None:
    tables = []
    for name, tune in (("one", TUNE), ("other", ASYNCHRONOUS)):
        carried_out(suite(tune), tmp_path / name)
        frame = raybench.table(tmp_path / name)[["run_id", "status", "summary.test.loss"]]
        tables.append(frame.sort_values("run_id").reset_index(drop=True))
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_a_bracket_that_is_over_is_taken_as_it_is_stored() -> None:
    made = suite(ASYNCHRONOUS)
    later = Later(made)
    climbing = later.climbing({})
    assert [len(trial.rungs) for trial in climbing] == [3] * 9
    values = {trial.rungs[0][0].run.run_id: float(k) for k, trial in enumerate(climbing)}
    # Trial 8 came first and went on; trial 0, which is better, came last and did not.
    for rung in (1, 2):
        values[climbing[8].rungs[rung][0].run.run_id] = 8.0
    assert later.climbing(values) == []
    assert [(p.labels["trial"], p.labels["rung"]) for p in later.search(values)] == [(8, 2), (8, 3)]
    confirmed, _ = later.confirm(values)
    assert {p.labels["trial"] for p in confirmed} == {8}


def test_a_bracket_that_is_not_over_goes_on_with_what_is_known() -> None:
    made = suite(ASYNCHRONOUS)
    later = Later(made)
    values = ended(made.runs, {trial: float(trial) for trial in range(9)} | {3: math.inf})
    climbing = climbs(made, later, values)
    assert [climb.scores for climb in climbing[:2]] == [(0.0, None, None), (1.0, None, None)]
    assert climbing[3].scores == (math.inf, None, None)
    assert len({climb.bracket for climb in climbing}) == 1
    assert all(len({b.batch_id for b in climb.rungs}) == 3 for climb in climbing)
    # Without Ray the rungs go on from there, all of them decided when they are over.
    assert trials(later.search(values), 2) == [0, 1, 2]


class Ladders(LocalExecutor):
    """Lets the last three trials climb to the end, whatever their scores are."""

    def climb(self, climbs: Sequence[Climb], store: SuiteStore, on_progress: Any) -> None:
        rungs = [
            b for place, climb in enumerate(climbs) for b in climb.rungs[: 1 + 2 * (place > 5)]
        ]
        self.run(rungs, store, on_progress)


def test_what_has_climbed_is_not_decided_again(tmp_path: Path) -> None:
    """The session takes the rungs that an executor has stored as they are, and runs no others."""
    outcome = Session(suite(ASYNCHRONOUS), tmp_path, Ladders, Silent()).run()
    frame = raybench.table(tmp_path)
    by_rung = {rung: set(own["label.trial"]) for rung, own in frame.groupby("label.rung")}
    assert by_rung == {1: set(range(9)), 2: {6, 7, 8}, 3: {6, 7, 8}}
    assert outcome.executed == outcome.total == len(frame) == 9 + 3 + 3 + 2
    last = frame[frame["label.rung"] == 3].set_index("label.trial")["summary.valid.loss"]
    assert picked(frame) == {last.idxmin()}
    assert Session(suite(ASYNCHRONOUS), tmp_path, Ladders, Silent()).run().executed == 0


def test_brackets_do_not_mix() -> None:
    from raybench.cluster.climb import Brackets

    class Tried:
        def __init__(self, name: str, bracket: str) -> None:
            self.trial_id = name
            self.config = {"bracket": bracket}

    made = suite(ASYNCHRONOUS)
    (first, *_), brackets = climbs(made, Later(made), {}), ("a", "b")
    scheduler = Brackets([dataclasses.replace(first, bracket=name) for name in brackets])

    def told(bracket: str, number: int, score: float, resource: int = 1) -> str:
        trial = Tried(f"{bracket}{number}", bracket)
        scheduler.on_trial_add(None, trial)
        return scheduler.on_trial_result(None, trial, {"score": score, "resource": resource})

    # One of three goes on: the best of those that have come so far.
    assert [told("a", k, score) for k, score in enumerate([1.0, 2.0, 3.0, 0.5])] == [
        "CONTINUE",
        "STOP",
        "STOP",
        "CONTINUE",
    ]
    assert told("b", 0, 9.0) == "CONTINUE"
    assert told("a", 9, 9.0, resource=9) == "STOP"  # it has come to the end


# Trials that are chosen by results.

TPE = """\
tune:
  method: tpe
  trials: 14
  at_once: 4
  seed: 3
  confirm: {seeds: 2}
"""


def test_tpe_searches_and_is_resumed(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    made = suite(TPE)
    assert (made.runs, made.num_suggestions, made.num_later) == ([], 14, 16)
    watcher = Silent()
    outcome = carried_out(made, tmp_path, watcher)
    assert [to_do for _, _, to_do in watcher.phases] == [0, 4, 4, 4, 2, 2]
    assert outcome.executed == 16
    frame = raybench.table(tmp_path)
    search = frame[frame["label.phase"] == "search"]
    assert sorted(search["label.trial"]) == list(range(14))
    best = search.loc[search["summary.valid.loss"].idxmin(), "label.trial"]
    assert picked(frame) == {int(best)}
    assert carried_out(suite(TPE), tmp_path).executed == 0


def test_tpe_goes_on_from_what_is_finished(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    whole, part = tmp_path / "whole", tmp_path / "part"
    carried_out(suite(TPE), whole)

    class Interrupted(Exception):
        pass

    class Short(LocalExecutor):
        calls = 0

        def run(self, *args: Any) -> None:
            self.calls += 1
            if self.calls == 3:
                raise Interrupted
            super().run(*args)

    with pytest.raises(Interrupted):
        Session(suite(TPE), part, Short, Silent()).run()
    assert carried_out(suite(TPE), part).executed == 16 - 8
    columns = ["run_id", "label.trial", "summary.valid.loss"]
    tables = [raybench.table(store)[columns].sort_values("run_id") for store in (whole, part)]
    pd.testing.assert_frame_equal(*(t.reset_index(drop=True) for t in tables), check_exact=True)


class Ladder:
    """Asks for rates 1, 2, 3, ... thousandths, and remembers what it is told."""

    def __init__(self) -> None:
        self.count = 0
        self.scores: list[float] = []

    def ask(self, count: int) -> list[Trial]:
        self.count += count
        return [{"optimizer.lr": k / 1000} for k in range(self.count - count + 1, self.count + 1)]

    def tell(self, scores: Sequence[float]) -> None:
        self.scores += scores


def test_a_searcher_is_told_all_before_it_is_asked_again() -> None:
    made = suite(TPE)
    searcher = Ladder()
    later = Later(made, lambda arm: searcher)
    first = later.search({})
    assert len(first) == 4 == len(later.search({}))
    values = ended(first, {0: 4.0, 1: math.inf, 2: 2.0, 3: 1.0})
    partial = dict(list(values.items())[:3])
    assert len(later.search(partial)) == 4 and searcher.scores == []
    assert len(later.search(values)) == 8 and searcher.scores == [4.0, math.inf, 2.0, 1.0]


def test_arms_and_studies_are_asked_for_together() -> None:
    head = HEAD.replace(
        "search: {optimizer.lr: {log_uniform: [1e-4, 0.3]}}\n",
        "sweep:\n  - cases:\n"
        "      sgd: {search: {optimizer.lr: {log_uniform: [1e-4, 0.3]}}}\n"
        "      fixed: {optimizer: {name: sgd, lr: 0.01}}\n",
    )
    made = suite(TPE + "  studies: 2\n", head)
    seeds: list[int] = []

    def make(arm: Arm) -> Ladder:
        seeds.append(arm.seed)
        return Ladder()

    runs = Later(made, make).search({})
    assert {(p.labels["arm"], p.labels["study"]) for p in runs} == {("sgd", 0), ("sgd", 1)}
    assert seeds == [3, 4]
    assert [p.labels["arm"] for p in made.runs] == ["fixed", "fixed"]  # nothing to choose there


def test_ray_is_set_up_before_it_is_imported(tmp_path: Path) -> None:
    """Ray reads once, at its import, that its cluster needs a token."""
    pytest.importorskip("optuna")
    (tmp_path / "suite.yaml").write_text(HEAD + TPE.replace("14", "2"), encoding="utf-8")
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from raybench.session import Session\n"
        "from raybench.suite import load, read\n"
        "import raybench.cluster.searcher\n"
        "assert 'ray' not in sys.modules\n"
        "seen = []\n"
        "class Stop(Exception): pass\n"
        "def make():\n"
        "    seen.append('ray' in sys.modules)\n"
        "    raise Stop\n"
        "class Silent:\n"
        "    def begin(self, *args): pass\n"
        "    def update(self, *args): pass\n"
        "path = Path(sys.argv[1])\n"
        "try: Session(load(read(path, 's')), path.parent / 'store', make, Silent()).run()\n"
        "except Stop: pass\n"
        "assert seen == [False], seen\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "suite.yaml"], check=True, timeout=300)


def test_equal_results_give_equal_trials() -> None:
    pytest.importorskip("optuna")
    from raybench.cluster.searcher import OptunaSearcher

    head = (
        HEAD.replace(
            "{optimizer.lr: {log_uniform: [1e-4, 0.3]}}",
            "{optimizer.lr: {log10_uniform: [-4, 0]}, optimizer.beta1: "
            "{one_minus: {log_uniform: [1e-3, 0.5]}}, model.width: {int: [1, 8]}, "
            "model.activation: {choice: [relu, tanh]}}",
        )
        .replace("linear", "mlp")
        .replace("optimizer: sgd", "optimizer: adam")
    )
    (arm,) = suite(TPE, head).arms

    def asked(seed: int, lost: bool) -> list[Trial]:
        searcher = OptunaSearcher(arm.space, seed)
        found: list[Trial] = []
        for _ in range(5):
            new = searcher.ask(4)
            searcher.tell([math.inf if lost else abs(t["optimizer.lr"] - 0.01) for t in new])
            found += new
        return found

    assert asked(1, False) == asked(1, False)
    assert asked(1, False)[:4] == asked(1, True)[:4]
    assert asked(1, False) != asked(1, True)
    assert asked(1, False)[:4] != asked(2, False)[:4]
    for trial in asked(1, False):
        assert 1e-4 <= trial["optimizer.lr"] <= 1 and 0.5 <= trial["optimizer.beta1"] <= 0.999
        assert trial["model.width"] in range(1, 9) and trial["model.activation"] in ("relu", "tanh")


def test_tpe_finds_better_rates_than_its_first_ones() -> None:
    pytest.importorskip("optuna")
    from raybench.cluster.searcher import OptunaSearcher

    (arm,) = suite(TPE).arms
    early, late = [], []
    for seed in range(5):
        searcher = OptunaSearcher(arm.space, seed)
        errors: list[float] = []
        for _ in range(8):
            new = [abs(math.log(t["optimizer.lr"] / 0.01)) for t in searcher.ask(5)]
            searcher.tell(new)
            errors += new
        early.append(sum(errors[:10]) / 10)
        late.append(sum(errors[-10:]) / 10)
    assert sum(late) < sum(early) / 2


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybench.cluster.searcher.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"pip install 'raybench\[tune\]'"):
        carried_out(suite(TPE), tmp_path)
    assert not (tmp_path / "halved").exists()


def test_samples_cost_what_is_to_come() -> None:
    made = suite()
    samples = Later(made).samples()
    assert len(samples) == made.num_later
    assert Counter(str(getattr(p.run.procedure, "stop")) for p in samples).most_common() == [  # noqa: B009
        ("target=None wall=None at=Steps(count=9, unit='it')", 3),
        ("None", 1 + 2),
    ]
    assert len(Later(suite(TPE)).samples()) == 16


@pytest.mark.parametrize(
    ("tune", "expected"),
    [
        (TUNE, ["at most 4 runs of rungs", "in all 15 runs of 1 arms"]),
        (TPE, ["14 runs of trials that tpe chooses", "in all 16 runs of 1 arms"]),
    ],
)
def test_plan_counts_and_times_what_will_follow(
    tmp_path: Path, tune: str, expected: Sequence[str]
) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(HEAD + tune, encoding="utf-8")
    result = CliRunner().invoke(app, ["plan", str(path), "-o", str(tmp_path / "store")])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    for part in (*expected, "of one core"):
        assert part in said


def test_the_suites_of_the_page_are_valid() -> None:
    page = (Path(__file__).parents[1] / "docs" / "stopping.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.S)
    made = [load(parse(block, "stopping.md")) for block in blocks]
    assert [len(one.runs) for one in made] == [1, 27, 0]
    assert [one.num_later for one in made] == [0, 9 + 3 + 1 + 5, 40 + 10]
