"""The tuning protocol: the published sampler, budgets, refinement, studies, blind searches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import raybench
from raybench.cli.suites import bundled
from raybench.errors import SuiteError
from raybench.local import LocalExecutor
from raybench.plan import distinct
from raybench.progress import Progress
from raybench.session import Outcome, Session
from raybench.suite import Planned, Suite, load, parse, read
from raybench.suite.protocol import unequal
from raybench.suite.sampling import Distribution, distribution, points

torch.set_num_threads(1)

HEAD = """\
version: 1
name: tuned
base:
  procedure: train
  data: {name: teacher_student, dim: 4, train: 16, valid: 8, test: 8}
  model: {name: mlp, width: 4}
  steps: 3it
  batch_size: 8
  record: {at: {linear: 1}}
seeds: {base: 42}
sweep:
  - cases:
      sgd: {optimizer: {name: sgd, lr: 0.02}, search: {optimizer.lr: {log10_uniform: [-4, 0]}}}
      adam:
        optimizer: {name: adam}
        search:
          optimizer.lr: {log10_uniform: [-4, 0]}
          optimizer.beta1: {one_minus: {log10_uniform: [-3, -0.301]}}
    as: optimizer
resources: {lanes: 8}
"""
PUBLISHED = """\
tune:
  method: random_state
  seed: 42
  one_shot: 3
  budgets: {small: 4, large: 9}
  refine: {after: 6, best: 2}
  confirm: {seeds: 2, reuse: true}
"""


class Silent:
    def begin(self, phase: str, total: int, finished: int, to_do: int) -> None:
        pass

    def update(self, progress: Progress) -> None:
        pass


def suite(tune: str = PUBLISHED, head: str = HEAD) -> Suite:
    return load(parse(head + tune, "suite.yaml"))


def told(tune: str, head: str = HEAD) -> str:
    with pytest.raises(SuiteError) as error:
        suite(tune, head).runs  # noqa: B018
    return str(error.value)


def carried_out(made: Suite, root: Path) -> Outcome:
    return Session(made, root, LocalExecutor, Silent()).run()


def phases(runs: list[Planned]) -> Counter[Any]:
    return Counter(planned.labels["phase"] for planned in runs)


def lr(planned: Planned) -> float:
    return float(planned.run.procedure.optimizer.lr)  # type: ignore[attr-defined]


# The published sampler (arXiv:2007.01547), with numbers read from the published files.

LR = Distribution("log10_uniform", -4, 0)
BETA1, BETA2 = (
    Distribution("log10_uniform", -0.301, -0.00043),
    Distribution("log10_uniform", -0.0969, -0.00043),
)


@pytest.mark.parametrize(
    ("trial", "value"),
    [(0, 3.148911648e-3), (1, 0.63512210106), (2, 8.4718014188e-2), (11, 0.75794799533)],
)
def test_the_published_trials_of_sgd(trial: int, value: float) -> None:
    drawn = points({"lr": LR}, "random_state", 25, 42)[trial]["lr"]
    assert drawn == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    ("trial", "values"),
    [
        (0, (3.148911648e-3, 0.96550871691, 0.9412726841)),
        (2, (1.7073967432e-4, 0.91063966722, 0.91430177981)),
        (11, (0.62451395747, 0.97552863114, 0.95738383904)),
        (20, (3.5868164986e-3, 0.60333619283, 0.96171924653)),
    ],
)
def test_the_published_trials_of_adam(trial: int, values: tuple[float, ...]) -> None:
    space = {"lr": LR, "beta1": BETA1, "beta2": BETA2}
    drawn = points(space, "random_state", 25, 42)[trial]
    assert tuple(drawn.values()) == pytest.approx(values, rel=1e-9)


def test_the_suite_draws_the_published_trials() -> None:
    made = load(read(bundled()["crowded_valley"]), "quadratic")
    found = {
        (str(p.labels["optimizer"]), int(p.labels["trial"])): p.run.procedure.optimizer  # type: ignore[attr-defined]
        for p in made.runs
        if p.labels["phase"] == "search"
    }
    adam = found["adam", 11]
    values = (adam.lr, adam.beta1, adam.beta2)
    assert values == pytest.approx((0.62451395747, 0.97552863114, 0.95738383904), rel=1e-9)
    assert found["sgd", 11].lr == pytest.approx(0.75794799533, rel=1e-9)
    for same in ("nadam", "radam", "adabelief", "amsgrad"):
        assert (found[same, 20].lr, found[same, 20].beta1) == (
            found["adam", 20].lr,
            found["adam", 20].beta1,
        )
    assert found["momentum", 7].momentum == found["nag", 7].momentum
    assert found["rmsprop", 7].decay == found["adadelta", 7].rho
    # Whole numbers are drawn by randint, between the others.
    assert {found["lookahead_momentum", t].k for t in range(50)} <= set(range(1, 20))


def test_the_refined_space_is_the_published_one() -> None:
    # P1, no schedule: the best of SGD's trials span trials 19 and 30 (published files).
    trials = [point["lr"] for point in points({"lr": LR}, "random_state", 50, 42)]
    box = LR.around([trials[19], trials[30]])
    ends = 10**box.low, 10**box.high
    assert ends == pytest.approx((1.4618962794e-3, 2.6926469101e-2), rel=1e-9)


def test_what_is_not_a_space_is_told() -> None:
    for text in (
        {"one_minus": {"choice": [1, 2]}},
        {"one_minus": {"one_minus": {"uniform": [0, 1]}}},
        {"log10_uniform": [0, -4]},
        {"int": [1.5, 3]},
    ):
        problems: list[Any] = []
        assert distribution(text, (), problems) is None
        assert len(problems) == 1


# Budgets.


def test_the_paper_has_53760_runs() -> None:
    made = load(read(bundled()["crowded_valley"]), "paper")
    first = phases(made.runs)
    assert first == {"one_shot": 4_800, "search": 24_000}
    assert made.num_refinements == 12_000
    assert made.num_confirmations == 12_960
    assert sum(first.values()) + made.num_refinements + made.num_confirmations == 53_760
    assert len(distinct(made.runs)) == 28_800
    assert not unequal(made.arms, made.options)


@pytest.mark.parametrize(("scale", "runs"), [("laptop", 2_955), ("quadratic", 6_720)])
def test_the_other_scales_have_the_runs_that_they_say(scale: str, runs: int) -> None:
    made = load(read(bundled()["crowded_valley"]), scale)
    later = made.num_refinements + made.num_confirmations
    assert len(distinct(made.runs)) + later == runs


def test_budgets_share_their_trials() -> None:
    small = suite("tune: {method: random_state, seed: 42, budgets: {small: 4}}\n")
    both = suite("tune: {method: random_state, seed: 42, budgets: {small: 4, large: 9}}\n")
    ids = {planned.run.run_id for planned in both.runs}
    assert {planned.run.run_id for planned in small.runs} < ids
    assert len(ids) == 2 * 9


def test_a_suite_goes_through_all_phases(tmp_path: Path) -> None:
    made = suite()
    assert phases(made.runs) == {"one_shot": 6, "search": 12}
    assert (made.num_refinements, made.num_confirmations) == (6, 8)
    outcome = carried_out(made, tmp_path)
    table = raybench.table(tmp_path, "tuned")
    assert Counter(table["label.phase"]) == {
        "one_shot": 6,
        "search": 12,
        "refine": 6,
        "confirm": 12,  # of each arm and budget: the search's own run and two more seeds
    }
    # A pick of both budgets is carried out once.
    shared = table[table["label.phase"] == "confirm"]["run_id"].duplicated().sum()
    assert outcome.executed == 6 + 12 + 6 + 8 - (shared - shared // 3)
    assert outcome.statuses["done"] == table["run_id"].nunique()
    assert carried_out(suite(), tmp_path).executed == 0


def test_refined_trials_come_from_the_box_of_the_best(tmp_path: Path) -> None:
    carried_out(suite(), tmp_path)
    table = raybench.table(tmp_path, "tuned")
    sgd = table[table["label.optimizer"] == "sgd"]
    first = sgd[sgd["label.phase"] == "search"].sort_values("summary.valid.loss")
    refined = sgd[sgd["label.phase"] == "refine"]
    assert set(refined["label.trial"]) == {6, 7, 8}
    ends = sorted(first["config.optimizer.lr"][:2])
    assert (
        refined["config.optimizer.lr"].between(ends[0] * (1 - 1e-12), ends[1] * (1 + 1e-12)).all()
    )
    legacy = points({"lr": LR.around(ends)}, "random_state", 3, 42)
    drawn = refined.sort_values("label.trial")["config.optimizer.lr"]
    assert list(drawn) == pytest.approx([point["lr"] for point in legacy], rel=1e-12)


def test_each_budget_picks_the_best_of_its_own_trials(tmp_path: Path) -> None:
    carried_out(suite(), tmp_path)
    table = raybench.table(tmp_path, "tuned")
    search = table[table["label.phase"].isin(["search", "refine"])]
    for (optimizer, budget), confirm in table[table["label.phase"] == "confirm"].groupby(
        ["label.optimizer", "label.budget"]
    ):
        own = search[search["label.optimizer"] == optimizer]
        own = own[own["label.trial"] < {"small": 4, "large": 9}[str(budget)]]
        best = own.loc[own["summary.valid.loss"].idxmin()]
        assert set(confirm["label.trial"]) == {best["label.trial"]}
        assert sorted(confirm["seed"]) == [42, 43, 44]
        assert best["run_id"] in set(confirm["run_id"])


def test_without_reuse_confirmation_seeds_are_fresh(tmp_path: Path) -> None:
    carried_out(suite("tune: {budgets: {small: 3}, confirm: {seeds: 2}}\n"), tmp_path)
    table = raybench.table(tmp_path, "tuned")
    confirm = table[table["label.phase"] == "confirm"]
    assert len(confirm) == 4
    assert confirm["seed"].min() > 1_000_000
    assert "label.budget" in table


def test_a_case_has_a_protocol_of_its_own() -> None:
    head = HEAD.replace("sgd: {", "sgd: {tune: {one_shot: 5, budgets: {}, refine: null}, ")
    made = suite(head=head)
    of_sgd = [p for p in made.runs if p.labels["optimizer"] == "sgd"]
    assert phases(of_sgd) == {"one_shot": 5}
    assert made.num_confirmations == 4
    # Sgd has less than adam, and is told.
    assert list(unequal(made.arms, made.options)) == ["sgd"]


def test_the_command_line_wins_over_a_case_s_protocol() -> None:
    head = HEAD.replace("sgd: {", "sgd: {tune: {one_shot: 5, budgets: {}, refine: null}, ")
    made = load(parse(head + PUBLISHED, "suite.yaml"), None, {"tune.one_shot": 1})
    of_sgd = [p for p in made.runs if p.labels["optimizer"] == "sgd"]
    assert phases(of_sgd) == {"one_shot": 1}


def test_studies_repeat_the_search_with_other_trials(tmp_path: Path) -> None:
    made = suite("tune: {trials: 3, studies: 2, confirm: {seeds: 2}}\n")
    sgd = [p for p in made.runs if p.labels["optimizer"] == "sgd"]
    by_study = {study: [lr(p) for p in sgd if p.labels["study"] == study] for study in (0, 1)}
    assert len(by_study[0]) == len(by_study[1]) == 3
    assert not set(by_study[0]) & set(by_study[1])
    assert {p.run.seed.value for p in sgd if p.labels["study"] == 1} == {43}
    carried_out(made, tmp_path)
    table = raybench.table(tmp_path, "tuned")
    confirm = table[table["label.phase"] == "confirm"]
    assert Counter(confirm["label.study"]) == {0: 4, 1: 4}


def test_a_blind_search_does_not_measure_the_test_split(tmp_path: Path) -> None:
    carried_out(
        suite("tune: {trials: 3, one_shot: 1, blind: true, confirm: {seeds: 1}}\n"), tmp_path
    )
    table = raybench.table(tmp_path, "tuned")
    metrics = raybench.table(tmp_path, "tuned", "metrics")
    seen = metrics[metrics["split"] == "test"]["run_id"].unique()
    by_phase = table.set_index("run_id")["label.phase"]
    assert set(by_phase[by_phase == "search"].index).isdisjoint(seen)
    assert set(by_phase[by_phase != "search"].index) <= set(seen)
    search = table[table["label.phase"] == "search"]
    assert search["summary.test.loss"].isna().all()
    assert search["summary.valid.loss"].notna().all()


def test_arms_select_by_their_own_metric(tmp_path: Path) -> None:
    head = HEAD.replace("adam:\n", "adam:\n        tune: {select: {metric: train/loss}}\n")
    carried_out(suite("tune: {trials: 4, confirm: {seeds: 1}}\n", head), tmp_path)
    table = raybench.table(tmp_path, "tuned")
    search = table[table["label.phase"] == "search"]
    confirm = table[table["label.phase"] == "confirm"].set_index("label.optimizer")
    for optimizer, metric in (("sgd", "valid"), ("adam", "train")):
        own = search[search["label.optimizer"] == optimizer]
        best = own.loc[own[f"summary.{metric}.loss"].idxmin()]
        assert confirm.loc[optimizer, "label.trial"] == best["label.trial"]


@pytest.mark.parametrize(
    ("tune", "says"),
    [
        ("tune: {trials: 3, budgets: {a: 3}}", "budgets are in place of trials"),
        ("tune: {blind: true, confirm: {reuse: true}}", "no test score that confirm could reuse"),
        ("tune: {method: sobol, refine: {after: 5}}", "refine draws at random"),
        ("tune: {refine: {after: 5, best: 6}}", "the best 6 of 5 trials"),
        ("tune: {budgets: {one_shot: 5}}", "'one_shot' cannot be a budget"),
        ("tune: {budgets: {small: 0}}", "greater than or equal to 1"),
    ],
)
def test_protocols_that_cannot_be(tune: str, says: str) -> None:
    assert says in told(tune + "\n")


def test_a_mistake_in_a_case_s_protocol_is_shown_where_it_is() -> None:
    head = HEAD.replace("sgd: {", "sgd: {tune: {one_shoot: 5}, ")
    assert "unknown key 'one_shoot'" in told(PUBLISHED, head)
    assert "suite.yaml:13:" in told(PUBLISHED, head)


def test_a_search_that_could_not_select_is_refused() -> None:
    head = HEAD.replace("valid: 8", "valid: 0")
    assert "sgd: valid/loss needs rows: set data.valid" in told(PUBLISHED, head)
    assert suite("tune: {budgets: {}, one_shot: 2}\n", head).runs  # nothing to select


def test_arms_whose_trials_all_diverge_are_told(tmp_path: Path) -> None:
    head = HEAD.replace(
        "search: {optimizer.lr: {log10_uniform: [-4, 0]}}}",
        "search: {optimizer.lr: {uniform: [1e30, 1e31]}}}",
    )
    outcome = carried_out(suite(head=head), tmp_path)
    assert outcome.lost_arms == ["sgd small", "sgd large"]
    table = raybench.table(tmp_path, "tuned")
    assert pd.isna(table[table["label.optimizer"] == "sgd"]["label.budget"]).sum() == 6
