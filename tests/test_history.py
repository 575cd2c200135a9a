"""Estimates that are kept, and what runs took in the end."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path

import pytest

from raybench import history
from raybench.schema import runs_table
from raybench.store import SuiteStore
from raybench.suite import Planned, load, parse

BODY = """\
version: 1
name: tiny
base:
  procedure: train
  data: {name: teacher_student, dim: 4, train: 16, valid: 8, test: 8}
  model: {name: mlp, width: 4}
  optimizer: {name: sgd, lr: 0.05}
  steps: 4it
sweep: [{model.width: [2, 3]}]
seeds: 3
"""


@pytest.fixture
def runs() -> list[Planned]:
    return load(parse(BODY, "suite.yaml"), None, {}).runs


def finish(store: SuiteStore, runs: list[Planned], wall: float, *, later: float = 60.0) -> None:
    began = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=later)
    rows = [
        {
            "run_id": planned.run.run_id,
            "suite": "tiny",
            "status": "done",
            "seed": planned.run.seed.value,
            "wall_s": wall,
            "started_at": began,
        }
        for planned in runs
    ]
    store.write_part(f"{runs[0].run.run_id}", runs_table(rows))


def test_without_a_store_nothing_is_known(tmp_path: Path, runs: list[Planned]) -> None:
    assert history.seconds(tmp_path, "tiny", "", runs) == {}
    assert history.comparisons(tmp_path) == []
    assert not any(tmp_path.iterdir())


def test_finished_runs_count_before_estimates(tmp_path: Path, runs: list[Planned]) -> None:
    store = SuiteStore(tmp_path, "tiny")
    narrow, wide = dict.fromkeys(planned.run.batch_key for planned in runs)
    history.keep(store, "", runs, {narrow: 5.0, wide: 7.0}, 100.0)
    assert history.seconds(tmp_path, "tiny", "", runs) == {narrow: 5.0, wide: 7.0}
    assert history.measured(tmp_path, "tiny", runs) == {}
    finish(store, runs[:1], 1.0)
    finish(store, runs[1:2], 2.0)
    assert history.seconds(tmp_path, "tiny", "", runs) == {narrow: 1.5, wide: 7.0}
    assert history.seconds(tmp_path, "tiny", "other", runs) == {narrow: 1.5}


def test_an_estimate_is_compared_with_what_came_after_it(
    tmp_path: Path, runs: list[Planned]
) -> None:
    store = SuiteStore(tmp_path, "tiny")
    narrow, wide = dict.fromkeys(planned.run.batch_key for planned in runs)
    finish(store, runs[:1], 100.0, later=-60.0)  # before the estimate was made
    history.keep(store, "", runs, {narrow: 5.0, wide: 10.0}, 100.0)
    assert history.comparisons(tmp_path) == []
    finish(store, runs[1:2], 4.0)
    finish(store, runs[3:5], 8.0)
    [found] = history.comparisons(tmp_path)
    assert (found.suite, found.scale, found.runs) == ("tiny", "default", 3)
    assert found.time == pytest.approx((4 + 8 + 8) / (5 + 10 + 10))
    assert found.disk == pytest.approx(store.num_bytes() / 4 / 100.0)
    # A later estimate is of what is left; the earlier one of what is done stays as it was.
    history.keep(store, "", runs[5:], {wide: 8.0}, 100.0)
    finish(store, runs[5:], 16.0, later=120.0)
    [found] = history.comparisons(tmp_path)
    assert found.time == pytest.approx((4 + 8 + 8 + 16) / (5 + 10 + 10 + 8))


def test_what_could_not_be_estimated_is_in_no_comparison(
    tmp_path: Path, runs: list[Planned]
) -> None:
    store = SuiteStore(tmp_path, "tiny")
    narrow = runs[0].run.batch_key
    history.keep(store, "", runs, {narrow: math.nan}, 100.0)
    finish(store, runs, 4.0)
    assert history.comparisons(tmp_path) == []
