"""The procedure `solve`: exact against LAPACK and theory, alone as in a group, and never in doubt
about its rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raybench.clock import Clock
from raybench.data import DATA
from raybench.lanes import Lanes
from raybench.procedures import PROCEDURES, solve
from raybench.procedures.base import DTYPES
from raybench.procedures.least_squares import LeastSquares
from raybench.procedures.solve import Solve
from raybench.record import Account, Recorder
from raybench.rng import Seed
from raybench.spec import Run
from raybench.tables import build

torch.set_num_threads(1)

GAUSSIAN = {"name": "gaussian", "dim": 30, "train": 20, "test": None, "label_noise": 1.0}
DIGITS = {"name": "digits", "train": 60, "valid": 10, "test": 200, "label_noise": 0.1}


def run(seed: int = 0, **fields: Any) -> Run[Solve]:
    problems: list[Any] = []
    made = build(PROCEDURES, {"name": "solve", **fields}, (), problems)
    assert not problems, problems
    assert isinstance(made, Solve)
    return Run(made, Seed(seed))


def accounts(runs: list[Run[Solve]], width: int) -> list[Account]:
    found: list[Account] = []
    for start in range(0, len(runs), width):
        group = runs[start : start + width]
        lanes = Lanes(len(group), dtype=DTYPES[group[0].procedure.dtype])
        recorder = Recorder(lanes)
        group[0].procedure.execute(lanes, group, recorder)
        found += recorder.accounts()
    return found


def values(account: Account) -> dict[str, float]:
    return {f"{m.split}.{m.name}": m.value for m in account.metrics}


def of(**fields: Any) -> dict[str, float]:
    return values(accounts([run(**fields)], 1)[0])


def normal(*shape: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


# The algebra.


@pytest.mark.parametrize("p", [3, 39, 40, 41, 170])
@pytest.mark.parametrize("ridge", [0.0, 1e-6, 0.3])
def test_least_squares_is_what_lapack_finds(p: int, ridge: float) -> None:
    f, y = normal(40, p), normal(40, 2, seed=1)
    if ridge:
        # The textbook's augmented problem.
        stacked = torch.cat([f, (40 * ridge) ** 0.5 * torch.eye(p, dtype=f.dtype)])
        target = torch.cat([y, torch.zeros(p, 2, dtype=f.dtype)])
        expected = torch.from_numpy(np.linalg.lstsq(stacked.numpy(), target.numpy(), None)[0])
    else:
        expected = torch.from_numpy(np.linalg.pinv(f.numpy(), rcond=1e-12)) @ y
    found = LeastSquares(f).solve(y, ridge)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_one_factor_serves_any_ridge() -> None:
    f, y = normal(20, 50), normal(20, 1, seed=1)
    system = LeastSquares(f)
    for ridge in (0.0, 0.1, 0.0, 2.0):
        assert torch.equal(system.solve(y, ridge), LeastSquares(f).solve(y, ridge))


@pytest.mark.parametrize("shape", [(40, 15), (40, 90)])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_features_without_full_rank(shape: tuple[int, int], ridge: float) -> None:
    n, p = shape
    f = normal(n, 6) @ normal(6, p, seed=2)
    f[:, 3] = 0
    y = normal(n, 3, seed=1)
    found = LeastSquares(f).solve(y, ridge)
    if ridge:
        gram = f.T @ f + n * ridge * torch.eye(p, dtype=f.dtype)
        expected = torch.linalg.solve(gram, f.T @ y)
    else:
        expected = torch.from_numpy(np.linalg.pinv(f.numpy(), rcond=1e-10)) @ y
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_only_singular_values_under_the_share_are_dropped() -> None:
    basis, _ = torch.linalg.qr(normal(30, 4))
    scale = torch.tensor([1.0, 1e-3, 1e-8, 1e-12], dtype=torch.float64)
    b = LeastSquares(basis * scale).solve(basis.sum(1, keepdim=True), 0.0)
    expected = torch.tensor([[1.0], [1e3], [1e8], [0.0]], dtype=torch.float64)
    torch.testing.assert_close(b, expected, rtol=1e-6, atol=1e-3)


def test_a_nearly_singular_fit_still_interpolates() -> None:
    left, right = (torch.linalg.qr(normal(50, 50, seed=s))[0] for s in (0, 1))
    f = left * torch.logspace(0, -7, 50, dtype=torch.float64) @ right
    y = normal(50, 1, seed=2)
    b = LeastSquares(f).solve(y, 0.0)
    torch.testing.assert_close(b, torch.linalg.solve(f, y), rtol=1e-6, atol=1e-3)
    assert (f @ b - y).abs().max() < 1e-6


# Runs.


def many(**changes: Any) -> list[Run[Solve]]:
    return [
        run(
            seed,
            data={**GAUSSIAN, "signal": signal, "label_noise": noise, **changes},
            ridge=ridge,
        )
        for signal, noise, ridge in ((1.0, 1.0, 0.0), (5.0, 1.0, 0.0), (5.0, 0.5, 0.2))
        for seed in range(4)
    ]


def images() -> list[Run[Solve]]:
    return [
        run(seed, data={**DIGITS, "label_noise": noise}, features=features, ridge=ridge)
        for features in ({"kind": "relu", "width": 60},)
        for noise, ridge in ((0.0, 0.0), (0.2, 0.0), (0.2, 1e-3))
        for seed in range(3)
    ]


@pytest.mark.parametrize("runs", [many(), many(dim=12), images()], ids=["wide", "tall", "images"])
def test_alone_is_as_in_a_group(runs: list[Run[Solve]]) -> None:
    assert len({each.batch_key for each in runs}) == 1
    alone = [dataclasses.astuple(a) for a in accounts(runs, 1)]
    for width in (len(runs), 5):
        assert [dataclasses.astuple(a) for a in accounts(runs, width)] == alone
    backwards = [dataclasses.astuple(a) for a in accounts(runs[::-1], len(runs))]
    assert backwards[::-1] == alone


def test_runs_of_one_seed_share_a_factorization(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []

    class Counted(LeastSquares):
        def __init__(self, features: Tensor) -> None:
            made.append(features)
            super().__init__(features)

    monkeypatch.setattr(solve, "LeastSquares", Counted)
    accounts(many(), 12)
    assert len(made) == 4
    made.clear()
    # Rows drawn anew for each run are not mistaken for the same ones.
    runs = [run(0, data={**DIGITS, "inputs": "shuffled"}, ridge=r) for r in (0.1, 0.2)]
    accounts(runs, 2)
    assert len(made) == 2


def test_float32_is_close() -> None:
    data = {**GAUSSIAN, "dim": 5}
    single, double = of(data=data, dtype="float32"), of(data=data)
    assert single == pytest.approx(double, rel=1e-4, abs=1e-6)


def test_defaults() -> None:
    made = run(data=GAUSSIAN).procedure
    assert made.dtype == "float64"
    assert made.ridge == 0
    assert made.features.kind == "linear"


# What is recorded.


@pytest.mark.parametrize("changes", [{"dim": 8}, {"dim": 60}, {"dim": 60, "decay": 2.0}])
def test_excess_risk_is_the_loss_on_new_rows(changes: Mapping[str, Any]) -> None:
    data = {**GAUSSIAN, **changes, "signal": 3.0, "outputs": 2, "test": 20_000}
    found = of(data=data)
    # Test rows carry no label noise; their loss has a relative deviation of under 1 %.
    assert found["model.excess_risk"] == pytest.approx(found["test.loss"], rel=0.04)
    unseen = 0.0 if "decay" not in changes else 3.0 * (1 + 60 / 20) ** -2
    gap = found["model.excess_risk"] - found["model.parameter_error"]
    assert gap == pytest.approx(unseen, abs=1e-12)


def test_wide_fits_interpolate_and_narrow_ones_do_not() -> None:
    assert of(data=GAUSSIAN)["train.loss"] < 1e-20
    assert of(data={**GAUSSIAN, "dim": 5})["train.loss"] > 0.1
    assert of(data=GAUSSIAN, ridge=0.5)["train.loss"] > 1e-3


def test_ridge_shrinks() -> None:
    norms = [of(data=GAUSSIAN, ridge=r)["model.weight_norm"] for r in (0.0, 0.1, 1.0, 100.0)]
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 0.1


def test_linear_features_are_the_first_of_a_row() -> None:
    few = accounts([run(data=GAUSSIAN, features={"width": 7})], 1)[0]
    assert few.facts["num_params"] == 7
    data = DATA["gaussian"](**{k: v for k, v in GAUSSIAN.items() if k != "name"})
    drawn, truth = data.draw(Seed(0)), data.truth(Seed(0))  # type: ignore[attr-defined]
    x = drawn.x[drawn.rows["train"]].double().numpy()
    b = np.linalg.lstsq(x[:, :7], drawn.y["train"].double().numpy(), None)[0]
    risk = ((truth.beta[:7].numpy() - b) ** 2).sum() + (truth.beta[7:].numpy() ** 2).sum()
    assert values(few)["model.excess_risk"] == pytest.approx(risk, rel=1e-9)


@pytest.mark.parametrize("kind", ["relu", "fourier"])
def test_classes(kind: str) -> None:
    features = {"kind": kind, "width": 400, "scale": 0.3}
    account = accounts([run(data=DIGITS, features=features)], 1)[0]
    found = values(account)
    assert account.facts["num_params"] == 4000
    assert found["train.error"] == 0
    assert found["train.loss"] < 1e-18
    assert 0 < found["test.error"] < 0.6  # 0.9 by chance
    assert {"valid.error", "valid.loss", "model.weight_norm"} <= set(found)
    assert "model.excess_risk" not in found


def test_features_have_the_kernels_of_their_limits() -> None:
    x = normal(6, 5)
    spec = solve.Features(kind="fourier", width=200_000, scale=0.7)
    f = spec.of(5, Seed(0), x)(x)
    # Rahimi and Recht 2007: the Gaussian kernel.
    kernel = torch.exp(-0.5 * 0.7**2 * torch.cdist(x, x).square())
    torch.testing.assert_close(f @ f.T, kernel, atol=0.02, rtol=0)
    f = solve.Features(kind="relu", width=200_000).of(5, Seed(0), x)(x)
    # Cho and Saul 2009, order 1, on [x, 1].
    ones = torch.cat([x, torch.ones(6, 1, dtype=x.dtype)], 1)
    norm = ones.norm(dim=1)
    angle = (ones @ ones.T / norm[:, None] / norm).clamp(-1, 1).acos()
    arc = norm[:, None] * norm * (angle.sin() + (torch.pi - angle) * angle.cos())
    torch.testing.assert_close(f @ f.T, arc / (2 * torch.pi), rtol=0.03, atol=0.05)


def test_features_follow_the_stream_init() -> None:
    x = normal(3, 5)
    spec = solve.Features(kind="relu", width=9)
    one, other = (spec.of(5, Seed(seed), x)(x) for seed in (0, 1))
    assert not torch.equal(one, other)
    assert torch.equal(one, spec.of(5, Seed(1, 0, ("init",)), x)(x))


def test_mistakes_are_named() -> None:
    problems: list[Any] = []
    config = {"name": "solve", "data": DIGITS, "features": {"kind": "relu"}}
    assert build(PROCEDURES, config, (), problems) is None
    assert "width" in problems[0].message
    with pytest.raises(Exception, match=r"features\.width: 31 linear features of 30 inputs"):
        of(data=GAUSSIAN, features={"width": 31})


def test_the_peak_stands_at_as_many_features_as_rows() -> None:
    errors = {
        width: np.mean(
            [
                values(account)["test.error"]
                for account in accounts(
                    [
                        run(s, data=DIGITS, features={"kind": "relu", "width": width})
                        for s in (0, 1)
                    ],
                    2,
                )
            ]
        )
        for width in (20, 40, 60, 90, 600)
    }
    assert max(errors, key=lambda width: errors[width]) == 60
    assert errors[60] > errors[20] + 0.2
    assert errors[60] > errors[600] + 0.2


# Being timed.


@pytest.mark.parametrize("seeds", [1, 3, 40])
def test_a_clock_sees_a_few_problems_and_knows_the_whole(seeds: int) -> None:
    runs = [run(seed, data=GAUSSIAN) for seed in range(seeds)]
    clock = Clock(stop_after=6)
    lanes = Lanes(seeds, dtype=torch.float64, clock=clock)
    stopped = False
    try:
        runs[0].procedure.execute(lanes, runs, Recorder(lanes))
    except Clock.Enough:
        stopped = True
    assert stopped == (seeds > 8)
    assert clock.steps == (seeds if seeds > 8 else None)
    assert clock.seconds() > 0


# The data set.


def gaussian(**fields: Any) -> Any:
    return DATA["gaussian"](**fields)


def test_gaussian_without_test_rows() -> None:
    rows = gaussian(dim=3, train=12, test=None).draw(Seed(0)).rows
    assert {split: len(index) for split, index in rows.items()} == {
        "train": 12,
        "valid": 0,
        "test": 0,
    }


def test_gaussian_outputs_share_inputs() -> None:
    data = gaussian(dim=6, train=50, test=None, signal=4.0, outputs=3)
    pool, truth = data.pool(Seed(1)), data.truth(Seed(1))
    assert pool.y.shape == (50, 3)
    torch.testing.assert_close(truth.beta.square().sum(0), torch.full((3,), 4.0).double())
    torch.testing.assert_close((pool.x.double() @ truth.beta).float(), pool.y)
    assert abs(float(torch.corrcoef(truth.beta.T)[0, 1])) < 0.99


def test_gaussian_unseen_signal() -> None:
    data = gaussian(dim=50, train=4000, test=None, signal=2.0, decay=3.0)
    pool, truth = data.pool(Seed(1)), data.truth(Seed(1))
    share = (1 + 50 / 4000) ** -3
    assert truth.unseen == pytest.approx(2.0 * share)
    assert float(truth.beta.square().sum()) == pytest.approx(2.0 * (1 - share))
    rest = pool.y - pool.x @ truth.beta.float()
    # 4,000 draws: the relative deviation of a variance is 2.2 %.
    assert rest.var().item() == pytest.approx(truth.unseen, rel=0.1)
    assert pool.y.var().item() == pytest.approx(2.0, rel=0.1)


def test_gaussian_signal_and_noise_move_neither_rows_nor_directions() -> None:
    one = gaussian(dim=6, train=50, signal=1.0)
    other = gaussian(dim=6, train=50, signal=9.0, label_noise=0.5)
    assert torch.equal(one.pool(Seed(1)).x, other.pool(Seed(1)).x)
    torch.testing.assert_close(one.truth(Seed(1)).beta * 3, other.truth(Seed(1)).beta)
