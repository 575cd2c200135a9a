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


# --- medians, deviations ------------------------------------------------------------------------


def test_median_interval_covers_and_bears_infinity():
    rng = np.random.default_rng(0)
    found = [stats.median_interval(rng.exponential(size=31), resamples=400) for _ in range(300)]
    assert 0.9 <= np.mean([i.low <= math.log(2) <= i.high for i in found]) <= 0.99
    lost = stats.median_interval([1.0, 2.0, math.inf])
    assert (lost.mean, lost.high) == (2.0, math.inf)
    assert not stats.median_interval([1.0]).bounded


def test_deviation_interval_is_chi_squared():
    values = np.random.default_rng(1).normal(0, 3, 10)
    found = stats.deviation_interval(values)
    free = 9 * values.var(ddof=1)
    assert found.low**2 == pytest.approx(free / reference.chi2.ppf(0.975, 9))
    assert found.high**2 == pytest.approx(free / reference.chi2.ppf(0.025, 9))
    assert found.high / found.mean == pytest.approx(1.826, abs=1e-3)
    assert not stats.deviation_interval([1.0]).bounded


# --- ranks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
def test_friedman_is_scipys(ties):
    scores = np.random.default_rng(7).normal(size=(5, 12))
    scores = np.round(scores) if ties else scores
    found = stats.friedman(scores)
    expected = reference.friedmanchisquare(*scores)
    assert (found.statistic, found.p_value) == pytest.approx((expected.statistic, expected.pvalue))
    assert found.ranks == pytest.approx(reference.rankdata(scores, axis=0).mean(axis=1))
    # Iman and Davenport's form is what an analysis of variance of the ranks gives.
    ranks = reference.rankdata(scores, axis=0)
    between = 12 * ((ranks.mean(axis=1) - ranks.mean()) ** 2).sum() / 4
    left = ranks - ranks.mean(axis=1, keepdims=True) - ranks.mean(axis=0) + ranks.mean()
    assert found.f_statistic == pytest.approx(between / ((left**2).sum() / 44))
    assert found.f_p_value == pytest.approx(reference.f.sf(found.f_statistic, 4, 44))


def test_friedman_at_the_ends():
    alike = stats.friedman(np.ones((3, 4)))
    assert (alike.p_value, alike.f_p_value) == (1.0, 1.0)
    clear = stats.friedman(np.arange(3.0)[:, None] + np.zeros((3, 5)))
    assert (clear.statistic, clear.f_statistic, clear.f_p_value) == (10.0, math.inf, 0.0)
    assert stats.friedman([[1.0, 2.0], [math.inf, math.inf]]).ranks == (1.0, 2.0)
    with pytest.raises(ValueError, match="1 missing"):
        stats.friedman([[1.0, 2.0], [1.0, math.nan]])
    with pytest.raises(ValueError, match="1 methods"):
        stats.friedman([[1.0, 2.0]])


@pytest.mark.parametrize(
    ("methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)]
)
def test_nemenyi_has_demsars_critical_values(methods, q):
    # Demsar 2006, table 5 (a); and the difference of his example: 4 methods, 14 sets, 1.25.
    blocks = methods * (methods + 1) // 6 or 1
    found = stats.nemenyi_difference(methods, blocks)
    assert found / math.sqrt(methods * (methods + 1) / (6 * blocks)) == pytest.approx(q, abs=1.1e-3)
    assert stats.nemenyi_difference(4, 14) == pytest.approx(1.25, abs=5e-3)
    with pytest.raises(ValueError, match="2 methods"):
        stats.nemenyi_difference(1, 5)


def test_nemenyi_agrees_with_scikit_posthocs():
    import scikit_posthocs

    apart = 0
    for seed in range(6):
        scores = np.random.default_rng(seed).normal(np.arange(4) * 0.5, 1, (12, 4))
        p_values = scikit_posthocs.posthoc_nemenyi_friedman(scores).to_numpy()
        ranks = stats.friedman(scores.T).ranks
        difference = stats.nemenyi_difference(4, 12)
        for a in range(4):
            for b in range(a):
                told = abs(ranks[a] - ranks[b]) > difference
                apart += told
                assert told == (p_values[a, b] < 0.05)
    assert 0 < apart < 36


def test_cliques():
    ranks = [3.2, 1.0, 1.4, 2.6, 6.0]
    assert stats.cliques(ranks, 1.9) == [(1, 2, 3), (2, 3, 0)]
    assert stats.cliques(ranks, 0.1) == []
    assert stats.cliques(ranks, 9.0) == [(1, 2, 3, 0, 4)]
    assert stats.cliques([1.0, 3.0], 2.0) == []


def test_signed_rank_is_scipys():
    rng = np.random.default_rng(8)
    a, b = rng.normal(0.5, 1, 12), rng.normal(0, 1, 12)
    assert stats.signed_rank(a, b) == pytest.approx(reference.wilcoxon(a, b).pvalue)
    more = stats.signed_rank([*a, math.nan, 1.0], [*b, 1.0, math.nan])
    assert more == pytest.approx(reference.wilcoxon(a, b).pvalue)
    assert stats.signed_rank([1.0, math.inf], [1.0, math.inf]) == 1.0
    assert stats.signed_rank(np.arange(6.0), np.full(6, math.inf)) == pytest.approx(2 / 2**6)
    with pytest.raises(ValueError, match="equal shapes"):
        stats.signed_rank([1.0], [1.0, 2.0])


def test_holm_is_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p_values = np.random.default_rng(9).uniform(0, 0.2, 9)
    assert stats.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]).tolist() == [1.0, 1.0]


# --- searches -----------------------------------------------------------------------------------


def test_expected_best_is_that_of_all_draws():
    valid = np.array([0.3, 0.1, 0.7, 0.2])
    test = np.array([3.0, 1.5, 7.0, 1.0])
    for k in (1, 2, 3):
        draws = np.stack(np.meshgrid(*[range(4)] * k, indexing="ij"), axis=-1).reshape(-1, k)
        picks = draws[np.arange(len(draws)), valid[draws].argmin(axis=1)]
        [found] = stats.expected_best(valid, [k])
        assert found.mean == pytest.approx(valid[picks].mean())
        [shown] = stats.expected_best(valid, [k], test)
        assert shown.mean == pytest.approx(test[picks].mean())
        assert found.low <= found.mean <= found.high


def test_expected_best_intervals_are_those_of_resampled_trials():
    valid = np.random.default_rng(10).lognormal(size=20)
    test = valid + np.random.default_rng(11).normal(0, 0.1, 20)
    [found] = stats.expected_best(valid, [5], test, resamples=3000)
    rng = np.random.default_rng(12)
    means = []
    for _ in range(1500):
        rows = rng.integers(0, 20, 20)
        means.append(stats.expected_best(valid[rows], [5], test[rows], resamples=1)[0].mean)
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), rel=0.1)


def test_expected_best_of_lost_trials():
    one, four = stats.expected_best([1.0, math.inf], [1, 4])
    assert math.isinf(one.mean)
    assert math.isinf(four.mean)
    assert stats.selection_weights(3, [1, 50]) == pytest.approx(
        np.array([[1 / 3] * 3, [1.0, 0.0, 0.0]]), abs=1e-7
    )
    with pytest.raises(ValueError, match="1 of 2 values are missing"):
        stats.expected_best([1.0, math.nan], [1])
    with pytest.raises(ValueError, match="begin at 1"):
        stats.expected_best([1.0], [0])


# --- profiles -----------------------------------------------------------------------------------


def test_first_times():
    run = [0, 0, 0, 1, 1, 2]
    found = stats.first_times(run, [3, 1, 2, 1, 2, 5], [0.1, 0.9, 0.2, 0.9, 0.9, 0.3], 0.3, 4)
    assert found.tolist() == [2.0, math.inf, 5.0, math.inf]


def test_profile_by_hand():
    inf = math.inf
    times = np.array([[1.0, 4.0, 9.0, inf], [2.0, 2.0, inf, inf], [5.0, 8.0, 3.0, inf]])
    ratios = stats.performance_ratios(times)
    assert ratios.tolist() == [[1, 2, 3, inf], [2, 1, inf, inf], [5, 4, 1, inf]]
    profile = stats.performance_profile(ratios, [1.0, 2.0, 3.5, 4.0])
    assert profile.tolist() == [
        [0.25, 0.5, 0.75, 0.75],
        [0.25, 0.5, 0.5, 0.5],
        [0.25, 0.25, 0.25, 0.5],
    ]
    score = stats.profile_score(ratios)
    assert score == pytest.approx([(3 + 2 + 1) / 12, (2 + 3) / 12, 3 / 12])
    at = np.linspace(1, 4, 30_001)
    fine = np.trapezoid(stats.performance_profile(ratios, at), at, axis=1) / 3
    assert score == pytest.approx(fine, abs=1e-3)
    assert stats.performance_ratios([[0.0], [2.0]]).tolist() == [[1.0], [inf]]


def test_profile_scores_take_medians_over_studies():
    inf = math.inf
    times = np.array([[[1.0, 2.0, 9.0], [3.0, 3.0, inf]], [[4.0, 4.0, 4.0], [inf, inf, 3.0]]])
    assert stats.median_times(times).tolist() == [[2.0, 3.0], [4.0, inf]]
    assert stats.median_times([[1.0, math.nan, 3.0], [math.nan] * 3]).tolist() == [2.0, inf]
    first, second = stats.profile_scores(times)
    assert (first.mean, second.mean) == pytest.approx((1.0, (2 / 3) / 2))
    assert first.low < first.mean == first.high
    assert 0 <= second.low < second.mean < second.high <= 1
    [alone, _] = stats.profile_scores(times[:, :, :1])
    assert not alone.bounded


# --- power --------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", [0.1, 0.35, 0.8, 2.0, -0.5])
def test_seeds_needed_is_statsmodels(effect):
    from statsmodels.stats.power import TTestPower

    exact = TTestPower().solve_power(effect_size=abs(effect), alpha=0.05, power=0.8)
    assert stats.seeds_needed(effect) == math.ceil(exact)
    for seeds in (3, 10, 40):
        power = TTestPower().power(abs(effect), seeds, 0.05)
        assert stats.paired_power(effect, seeds) == pytest.approx(power, abs=1e-6)


def test_power_is_what_tests_find():
    rng = np.random.default_rng(13)
    pairs = rng.normal(0.9, 1, (4000, 10))
    found = np.mean(reference.ttest_1samp(pairs, 0, axis=1).pvalue < 0.05)
    assert stats.paired_power(0.9, 10) == pytest.approx(found, abs=0.03)


def test_power_at_the_ends():
    assert stats.seeds_needed(0.0) == math.inf
    assert math.isnan(stats.seeds_needed(math.nan))
    assert stats.seeds_needed(1e-6) == math.inf
    assert stats.seeds_needed(500.0) == 2.0
    assert stats.paired_power(1.0, 1) == 0.0
    assert stats.paired_power(1e6, 10) == 1.0
