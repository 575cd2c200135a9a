import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from raybench import analysis
from raybench.analysis import figures_for, generic, peak, rows, style
from raybench.analysis.figure import (
    Claim,
    Figure,
    Missing,
    Tables,
    Verdict,
    evaluate,
    render,
    verdict_counts,
)
from raybench.analysis.peak import largest_rise
from raybench.cli.suites import bundled
from raybench.errors import MissingError
from raybench.suite import read

NO_METRICS = pd.DataFrame(columns=["run_id", "step", "epoch", "split", "metric", "value"])
WIDTHS = (4, 8, 16, 32, 64, 128, 256)
TRAIN = (0.5, 0.2, 0.08, 0.01, 0.0, 0.0, 0.0)
PEAKED = (0.6, 0.4, 0.3, 0.35, 0.4, 0.35, 0.3)
FLAT = (0.5, 0.2, 0.1, 0.1, 0.11, 0.1, 0.1)


def with_ids(rows):
    frame = pd.DataFrame(rows)
    frame.insert(0, "run_id", [f"{i:016x}" for i in range(len(frame))])
    return frame


def double_descent(noisy=PEAKED, clean=FLAT, noises=(0.0, 0.2), seeds=6):
    rows = [
        {
            "seed": seed,
            "status": "done",
            "config.data.name": "digits",
            "config.data.train": 250,
            "config.data.label_noise": noise,
            "config.model.width": width,
            "num_params": 75 * width + 10,
            "summary.test.error": (noisy if noise else clean)[i] + 0.01 * (seed - 2.5),
            "summary.train.error": TRAIN[i],
            "summary.test.loss": 0.1 + 0.01 * seed,
        }
        for noise in noises
        for i, width in enumerate(WIDTHS)
        for seed in range(seeds)
    ]
    return with_ids(rows)


def width_sweep(power=-1.0, optimizers=("adam", "sgd"), widths=(16, 64, 256)):
    rng = np.random.default_rng(0)
    rows = []
    for optimizer in optimizers:
        for width in widths:
            best = np.log2(2.0**-4 * (width / 16) ** (power if optimizer == "adam" else 0.0))
            for exponent in range(-12, 0):
                for seed in range(4):
                    loss = 0.1 + 0.05 * (exponent - best) ** 2 + rng.normal(0, 0.005)
                    rows.append(
                        {
                            "seed": seed,
                            "status": "diverged" if exponent == -1 and seed == 0 else "done",
                            "config.optimizer.name": optimizer,
                            "config.optimizer.lr": 2.0**exponent,
                            "config.model.width": width,
                            "summary.test.loss": loss,
                        }
                    )
    return with_ids(rows)


SKILL = {  # optimizer: error on (first, second, third) problem
    "sgd": (0.30, 0.11, 0.30),
    "momentum": (0.20, 0.20, 0.20),
    "rmsprop": (0.25, 0.25, 0.25),
    "adam": (0.12, 0.12, 0.12),
    "nadam": (0.11, 0.15, 0.15),
}


def contest(skill=SKILL):
    rng = np.random.default_rng(1)
    rows, metrics = [], []
    for name, errors in skill.items():
        for problem, error in zip(("first", "second", "third"), errors, strict=True):
            label = {"label.problem": problem, "label.optimizer": name}
            for trial in range(6):
                loss = error * (1 + 0.1 * abs(trial - 3))
                rows.append(
                    {
                        "seed": 0,
                        "status": "diverged" if trial == 5 else "done",
                        **label,
                        "label.phase": "search",
                        "label.trial": trial,
                        "config.optimizer.lr": 10.0 ** (trial - 5),
                        "summary.valid.loss": loss,
                    }
                )
            for seed in range(5):
                rows.append(
                    {
                        "seed": 100 + seed,
                        "status": "done",
                        **label,
                        "label.phase": "confirm",
                        "label.trial": 3,
                        "config.optimizer.lr": 0.01,
                        "summary.valid.loss": error,
                        "summary.test.loss": 2 * error,
                        "summary.test.error": error + rng.normal(0, 1e-4),
                    }
                )
                metrics += [
                    (
                        f"{len(rows) - 1:016x}",
                        step,
                        step / 10,
                        "test",
                        "error",
                        error + 1 / (1 + step),
                    )
                    for step in (0, 1, 10, 100)
                ]
    long = pd.DataFrame(metrics, columns=list(NO_METRICS.columns))
    return with_ids(rows), long.astype(dict.fromkeys(("run_id", "split", "metric"), "category"))


def tables_of(suite):
    if suite == "optimizer-quick":
        return Tables(*contest())
    if suite == "width-sweep":
        return Tables(width_sweep(), NO_METRICS)
    if suite in ("quickstart", "double-descent-width"):
        return Tables(double_descent(), NO_METRICS)
    return Tables(*contest())


def statuses(suite, figure, runs, metrics=NO_METRICS):
    found = evaluate(figures_for(suite)[figure], Tables(runs, metrics))
    return {c.claim.name: c.verdict.status for c in found.verdicts}


# Suites of several studies need tables of their own, and have tests of their own that make them.
ELSEWHERE = ("crowded-valley", "ridgeless", "random-labels", "double-descent", "wide-limits")
SUITES = [*(suite for suite in analysis.MODULES if suite not in ELSEWHERE), "other"]
ALL = [(suite, name) for suite in SUITES for name in figures_for(suite)]


# --- every figure -------------------------------------------------------------------------------


def test_every_module_of_the_table_is_there():
    folder = Path(analysis.__file__).parent
    assert all((folder / f"{module}.py").is_file() for module in analysis.MODULES.values())


def test_analysis_needs_neither_torch_nor_ray():
    code = (
        "import sys, raybench.page, raybench.analysis as a;"
        "[a.figures_for(s) for s in (*a.MODULES, 'other')];"
        "bad = {'torch', 'ray', 'matplotlib.pyplot'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("suite", "name"), ALL)
def test_every_figure_renders_and_leaves_settings_alone(suite, name, tmp_path):
    before = dict(mpl.rcParams)
    figure = figures_for(suite)[name]
    picture = figure.picture(evaluate(figure, tables_of(suite)).data)
    [done] = render({name: figure}, tables_of(suite), tmp_path)
    assert dict(mpl.rcParams) == before
    assert picture.axes
    assert not done.missing
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{name}.{k}" for k in ("csv", "png", "svg")
    ]
    assert done.png.read_bytes().startswith(b"\x89PNG")
    assert done.svg.read_text().startswith("<?xml")


@pytest.mark.parametrize(("suite", "name"), ALL)
def test_svg_and_csv_bytes_are_the_same_each_time(suite, name, tmp_path):
    figures = {name: figures_for(suite)[name]}
    once, again = (render(figures, tables_of(suite), tmp_path / str(i))[0] for i in range(2))
    assert once.svg.read_bytes() == again.svg.read_bytes()
    assert once.csv.read_bytes() == again.csv.read_bytes()
    assert "<dc:date>" not in once.svg.read_text()


@pytest.mark.parametrize(("suite", "name"), ALL)
def test_an_empty_store_is_not_run(suite, name, tmp_path):
    figure = figures_for(suite)[name]
    for runs in (pd.DataFrame(), tables_of(suite).runs.iloc[:0], pd.DataFrame({"run_id": ["a"]})):
        [done] = render({name: figure}, Tables(runs, NO_METRICS), tmp_path)
        assert done.missing
        assert done.svg is None
        assert {c.verdict.status for c in done.verdicts} <= {"NOT RUN"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("suite", "name"), ALL)
def test_a_store_of_failures_does_not_crash(suite, name, tmp_path):
    tables = tables_of(suite)
    lost = tables.runs.assign(status="failed")
    values = [c for c in lost.columns if c.startswith("summary.")]
    lost[values] = np.nan
    [done] = render({name: figures_for(suite)[name]}, Tables(lost, NO_METRICS), tmp_path)
    assert "PASS" not in {c.verdict.status for c in done.verdicts}


# --- double descent -----------------------------------------------------------------------------


def test_double_descent_data():
    data = evaluate(
        figures_for("quickstart")["error_by_width"], Tables(double_descent(), NO_METRICS)
    ).data
    cell = data[(data["label_noise"] == 0.2) & (data["width"] == 64)]
    assert cell["test_error"].tolist() == pytest.approx([0.375 + 0.01 * s for s in range(6)])
    first = cell.iloc[0]
    assert first["test_error_mean"] == pytest.approx(0.4)
    assert 0.375 < first["test_error_low"] < 0.4 < first["test_error_high"] < 0.425
    assert (first["test_error_n"], first["targets"], first["num_params"]) == (6, 2500, 4810)
    assert first["interval"] == "95 % BCa bootstrap"


def test_double_descent_claims_pass():
    assert set(statuses("quickstart", "error_by_width", double_descent()).values()) == {"PASS"}


def test_claims_fail_on_a_curve_that_only_falls():
    falling = (0.6, 0.4, 0.3, 0.25, 0.22, 0.2, 0.19)
    found = statuses("double_descent_width", "error_by_width", double_descent(noisy=falling))
    assert set(found.values()) == {"FAIL"}


def test_each_claim_fails_alone():
    early = double_descent(noisy=(0.2, 0.5, 0.3, 0.2, 0.2, 0.2, 0.2))
    assert statuses("quickstart", "error_by_width", early)["peak at the threshold"] == "FAIL"
    rising = double_descent(noisy=(0.6, 0.4, 0.3, 0.35, 0.4, 0.4, 0.39))
    assert statuses("quickstart", "error_by_width", rising)["peak above both sides"] == "FAIL"
    alike = double_descent(clean=PEAKED)
    assert statuses("quickstart", "error_by_width", alike)["no peak without noise"] == "FAIL"


def test_missing_arms_are_not_run():
    found = statuses("quickstart", "error_by_width", double_descent(noises=(0.2,)))
    assert found["no peak without noise"] == "NOT RUN"
    assert found["peak above both sides"] == "PASS"
    narrow = double_descent()
    narrow = narrow[narrow["config.model.width"] < 64]
    assert statuses("quickstart", "error_by_width", narrow)["peak at the threshold"] == "NOT RUN"
    one = double_descent(seeds=1)
    assert statuses("quickstart", "error_by_width", one)["peak above both sides"] == "NOT RUN"


def test_diverged_runs_are_counted_and_in_no_mean(tmp_path):
    runs = double_descent()
    runs.loc[0, ["status", "summary.test.error"]] = ["diverged", 99.0]
    [done] = render(
        {"x": figures_for("quickstart")["error_by_width"]}, Tables(runs, NO_METRICS), tmp_path
    )
    saved = pd.read_csv(done.csv)
    assert len(saved) == len(runs)
    assert saved["test_error"].isna().sum() == 1
    assert saved["test_error_mean"].max() < 1
    assert "1 diverged" in done.caption
    assert "95 % BCa bootstrap over 5 to 6 seeds" in done.caption


def test_largest_rise():
    curve = pd.Series([5.0, 1.0, 3.0, 2.0, 2.5], index=[1, 2, 4, 8, 16])
    assert largest_rise(curve) == peak.Rise(2, 4, 2.0)
    assert largest_rise(pd.Series([3.0, 2.0, 1.0], index=[1, 2, 3])).height == 0
    with pytest.raises(Missing):
        largest_rise(pd.Series(dtype=float))


# --- width sweep --------------------------------------------------------------------------------


def test_optima_and_slope():
    figure = figures_for("width-sweep")["best_learning_rate"]
    data = evaluate(figure, Tables(width_sweep(), NO_METRICS)).data
    adam = data[data["optimizer"] == "adam"]
    assert adam["width"].tolist() == [16, 64, 256]
    assert adam["best_lr"].tolist() == [2.0**-4, 2.0**-6, 2.0**-8]
    assert adam["slope"].iloc[0] == pytest.approx(-1.0)
    assert adam["fall"].iloc[0] == pytest.approx(16.0)
    assert not data["at_edge"].any()
    assert data.loc[data["optimizer"] == "sgd", "slope"].iloc[0] == pytest.approx(0.0)
    assert "24 diverged" not in data.attrs["note"]
    assert f"{2 * 3} diverged" in data.attrs["note"]


@pytest.mark.parametrize(("power", "status"), [(-1.0, "PASS"), (0.0, "FAIL")])
def test_width_claims(power, status):
    found = statuses("width-sweep", "best_learning_rate", width_sweep(power))
    assert set(found.values()) == {status}


@pytest.mark.parametrize(
    "arms", [{"optimizers": ("sgd",)}, {"widths": (32, 64)}, {"widths": (16,)}]
)
def test_width_claims_without_their_arms(arms):
    found = statuses("width-sweep", "best_learning_rate", width_sweep(**arms))
    assert set(found.values()) == {"NOT RUN"}


def test_a_diverged_learning_rate_is_never_the_best():
    runs = width_sweep()
    at = (runs["config.optimizer.lr"] == 2.0**-4) & (runs["config.model.width"] == 16)
    runs.loc[at & (runs["seed"] == 1), "status"] = "diverged"
    figure = figures_for("width-sweep")["best_learning_rate"]
    data = evaluate(figure, Tables(runs, NO_METRICS)).data
    assert 2.0**-4 not in data.loc[data["width"] == 16, "best_lr"].tolist()


# --- optimizers ---------------------------------------------------------------------------------


def test_contest_claims_pass():
    found = statuses("optimizer-quick", "ranking", *contest())
    assert set(found.values()) == {"PASS"}
    assert len(found) == 4


def test_contest_claims_fail_when_one_optimizer_dominates():
    skill = {**dict.fromkeys(("sgd", "momentum", "rmsprop"), (0.3, 0.3, 0.3))}
    skill |= {"adam": (0.4, 0.4, 0.4), "nadam": (0.1, 0.1, 0.1)}
    skill = {
        name: tuple(e + 0.01 * i for e in errors) for i, (name, errors) in enumerate(skill.items())
    }
    found = statuses("optimizer-quick", "ranking", *contest(skill))
    assert set(found.values()) == {"FAIL"}


def test_contest_claims_without_their_arms():
    runs, metrics = contest({name: SKILL[name] for name in ("sgd", "momentum")})
    found = statuses("optimizer-quick", "ranking", runs, metrics)
    assert found["Adam remains a strong contender"] == "NOT RUN"
    assert found["none consistently outperforms Adam"] == "NOT RUN"
    one = runs[runs["label.problem"] == "first"]
    assert set(statuses("optimizer-quick", "ranking", one, metrics).values()) == {"NOT RUN"}


def test_ranks_count_diverged_runs_as_last():
    runs, metrics = contest()
    confirm = (runs["label.phase"] == "confirm") & (runs["label.optimizer"] == "adam")
    runs.loc[confirm, "status"] = "diverged"
    figure = figures_for("optimizer-quick")["ranking"]
    data = evaluate(figure, Tables(runs, metrics)).data
    ranks = data.drop_duplicates("optimizer").set_index("optimizer")["rank_mean"]
    assert ranks["adam"] == 5.0
    assert data.loc[data["optimizer"] == "adam", "score_mean"].isna().all()


def test_search_data_and_tuning_table():
    tables = Tables(*contest())
    figures = figures_for("optimizer-quick")
    search = evaluate(figures["sensitivity"], tables).data
    assert search.loc[search["chosen"], "lr"].tolist() == pytest.approx([0.01] * 15)
    table = evaluate(figures["tuning"], tables).data
    adam = table[(table["optimizer"] == "adam") & (table["problem"] == "first")].iloc[0]
    assert (adam["runs"], adam["diverged"], adam["chosen"]) == (6, 1, "lr 0.01")
    assert adam["best_loss"] == pytest.approx(0.12)
    assert adam["near_best"] == pytest.approx(3 / 6)


def test_learning_curves_are_quartiles():
    data = evaluate(figures_for("optimizer-quick")["learning_curves"], Tables(*contest())).data
    row = data[
        (data["optimizer"] == "sgd") & (data["problem"] == "first") & (data["step"] == 10)
    ].iloc[0]
    assert (row["quarter"], row["median"]) == pytest.approx((0.3 + 1 / 11, 0.3 + 1 / 11))
    assert row["runs"] == 5


# --- the generic figures, labels, colours, plug-ins ---------------------------------------------


def test_generic_takes_any_label(tmp_path):
    runs, metrics = contest()
    runs["label.optimizer"] = runs["label.optimizer"].replace(
        {"sgd": "_$x^{_<b>", "adam": "日本\n" + 60 * "y", "nadam": r"\frac{$", "rmsprop": ""}
    )
    for name in ("other", "optimizer-quick"):
        for done in render(figures_for(name), Tables(runs, metrics), tmp_path):
            assert not done.missing


def test_generic_without_anything_that_varies(tmp_path):
    runs = double_descent(noises=(0.2,))
    runs = runs[runs["config.model.width"] == 64]
    [done, curves] = render(figures_for("other"), Tables(runs, NO_METRICS), tmp_path)
    saved = pd.read_csv(done.csv)
    assert saved.loc[saved["metric"] == "test.error", "value_mean"].iloc[0] == pytest.approx(0.4)
    assert curves.missing == "no rows"


@pytest.mark.parametrize("coded", [False, True])
def test_learning_curves_are_the_quartiles_of_each_cell(coded):
    draw = np.random.default_rng(0)
    runs = pd.DataFrame(
        {
            "run_id": [f"run{i}" for i in range(30)],
            "seed": range(30),
            "status": "done",
            "label.case": ["a", "b", "c"] * 10,
        }
    )
    cells = [
        (f"run{i}", step, split, metric)
        for i in draw.permutation(33)  # three of them belong to no run
        for step in (0, 10, 100)[: 1 + i % 3]
        for split, metric in (("train", "loss"), ("test", "loss"), ("test", "error"))
    ]
    metrics = pd.DataFrame(cells, columns=["run_id", "step", "split", "metric"])
    metrics["value"] = draw.normal(size=len(metrics))
    metrics.loc[::7, "value"] = np.nan
    long = metrics.merge(runs, on="run_id").assign(
        metric=lambda m: m["split"] + "." + m["metric"], series=lambda m: m["label.case"]
    )
    cell = long.dropna(subset="value").groupby(["metric", "series", "step"])["value"]
    if coded:
        metrics = metrics.astype(dict.fromkeys(["run_id", "split", "metric"], "category"))
    found = generic.data_curves(Tables(runs, metrics)).set_index(["metric", "series", "step"])
    for column, share in (("quarter", 0.25), ("median", 0.5), ("three_quarters", 0.75)):
        expected = cell.quantile(share)
        assert list(found.index) == list(expected.index)
        np.testing.assert_allclose(found[column], expected)
    assert list(found["runs"]) == list(cell.size())


def test_generic_of_many_runs_keeps_means_only(tmp_path, monkeypatch):
    monkeypatch.setattr(generic, "MAX_ROWS", 1000)
    monkeypatch.setattr(rows, "MANY", 5)
    runs = double_descent(seeds=40)
    [final, _] = render(generic.FIGURES, Tables(runs, NO_METRICS), tmp_path)
    data = pd.read_csv(final.csv)
    assert "value" not in data
    assert len(data) < len(runs)
    picked = data[(data["metric"] == "test.error") & (data["setting"] == "model.width")]
    own = runs.groupby("config.model.width")["summary.test.error"]
    np.testing.assert_allclose(picked.set_index("x")["value_mean"].sort_index(), own.mean())
    low, _ = stats.t.interval(0.95, 79, own.mean(), own.sem())
    np.testing.assert_allclose(picked.set_index("x")["value_low"].sort_index(), low)
    assert "t interval over 80 runs" in final.caption or "over 80 to" in final.caption
    assert "The CSV holds the means" in final.caption


def test_generic_names_what_it_leaves_out(tmp_path):
    runs = double_descent().assign(**{"summary.zzz.norm": 1.0})
    runs["label.many"] = [f"case {i % 13:02}" for i in range(len(runs))]
    [done, _] = render(figures_for("other"), Tables(runs, NO_METRICS), tmp_path)
    assert "Not drawn, metrics: zzz.norm." in done.caption
    assert "Not drawn, lines: case" in done.caption


def test_colours_belong_to_labels():
    assert style.colour("adam") == style.colour("Adam") == "#0072B2"
    names = ["adam", "mine", "yours", "sgd", "third"]
    assert style.colours(names) == style.colours(reversed(names))
    assert len(set(style.colours(names).values())) == len(names)
    assert style.colour("mine") == style.colour("mine")
    assert style.noise_colour(0.2) != style.noise_colour(0.0)
    assert style.scale_colour(16) != style.scale_colour(1024)


def test_text_holds_no_formula_and_is_short():
    assert style.text("a$b") == r"a\$b"
    assert style.text("_hidden").startswith(" _")
    assert len(style.text("x" * 100)) == 40


def test_a_figure_that_asks_for_a_missing_column_is_not_run():
    claim = Claim("c", "", "", lambda data: Verdict(data["nothing"].sum(), "", True))
    whole = Figure("", "", lambda tables: tables.runs, lambda data: None, (claim,))
    found = evaluate(whole, Tables(pd.DataFrame({"a": [1]}), NO_METRICS))
    assert found.verdicts[0].verdict == Verdict("no column 'nothing'", "", None)
    broken = Figure("", "", lambda tables: tables.runs[["b"]], lambda data: None, (claim,))
    assert evaluate(broken, Tables(pd.DataFrame({"a": [1]}), NO_METRICS)).data is None


def test_an_interrupted_write_leaves_nothing(tmp_path):
    class Broken:
        def savefig(self, path, **_):
            Path(path).write_text("half")
            raise OSError("disk full")

    figure = Figure("", "", lambda tables: tables.runs, lambda data: Broken())
    with pytest.raises(OSError, match="disk full"):
        render({"../x": figure}, Tables(pd.DataFrame({"a": [1]}), NO_METRICS), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["---x.csv"]


def test_verdicts_are_counted(tmp_path):
    done = render(figures_for("quickstart"), Tables(double_descent(), NO_METRICS), tmp_path)
    assert verdict_counts(done) == {"PASS": 3, "FAIL": 0, "FAIL (expected)": 0, "NOT RUN": 0}


@pytest.mark.parametrize(
    ("passed", "scale", "status"),
    [
        (False, "laptop", "FAIL (expected)"),
        (False, "paper", "FAIL"),
        (True, "laptop", "PASS"),
        (None, "laptop", "NOT RUN"),
    ],
)
def test_a_failure_is_expected_at_its_scale_only(passed, scale, status):
    verdict = Verdict("", "", passed)
    claim = Claim("c", "", "", lambda data: verdict, {"laptop": "too few rows"})
    figure = Figure("", "", lambda tables: tables.runs, lambda data: None, (claim,))
    (checked,) = evaluate(
        figure, Tables(pd.DataFrame({"a": [1]}), NO_METRICS, scale=scale)
    ).verdicts
    assert checked.status == status
    assert checked.expected == ("too few rows" if scale == "laptop" else "")
    assert checked.verdict is verdict


def test_a_claim_expects_to_fail_at_scales_of_its_suite():
    for name in bundled():
        for figure in figures_for(name).values():
            for claim in figure.claims:
                for scale, why in claim.expected.items():
                    assert scale in read(bundled()[name], name).values["scales"]
                    assert why.startswith("not at this scale"), (name, claim.name)


class Point:
    def __init__(self, name, value):
        self.name, self.value = name, "somewhere:FIGURES"
        self._value = value

    def load(self):
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


def test_plugins_bring_figures(monkeypatch):
    mine = {"mine": Figure("", "", lambda tables: tables.runs, lambda data: None)}
    monkeypatch.setattr(
        analysis,
        "_points",
        lambda: [Point("my_suite", mine), Point("bad", ImportError("no x")), Point("odd", 3)],
    )
    assert figures_for("my-suite") == mine
    assert list(figures_for("unknown")) == ["final_metrics", "learning_curves"]
    with pytest.raises(MissingError, match="no x"):
        figures_for("bad")
    with pytest.raises(MissingError, match="no mapping"):
        figures_for("odd")
