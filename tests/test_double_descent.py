"""The suite `double_descent`: its runs, its figures, and each claim on tables made to pass or fail.

`synthetic` makes tables with the shapes that the paper describes; a claim must fail on tables that
lack the one shape it is about.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

from raybench.analysis import complexity, figures_for
from raybench.analysis.descent_runs import crossing, hill, seeds_by
from raybench.analysis.figure import Tables, evaluate, render
from raybench.analysis.rows import Missing
from raybench.cli.suites import bundled
from raybench.lanes import Lanes
from raybench.plan import distinct
from raybench.procedures import PROCEDURES
from raybench.procedures.solve import Solve
from raybench.procedures.train import Train
from raybench.record import Recorder
from raybench.suite import Planned, Suite, load, read

torch.set_num_threads(1)
SUITE = "double-descent"
FIGURES = figures_for(SUITE)
SEEDS = 5
WIDTHS = (4, 8, 16, 32, 64, 128, 512)
STEPS = (1, 10, 40, 100, 300, 1000, 3000)
SIZES = (50, 100, 200, 400, 800)

Curve = Callable[..., tuple[float, float]]
"""From a run's settings to its test and train error."""


def bump(x: float, at: float, height: float, spread: float = 0.5) -> float:
    """A hill on a logarithmic axis."""
    return height * float(np.exp(-((np.log(x / at) / spread) ** 2)))


def trained(width: float, noise: float, n: float, slower: float = 1.0) -> tuple[float, float]:
    """Model-wise: test error falls, peaks at n parameters' worth of width, and falls."""
    at = 64 * slower * n / 400
    test = 0.3 / np.sqrt(width / 4) + noise * 0.3 + bump(width, at, 1.2 * noise)
    train = 0.5 * noise / (1 + (3 * width / at) ** 4) + 0.4 * bump(width, 4, 1.0)
    return float(test), float(train)


def timed(width: float, noise: float, step: float) -> tuple[float, float]:
    """Epoch-wise: a wide network's error falls, rises and falls; a narrow one's only falls."""
    test = 0.1 + 0.6 / (1 + step / 5)
    if width >= 32:
        test += bump(step, 1000 if width > 64 else 3000, noise, 0.8)
    # A narrow network never fits its rows.
    train = 0.6 / (1 + step * width / 2000) if width >= 32 else 0.2 + 0.4 / (1 + step)
    return test, train


def sampled(width: float, noise: float, n: float, step: float = 2000) -> tuple[float, float]:
    """Sample-wise: a peak over n that moves with width; what is fitted grows with both."""
    fits = 25 * width * (step / 2000) ** 0.3 * (1 - noise)
    return 0.3 / np.sqrt(n / 50) + bump(n, fits, 0.6 * noise), complexity.EPS * (n / fits) ** 2


def featured(width: float, noise: float, n: float, ridge: float) -> tuple[float, float]:
    """Random features: a spike at N = n that ridge removes."""
    spike = bump(width, n, 0.7, 0.2) * (0.02 if ridge else 1.0)
    return 0.05 + noise + 1.0 / width + spike, 0.0


class Maker:
    """Collects rows of `runs` and `metrics`; a curve by name replaces the one that passes."""

    def __init__(self, curves: Mapping[str, Curve]) -> None:
        self.by: dict[str, Curve] = {
            "trained": trained,
            "timed": timed,
            "sampled": sampled,
            "stopped": lambda width, noise, n: (0.2 / np.sqrt(n / 50), 0.0),
            "featured": featured,
            **curves,
        }
        self.rows: list[dict[str, Any]] = []
        self.metrics: list[tuple[Any, ...]] = []

    def add(self, study: str, errors: tuple[float, float], **fields: Any) -> None:
        best = fields.pop("best", errors[0])
        for seed in range(SEEDS):
            off = 0.002 * (seed - (SEEDS - 1) / 2)
            label = {"label.study": study, "seed": seed, "status": "done"}
            label |= {"config.data.name": "digits", "run_id": f"{len(self.rows):016x}"}
            summary = {
                "summary.test.error": errors[0] + off,
                "summary.train.error": max(errors[1] + off / 4, 0.0),
                "summary.test.error.best": best + off,
            }
            config = {key.replace("__", "."): value for key, value in fields.items()}
            self.rows.append({**label, **summary, **config})

    def history(self, errors: Mapping[int, tuple[float, float]]) -> None:
        for row in self.rows[-SEEDS:]:
            off = 0.002 * (row["seed"] - (SEEDS - 1) / 2)
            for step, (test, train) in errors.items():
                where = (row["run_id"], step, step / 4)
                self.metrics.append((*where, "test", "error", test + off))
                self.metrics.append((*where, "train", "error", max(train + off / 4, 0.0)))

    def over_width(self) -> None:
        for width, noise in itertools.product(WIDTHS, (0.0, 0.1, 0.2)):
            for name, slower in (("plain", 1.0), ("augmented", 3.0)):
                errors = self.by["trained"](width, noise, 400, slower)
                best = 0.1 + 0.3 / np.sqrt(width)
                more = {"label__augmentation": name, **net(width, noise, 400)}
                self.add("model_wise", errors, best=best, **more)
        for width in WIDTHS:
            for n in (200, 800):
                errors = self.by["trained"](width, 0.2, n)
                self.add("more_data", errors, **net(width, 0.2, n))
            for decay in (0.0, 0.1, 1.0):
                errors = self.by["trained"](width, 0.2 * 0.1**decay, 400)
                more = {"config__optimizer__weight_decay": decay, **net(width, 0.2, 400)}
                self.add("weight_decay", errors, **more)

    def over_time(self) -> None:
        for width, noise in itertools.product(WIDTHS, (0.0, 0.2)):
            errors = {step: self.by["timed"](width, noise, step) for step in STEPS}
            self.add("epoch_wise", errors[STEPS[-1]], **net(width, noise, 400))
            self.history(errors)

    def over_samples(self) -> None:
        for width, noise, n in itertools.product((4, 8, 16, 24), (0.0, 0.2), SIZES):
            errors = {step: self.by["sampled"](width, noise, n, step) for step in (1, 50, 2000)}
            best = self.by["stopped"](width, noise, n)[0]
            self.add("sample_wise", errors[2000], best=best, **net(width, noise, n))
            self.history(errors)

    def over_features(self) -> None:
        widths, sizes = (25, 50, 100, 300, 900, 1800), (50, 100, 300, 900)
        for width, n, noise, ridge in itertools.product(widths, sizes, (0.0, 0.1), (0.0, 3e-4)):
            more = {"config__features__width": width, "config__ridge": ridge}
            more |= {"config__data__train": n, "config__data__label_noise": noise}
            more["summary__model__weight_norm"] = 1 + bump(width, n, 100.0)
            self.add("random_features", self.by["featured"](width, noise, n, ridge), **more)

    def tables(self) -> Tables:
        columns = ["run_id", "step", "epoch", "split", "metric", "value"]
        long = pd.DataFrame(self.metrics, columns=columns)
        texts = dict.fromkeys(("run_id", "split", "metric"), "category")
        return Tables(pd.DataFrame(self.rows), long.astype(texts))


def net(width: float, noise: float, n: int) -> dict[str, Any]:
    names = ("config__model__width", "config__data__label_noise", "config__data__train")
    return dict(zip(names, (width, noise, n), strict=True)) | {"num_params": 75 * width + 10}


def synthetic(*studies: str, **curves: Curve) -> Tables:
    """Tables of the studies, all of them where none is named."""
    maker = Maker(curves)
    for study in studies or ("over_width", "over_time", "over_samples", "over_features"):
        getattr(maker, study)()
    return maker.tables()


@pytest.fixture(scope="module")
def tables() -> Tables:
    return synthetic()


def verdicts(tables: Tables, figure: str) -> dict[str, str]:
    found = evaluate(FIGURES[figure], tables)
    return {checked.claim.name: checked.verdict.status for checked in found.verdicts}


# --- the suite ----------------------------------------------------------------------------------


def made(scale: str, **overrides: Any) -> Suite:
    return load(read(bundled()["double_descent"], "double_descent.yaml"), scale, overrides)


def test_laptop_has_its_runs_and_each_differs() -> None:
    suite = made("laptop")
    assert len(suite.runs) == len(distinct(suite.runs)) >= 3000
    assert suite.seeds.count >= 5
    kinds = {type(planned.run.procedure) for planned in suite.runs}
    assert kinds == {Train, Solve}


def test_paper_scale_has_the_published_settings() -> None:
    of: dict[str, list[Train]] = {}
    for planned in made("paper").runs:
        of.setdefault(str(planned.labels["study"]), []).append(planned.run.procedure)  # type: ignore[arg-type]
    adam, sgd = of["epoch_wise"][0], of["model_wise"][0]
    assert (adam.model.name, adam.optimizer.name, adam.optimizer.lr) == ("resnet18k", "adam", 1e-4)
    assert (str(adam.steps), adam.batch_size, adam.schedule.name) == ("4000ep", 128, "constant")
    assert adam.data.augment == ("crop", "flip")
    assert (sgd.model.name, sgd.optimizer.name, sgd.optimizer.lr) == ("cnn5", "sgd", 0.1)
    # 0.1 / sqrt(1 + floor(t / 512))
    assert sgd.schedule.factor(511, 10**6, 391) == 1.0
    assert sgd.schedule.factor(512 * 3, 10**6, 391) == 0.5
    assert {str(p.steps) for p in of["model_wise"]} == {"500000it"}
    assert {str(p.steps) for p in of["noiseless"]} == {"1000000it"}
    sizes = {p.data.train for p in of["sample_wise"]}
    assert sizes == {3125, 4419, 6250, 8839, 12500, 17678, 25000, 35355, 50000}


def test_what_the_command_line_sets_reaches_the_runs_that_have_it() -> None:
    suite = made("laptop", **{"steps": "3it", "data.train": [50], "seeds": 1})
    trained_runs = [p for p in suite.runs if isinstance(p.run.procedure, Train)]
    assert {str(p.run.procedure.steps) for p in trained_runs} == {"3it"}  # type: ignore[attr-defined]


def test_samples_of_a_smaller_n_are_the_first_of_a_larger_one() -> None:
    suite = made("laptop", seeds=1)
    runs = [p for p in suite.runs if p.labels["study"] == "sample_wise"]
    drawn = {p.run.procedure.data.train: p.run.procedure.data.draw(p.run.seed) for p in runs}  # type: ignore[attr-defined]
    small, large = drawn[100].rows["train"], drawn[1000].rows["train"]
    assert torch.equal(small, large[:100])
    assert torch.equal(drawn[100].rows["test"], drawn[1000].rows["test"])


def test_one_run_of_each_study_trains() -> None:
    overrides = {"steps": "2it", "model.width": [8], "features.width": [50], "seeds": 1}
    seen: dict[str, Planned] = {}
    for planned in made("laptop", **overrides).runs:
        name = str(planned.labels["study"]) + str(planned.labels.get("augmentation", ""))
        seen.setdefault(name, planned)
    assert len(seen) == 7
    for planned in seen.values():
        recorder = Recorder(Lanes(1))
        planned.run.procedure.execute(Lanes(1), [planned.run], recorder)
        (account,) = recorder.accounts()
        names = {(metric.split, metric.name) for metric in account.metrics}
        assert {("test", "error"), ("train", "error")} <= names
        assert account.diverged_at is None
    assert set(PROCEDURES.bundled) >= {"train", "solve"}


# --- the figures --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    before = dict(mpl.rcParams)
    yield
    assert dict(mpl.rcParams) == before


def test_every_figure_is_drawn_and_every_claim_passes(tables: Tables, tmp_path: Any) -> None:
    for done in render(FIGURES, tables, tmp_path):
        assert not done.missing, (done.name, done.missing)
        assert done.verdicts
        for checked in done.verdicts:
            assert checked.verdict.passed, (done.name, checked)
        assert "Nakkiran et al. 2019, figure" in done.caption or "definition 1" in done.caption


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_claimed_of_nothing(name: str, tables: Tables) -> None:
    for runs in (pd.DataFrame(), tables.runs.iloc[:0], tables.runs.assign(**{"label.study": "x"})):
        found = evaluate(FIGURES[name], Tables(runs, tables.metrics))
        assert found.missing
        assert {c.verdict.status for c in found.verdicts} == {"NOT RUN"}
    lost = tables.runs.assign(status="failed")
    values = [column for column in lost.columns if column.startswith("summary.")]
    lost[values] = np.nan
    assert "PASS" not in set(verdicts(Tables(lost, tables.metrics), name).values())


def falling(width: float, noise: float, n: float, slower: float = 1.0) -> tuple[float, float]:
    return 0.5 / np.sqrt(width), trained(width, noise, n, slower)[1]


def late(width: float, noise: float, n: float, slower: float = 1.0) -> tuple[float, float]:
    return trained(width, noise, 10 * n, slower)[0], trained(width, noise, n, slower)[1]


def alike(width: float, noise: float, n: float, slower: float = 1.0) -> tuple[float, float]:
    return trained(width, 0.2, 400)


def test_claims_over_width_fail_without_their_shape() -> None:
    only_falls = synthetic("over_width", trained=falling)
    assert set(verdicts(only_falls, "error_by_width").values()) == {"FAIL"}
    assert set(verdicts(only_falls, "weight_decay").values()) == {"FAIL"}
    assert set(verdicts(only_falls, "early_stopping").values()) == {"FAIL"}
    assert set(verdicts(only_falls, "error_by_width_and_samples").values()) == {"FAIL"}
    assert (
        verdicts(synthetic("over_width", trained=late), "error_by_width")["peak at the threshold"]
        == "FAIL"
    )
    same = verdicts(synthetic("over_width", trained=alike), "error_by_width")
    assert same["a plateau without noise beside 10 %"] == "FAIL"
    assert same["a plateau without noise beside 20 %"] == "FAIL"
    assert same["noise raises the peak"] == "FAIL"
    assert same["augmentation moves the peak right"] == "FAIL"


def test_claims_over_time_fail_without_their_shape() -> None:
    monotone = synthetic(
        "over_time", timed=lambda width, noise, step: (0.7 / (1 + step), 0.5 / (1 + step))
    )
    large = "a large network's test error falls, rises, falls"
    assert verdicts(monotone, "width_by_epoch")[large] == "FAIL"
    assert set(verdicts(monotone, "epoch_wise").values()) == {"FAIL"}
    all_rise = synthetic(
        "over_time",
        timed=lambda width, noise, step: (timed(512, 0.2, step)[0], timed(width, noise, step)[1]),
    )
    found = verdicts(all_rise, "width_by_epoch")
    assert found["a large network's test error falls, rises, falls"] == "PASS"
    assert found["a small network's does not"] == "FAIL"
    assert set(verdicts(all_rise, "epoch_wise").values()) == {"FAIL"}
    stalled = synthetic(
        "over_time", timed=lambda width, noise, step: (timed(width, noise, step)[0], 0.09)
    )
    assert set(verdicts(stalled, "error_by_width_and_time").values()) == {"FAIL"}


def test_claims_over_samples_fail_without_their_shape() -> None:
    helps = synthetic(
        "over_samples",
        sampled=lambda w, noise, n, step=2000: (1 / n, sampled(w, noise, n, step)[1]),
    )
    assert verdicts(helps, "samples") == {
        "more samples can hurt": "FAIL",
        "not with early stopping": "PASS",
    }
    late = synthetic("over_samples", stopped=sampled)
    assert verdicts(late, "samples")["not with early stopping"] == "FAIL"
    stuck = synthetic(
        "over_samples", sampled=lambda w, noise, n, step=2000: (0.3, sampled(8, 0.2, n, 2000)[1])
    )
    assert set(verdicts(stuck, "complexity_by_parameters").values()) == {"FAIL"}
    assert set(verdicts(stuck, "complexity_by_epochs").values()) == {"FAIL"}


def test_claims_of_random_features_fail_without_their_shape() -> None:
    plain = synthetic("over_features", featured=lambda w, noise, n, ridge: (0.1 + w / 9999, 0.0))
    assert set(verdicts(plain, "random_features").values()) == {"FAIL"}
    assert set(verdicts(plain, "features_by_samples").values()) == {"FAIL"}
    no_help = synthetic(
        "over_features", featured=lambda w, noise, n, ridge: featured(w, noise, n, 0.0)
    )
    assert verdicts(no_help, "random_features")["ridge removes the peak"] == "FAIL"


def test_a_missing_arm_is_not_run(tables: Tables) -> None:
    runs = tables.runs
    quiet = runs[runs["config.data.label_noise"] != 0.2]
    found = verdicts(Tables(quiet, tables.metrics), "error_by_width")
    assert found["peak at the threshold"] == "NOT RUN"
    assert found["noise raises the peak"] == "NOT RUN"
    single = runs[runs["seed"] == 0]
    found = verdicts(Tables(single, tables.metrics), "error_by_width")
    assert found["peak above both sides"] == "NOT RUN"


# --- what they measure --------------------------------------------------------------------------


def test_crossing_lies_between_points_on_a_log_scale() -> None:
    assert crossing([10, 100, 1000], [0.4, 0.2, 0.0], 0.1) == pytest.approx(10**2.5)
    assert crossing([10, 100], [0.05, 0.0], 0.1) == 10
    assert np.isnan(crossing([10, 100], [0.5, 0.2], 0.1))


def test_complexity_is_the_largest_n_that_fits() -> None:
    sizes = np.array([100.0, 200.0, 400.0, 800.0])
    exact = complexity.emc(sizes, np.array([0.0, 0.05, 0.15, 0.3]), 0.1)
    assert exact == pytest.approx(200 * 2**0.5)  # half-way from 5 % to 15 %, over log n
    none, all_ = np.full(4, 0.5), np.zeros(4)
    assert complexity.emc(sizes, np.stack([none, all_]), 0.1).tolist() == [100.0, 800.0]
    # The definition asks for the largest n, though a smaller one should not fit.
    assert complexity.emc(sizes, np.array([0.2, 0.0, 0.2, 0.2]), 0.1) == pytest.approx(200 * 2**0.5)


def test_complexity_agrees_with_a_bisection_of_the_true_curve() -> None:
    def error(n: float) -> float:
        return float(0.5 * (1 - np.exp(-n / 900)))

    low, high = 10.0, 2000.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if error(middle) <= complexity.EPS else (low, middle)
    sizes = np.geomspace(50, 1000, 12)
    read_off = complexity.emc(sizes, np.array([error(n) for n in sizes]))
    assert read_off == pytest.approx(low, rel=0.02)


def test_complexity_data(tables: Tables) -> None:
    data = evaluate(FIGURES["complexity_by_parameters"], tables).data
    assert data is not None
    clean = data[data["label_noise"] == 0.0].set_index("width")
    assert clean.loc[8, "emc"] == pytest.approx(25 * 8, rel=0.1)  # error is EPS where n fits
    assert (clean["emc_low"] <= clean["emc"]).all()
    assert (clean["emc"] <= clean["emc_high"]).all()
    assert (clean["emc_n"] == SEEDS).all()


def test_a_hill_needs_both_sides() -> None:
    def table(*means: float) -> pd.DataFrame:
        rows = [
            {"seed": seed, "x": x, "test_error": mean + 0.001 * seed}
            for x, mean in enumerate(means, 1)
            for seed in range(SEEDS)
        ]
        return seeds_by(pd.DataFrame(rows), "x")

    up_down = hill(table(0.5, 0.2, 0.4, 0.1))
    assert (up_down.rise.low_at, up_down.rise.peak_at) == (2, 3)
    assert up_down.left.mean == pytest.approx(0.2)
    assert up_down.right.mean == pytest.approx(0.3)
    assert up_down.stands
    assert not hill(table(0.5, 0.2, 0.4, 0.4)).stands
    assert not hill(table(0.5, 0.4, 0.3)).stands
    with pytest.raises(Missing):
        table(0.5, 0.4)
