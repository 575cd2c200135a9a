import math

import numpy as np
import pytest
from scipy import stats as reference

from raybench import stats


def test_bootstrap_interval_is_scipys_bca():
    values = np.random.default_rng(1).exponential(size=20)
    found = stats.mean_interval(values, seed=3)
    expected = reference.bootstrap(
        (values,), np.mean, n_resamples=2000, method="BCa", rng=np.random.default_rng(3)
    ).confidence_interval
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.n, found.method) == (20, "95 % BCa bootstrap")
    assert found.bounded


def test_t_interval_is_students():
    values = np.array([1.0, 2.0, 4.0])
    found = stats.mean_interval(values, level=0.9, method="t")
    half = reference.t.ppf(0.95, 2) * values.std(ddof=1) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))
    assert found.method == "90 % t interval"


@pytest.mark.parametrize(("method", "low", "high"), [("t", 0.93, 0.97), ("bootstrap", 0.90, 0.97)])
def test_coverage(method, low, high):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(400, 20))
    hits = [
        i.low <= 0 <= i.high
        for i in (stats.mean_interval(s, method=method, resamples=400) for s in samples)
    ]
    assert low <= np.mean(hits) <= high


def test_one_value_has_no_interval_and_says_so():
    found = stats.mean_interval([0.3])
    assert found.mean == 0.3
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not found.bounded
    assert "one seed" in found.method
    assert stats.mean_interval([]).n == 0


def test_equal_values_have_a_zero_width():
    found = stats.mean_interval([0.1] * 5)
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


@pytest.mark.parametrize("values", [[0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0, 1e-300]])
def test_few_values_give_finite_bounds(values):
    found = stats.mean_interval(values)
    assert found.low <= found.mean <= found.high


def test_diverged_values_are_refused():
    with pytest.raises(ValueError, match="count them"):
        stats.mean_interval([1.0, math.inf])


def test_same_seed_same_interval():
    values = np.random.default_rng(0).normal(size=9)
    assert stats.mean_interval(values, seed=5) == stats.mean_interval(values, seed=5)
    assert stats.mean_interval(values, seed=5) != stats.mean_interval(values, seed=6)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 16, 101])
def test_iqm_is_scipys_trimmed_mean(size):
    values = np.random.default_rng(size).standard_cauchy(size)
    assert stats.iqm(values) == pytest.approx(reference.trim_mean(values, 0.25))


def test_iqm_of_nothing():
    assert math.isnan(stats.iqm([]))


def test_pairing_removes_what_the_seed_does():
    rng = np.random.default_rng(2)
    of_seed = rng.normal(0, 10, 30)
    a, b = of_seed + 0.5 + rng.normal(0, 0.1, 30), of_seed
    found = stats.paired_difference(a, b)
    assert 0.4 < found.low < found.mean < found.high < 0.6
    with pytest.raises(ValueError, match="equal shapes"):
        stats.paired_difference([1.0], [1.0, 2.0])


def test_probability_of_improvement_is_u_over_its_maximum():
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, 12), rng.normal(0.7, 1, 15)
    found = stats.probability_of_improvement(a, b)
    u = reference.mannwhitneyu(b, a).statistic
    assert found.mean == pytest.approx(u / (12 * 15))
    assert found.low < found.mean < found.high
    assert stats.probability_of_improvement([1.0, 1.0], [1.0, 1.0]).mean == 0.5
    assert stats.probability_of_improvement([1.0, 2.0], [math.inf, 3.0]).low == 1.0


def test_mean_ranks_of_a_clear_order():
    seeds = np.random.default_rng(4).normal(0, 0.01, (3, 2, 8))
    scores = np.array([1.0, 2.0, 3.0])[:, None, None] + seeds
    ranks = stats.mean_ranks(scores)
    assert [rank.mean for rank in ranks] == [1.0, 2.0, 3.0]
    assert [(rank.low, rank.high) for rank in ranks] == [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    assert ranks[0].n == 16


def test_mean_ranks_are_friedmans():
    scores = np.random.default_rng(5).normal(size=(4, 1, 10))
    expected = reference.rankdata(scores[:, 0], axis=0).mean(axis=1)
    ranks = stats.mean_ranks(scores)
    assert [rank.mean for rank in ranks] == pytest.approx(list(expected))
    assert all(rank.low <= rank.mean <= rank.high for rank in ranks)


def test_ranks_of_diverged_and_missing_runs():
    scores = np.array([[[1.0, math.inf, 1.0]], [[2.0, 2.0, math.nan]]])
    first, second = stats.mean_ranks(scores)
    assert (first.mean, second.mean, first.n) == (1.5, 1.5, 2)
    nothing = stats.mean_ranks(np.full((2, 1, 2), math.nan))
    assert math.isnan(nothing[0].mean)
    assert not stats.mean_ranks(np.ones((2, 1, 1)))[0].bounded


def test_argmin_of_a_mean_curve():
    grid = [0.1, 0.2, 0.4, 0.8]
    curves = np.array([[3.0, 1.0, 2.0, math.inf], [3.0, 2.0, 1.5, 9.0], [3.0, 1.0, 2.0, math.nan]])
    found = stats.argmin_interval(curves, grid)
    assert (found.mean, found.low, found.high) == (0.2, 0.2, 0.4)
    assert set(stats.argmin_draws(curves, grid)) == {0.2, 0.4}
    assert not stats.argmin_interval(curves[:1], grid).bounded


def test_draws_of_shared_seeds_are_paired():
    curves = np.random.default_rng(6).normal(size=(5, 4))
    first, second = (stats.argmin_draws(curves, [1.0, 2.0, 3.0, 4.0]) for _ in range(2))
    assert (first == second).all()


def test_slope_is_that_of_a_power():
    x = np.array([2.0, 4.0, 16.0])
    assert stats.slope(x, 5 * x**-0.7) == pytest.approx(-0.7)
    assert stats.slope(x, np.stack([x**2, x**-1])) == pytest.approx([2.0, -1.0])
