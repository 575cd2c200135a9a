"""Random labels: the construction that fits them, the suite's arms, its figures and claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from raybench.analysis import figures_for
from raybench.analysis.figure import Tables, evaluate, render
from raybench.analysis.random_labels import observations
from raybench.cli.suites import bundled
from raybench.models import MODELS
from raybench.suite import load, read

torch.set_num_threads(1)

FIGURES = figures_for("random_labels")
MODELS_SEEN = {"mlp": 1.0, "cnn": 1.5}  # and how many times longer it takes


# The theorem (Zhang et al. 2017, section 4 and appendix C).


def memorised(x: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights w [n] and thresholds b [n] with sum_j w_j max(<a, x_i> - b_j, 0) = y_i for all i.

    With projections z_1 < ... < z_n and b_1 < z_1 < b_2 < z_2 ... the matrix max(z_i - b_j, 0) is
    lower triangular with a positive diagonal: 2 n + d numbers w, b and a fit any y.
    """
    z, order = (x @ a).sort()
    b = torch.cat([z[:1] - 1, (z[:-1] + z[1:]) / 2])
    matrix = (z[:, None] - b).relu()
    w = torch.linalg.solve_triangular(matrix, y[order, None], upper=False)[:, 0]
    return a, b, w


@pytest.mark.parametrize(("n", "residual"), [(50, 1e-8), (200, 1e-6)])
def test_a_network_of_2n_plus_d_weights_fits_any_labels(n: int, residual: float) -> None:
    d = 10
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=draw, dtype=torch.float64)
    y = torch.randint(0, 10, (n,), generator=draw).double()
    a, b, w = memorised(x, y, torch.randn(d, generator=draw, dtype=torch.float64))
    assert a.numel() + b.numel() + w.numel() == 2 * n + d
    # The same numbers in raybench's own network of one hidden layer.
    skeleton = MODELS["mlp"](width=n).skeleton((d,), 1)
    weights = {
        "1.weight": a.expand(n, d),
        "1.bias": -b,
        "3.weight": w[None],
        "3.bias": torch.zeros(1, dtype=torch.float64),
    }
    outputs = functional_call(skeleton, weights, x)[:, 0]
    assert (outputs - y).abs().max() < residual


# The suite.


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_the_suite_has_the_papers_arms(scale: str) -> None:
    suite = load(read(bundled()["random_labels"], "random_labels.yaml"), scale, None)
    seen = [
        (p.labels["model"], p.labels.get("regularizer"), d.inputs, round(d.label_noise / 0.9, 6))
        for p in suite.runs
        for d in [p.run.procedure.data]  # type: ignore[attr-defined]
    ]
    models = {model for model, _, _, _ in seen}
    plain = {(m, i, p) for m, r, i, p in seen if not r}
    for model in models:
        for inputs in ("true", "shuffled", "random_pixels", "gaussian"):
            assert (model, inputs, 0.0) in plain
        levels = sorted(p for m, i, p in plain if (m, i) == (model, "true"))
        assert levels[0] == 0.0
        assert levels[-1] == 1.0
        assert len(levels) >= 6
        held = {(r, p) for m, r, i, p in seen if m == model and r}
        assert {p for _, p in held} == {0.0, 1.0}
        assert all((r, 1.0) in held for r, p in held)
    assert min(pd.Series(seen).value_counts()) >= 5


# Figures and claims, on tables made to show the effects.


def tables(
    slow: float = 3.0, chance: float = 0.9, unfit: str = "", gap: float = 0.02, seeds: int = 5
) -> Tables:
    """Tables as the suite leaves them: fits at step 100, and `slow` times that for random labels.

    Args:
        slow: time to fit random labels over that of true ones.
        chance: test error after random labels.
        unfit: randomisation, or regularizer on random labels, that is not fitted.
        gap: what a regularizer takes from the test error.
        seeds: number of them.
    """
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    curves: list[tuple[str, int, str, float]] = []

    def run(model: str, inputs: str, noise: float, regularizer: str | None, seed: int) -> None:
        share = noise / 0.9
        pixels = {"true": 0.0, "shuffled": 0.1, "random_pixels": 0.4, "gaussian": 0.5}[inputs]
        longer = 1 + (slow - 1) * (share if inputs == "true" else pixels)
        fit = 20 * round(5 * MODELS_SEEN[model] * longer * (1 + 0.02 * seed))
        lost = unfit == inputs or (noise == 0.9 and unfit == regularizer)
        run_id = f"{len(rows):016x}"
        error = 0.05 + (chance - 0.05) * share - (gap if regularizer and not share else 0)
        rows.append(
            {
                "run_id": run_id,
                "seed": seed,
                "status": "done",
                "label.model": model,
                "label.regularizer": regularizer,
                "config.data.name": "digits",
                "config.data.inputs": inputs,
                "config.data.label_noise": noise,
                "summary.train.error": 0.2 if lost else 0.0,
                "summary.test.error": error + 0.001 * rng.standard_normal(),
            }
        )
        for step in range(0, 1500, 20):
            done = step >= fit and not lost
            curves.append((run_id, step, "error", 0.0 if done else 0.5))
            if step % 100 == 0:
                curves.append((run_id, step, "loss", 2.3 * np.exp(-3 * step / fit)))

    for model in MODELS_SEEN:
        for seed in range(seeds):
            for noise in (0.0, 0.225, 0.45, 0.675, 0.9):
                run(model, "true", noise, None, seed)
            for inputs in ("shuffled", "random_pixels", "gaussian"):
                run(model, inputs, 0.0, None, seed)
            for noise in (0.0, 0.9):
                run(model, "true", noise, "weight_decay", seed)
                if model == "cnn":
                    run(model, "true", noise, "crop", seed)
    metrics = pd.DataFrame(curves, columns=["run_id", "step", "metric", "value"])
    return Tables(pd.DataFrame(rows), metrics.assign(epoch=0.0, split="train"))


def verdicts(found: Tables) -> dict[str, str]:
    return {
        checked.claim.name: checked.verdict.status
        for figure in FIGURES.values()
        for checked in evaluate(figure, found).verdicts
    }


def test_observations_name_what_was_randomised() -> None:
    frame = observations(tables())
    assert set(frame["randomisation"]) == {
        *("true labels", "random labels", "partly"),
        *("shuffled pixels", "random pixels", "Gaussian"),
    }
    assert sorted(frame["corruption"].unique()) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert frame["chance"].unique() == pytest.approx([0.9])
    assert set(frame["regularizer"]) == {"none", "weight_decay", "crop"}
    first = frame[(frame["model"] == "mlp") & (frame["seed"] == 0)].set_index("randomisation")
    assert first.loc["true labels", "fit_step"].tolist() == [100.0, 100.0]
    assert first.loc["random labels", "fit_step"].tolist() == [300.0, 300.0]
    assert observations(tables(unfit="gaussian"))["fit_step"].isna().sum() == 2 * 5


def test_the_papers_claims_pass_where_its_effects_are() -> None:
    found = verdicts(tables())
    assert len(found) == 8
    assert set(found.values()) == {"PASS"}


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"slow": 9.0}, {"a small constant factor"}),
        ({"slow": 1.0}, {"a small constant factor", "noise is fitted sooner than random labels"}),
        ({"chance": 0.8}, {"random labels end at chance"}),
        ({"chance": 0.05}, {"random labels end at chance", "test error rises with corruption"}),
        ({"unfit": "shuffled"}, {"everything is fitted"}),
        ({"unfit": "weight_decay"}, {"regularizers are not sufficient"}),
        ({"unfit": "crop"}, {"augmentation is not sufficient"}),
        ({"gap": 0.1}, {"regularizers are not necessary"}),
    ],
)
def test_each_claim_fails_where_its_effect_is_not(
    change: dict[str, Any], failing: set[str]
) -> None:
    found = verdicts(tables(**change))
    lost = {name for name, status in found.items() if status == "FAIL"}
    assert lost == failing


def test_without_the_runs_nothing_is_claimed() -> None:
    found = tables()
    only = found.runs[found.runs["label.regularizer"].isna()]
    status = verdicts(Tables(only, found.metrics))
    assert status["regularizers are not sufficient"] == "NOT RUN"
    assert status["everything is fitted"] == "PASS"
    bare = Tables(found.runs.drop(columns="label.model"), found.metrics)
    assert set(verdicts(bare).values()) == {"NOT RUN"}
    one = tables(seeds=1)
    assert verdicts(one)["noise is fitted sooner than random labels"] == "NOT RUN"


def test_figures_are_drawn_and_say_what_they_show(tmp_path: Path) -> None:
    drawn = {r.name: r for r in render(FIGURES, tables(), tmp_path)}
    assert set(drawn) == set(FIGURES)
    for name, one in drawn.items():
        assert one.png is not None, name
        assert one.png.stat().st_size > 10_000
        assert "seeds" in one.caption
    again = {r.name: r for r in render(FIGURES, tables(), tmp_path / "again")}
    for name, one in drawn.items():
        other = again[name]
        assert one.csv is not None
        assert other.csv is not None
        assert one.csv.read_bytes() == other.csv.read_bytes()


def test_a_figure_that_lacks_a_fit_still_draws() -> None:
    figure = FIGURES["fig_1b_time_to_fit"]
    for found in (tables(unfit="true"), tables(slow=20.0)):
        partly = evaluate(figure, found)
        assert partly.data is not None
        assert partly.verdicts[0].verdict.status == "FAIL"
        assert "never fit" in str(partly.verdicts[0].verdict.measured)
        assert figure.picture(partly.data).axes
    losses = evaluate(FIGURES["fig_1a_train_loss"], tables(unfit="gaussian")).data
    assert losses is not None
    assert FIGURES["fig_1a_train_loss"].picture(losses).axes
