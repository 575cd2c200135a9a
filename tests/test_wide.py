"""Wide limits: the recursion, ensembles, parametrizations, what training moves, and the claims."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from raybench.analysis import figures_for
from raybench.analysis.figure import Tables, Verdict, evaluate
from raybench.analysis.rows import Missing
from raybench.analysis.wide_limits_study import exponent
from raybench.lanes import Lanes
from raybench.models import MODELS
from raybench.procedures import PROCEDURES
from raybench.procedures.base import DTYPES
from raybench.procedures.bound import Bound
from raybench.procedures.correlators import Correlators
from raybench.procedures.kernel import features, predicted
from raybench.procedures.nngp import FUNCTIONS, expected, recursion, series
from raybench.record import Account, Recorder
from raybench.rng import Seed
from raybench.spec import Run
from raybench.suite import load, read
from raybench.tables import build

torch.set_num_threads(1)

SUITE = Path(figures_for.__code__.co_filename).parents[1] / "suites" / "wide_limits.yaml"
DIGITS = {"name": "digits", "train": 30, "test": 40}
KERNEL = {
    "name": "kernel",
    "data": {"name": "gaussian", "dim": 5, "train": 3, "test": 1},
    "width": 8,
    "nets": 3,
}
REGRESSION = {"name": "gaussian_process", "data": {**DIGITS, "test": 250}, "depth": 2}
ENSEMBLE = {"name": "correlators", "width": 3, "nets": 50, "experiments": 4}
LAZY = {
    "name": "lazy",
    "data": DIGITS,
    "model": {"name": "wide_mlp", "width": 16, "depth": 2},
    "optimizer": {"name": "sgd", "lr": 1.0},
    "loss": "mse",
    "batch_size": None,
    "steps": "40it",
    "rows": 4,
    "curvature_rate": True,
    "until": 0.12,
    "record": {"at": {"linear": 1}, "on": ["train"]},
}


def accounts(config: dict[str, Any], width: int, seeds: Sequence[int] = range(5)) -> list[Account]:
    problems: list[Any] = []
    spec = build(PROCEDURES, config, (), problems)
    assert not problems, problems
    runs = [Run(spec, Seed(seed)) for seed in seeds]
    found: list[Account] = []
    for start in range(0, len(runs), width):
        group = runs[start : start + width]
        lanes = Lanes(len(group), dtype=DTYPES[spec.dtype])
        recorder = Recorder(lanes)
        spec.execute(lanes, group, recorder)
        found += recorder.accounts()
    return found


def values(account: Account) -> dict[str, float]:
    return {f"{m.split}.{m.name}": m.value for m in account.metrics}


def rows(count: int, dim: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=draw, dtype=torch.float64)


# Packing.


@pytest.mark.parametrize(
    "config",
    [KERNEL, {**KERNEL, "activation": "tanh", "depth": 2}, REGRESSION, ENSEMBLE, LAZY],
    ids=["kernel", "tanh", "regression", "correlators", "lazy"],
)
def test_the_same_alone_and_on_lanes(config: dict[str, Any]) -> None:
    exact = {**config, "dtype": "float64"}
    alone, packed = accounts(exact, 1), accounts(exact, 5)
    assert [dataclasses.astuple(a) for a in alone] == [dataclasses.astuple(a) for a in packed]
    single = {**config, "dtype": "float32"}
    for one, other in zip(accounts(single, 1), accounts(single, 5), strict=True):
        assert values(other) == pytest.approx(values(one), rel=2e-2, abs=1e-4, nan_ok=True)


def test_what_is_stopped_does_not_depend_on_the_group() -> None:
    found = [values(account) for account in accounts({**LAZY, "dtype": "float64"}, 5)]
    steps = [each["model.steps_taken"] for each in found]
    assert len(set(steps)) > 1
    assert all(0 < taken < 40 for taken in steps)
    assert all(each["train.loss"] < 0.12 for each in found)


# The recursion.


@pytest.mark.parametrize("activation", ["relu", "erf", "tanh"])
def test_expectations_match_monte_carlo(activation: Any) -> None:
    kernel = torch.tensor([[1.7, 0.9], [0.9, 0.8]], dtype=torch.float64)
    factor = torch.linalg.cholesky(kernel)
    draw = torch.Generator().manual_seed(0)
    half = torch.randn(4_000_000, 2, generator=draw) @ factor.T.float()
    phi = FUNCTIONS[activation](torch.cat([half, -half])).double()
    assert torch.allclose(expected(kernel, activation), phi.T @ phi / len(phi), atol=1e-3)


def test_the_series_meets_the_closed_form_of_erf() -> None:
    x = rows(5, 3)
    kernel = x @ x.T
    kernel[1, 0] = kernel[0, 1] = (kernel[0, 0] * kernel[1, 1]).sqrt()  # a correlation of one
    made = series(kernel, torch.erf)
    assert torch.allclose(made, expected(kernel, "erf"), atol=1e-6)


def test_tanh_meets_quadrature_in_two_dimensions() -> None:
    q, p, rho = 1.9, 0.6, -0.7
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    u, v = np.meshgrid(points, points)
    grid = np.tanh(math.sqrt(q) * u) * np.tanh(math.sqrt(p) * (rho * u + math.sqrt(1 - rho**2) * v))
    truth = weights @ grid @ weights / (2 * math.pi)
    k = rho * math.sqrt(q * p)
    kernel = torch.tensor([[q, k], [k, p]], dtype=torch.float64)
    assert float(expected(kernel, "tanh")[0, 1]) == pytest.approx(truth, abs=1e-8)


def test_recursion_of_relu_keeps_its_variance() -> None:
    x = rows(4, 6)
    x = x / x.square().mean(-1, keepdim=True).sqrt()
    made = recursion(x, "relu", 7, 2.0, 0.0)
    assert torch.allclose(made.diagonal(), torch.full((4,), 2.0, dtype=torch.float64))
    assert (made > 1.5).all()  # depth draws all rows together


@pytest.mark.parametrize("activation", ["relu", "erf", "tanh"])
def test_wide_nets_have_the_recursions_kernel(activation: str) -> None:
    wide = {**KERNEL, "width": 2000, "activation": activation, "nets": 8}
    found = [values(account)["model.kernel_error"] for account in accounts(wide, 5)]
    assert 0 < np.mean(found) < 4 / math.sqrt(2000)


# Regression.


def test_frozen_net_with_ridge_is_the_process_with_its_own_kernel() -> None:
    """Ridge regression on h sqrt(sw / N) is the Gaussian process of the empirical kernel."""
    problems: list[Any] = []
    spec = build(PROCEDURES, {**KERNEL, "bias_variance": 0.0}, (), problems)
    x, y, noise = rows(12, 5), rows(9, 2, 1), 0.03
    net = [(rows(20, 5, 2), rows(1, 20, 3)[0]), (rows(1, 20, 4), rows(1, 1, 5)[0])]
    hidden, _ = features(x, net, spec)
    phi = hidden * (spec.weight_variance / 20) ** 0.5  # type: ignore[attr-defined]
    mean, variance = predicted(phi @ phi.T, y, noise)
    gram = phi[:9].T @ phi[:9] + noise * torch.eye(20, dtype=torch.float64)
    ridge = phi[9:] @ torch.linalg.solve(gram, phi[:9].T @ y)
    assert torch.allclose(mean, ridge, atol=1e-8)
    left = noise * (phi[9:] @ torch.linalg.solve(gram, phi[9:].T)).diagonal()
    assert torch.allclose(variance, left, atol=1e-8)


def test_regression_reads_digits() -> None:
    config = {"name": "gaussian_process", "data": {"name": "digits", "train": 300, "test": 400}}
    (found,) = (values(a) for a in accounts({**config, "weight_variance": 1.8}, 1, [0]))
    assert found["test.error"] < 0.08
    assert found["test.variance_correlation"] > 0.5


# Ensembles.


def test_exact_ratios() -> None:
    _, relu = Correlators(width=4, inputs=(0.3, 1.2)).exact()
    assert torch.allclose(relu, torch.full_like(relu, 5 / 4))
    _, erf = Correlators(width=1, activation="erf").exact()
    # E erf(u)^4 / (E erf(u)^2)^2 - 1 by adaptive quadrature (scipy.integrate.quad).
    assert float(erf[0]) == pytest.approx(0.5598385443, abs=1e-9)


@pytest.mark.parametrize(("activation", "inputs"), [("relu", [1.0]), ("erf", [0.4, -1.0])])
def test_ensembles_have_the_exact_ratio(activation: str, inputs: list[float]) -> None:
    config = {**ENSEMBLE, "activation": activation, "inputs": inputs, "nets": 40_000}
    found = [values(a) for a in accounts({**config, "experiments": 10}, 2, [0, 1])]
    for each in found:
        gap = each["model.four_point"] - each["model.four_point_exact"]
        assert abs(gap) < 4 * each["model.four_point_se"]
        assert abs(each["model.two_point"]) < 4 * each["model.two_point_se"]
        assert each["model.four_point"] > 20 * each["model.four_point_se"]


def test_the_origin_is_refused() -> None:
    assert "0" in str(Correlators(inputs=(0.0, 1.0)).check())
    assert Correlators().check() is None


# Parametrizations.


@pytest.mark.parametrize("width", [1, 8, 64])
def test_size_of_wide_mlp(width: int) -> None:
    model = MODELS["wide_mlp"](width=width, depth=3)
    params, _ = model.state(model.skeleton((12,), 4), (12,), 4, Seed(0))
    total = sum(weight.numel() for weight in params.values())
    assert total == 12 * width + 2 * width**2 + 4 * width


def effective(model: Any, seed: int = 0) -> list[Tensor]:
    """The weights W = a w of each layer."""
    skeleton = model.skeleton((12,), 4)
    params, _ = model.state(skeleton, (12,), 4, Seed(seed))
    layers = [m for m in skeleton.modules() if hasattr(m, "multiplier")]
    return [w.double() * m.multiplier for w, m in zip(params.values(), layers, strict=True)]


@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_first_weights_scale_as_the_parametrization_says(rule: str) -> None:
    def made(kind: str) -> list[Tensor]:
        return effective(
            MODELS["wide_mlp"](width=48, depth=2, base_width=12, parametrization=kind, mup_for=rule)
        )

    standard, ntk, mup = made("standard"), made("ntk"), made("mup")
    assert standard[1].std() == pytest.approx(math.sqrt(2 / 48), rel=0.05)
    for one, other in zip(standard, ntk, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    for place, shrunk in enumerate((1.0, 1.0, 0.5)):  # the readout by 1 / sqrt(48 / 12)
        assert torch.allclose(mup[place], standard[place] * shrunk, atol=1e-6)


@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_at_base_width_mup_is_standard(rule: str) -> None:
    fields = {"width": 64, "depth": 2, "mup_for": rule}
    both = [effective(MODELS["wide_mlp"](parametrization=kind, **fields)) for kind in
            ("standard", "mup")]  # fmt: skip
    assert all(torch.equal(one, other) for one, other in zip(*both, strict=True))


@pytest.mark.parametrize(
    ("rule", "factors"), [("adam", (1.0, 0.25, 0.25)), ("sgd", (4.0, 1.0, 0.25))]
)
def test_one_rate_is_a_rate_for_each_layer(rule: str, factors: tuple[float, ...]) -> None:
    """The abc-symmetry: steps in w at one rate are steps in W = a w at the table's rates."""
    model = MODELS["wide_mlp"](
        width=16, depth=2, base_width=4, parametrization="mup", mup_for=rule, activation="tanh"
    )
    module = model.skeleton((12,), 4)
    params = {n: p.double() for n, p in model.state(module, (12,), 4, Seed(0))[0].items()}
    layers = [m for m in module.modules() if hasattr(m, "multiplier")]
    multipliers = [layer.multiplier for layer in layers]
    x, y, lr = rows(6, 12), rows(6, 4, 1), 0.01

    def outputs(weights: list[Tensor]) -> Tensor:
        one, two, three = weights
        return torch.tanh(torch.tanh(x @ one.T) @ two.T) @ three.T

    def step(weights: list[Tensor], loss: Tensor, rates: list[float], state: list[Any]) -> None:
        grads = torch.autograd.grad(loss, weights)
        for place, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
            if rule == "sgd":
                move = grad
            else:  # Adam without eps
                m, s, t = state[place] or (0.0, 0.0, 0)
                m, s, t = 0.9 * m + 0.1 * grad, 0.999 * s + 0.001 * grad**2, t + 1
                state[place] = (m, s, t)
                move = (m / (1 - 0.9**t)) / (s / (1 - 0.999**t)).sqrt()
            weights[place] = (weight - rates[place] * move).detach().requires_grad_()

    small = [p.clone().requires_grad_() for p in params.values()]
    large = [
        (a * p).detach().requires_grad_() for a, p in zip(multipliers, params.values(), strict=True)
    ]
    states: list[list[Any]] = [[None] * 3, [None] * 3]
    for _ in range(3):
        bound = Bound(module)(dict(zip(params, small, strict=True)), {}, x)
        assert torch.allclose(bound, outputs(large), atol=1e-9)
        step(small, (bound - y).square().mean(), [lr] * 3, states[0])
        step(large, (outputs(large) - y).square().mean(), [lr * f for f in factors], states[1])


# What training moves.


def test_rate_and_curvature_of_a_linear_readout() -> None:
    """A step of 1 / lambda at most halves the gap to the quadratic model's minimum: it descends."""
    found = [values(a) for a in accounts({**LAZY, "steps": "1it", "until": 0.0}, 2, [0, 1])]
    before = [values(a) for a in accounts({**LAZY, "steps": "0it", "until": 0.0}, 2, [0, 1])]
    for after, start in zip(found, before, strict=True):
        assert after["train.loss"] < start["train.loss"]
        assert after["model.rate"] == start["model.rate"] > 0
        assert start["model.moved"] == 0.0


def test_curvature_is_the_largest_eigenvalue() -> None:
    config = {
        **LAZY,
        "model": {"name": "linear", "bias": False},
        "dtype": "float64",
        "steps": "0it",
    }
    (found,) = (values(a) for a in accounts(config, 1, [3]))
    problems: list[Any] = []
    spec: Any = build(PROCEDURES, config, (), problems)
    data = spec.data.draw(Seed(3))
    x = data.x[data.rows["train"]].double()
    largest = torch.linalg.eigvalsh(x.T @ x / len(x)).max() * 2 / 10  # mse: the mean over outputs
    assert 1 / found["model.rate"] == pytest.approx(float(largest), rel=0.02)


def test_a_linear_model_is_its_linearization() -> None:
    config = {**LAZY, "model": {"name": "linear"}, "dtype": "float64", "until": 0.0}
    (found,) = (values(a) for a in accounts(config, 1, [0]))
    assert found["model.linear_gap"] < 1e-10
    assert found["model.kernel_change"] < 1e-12
    assert found["model.moved"] > 0.1
    assert found["model.coordinate.out"] > 0


@pytest.mark.parametrize("arm", ["ntk", "mup"])
def test_wider_is_lazier_but_for_mup(arm: str) -> None:
    model = {"name": "wide_mlp", "parametrization": arm, "mup_for": "sgd", "base_width": 8}
    config = {**LAZY, "rows": 8, "until": 0.03, "steps": "200it"}
    change = {}
    for width in (256, 1024):
        found = accounts({**config, "model": {**model, "width": width}}, 2, [0, 1])
        change[width] = np.mean([values(a)["model.kernel_change"] for a in found])
    fall = change[256] / change[1024]
    assert fall > 2 if arm == "ntk" else fall < 1.5, fall


def test_coordinates_of_mup_are_flat() -> None:
    moved: dict[tuple[str, int], float] = {}
    for arm in ("standard", "mup"):
        for width in (64, 512):
            model = {"name": "wide_mlp", "width": width, "depth": 2, "parametrization": arm}
            config = {**LAZY, "model": model, "optimizer": {"name": "adam", "lr": 0.01},
                      "curvature_rate": False, "kernel": False, "until": 0.0, "steps": "4it",
                      "loss": "cross_entropy", "rows": 30}  # fmt: skip
            found = [values(a) for a in accounts(config, 3, range(3))]
            assert "model.kernel_change" not in found[0]
            moved[arm, width] = np.mean([each["model.coordinate.out"] for each in found])
    assert moved["mup", 64] == pytest.approx(moved["standard", 64], rel=1e-5)
    assert 0.7 < moved["mup", 512] / moved["mup", 64] < 1.3
    assert moved["standard", 512] / moved["standard", 64] > 3


def test_curvature_rate_refuses_foreign_optimizers() -> None:
    problems: list[Any] = []
    spec: Any = build(PROCEDURES, LAZY, (), problems)
    assert spec.check() is None


# Claims: each passes on what theory gives, and fails on what it excludes.


def one_study(name: str, points: pd.DataFrame) -> Tables:
    runs = points.assign(**{"label.study": name, "status": "done"})
    return Tables(runs, pd.DataFrame())


def crossed(**columns: Sequence[Any]) -> pd.DataFrame:
    index = pd.MultiIndex.from_product(columns.values(), names=list(columns))
    return index.to_frame(index=False)


def verdicts(figure: str, tables: Tables) -> dict[str, Verdict]:
    found = evaluate(figures_for("wide_limits")[figure], tables)
    return {checked.claim.name: checked.verdict for checked in found.verdicts}


def noise(frame: pd.DataFrame, scale: float = 0.02) -> np.ndarray:
    return np.exp(scale * np.random.default_rng(0).standard_normal(len(frame)))


@pytest.mark.parametrize(("power", "passed"), [(-0.5, True), (-0.7, False), (-0.3, False)])
def test_kernel_claim(power: float, passed: bool) -> None:
    frame = crossed(activation=["relu"], depth=[1, 3], width=[16, 64, 256, 512], seed=range(5))
    frame["summary.model.kernel_error"] = frame["width"] ** power * noise(frame)
    frame["summary.model.second"] = noise(frame)
    frame["summary.model.fourth"] = 1.0
    frame = frame.rename(columns={c: f"config.{c}" for c in ("activation", "depth", "width")})
    (verdict,) = verdicts("kernel_by_width", one_study("one_kernel", frame)).values()
    assert verdict.passed is passed
    (outputs,) = verdicts("outputs_by_width", one_study("one_kernel", frame)).values()
    assert outputs.passed
    off = frame.assign(**{"summary.model.second": frame["summary.model.second"] * 1.2})
    (outputs,) = verdicts("outputs_by_width", one_study("one_kernel", off)).values()
    assert outputs.passed is False


@pytest.mark.parametrize(
    ("power", "factor", "two", "failed"),
    [
        (-1.0, 1.0, 0.0, set()),
        (-1.3, 1.0, 0.0, {"the four-point function falls as 1/N", "the ratio times N is flat",
                          "the coefficient is exact"}),
        (-1.0, 1.1, 0.0, {"the ratio times N is flat", "the coefficient is exact"}),
        (-1.0, 1.0, 0.1, {"the two-point function is exact at every width"}),
    ],
)  # fmt: skip
def test_correlator_claims(power: float, factor: float, two: float, failed: set[str]) -> None:
    frame = crossed(activation=["relu", "erf"], width=[2, 5, 10, 20, 50], seed=range(5))
    exact = np.where(frame["activation"] == "relu", 5.0, 0.56)
    error = 0.01 * exact / frame["width"]
    wobble = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])[frame["seed"]] * error
    model = {
        "four_point": exact * factor * frame["width"] ** power + wobble,
        "four_point_se": error,
        "four_point_exact": exact / frame["width"],
        "background": 2 * error,
        "two_point": two + 0.01 * (frame["seed"] - 2),
        "two_point_se": 0.02,
    }
    frame = frame.assign(**{f"summary.model.{name}": value for name, value in model.items()})
    frame = frame.rename(columns={c: f"config.{c}" for c in ("activation", "width")})
    found = verdicts("four_point", one_study("ensemble", frame))
    assert {name for name, verdict in found.items() if not verdict.passed} == failed


def test_tangent_claims() -> None:
    frame = crossed(arm=["ntk", "mup"], width=[64, 256, 1024, 4096], seed=range(5))
    lazy = frame["arm"] == "ntk"
    for powers, failed in (
        ((-0.8, 0.0, -0.5), set()),
        ((-0.2, -0.8, 0.1), {"the tangent kernel freezes with width",
                             "muP goes on learning features",
                             "wide networks train as linear models"}),
    ):  # fmt: skip
        ntk, mup, gap = powers
        made = frame.assign(
            **{
                "summary.model.kernel_change": frame["width"] ** np.where(lazy, ntk, mup)
                * noise(frame),
                "summary.model.linear_gap": frame["width"] ** gap * noise(frame),
                "summary.model.moved": 0.1,
            }
        ).rename(columns={"arm": "label.arm", "width": "config.model.width"})
        found = verdicts("tangent_kernel", one_study("tangent", made))
        assert {name for name, verdict in found.items() if not verdict.passed} == failed


def test_coordinate_claims() -> None:
    frame = crossed(arm=["standard", "mup"], width=[64, 512, 2048], seed=range(5))
    power = np.where(frame["arm"] == "mup", 0.02, 0.9)
    for layer in ("2", "out"):
        frame[f"summary.model.coordinate.{layer}"] = frame["width"] ** power * noise(frame)
    frame = frame.rename(columns={"arm": "label.arm", "width": "config.model.width"})
    assert all(
        v.passed for v in verdicts("coordinate_check", one_study("coordinates", frame)).values()
    )
    swapped = frame.assign(
        **{"label.arm": frame["label.arm"].map({"mup": "standard", "standard": "mup"})}
    )
    found = verdicts("coordinate_check", one_study("coordinates", swapped))
    assert not any(v.passed for v in found.values())
    narrow = frame[frame["config.model.width"] < 2048]
    found = verdicts("coordinate_check", one_study("coordinates", narrow))
    assert all(v.status == "NOT RUN" for v in found.values())


@pytest.mark.parametrize(("mup", "standard", "failed"), [(0, 3, 0), (3, 0, 2)])
def test_rate_claims(mup: int, standard: int, failed: int) -> None:
    frame = crossed(arm=["standard", "mup"], width=[64, 256, 1024], place=range(-12, -3),
                    seed=range(5))  # fmt: skip
    fall = np.where(frame["arm"] == "mup", mup, standard) * np.log2(frame["width"] / 64) / 4
    frame["summary.test.loss"] = np.exp((frame["place"] + 6 + fall) ** 2 / 4) * noise(frame)
    frame["config.optimizer.lr"] = 2.0 ** frame["place"]
    frame = frame.rename(columns={"arm": "label.arm", "width": "config.model.width"})
    found = verdicts("best_rate", one_study("rates", frame))
    assert sum(not verdict.passed for verdict in found.values()) == failed


def test_every_figure_says_what_is_missing() -> None:
    empty = Tables(
        pd.DataFrame({"label.study": ["x"], "status": ["done"], "seed": [0]}), pd.DataFrame()
    )
    for figure in figures_for("wide_limits").values():
        found = evaluate(figure, empty)
        assert found.data is None
        assert found.missing
        assert all(checked.verdict.status == "NOT RUN" for checked in found.verdicts)


def test_an_exponent_has_an_interval() -> None:
    frame = crossed(width=[4, 16, 64], seed=range(5))
    frame["value"] = 3 * frame["width"] ** -0.5 * noise(frame)
    found = exponent(frame, "value")
    assert found.low < -0.5 + 0.02
    assert found.high > -0.5 - 0.02
    assert found.high - found.low < 0.05
    assert math.isnan(exponent(frame[frame["seed"] == 0], "value").low)
    with pytest.raises(Missing, match="two values"):
        exponent(frame[frame["width"] == 4], "value")
    with pytest.raises(Missing, match="positive"):
        exponent(frame.assign(value=-frame["value"]), "value")
    wild = frame.assign(value=frame["value"].mask(frame["seed"] > 0, -0.01))
    assert math.isnan(exponent(wild, "value").low)  # most resamples hold a mean below 0


# The suite.


def test_the_suite_has_every_study_at_both_scales() -> None:
    wanted = {"one_kernel", "regression", "ensemble", "tangent", "coordinates", "rates"}
    for scale in ("laptop", "paper"):
        suite = load(read(SUITE), scale, {"seeds": 1})
        assert {planned.labels["study"] for planned in suite.runs} == wanted
        assert not any(planned.skipped for planned in suite.runs)
    assert load(read(SUITE), "laptop").seeds.count >= 5
