"""Trees of DeepOBS results become runs, metrics and a plan."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

import raybench
from raybench import store as results
from raybench.cli import exchange
from raybench.deepobs import Imported, import_results, naming
from raybench.deepobs.protocol import Candidate, Role, roles
from raybench.deepobs.result import LARGEST, UnreadableError, read
from raybench.deepobs.tree import find
from raybench.errors import NothingMatched, RaybenchError, UsageError
from raybench.schema import runs_table
from raybench.store import SuiteStore

EPOCHS = 4
ADAM = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-08, "use_locking": False}


def content(
    problem: str = "quadratic_deep",
    optimizer: str = "GradientDescentOptimizer",
    *,
    lr: float = 0.01,
    seed: int = 42,
    level: float = 10.0,
    accuracy: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """What DeepOBS writes for a short run whose losses halve from `level`, less 1 on valid."""
    start = {"train": 1.0, "valid": -1.0, "test": 0.0}
    form: dict[str, Any] = {
        "testproblem": problem,
        "batch_size": 128,
        "num_epochs": EPOCHS,
        "random_seed": seed,
        "l2_reg": None,
        "optimizer_name": optimizer,
        "optimizer_hyperparams": {"learning_rate": lr},
        "training_params": {"lr_sched_epochs": [], "lr_sched_factors": []},
    }
    for split, shift in start.items():
        form[f"{split}_losses"] = [shift + level / 2**epoch for epoch in range(EPOCHS + 1)]
        if accuracy:
            form[f"{split}_accuracies"] = [0.1 + 0.2 * epoch for epoch in range(EPOCHS + 1)]
    # One log entry an epoch of seven steps, and every entry twice.
    form["minibatch_train_losses"] = [level / 2**epoch for epoch in range(EPOCHS) for _ in (0, 1)]
    return {**form, **more}


def diverged(form: dict[str, Any], epoch: int) -> dict[str, Any]:
    """The run as it is written if its loss overflowed while epoch `epoch` (from 0) was trained."""
    form = dict(form)
    for key in [key for key in form if key.endswith(("_losses", "_accuracies"))]:
        values = form[key]
        if key == "minibatch_train_losses":
            real = [*values[: 2 * epoch], math.inf, math.inf]
            form[key] = real + [values[0]] * (EPOCHS - epoch)
        else:
            form[key] = values[: epoch + 1] + [values[0]] * (EPOCHS - epoch)
    return form


def put(
    base: Path,
    form: Mapping[str, Any],
    *,
    at: str = "oneshot/none",
    folder: str | None = None,
    ended: str = "2020-01-02-03-04-05",
) -> Path:
    """Write a run into a tree, the folder of its optimizer being named after the class."""
    settings = form["optimizer_hyperparams"]
    setting = f"num_epochs__{form['num_epochs']}__batch_size__{form['batch_size']}__" + "__".join(
        f"{name}__{value:.10e}" if isinstance(value, float) else f"{name}__{value}"
        for name, value in sorted(settings.items())
    )
    place = base / at / form["testproblem"] / (folder or form["optimizer_name"]) / setting
    place.mkdir(parents=True, exist_ok=True)
    path: Path = place / f"random_seed__{form['random_seed']}__{ended}.json"
    path.write_text(json.dumps(form), encoding="utf-8")
    return path


def stamp(second: int, day: int = 1) -> str:
    return f"2020-01-{day:02d}-00-00-{second:02d}"


RATES = (0.3, 0.1, 0.02, 0.5)


def tuned(base: Path, *, increments: bool, optimizer: str = "GradientDescentOptimizer") -> None:
    """A small tree: defaults; two, three and four trials; winners 0.1, 0.02 and 0.02.

    Folders of larger budgets hold the files of smaller ones too, or only what is new.
    """
    for seed in range(42, 52):
        put(base, content(optimizer=optimizer, seed=seed), ended=stamp(seed))
    levels = {0.3: 30.0, 0.1: 8.0, 0.02: 6.0, 0.5: 9.0}
    budgets = {"small_budget": (2, 0.1), "medium_budget": (3, 0.02), "large_budget": (4, 0.02)}
    before: list[tuple[float, int, str]] = []
    for day, (budget, (size, winner)) in enumerate(budgets.items(), 2):
        known = len({rate for rate, seed, _ in before if seed == 42})
        new = [(RATES[trial], 42, stamp(trial)) for trial in range(known, size)]
        new += [(winner, seed, stamp(seed, day)) for seed in range(43, 52)]
        for lr, seed, ended in new if increments else [*before, *new]:
            form = content(optimizer=optimizer, lr=lr, seed=seed, level=levels[lr] + seed / 100)
            put(base, form, at=f"{budget}/none", ended=ended)
        before += new


def imported(folder: Path, store: Path, suite: str = "crowded_valley") -> Imported:
    return import_results(folder, store, suite)


def table(store: Path, name: Any = "runs") -> Any:
    return raybench.table(store, "crowded_valley", name, scale="published")


# --- one file ------------------------------------------------------------------------------------


def test_a_run_is_read_with_its_curves(tmp_path: Path) -> None:
    form = content("fmnist_2c2d", accuracy=True, lr=0.5, minibatch_train_losses=[])
    result = read(put(tmp_path, form))
    assert (result.problem, result.batch_size, result.epochs, result.seed) == (
        "fmnist_2c2d", 128, EPOCHS, 42,
    )  # fmt: skip
    assert result.hyperparameters == {"learning_rate": 0.5}
    assert result.diverged_at is None
    assert result.curves["test", "loss"].tolist() == [10.0, 5.0, 2.5, 1.25, 0.625]
    assert result.curves["train", "error"] == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1])
    assert set(result.curves) == {
        (s, m) for s in ("train", "valid", "test") for m in ("loss", "error")
    }
    assert result.score == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("problem", "batch_size", "logged", "expected"),
    [
        ("quadratic_deep", 128, 1, 7),
        ("mnist_vae", 64, 79, 781),
        ("fmnist_2c2d", 128, 39, 390),  # 50,000 rows beside a validation split
        ("mnist_mlp", 128, 47, 468),  # 60,000 rows without one
        ("cifar10_3c3d", 128, 32, 312),
        ("cifar100_allcnnc", 256, 16, 156),
        ("svhn_wrn164", 128, 37, 368),
        ("tolstoi_char_rnn", 50, 79, 783),
        ("quadratic_deep", 128, 3, None),  # another log than that of 7 steps
        ("imagenet_vgg16", 128, 1, None),
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_steps_follow_from_rows_and_log(
    tmp_path: Path, problem: str, batch_size: int, logged: int, expected: int | None, times: int
) -> None:
    log = [1.0 / (1 + i) for i in range(logged * EPOCHS) for _ in range(times)]
    form = content(problem, batch_size=batch_size, minibatch_train_losses=log)
    assert read(put(tmp_path, form)).steps_per_epoch == expected


def test_equal_pairs_are_a_doubled_log_and_unequal_ones_are_not(tmp_path: Path) -> None:
    # 2 entries an epoch mean 11 to 20 steps, for which no number of rows stands.
    log = [4.0, 3.9, 3.0, 2.9, 2.0, 1.9, 1.0, 0.9]
    assert read(put(tmp_path, content(minibatch_train_losses=log))).steps_per_epoch is None
    doubled = [4.0, 4.0, 3.0, 3.0, 2.0, 2.0, 1.0, 1.0]
    assert read(put(tmp_path, content(minibatch_train_losses=doubled))).steps_per_epoch == 7


@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_what_was_filled_in_after_divergence_is_left_out(tmp_path: Path, epoch: int) -> None:
    result = read(put(tmp_path, diverged(content(accuracy=True), epoch)))
    assert result.steps_per_epoch == 7
    assert result.diverged_at == (7 * epoch if epoch else 0)
    # The loss of the batch at step 7 * epoch was not finite, so neither was what is measured there.
    assert len(result.curves["test", "loss"]) == epoch
    assert result.score == math.inf


def test_the_published_form_of_divergence(tmp_path: Path) -> None:
    # As quadratic_deep under gradient descent at 0.758 is published, in fewer epochs.
    lists: dict[str, Any] = {
        f"{split}_losses": [start, 8.37e24, math.inf, start, start]
        for split, start in (("train", 389.25), ("valid", 381.09), ("test", 379.3))
    }
    log = [388.6, 388.6, 8.37e24, 8.37e24, math.inf, math.inf, 388.6, 388.6]
    path = put(tmp_path, content(**lists, minibatch_train_losses=log))
    assert "Infinity" in path.read_text(encoding="utf-8")
    result = read(path)
    assert (result.steps_per_epoch, result.diverged_at) == (7, 14)
    assert result.curves["test", "loss"].tolist() == [379.3, 8.37e24]


def test_divergence_is_placed_within_an_epoch_by_the_log(tmp_path: Path) -> None:
    # 390 steps an epoch: 39 entries. Not finite from the 5th entry of epoch 1 on: step 390 + 40.
    log = [2.0 - i / 100 for i in range(39 + 4)] + [math.nan] * 35
    full = [value for value in log for _ in (0, 1)] + [2.0] * (EPOCHS - 1)
    form = diverged(content("fmnist_2c2d", minibatch_train_losses=[0.0] * 8), 1)
    form["minibatch_train_losses"] = full
    result = read(put(tmp_path, form))
    assert (result.steps_per_epoch, result.diverged_at) == (390, 430)
    assert result.curves["valid", "loss"].tolist() == [9.0, 4.0]


def test_without_a_log_the_way_back_to_the_start_tells_of_divergence(tmp_path: Path) -> None:
    form = {**diverged(content(), 2), "minibatch_train_losses": []}
    result = read(put(tmp_path, form))
    assert result.diverged_at == 21
    assert len(result.curves["test", "loss"]) == 3


def test_a_loss_that_never_moves_is_no_divergence(tmp_path: Path) -> None:
    lists: dict[str, Any] = {
        f"{split}_losses": [3.5] * (EPOCHS + 1) for split in ("train", "valid", "test")
    }
    assert read(put(tmp_path, content(**lists))).diverged_at is None
    assert read(put(tmp_path, content(**lists, minibatch_train_losses=[]))).diverged_at is None


def test_steps_of_an_unknown_problem_are_epochs(tmp_path: Path) -> None:
    result = read(put(tmp_path, diverged(content("celeba_dcgan"), 2)))
    assert (result.steps_per_epoch, result.diverged_at) == (None, 3)
    assert len(result.curves["test", "loss"]) == 3


@pytest.mark.parametrize("key", ["l2_reg", "weight_decay"])
def test_the_penalty_has_two_names(tmp_path: Path, key: str) -> None:
    form = {name: value for name, value in content().items() if name != "l2_reg"}
    assert read(put(tmp_path, {**form, key: 0.002})).l2 == 0.002
    assert read(put(tmp_path, {**form, key: None})).l2 is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"testproblem": None}, "has no testproblem"),
        ({"optimizer_name": 3}, "has no optimizer_name"),
        ({"optimizer_hyperparams": None}, "has no optimizer_hyperparams"),
        ({"optimizer_hyperparams": {"learning_rate": "\ud800"}}, "not text"),
        ({"random_seed": "42"}, "not a whole number"),
        ({"batch_size": True}, "not a whole number"),
        ({"num_epochs": 9}, "lists of 5 values for 9 epochs"),
        ({"test_losses": [1.0]}, "lists of 1, 5 values"),
        ({"test_losses": [1.0, "x", 2.0, 2.0, 2.0]}, "something else than numbers"),
        ({"test_losses": [[1.0]] * 5}, "something else than numbers"),
        ({f"{split}_losses": [] for split in ("train", "valid", "test")}, "has no losses"),
    ],
)
def test_what_is_not_a_run_says_why(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = tmp_path / "random_seed__42__now.json"
    path.write_text(json.dumps({**content(), **change}), encoding="utf-8")
    with pytest.raises(UnreadableError, match=reason):
        read(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b'{"testproblem": "quad', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1, 2]", "not a mapping"),
        (b"[" * 200_000, "not JSON"),
    ],
)
def test_what_is_not_json_says_so(tmp_path: Path, text: bytes, reason: str) -> None:
    path = tmp_path / "random_seed__42__now.json"
    path.write_bytes(text)
    with pytest.raises(UnreadableError, match=reason):
        read(path)


def test_a_huge_file_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "random_seed__42__now.json"
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(UnreadableError, match="larger than 64 MiB"):
        read(path)


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("LookaheadOptimizerMBGDMomentum", "lookahead_momentum"),
        ("LookaheadOptimizerRAdam", "lookahead_radam"),
        ("GradientDescentOptimizer", "sgd"),
        ("AMSGrad", "amsgrad"),
        ("NadamOptimizer", "nadam"),
        ("NDAdamOptimizer", "nd_adam"),
        ("MyFancyOptimizer", "my_fancy"),
        ("SGD", "sgd"),
        ("RMSprop", "rmsprop"),
        ("Optimizer", "optimizer"),
    ],
)
def test_classes_have_our_names(given: str, expected: str) -> None:
    assert naming.optimizer(given) == expected


def test_hyperparameters_have_our_names() -> None:
    given = {
        "learning_rate": 0.1, "epsilon": 1e-8, "k": 5, "centered": False, "use_locking": False,
        "initial_accumulator_value": 0.1, "decay": 0.9, "not a name": 1, "betas": [0.9, 0.99],
        "name": 3,
    }  # fmt: skip
    assert naming.hyperparameters(given) == {
        "lr": 0.1, "eps": 1e-8, "k": 5.0, "centered": False, "initial_accumulator": 0.1,
        "decay": 0.9,
    }  # fmt: skip


# Values from the published files: shared/facts, sections 1.4 and 6.2.
@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("cosine", {1: 0.9997532801828658, 50: 0.5, 99: 2.467198171342e-4, 100: 0.0}),
        ("cosine_restarts", {1: 0.9755282581475768, 10: 1.0, 30: 1.0, 70: 1.0}),
        ("trapezoidal", {1: 0.1, 10: 1.0, 90: 1.0, 95: 1 - 5 / 11, 100: 1 / 11}),
        ("listed", {1: 1.0, 50: 0.1}),
        ("constant", {}),
    ],
)
def test_a_list_of_factors_is_recognized(name: str, points: dict[int, float]) -> None:
    assert naming.schedule([*points], [*points.values()], 100) == name


# --- the tree ------------------------------------------------------------------------------------


LEVELS = (
    "results_main", "oneshot", "ltr", "quadratic_deep", "GradientDescentOptimizer",
)  # fmt: skip


@pytest.mark.parametrize("depth", range(len(LEVELS) + 1))
def test_a_search_may_begin_at_any_level(tmp_path: Path, depth: int) -> None:
    put(tmp_path / "results_main", content(), at="oneshot/ltr")
    (tmp_path / "results_main" / "README.md").write_text("about", encoding="utf-8")
    tree = find(tmp_path.joinpath(*LEVELS[:depth]))
    (place,) = tree.places
    assert (place.budget, place.schedule) == ("one_shot", "trapezoidal")
    assert (place.problem, place.optimizer) == ("quadratic_deep", "GradientDescentOptimizer")
    assert place.base == tmp_path / "results_main"
    assert place.ended_at is not None
    assert place.ended_at.isoformat() == "2020-01-02T03:04:05+00:00"
    assert tree.others == (1 if depth < 2 else 0)


def test_the_large_budget_of_the_first_version_is_medium(tmp_path: Path) -> None:
    for budget in ("small_budget", "large_budget"):
        put(tmp_path / "results", content(), at=f"{budget}/none")
        put(tmp_path / "results_main", content(), at=f"{budget}/none")
    first, second = (find(tmp_path / name) for name in ("results", "results_main"))
    assert {place.budget for place in first.places} == {"small", "medium"}
    assert {place.budget for place in second.places} == {"small", "large"}
    assert "2020" in first.layout
    assert "2021" in second.layout


def test_a_folder_called_results_with_three_budgets_is_of_the_second_version(
    tmp_path: Path,
) -> None:
    for budget in ("small_budget", "medium_budget", "large_budget"):
        put(tmp_path / "results", content(), at=f"{budget}/none")
    assert {place.budget for place in find(tmp_path).places} == {"small", "medium", "large"}


def test_of_two_versions_the_second_is_taken(tmp_path: Path) -> None:
    put(tmp_path / "results", content(), at="large_budget/none")
    put(tmp_path / "results_main", content(), at="large_budget/none")
    tree = find(tmp_path)
    assert (len(tree.places), tree.left_out) == (1, 1)
    assert tree.places[0].base.name == "results_main"


def test_other_trees_side_by_side_are_not_mixed(tmp_path: Path) -> None:
    put(tmp_path / "mine", content())
    put(tmp_path / "yours", content())
    with pytest.raises(UsageError, match="holds 2 trees"):
        find(tmp_path)


def test_a_folder_that_cannot_be_listed_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "results_main", content())
    closed = put(tmp_path / "results_main", content(), at="small_budget/none").parent
    scan = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr("raybench.deepobs.tree.os.scandir", refuse)
    account = imported(tmp_path, tmp_path / "store")
    assert account.skipped == [(str(closed), "cannot be listed: Permission denied")]
    assert sum(account.statuses.values()) == 1


def test_links_are_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "results_main", content())
    (tmp_path / "results_main" / "again").symlink_to(tmp_path / "results_main")
    assert len(find(tmp_path).places) == 1


# --- roles ---------------------------------------------------------------------------------------


def candidate(name: str, budgets: str, setting: str, seed: int, ended: str = "1") -> Candidate:
    return Candidate(name, frozenset(budgets.split()), setting, seed, ended, float(len(name)))


def test_trials_are_numbered_by_time() -> None:
    found = roles(
        [
            candidate("a", "small", "x", 42, "2020-03"),
            candidate("b", "small", "y", 42, "2020-01"),
            candidate("c", "medium", "z", 42, "2020-02"),
        ]
    )
    assert found == [
        Role("b", "search", None, 0),
        Role("c", "search", None, 1),
        Role("a", "search", None, 2),
    ]


def test_a_repeated_run_counts_once_and_its_trial_began_with_the_first() -> None:
    found = roles(
        [
            candidate("old", "small", "x", 42, "1"),
            candidate("other", "small", "y", 42, "2"),
            candidate("new", "small", "x", 42, "3"),
        ]
    )
    assert [(role.run_id, role.trial) for role in found] == [("new", 0), ("other", 1)]


def test_the_setting_that_was_repeated_most_won_and_then_the_better_one() -> None:
    runs = [candidate(f"{s}{seed}", "small", s, seed) for s in "xy" for seed in (42, 43)]
    won = [role.run_id for role in roles(runs) if role.phase == "confirm"]
    assert won == ["x42", "x43"]
    more = [*runs, candidate("y44", "small", "y", 44)]
    won = [role.run_id for role in roles(more) if role.phase == "confirm"]
    assert won == ["y42", "y43", "y44"]


def test_with_the_large_budget_alone_no_trial_is_called_refined() -> None:
    runs = [candidate(name, "large", name, 42) for name in "ab"]
    assert {role.phase for role in roles(runs)} == {"search"}


def test_plain_output_is_a_search_if_it_has_several_settings() -> None:
    one = [candidate(str(seed), "", "x", seed) for seed in (42, 43)]
    assert {(role.phase, role.budget) for role in roles(one)} == {("one_shot", "one_shot")}
    several = [candidate("a", "", "x", 1), candidate("b", "", "y", 1), candidate("c", "", "y", 2)]
    assert roles(several) == [
        Role("a", "search", None, 0),
        Role("b", "search", None, 1),
        Role("b", "confirm", "small", 1),
        Role("c", "confirm", "small", 1),
    ]


# --- the import ----------------------------------------------------------------------------------


@pytest.mark.parametrize("increments", [True, False])
def test_a_tuned_tree_becomes_trials_and_confirmations(tmp_path: Path, increments: bool) -> None:
    tuned(tmp_path / "results_main", increments=increments)
    account = imported(tmp_path / "results_main", tmp_path / "store")
    runs = table(tmp_path / "store")
    # 10 defaults, 4 trials, 3 times 9 more seeds.
    assert account.statuses == {"done": 41}
    assert account.unused == 0
    assert runs["run_id"].nunique() == 41
    assert set(runs["label.source"]) == set(runs["scale"]) == {"published"}
    phases = runs.groupby("label.phase")["run_id"].nunique().to_dict()
    assert phases == {"one_shot": 10, "search": 3, "refine": 1, "confirm": 29}
    search = runs[runs["label.phase"].isin(["search", "refine"])].sort_values("label.trial")
    assert search["config.optimizer.lr"].tolist() == list(RATES)
    assert search["label.trial"].tolist() == [0, 1, 2, 3]
    assert search["label.budget"].isna().all()
    confirm = runs[runs["label.phase"] == "confirm"]
    won = confirm.groupby("label.budget").agg(
        lr=("config.optimizer.lr", lambda values: sorted(set(values))),
        trial=("label.trial", lambda values: sorted(set(values))),
        seeds=("seed", lambda values: sorted(values)),
    )
    seeds = list(range(42, 52))
    assert won.to_dict("index") == {
        "large": {"lr": [0.02], "trial": [2], "seeds": seeds},
        "medium": {"lr": [0.02], "trial": [2], "seeds": seeds},
        "small": {"lr": [0.1], "trial": [1], "seeds": seeds},
    }
    # The search's own run is one of each, and the two budgets have repetitions of their own.
    own = set(search.loc[search["label.trial"] == 2, "run_id"])
    of = {budget: set(rows["run_id"]) for budget, rows in confirm.groupby("label.budget")}
    assert of["medium"] & of["large"] == own


def test_the_first_tree_has_no_refined_trials(tmp_path: Path) -> None:
    base = tmp_path / "results"
    for trial, lr in enumerate((0.1, 0.2)):
        at = ("small_budget", "large_budget")[trial]
        put(base, content(lr=lr), at=f"{at}/cosine", ended=stamp(trial))
        put(base, content(lr=lr, seed=43), at=f"{at}/cosine", ended=stamp(10 + trial))
    imported(base, tmp_path / "store")
    runs = table(tmp_path / "store")
    assert set(runs["label.phase"]) == {"search", "confirm"}
    assert set(runs["label.budget"].dropna()) == {"small", "medium"}
    assert set(runs["label.schedule"]) == set(runs["config.schedule.name"]) == {"cosine"}


def test_columns_of_a_run(tmp_path: Path) -> None:
    hyper = {"learning_rate": 0.01, "momentum": 0.99, "k": 5, "alpha": 0.5, "use_nesterov": False}
    form = content("cifar10_3c3d", "LookaheadOptimizerMBGDMomentum", accuracy=True, seed=47)
    form |= {"optimizer_hyperparams": hyper, "minibatch_train_losses": [], "l2_reg": 0.002}
    put(tmp_path / "results_main", form, at="oneshot/cosine_wr")
    imported(tmp_path, tmp_path / "store")
    (row,) = table(tmp_path / "store").to_dict("records")
    expected = {
        "suite": "crowded_valley", "scale": "published", "procedure": "train", "status": "done",
        "seed": 47, "steps": EPOCHS * 312, "engine": "deepobs",
        "config.steps": "4ep", "config.batch_size": 128, "config.l2": 0.002,
        "config.schedule.name": "cosine_restarts", "config.optimizer.name": "lookahead_momentum",
        "config.optimizer.lr": 0.01, "config.optimizer.momentum": 0.99,
        "config.optimizer.k": 5.0, "config.optimizer.alpha": 0.5,
        "label.problem": "cifar10_3c3d", "label.optimizer": "lookahead_momentum",
        "label.schedule": "cosine_restarts", "label.phase": "one_shot", "label.budget": "one_shot",
        "label.arm": "cifar10_3c3d/lookahead_momentum/cosine_restarts",
        "summary.test.loss": 0.625, "summary.test.loss.best": 0.625,
        "summary.valid.loss": -0.375, "summary.train.error": pytest.approx(0.1),
        "summary.valid.error.best": pytest.approx(0.1),
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert row["started_at"] == pd.Timestamp("2020-01-02 03:04:05", tz="UTC")
    assert row["batch_id"].startswith("published-")
    assert not {name for name in row if "nesterov" in name or name.startswith("config.data")}
    metrics = table(tmp_path / "store", "metrics")
    assert len(metrics) == 3 * 2 * (EPOCHS + 1)
    curve = metrics[(metrics["split"] == "test") & (metrics["metric"] == "loss")]
    assert curve["step"].tolist() == [312 * epoch for epoch in range(EPOCHS + 1)]
    assert curve["epoch"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert curve["value"].tolist() == [10.0, 5.0, 2.5, 1.25, 0.625]
    errors = metrics[(metrics["split"] == "train") & (metrics["metric"] == "error")]
    assert errors["value"].tolist() == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1])


def test_the_lowest_value_and_the_last_one_are_kept_apart(tmp_path: Path) -> None:
    put(tmp_path / "results_main", content(test_losses=[5.0, 2.0, 1.0, 3.0, 4.0]))
    imported(tmp_path, tmp_path / "store")
    (row,) = table(tmp_path / "store").to_dict("records")
    assert (row["summary.test.loss"], row["summary.test.loss.best"]) == (4.0, 1.0)


def test_a_diverged_run_ends_where_it_diverged(tmp_path: Path) -> None:
    base = tmp_path / "results_main"
    put(base, diverged(content(), 2))
    put(base, diverged(content(seed=43), 0))
    put(base, diverged(content("celeba_dcgan"), 2))
    account = imported(base, tmp_path / "store")
    assert account.statuses == {"diverged": 3}
    runs = table(tmp_path / "store").set_index(["label.problem", "seed"])
    known, first = runs.loc["quadratic_deep", 42], runs.loc["quadratic_deep", 43]
    assert (known["status"], known["steps"]) == ("diverged", 14)
    assert known["reason"] == "loss not finite at step 14"
    assert known["summary.test.loss"] == 5.0
    assert (first["steps"], first["reason"]) == (0, "loss not finite at step 0")
    assert pd.isna(first["summary.test.loss"])
    unknown = runs.loc["celeba_dcgan", 42]
    assert pd.isna(unknown["steps"])
    assert unknown["reason"] == "loss not finite at epoch 3"
    metrics = table(tmp_path / "store", "metrics")
    steps = metrics.groupby("run_id", observed=True)["step"].max()
    assert steps[known["run_id"]] == 7
    assert first["run_id"] not in steps


def test_a_variant_is_told_by_its_folder(tmp_path: Path) -> None:
    # The published files of AMSBound name the class that it derives from.
    form = content(optimizer="AdaBoundOptimizer")
    form["optimizer_hyperparams"] = {"learning_rate": 0.1, "gamma": 1e-3, "amsbound": True}
    put(tmp_path / "results_main", form, folder="AMSBoundOptimizer")
    imported(tmp_path, tmp_path / "store")
    assert table(tmp_path / "store")["label.optimizer"].tolist() == ["amsbound"]


def test_trials_and_repetitions_with_rounded_numbers_are_one_setting(tmp_path: Path) -> None:
    base = tmp_path / "results_main"
    exact, rounded = 0.0009294394155644988, 9.2943941556e-04
    put(base, content(lr=exact), at="small_budget/none", ended=stamp(1))
    put(base, content(lr=0.5), at="small_budget/none", ended=stamp(2))
    put(base, content(lr=rounded, seed=43), at="small_budget/none", ended=stamp(3))
    imported(base, tmp_path / "store")
    runs = table(tmp_path / "store")
    assert sorted(runs.loc[runs["label.phase"] == "confirm", "seed"]) == [42, 43]


def test_plain_output_takes_the_schedule_from_the_files(tmp_path: Path) -> None:
    base = tmp_path / "out"
    factors = [0.5 * (1 + math.cos(math.pi * t / EPOCHS)) for t in range(1, EPOCHS + 1)]
    params = {"lr_sched_epochs": list(range(1, EPOCHS + 1)), "lr_sched_factors": factors}
    put(base, content(), at=".")
    put(base, content(training_params=params), at=".", ended="2020-01-02-03-04-06")
    put(base, content(training_params={"lr_sched_epochs": "x"}, seed=44), at=".")
    account = imported(base, tmp_path / "store")
    assert account.layout == "plain DeepOBS output"
    assert account.schedules == {"constant", "cosine", "listed"}
    runs = table(tmp_path / "store")
    assert runs["run_id"].nunique() == 3
    assert set(runs["label.phase"]) == {"one_shot"}


def test_files_that_cannot_be_read_are_listed_and_the_rest_is_imported(tmp_path: Path) -> None:
    base = tmp_path / "results_main"
    put(base, content())
    broken = put(base, content(seed=43))
    broken.write_text('{"testproblem": "quadr', encoding="utf-8")
    moved = put(base, content(seed=44))
    moved.rename(moved.with_name("random_seed__45__2020-01-02-03-04-05.json"))
    account = imported(base, tmp_path / "store")
    assert sum(account.statuses.values()) == 1
    skipped = {Path(path).name[13:15]: reason for path, reason in account.skipped}
    assert set(skipped) == {"43", "45"}
    assert "not JSON" in skipped["43"]
    assert "not what its path says" in skipped["45"]


def test_nothing_found_says_what_a_tree_looks_like(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    with pytest.raises(NothingMatched, match="a tree looks like results_main/<oneshot"):
        imported(tmp_path, tmp_path / "store")
    put(tmp_path / "results_main", content()).write_text("{", encoding="utf-8")
    with pytest.raises(NothingMatched, match="not JSON"):
        imported(tmp_path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def _everything(folder: Path) -> dict[str, Any]:
    frames = {
        name: table(folder, name).sort_values(keys).reset_index(drop=True)
        for name, keys in (
            ("runs", ["run_id", "label.phase", "label.budget"]),
            ("metrics", ["run_id", "split", "metric", "step"]),
        )
    }
    parts = sorted(path.name for path in (folder / "crowded_valley" / "runs").iterdir())
    return {**frames, "parts": parts}


def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    tuned(tmp_path / "results_main", increments=True)
    imported(tmp_path, tmp_path / "store")
    before = _everything(tmp_path / "store")
    imported(tmp_path, tmp_path / "store")
    after = _everything(tmp_path / "store")
    pd.testing.assert_frame_equal(before["runs"], after["runs"])
    pd.testing.assert_frame_equal(before["metrics"], after["metrics"])
    assert before["parts"] == after["parts"]


def test_ids_do_not_depend_on_where_the_tree_lies(tmp_path: Path) -> None:
    ids = []
    for name in ("here", "there"):
        tuned(tmp_path / name / "results_main", increments=name == "here")
        imported(tmp_path / name, tmp_path / f"store-{name}")
        ids.append(sorted(table(tmp_path / f"store-{name}")["run_id"]))
    assert ids[0] == ids[1]


def test_an_import_replaces_what_it_is_about_and_keeps_the_rest(tmp_path: Path) -> None:
    base = tmp_path / "results_main"
    tuned(base, increments=True)
    imported(base, tmp_path / "store")
    put(base, content("mnist_vae", minibatch_train_losses=[]))
    imported(base / "oneshot" / "none" / "mnist_vae", tmp_path / "store")
    runs = table(tmp_path / "store")
    assert runs["run_id"].nunique() == 42
    trials = runs.loc[runs["label.phase"] == "search", "label.trial"]
    assert sorted(trials) == [0, 1, 2]
    for path in (base / "small_budget").rglob("random_seed__51__*.json"):
        path.unlink()
    imported(base, tmp_path / "store")
    runs = table(tmp_path / "store")
    assert runs["run_id"].nunique() == 41
    assert len(runs[(runs["label.budget"] == "small")]) == 9


def test_an_interrupted_import_leaves_whole_parts_and_the_plan_as_it_was(tmp_path: Path) -> None:
    base = tmp_path / "results_main"
    tuned(base, increments=True)
    imported(base, tmp_path / "store")
    put(base, content("fmnist_vae"))
    put(base, content("mnist_vae"))

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_results(base, tmp_path / "store", on_progress=interrupt)
    assert table(tmp_path / "store")["run_id"].nunique() == 41
    assert not list((tmp_path / "store").rglob("*.tmp-*"))
    imported(base, tmp_path / "store")
    assert table(tmp_path / "store")["run_id"].nunique() == 43


def test_parts_may_be_merged_between_imports(tmp_path: Path) -> None:
    base = tmp_path / "results_main"
    path = put(base, content())
    put(base, content(seed=43))
    imported(base, tmp_path / "store")
    assert SuiteStore(tmp_path / "store", "crowded_valley").compact(at_least=1) == 1
    path.write_text(json.dumps(content(level=20.0)), encoding="utf-8")
    imported(base, tmp_path / "store")
    runs = table(tmp_path / "store").set_index("seed")
    assert runs["summary.test.loss"].to_dict() == {42: 1.25, 43: 0.625}
    assert len(table(tmp_path / "store", "metrics")) == 2 * 3 * (EPOCHS + 1)


def test_a_suite_that_was_run_keeps_its_scale_and_its_text(tmp_path: Path) -> None:
    put(tmp_path / "results_main", content())
    store = SuiteStore(tmp_path / "store", "crowded_valley")
    own = {"run_id": "own", "suite": "crowded_valley", "scale": "laptop", "status": "done"}
    store.write_part("own", runs_table([own]))
    store.write_plan("laptop", [{"run_id": "own", "skipped": None}])
    store.write_suite("name: crowded_valley\n")
    imported(tmp_path, tmp_path / "store")
    assert results.scales(tmp_path / "store", "crowded_valley") == ["laptop", "published"]
    assert raybench.table(tmp_path / "store")["run_id"].tolist() == ["own"]
    assert (store.folder / "suite.yaml").read_text(encoding="utf-8") == "name: crowded_valley\n"
    assert len(table(tmp_path / "store")) == 1


def test_an_empty_store_shows_what_was_imported(tmp_path: Path) -> None:
    put(tmp_path / "results_main", content())
    imported(tmp_path, tmp_path / "store")
    imported(tmp_path, tmp_path / "store")
    assert results.scales(tmp_path / "store", "crowded_valley") == ["published"]
    assert len(raybench.table(tmp_path / "store")) == 1
    text = (tmp_path / "store" / "crowded_valley" / "suite.yaml").read_text(encoding="utf-8")
    assert "scale: published" in text


def test_names_in_files_are_only_text(tmp_path: Path) -> None:
    form = content("../../escape';--", "x\ny")
    form["optimizer_hyperparams"] = {"learning_rate": 0.1, "a.b'\"": 3, "LR": 1, "w": 10**30}
    folder = tmp_path / "results_main" / "oneshot" / "none" / "so; me" / "Ev il'\"Optimizer" / "s"
    folder.mkdir(parents=True)
    form["testproblem"] = "so; me"
    path = folder / "random_seed__42__not-a-time.json"
    path.write_text(json.dumps(form), encoding="utf-8")
    imported(tmp_path, tmp_path / "store")
    (row,) = table(tmp_path / "store").to_dict("records")
    assert row["label.problem"] == "so; me"
    assert row["config.optimizer.w"] == 1e30
    assert pd.isna(row["started_at"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results_main", "store"]


def test_a_bad_name_of_a_suite_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "results_main", content())
    with pytest.raises(UsageError, match="not the name of a suite"):
        imported(tmp_path, tmp_path / "store", "../elsewhere")


# --- the command ---------------------------------------------------------------------------------

APP = typer.Typer()
APP.add_typer(exchange.imports, name="import")


def ask(*words: object) -> Any:
    return CliRunner().invoke(APP, [str(word) for word in words])


def test_the_command_tells_what_was_imported(tmp_path: Path) -> None:
    base = tmp_path / "results_main"
    tuned(base, increments=True)
    put(base, diverged(content("mnist_vae"), 1))
    put(base, content(seed=77)).write_text("{", encoding="utf-8")
    said = ask("import", "deepobs", base, "-o", tmp_path / "store")
    assert said.exit_code == 0, said.output
    lines = [line.split() for line in said.output.splitlines()]
    assert ["problem", "runs", "diverged", "one_shot", "search", "refine", "confirm"] in lines
    assert ["quadratic_deep", "41", "0", "10", "3", "1", "30"] in lines
    assert "43 files" in said.output
    assert "random_seed__77" in said.output
    assert "is not JSON" in said.output


def test_the_command_speaks_json(tmp_path: Path) -> None:
    tuned(tmp_path / "results_main", increments=False)
    said = ask("import", "deepobs", tmp_path, "-o", tmp_path / "store", "--suite", "mine", "--json")
    document = json.loads(said.stdout)
    assert document["runs"] == 41
    assert document["optimizers"] == ["sgd"]
    assert document["problems"][0]["confirm"] == 30
    assert raybench.table(tmp_path / "store", "mine")["run_id"].nunique() == 41


@pytest.mark.parametrize(("given", "code"), [("empty", 5), ("missing", 2)])
def test_the_command_fails_as_it_should(tmp_path: Path, given: str, code: int) -> None:
    (tmp_path / "empty").mkdir()
    said = ask("import", "deepobs", tmp_path / given, "-o", tmp_path / "store")
    if isinstance(said.exception, RaybenchError):
        assert said.exception.exit_code == code
    else:
        assert said.exit_code == code
