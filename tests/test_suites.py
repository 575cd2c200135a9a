"""The bundled suites: each loads at every scale, and a tiny twin of it runs from end to end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from raybench import store as results
from raybench.analysis import MODULES, figures_for
from raybench.cli import app
from raybench.cli.suites import bundled
from raybench.data import DATA
from raybench.data.hub import Hub
from raybench.data.text import Tolstoi
from raybench.errors import Problem
from raybench.local import LocalExecutor
from raybench.plan import batches, decode, distinct
from raybench.procedures import PROCEDURES
from raybench.progress import Progress
from raybench.session import Session, refuse_past_runs
from raybench.spec import Run, plain_config
from raybench.store import SuiteStore
from raybench.suite import Planned, Suite, load, read
from raybench.tables import build


def scales(path: Path) -> list[str | None]:
    return [*read(path).values.get("scales", {})] or [None]


SCALES = [(name, scale) for name, path in bundled().items() for scale in scales(path)]
SMALLEST = {"crowded_valley": "quick", "selfbench": "one_step"}
LAPTOP = [(n, scale) for n, scale in SCALES if scale in (None, SMALLEST.get(n, "laptop"))]
OTHER = [pair for pair in SCALES if pair not in LAPTOP]
TINY: Mapping[str, dict[str, Any]] = {
    "quickstart": {"model.width": [4, 8, 16], "seeds": 2, "steps": "2it"},
    "double_descent_width": {"model.width": [4, 8, 16], "seeds": 2, "steps": "2it"},
    "width_sweep": {"model.width": [8, 16], "seeds": 1, "steps": "2it"},
    "optimizer_quick": {"tune.trials": 4, "tune.confirm.seeds": 2},
    "selfbench": {"seeds": 2},
    "crowded_valley": {"tune.one_shot": 1, "tune.budgets": {"small": 2}, "tune.confirm.seeds": 1},
}
SAMPLED = ("ridgeless", "random_labels", "double_descent", "wide_limits")
"""Suites of several studies, which no single override makes small: some of their runs are taken."""
PLACES = ("fig.", "table", "section", "abstract", "sec.", "result files")
STAND_INS = {
    "image": {"name": "digits", "layout": "image", "train": 64, "valid": 16, "test": 32},
    "flat": {"name": "digits", "train": 64, "valid": 16, "test": 32},
    "text": {"name": "text", "streams": 50, "valid": 50, "test": 50},
}
KEPT = ("label_noise", "augment", "per_image", "target")
"""What a stand-in takes over from the set that it stands in for."""


class Silent:
    def begin(self, phase: str, total: int, finished: int, to_do: int) -> None:
        pass

    def update(self, progress: Progress) -> None:
        pass


def made(name: str, scale: str | None, overrides: Mapping[str, Any] | None = None) -> Suite:
    return load(read(bundled()[name], f"{name}.yaml"), scale, overrides)


def short(planned: Planned, steps: str = "2it") -> Planned:
    """The run with two steps, and a set that is at hand in place of one from the hub."""
    config = plain_config(planned.run.procedure)
    if "steps" in type(planned.run.procedure).model_fields:
        config["steps"] = steps
    data = getattr(planned.run.procedure, "data", None)
    if isinstance(data, Hub):
        kept = {field: getattr(data, field) for field in KEPT}
        size = {"side": 32, "channels": 3} if data.layout == "image" and data.per_image else {}
        unit = {"pixels": "unit"} if data.mean == (0.0,) else {}
        config["data"] = STAND_INS[data.layout] | size | unit | kept
    if isinstance(data, Tolstoi):
        config["data"] = STAND_INS["text"]
    problems: list[Problem] = []
    procedure = build(PROCEDURES, config, (), problems)
    assert not problems
    return Planned(Run(procedure, planned.run.seed), planned.labels)  # type: ignore[type-var]


def carried_out(chosen: list[Planned], suite: Suite, root: Path) -> SuiteStore:
    store = SuiteStore(root, suite.name)
    work = batches(chosen, suite=suite.name, scale=suite.scale, resources=suite.resources, slots=1)
    # As a worker gets them; and here there is no GPU to ask for.
    work = [decode(batch.encode()) for batch in work]
    here = [dataclasses.replace(b, resources=b.resources.replace(gpu=0)) for b in work]
    LocalExecutor().run(here, store, lambda progress: None)
    return store


def written(root: Path, suite: str) -> None:
    """Report, which draws all figures, and verify, through the command line."""
    runner = CliRunner()
    done = runner.invoke(app, ["report", str(root), "--suite", suite])
    assert done.exit_code == 0, (done.output, done.exception)
    if any(figure.claims for figure in figures_for(suite).values()):
        verified = runner.invoke(app, ["verify", str(root), "--suite", suite])
        assert verified.exit_code in (0, 8), (verified.output, verified.exception)
    (report,) = (root / suite).glob("report-*.html")
    text = report.read_text(encoding="utf-8")
    for figure in figures_for(suite).values():
        for claim in figure.claims:
            assert claim.source.split(",")[0] in text


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("COLUMNS", "160")
    yield


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_loads_with_unique_ids(name: str, scale: str | None) -> None:
    suite = made(name, scale)
    ids = [planned.run.run_id for planned in suite.runs]
    assert ids
    assert len(set(ids)) == len(ids)
    assert all(len(run_id) == 16 for run_id in ids)
    assert suite.name == name
    refuse_past_runs(suite)  # within its own limits
    assert read(bundled()[name]).values["description"]
    assert len({planned.run.batch_key for planned in suite.runs}) <= len(ids)


@pytest.mark.parametrize("name", bundled())
def test_scales_share_no_run(name: str) -> None:
    if name == "crowded_valley":
        return  # its scales take parts of one protocol, and share them on purpose
    ids = [{p.run.run_id for p in made(name, scale).runs} for n, scale in SCALES if n == name]
    assert sum(map(len, ids)) == len(set().union(*ids))


@pytest.mark.parametrize("name", sorted({*bundled()} - {"selfbench"}))
def test_claims_have_sources(name: str) -> None:
    # selfbench is of no paper: `raybench bench` measures with it.
    assert name.replace("_", "-") in MODULES
    paper = read(bundled()[name]).values["paper"].removeprefix("arXiv:")
    claims = [claim for figure in figures_for(name).values() for claim in figure.claims]
    assert claims
    for claim in claims:
        assert claim.text
        assert any(word in claim.source for word in PLACES), claim.source
        # A suite of several papers names the others in its claims.
        assert paper in claim.source or "arXiv:" in claim.source, claim.source


def test_every_bundled_suite_has_a_twin() -> None:
    assert {*TINY, *SAMPLED} == set(bundled())


@pytest.mark.parametrize(("name", "scale"), LAPTOP)
def test_a_tiny_twin_runs_from_end_to_end(name: str, scale: str | None, tmp_path: Path) -> None:
    twin = sampled(name, scale) if name in SAMPLED else made(name, scale, TINY[name])
    assert 0 < len(twin.runs) < 250
    if twin.tune is None:
        outcome = Session(twin, tmp_path, LocalExecutor, Silent()).run()
        assert set(outcome.statuses) <= {"done", "diverged"}, outcome
        assert outcome.executed == outcome.total == len(distinct(twin.runs))
        assert Session(twin, tmp_path, LocalExecutor, Silent()).run().executed == 0
        written(tmp_path, name)
        return
    # The steps of its problems stand in its cases: its runs are shortened one by one.
    tuned = Session(Shortened.of(twin), tmp_path, LocalExecutor, Silent())
    outcome = tuned.run()
    assert set(outcome.statuses) <= {"done", "diverged"}, outcome
    assert not outcome.lost_arms
    assert outcome.total == len(twin.runs) + twin.num_confirmations
    frame = results.table(tmp_path, name)
    assert set(frame["label.phase"]) - {"one_shot"} == {"search", "confirm"}
    written(tmp_path, name)


def sampled(name: str, scale: str | None) -> Suite:
    """A suite with some 40 of its runs, shortened."""
    suite = made(name, scale)
    runs = [short(planned) for planned in suite.runs[:: max(len(suite.runs) // 40, 1)]]
    suite.runs = list({planned.run.run_id: planned for planned in runs}.values())
    return suite


class Shortened(Suite):
    """A suite whose runs, confirmations too, take a few steps."""

    @classmethod
    def of(cls, suite: Suite) -> Shortened:
        fields = {f.name: getattr(suite, f.name) for f in dataclasses.fields(suite)}
        shortened = cls(**fields)
        shortened.runs = [short(planned, "6it") for planned in suite.runs]
        return shortened

    def _point(self, *args: Any, **options: Any) -> Iterator[Planned]:
        return (short(planned, "6it") for planned in super()._point(*args, **options))


@pytest.mark.parametrize(("name", "scale"), OTHER)
def test_the_ends_of_other_scales_train(name: str, scale: str, tmp_path: Path) -> None:
    suite = made(name, scale)
    ends = [short(suite.runs[0]), short(suite.runs[-1])]
    store = carried_out(ends, suite, tmp_path)
    statuses = store.statuses()
    assert {statuses[planned.run.run_id] for planned in ends} <= {"done", "diverged"}
    rows = [{"run_id": p.run.run_id, "skipped": "", **_labels(p)} for p in ends]
    store.write_plan(suite.scale, rows)
    store.write_suite(f"name: {name}\nversion: 1\n")
    written(tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, scale in SCALES if scale == "paper"])
def test_smallest_and_largest_models_of_the_paper_scale_train(name: str, tmp_path: Path) -> None:
    suite = made(name, "paper")
    by_model: dict[tuple[Any, ...], dict[float, Planned]] = {}
    for planned in suite.runs:
        procedure = planned.run.procedure
        model = getattr(procedure, "model", getattr(procedure, "features", procedure))
        kind = (procedure.name, getattr(model, "name", getattr(model, "kind", "")))
        by_model.setdefault(kind, {}).setdefault(_size(model), planned)
    ends = [short(each[end(each)]) for each in by_model.values() for end in (min, max)]
    few = {planned.run.run_id: planned for planned in map(_few_nets, ends)}
    store = carried_out(list(few.values()), suite, tmp_path)
    statuses = store.statuses()
    assert {statuses[run_id] for run_id in few} <= {"done", "diverged"}


def _size(model: Any) -> float:
    width, depth = getattr(model, "width", None) or 1, getattr(model, "depth", None) or 1
    return float(width * depth)


def _few_nets(planned: Planned) -> Planned:
    """The run with two networks where it is about many: their size is what is tried."""
    fields = type(planned.run.procedure).model_fields
    fewer = {key: 2 for key in ("nets", "experiments") if key in fields}
    procedure = planned.run.procedure.replace(**fewer) if fewer else planned.run.procedure
    return Planned(Run(procedure, planned.run.seed), planned.labels)


def _labels(planned: Planned) -> dict[str, Any]:
    return {f"label.{name}": value for name, value in planned.labels.items()}


@pytest.mark.parametrize("name", bundled())
def test_no_override_is_passed_over(name: str) -> None:
    """What the command line sets is set in every run, wherever the suite sets it too."""
    for scale in (scale for n, scale in SCALES if n == name):
        procedures = {type(p.run.procedure) for p in made(name, scale).runs}
        trained = all("steps" in kind.model_fields for kind in procedures)
        key, value = ("steps", "3it") if trained else ("dtype", "float32")
        suite = made(name, scale, {key: value})
        assert {str(getattr(p.run.procedure, key)) for p in suite.runs} == {value}
        if suite.tune or not trained:
            continue
        suite = made(name, scale, {"optimizer.lr": 0.125})
        assert {p.run.procedure.optimizer.lr for p in suite.runs} == {0.125}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_names_known_data(name: str, scale: str | None) -> None:
    used = {p.run.procedure.columns().get("data.name") for p in made(name, scale).runs}
    assert used - {None} <= set(DATA.bundled)
