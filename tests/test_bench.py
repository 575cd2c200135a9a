"""The benchmark: its plain loop does the same work, and its rows say what was measured."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from raybench import bench
from raybench.bench import loop, tally, workloads
from raybench.bench.contestants import CONTESTANTS, Loop, RaybenchAlone, Timed
from raybench.bench.driver import Driver, Seen
from raybench.bench.memory import Watch
from raybench.bench.peak import Peak
from raybench.bench.workloads import Case, Work
from raybench.cli import app
from raybench.errors import MissingError, RaybenchError, UsageError
from raybench.lanes import Lanes
from raybench.plan import distinct
from raybench.record import Recorder
from raybench.suite import Planned

torch.set_num_threads(1)  # as each loop has it

SPLITS = ("train", "valid", "test")
NETWORKS = [name for name in workloads.names() if name != "quadratic_deep"]


def silent(text: str) -> None:
    pass


def drawn(work: Work) -> list[Planned]:
    return distinct(work.suite().runs)


def carried_out(group: list[Planned]) -> list[dict[str, list[float]]]:
    """What raybench measures of runs that train as lanes: values in their order, by name."""
    lanes = Lanes(len(group))
    recorder = Recorder(lanes)
    group[0].run.procedure.execute(lanes, [planned.run for planned in group], recorder)
    found: list[dict[str, list[float]]] = []
    for account in recorder.accounts():
        found.append({})
        for metric in account.metrics:
            found[-1].setdefault(f"{metric.split}/{metric.name}", []).append(metric.value)
    return found


# The same work.


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_plain_loop_of_a_network_measures_what_raybench_measures(name: str, lanes: int) -> None:
    steps = 1 if name == "one_step" else 20  # more than the 16 of an epoch
    group = drawn(Work(name, lanes, steps))
    assert len(group) == lanes
    for planned, ours in zip(group, carried_out(group), strict=True):
        history = loop.carry_out(workloads.trial(planned))
        assert len(history) == (2 if steps == 1 else 6)
        assert {"test/loss"} <= ours.keys() <= history[0].keys()
        for metric, values in ours.items():
            theirs = [measured[metric] for measured in history]
            np.testing.assert_allclose(theirs, values, rtol=1e-4, atol=0.0041)
            if metric.endswith("loss"):
                np.testing.assert_allclose(theirs, values, rtol=1e-4)
        assert history[-1]["test/loss"] != history[0]["test/loss"]


def bowls(steps: int | None = None) -> dict[str, list[Planned]]:
    """Runs of the bowl by optimizer."""
    found: dict[str, list[Planned]] = {}
    for planned in drawn(Work("quadratic_deep", 32, steps)):
        found.setdefault(str(planned.labels["optimizer"]), []).append(planned)
    return found


def small_step(optimizer: str) -> Planned:
    """A run that comes to rest within its 100 epochs: its learning rate is near 0.003."""

    def distance(planned: Planned) -> float:
        procedure: Any = planned.run.procedure
        return abs(math.log(procedure.optimizer.lr / 3e-3))

    return min(bowls()[optimizer], key=distance)


@pytest.mark.parametrize(
    ("optimizer", "tolerance"),
    [("sgd", 2e-6), ("momentum", 2e-6), ("rmsprop", 0.02), ("adam", 2e-3)],
)
def test_a_plain_loop_of_a_bowl_gives_the_losses_of_raybench(
    optimizer: str, tolerance: float
) -> None:
    planned = small_step(optimizer)
    history = loop.carry_out(workloads.trial(planned))
    (ours,) = carried_out([planned])
    assert len(history) == 101
    for split in SPLITS:
        theirs = [losses[f"{split}/loss"] for losses in history]
        np.testing.assert_allclose(theirs[-1], ours[f"{split}/loss"][-1], rtol=tolerance)
        assert theirs[-1] < theirs[0] / 2
        if tolerance < 1e-5:  # the same rule: the same losses on the way, too
            np.testing.assert_allclose(theirs, ours[f"{split}/loss"], rtol=1e-5)


def bowl_trial(lr: float, steps: int) -> loop.Trial:
    (first, *_) = bowls(steps)["sgd"]
    return workloads.trial(first)._replace(numbers={"lr": lr})


def test_a_plain_loop_begins_and_ends_where_the_published_runs_do() -> None:
    """Published: 353.81277 and 353.44677 at the start, 87.29 after 100 epochs of SGD at 0.01."""
    history = loop.carry_out(bowl_trial(0.01, 700))
    assert history[0]["valid/loss"] == pytest.approx(353.81277, rel=1e-5)
    assert history[0]["test/loss"] == pytest.approx(353.44677, rel=1e-5)
    assert history[-1]["test/loss"] == pytest.approx(87.2928, abs=0.5)


def test_a_plain_loop_ends_where_it_diverges() -> None:
    history = loop.carry_out(bowl_trial(0.9, 700))
    assert 2 <= len(history) < 101
    assert not math.isfinite(history[-1]["train/loss"])
    assert all(math.isfinite(losses["train/loss"]) for losses in history[:-1])


def test_work_of_a_loop_is_counted_with_its_steps_and_measurements() -> None:
    (short, long) = (Work("mlp_64", 1, steps).sample(1)[0] for steps in (10, 20))
    assert (loop.length(short), loop.length(long)) == (10, 20)
    per_row = 2 * (64 * 64 + 64 * 10)  # multiply and add
    # Backward: the gradients of both layers' weights, and of the hidden layer.
    per_step = 64 * (2 * per_row + 2 * 64 * 10)
    assert loop.flops(long) - loop.flops(short) == 10 * per_step
    assert loop.flops(short) == 10 * per_step + 6 * 256 * per_row
    assert loop.flops(bowl_trial(0.1, 7)) == 7 * 2 * 2 * 100**2 + 2 * 2 * 100**2


# The runs.


@pytest.mark.parametrize("name", workloads.names())
def test_blocks_have_runs_of_their_own(name: str) -> None:
    ids = [{p.run.run_id for p in drawn(Work(name, 8, None, block))} for block in range(3)]
    assert [len(each) for each in ids] == [8, 8, 8]
    assert len(set().union(*ids)) == 24


@pytest.mark.parametrize("name", ["mlp_16", "quadratic_deep"])
def test_a_sample_holds_runs_of_its_block_of_all_arms_alike(name: str) -> None:
    work = Work(name, 40, None, block=1)
    sample = work.sample(8)
    whole = [workloads.trial(planned) for planned in drawn(work)]
    assert len({repr(trial) for trial in sample}) == 8
    assert {repr(trial) for trial in sample} < {repr(trial) for trial in whole}
    shares = {t.optimizer: sum(u.optimizer == t.optimizer for u in sample) for t in whole}
    assert set(shares.values()) == ({8} if name == "mlp_16" else {2})


def test_a_sample_crosses_as_plain_values() -> None:
    work = Work("mlp_16", 10, 5, block=2)
    assert [trial.seed[0] for trial in work.sample(4)] == [2_000_000 + k for k in range(4)]
    assert len(work.sample(99)) == 10
    crossed = json.loads(json.dumps([trial._asdict() for trial in work.sample(1)]))
    assert loop.carry_out(loop.Trial(**crossed[0])) == loop.carry_out(work.sample(1)[0])
    # What a process keeps between runs is the same for all optimizers of the bowl.
    assert len({trial.form for trial in Work("quadratic_deep", 16).sample(16)}) == 1
    assert {t.optimizer for t in Work("quadratic_deep", 16).sample(16)} <= loop.OPTIMIZERS.keys()


def test_cases_are_workloads_by_lengths() -> None:
    assert bench.cases(["cnn", "cnn"], [1, 100], 7) == [Case("cnn", 1, 7), Case("cnn", 100, 7)]
    assert [case.workload for case in bench.cases([], [], None)] == [*workloads.DEFAULTS]
    assert [case.runs for case in bench.cases([], [], None)] == [*workloads.DEFAULTS.values()]
    # About as many steps in a block, whatever the length of a run.
    assert [case.runs for case in bench.cases(["mlp_64"], [1, 10, 1000], None)] == [
        10_000,
        10_000,
        100,
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workload", "quadratic"], "did you mean 'quadratic_deep'"),
        (["--runs", "0"], "--runs 0"),
        (["--steps", "0"], "--steps 0"),
        (["--peer", "jobelib"], "did you mean 'joblib'"),
        (["--peer", "none", "--blocks", "0"], "--blocks"),
        (["--peer", "none", "--sample", "0"], "--sample"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", *words])
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


def test_peers_bring_the_raybench_that_they_are_compared_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert bench.chosen(["none"], silent) == ["raybench"]
    assert bench.chosen(["loop"], silent) == ["raybench_alone", "loop"]
    assert bench.chosen(["joblib", "loop"], silent) == [
        "raybench",
        "joblib",
        "raybench_alone",
        "loop",
    ]
    monkeypatch.setitem(bench._PACKAGES, "joblib", "a_package_that_is_not_there")
    with pytest.raises(MissingError, match=r"raybench\[bench\]"):
        bench.chosen(["joblib"], silent)
    notes: list[str] = []
    assert "joblib" not in bench.chosen(None, notes.append)
    assert any("joblib needs a_package_that_is_not_there" in text for text in notes)


# The rows.


def blocks(*seconds: float, runs: int = 10, **more: Any) -> list[Seen]:
    return [Seen(Timed(each, runs, **more), 100_000_000, None) for each in seconds]


def test_ratios_pair_blocks_that_lie_side_by_side() -> None:
    # The second block met twice the load: the ratio is 4 in both, and its interval knows it.
    same = tally.ratio([s.timed for s in blocks(4, 8)], [s.timed for s in blocks(1, 2)])
    assert (same.mean, same.low, same.high) == pytest.approx((4, 4, 4))
    # 2 and 8: mean log 4, and Student's t of one degree of freedom is 12.706.
    wide = tally.ratio([s.timed for s in blocks(2, 8)], [s.timed for s in blocks(1, 1)])
    assert wide.mean == pytest.approx(4)
    assert math.log(wide.high / wide.mean) == pytest.approx(12.706 * math.log(2), rel=1e-3)
    assert wide.high / wide.mean == pytest.approx(wide.mean / wide.low)
    one = tally.ratio([s.timed for s in blocks(3)], [s.timed for s in blocks(1)])
    assert one.mean == pytest.approx(3)
    assert not one.bounded
    # Seconds a run, not a block.
    few = tally.ratio([s.timed for s in blocks(1, runs=5)], [s.timed for s in blocks(1)])
    assert few.mean == pytest.approx(2)


def test_rows_say_what_a_run_takes_beyond_its_loop() -> None:
    seen = {
        "raybench": blocks(0.1, 0.1, start=3.0, stored=2_000_000),
        "joblib": blocks(0.4, 0.2),
        "raybench_alone": blocks(0.3, 0.3),
        "loop": blocks(0.2, 0.2),
    }
    made = tally.rows(Case("mlp_16", 5, 10), 5, 2, seen, 1e6, Peak(1e9, 1.5e9))
    rows = {row["contestant"]: row for row in made}
    ours, joblib = rows["raybench"], rows["joblib, a loop a core"]
    alone, plain = rows["raybench, one lane"], rows["plain loop"]
    assert [ours["times raybench"], alone["times raybench"]] == [None, None]
    assert joblib["times raybench"] == pytest.approx(8**0.5)
    assert plain["times raybench"] == pytest.approx(2 / 3)
    assert joblib["low"] < joblib["times raybench"] < joblib["high"]
    # 10 ms, and 20 ms of the loop are 10 on two cores; 30 alone.
    assert ours["overhead ms"] == pytest.approx(0)
    assert joblib["overhead ms"] == pytest.approx(20)
    assert alone["overhead ms"] == pytest.approx(10)
    assert plain["overhead ms"] == pytest.approx(0)
    assert ours["runs/s"] == pytest.approx(100)
    assert (ours["start s"], ours["store MB"], ours["driver MB"]) == (3.0, 2.0, 100.0)
    assert (joblib["start s"], joblib["store MB"], joblib["workers MB"]) == (0.0, None, None)
    assert ours["peak %"] == pytest.approx(100 * 1e8 / 1.5e9)
    assert plain["peak %"] == pytest.approx(100 * 5e7 / 1e9)
    one = tally.rows(Case("mlp_16", 1, 10), 1, 2, seen, 1e6, Peak(1e9, 1.5e9))
    assert one[0]["overhead ms"] == pytest.approx(10)
    del seen["raybench_alone"], seen["loop"]
    assert (
        tally.rows(Case("mlp_16", 5, 10), 5, 2, seen, 1e6, Peak(1e9, 1.5e9))[0]["overhead ms"]
        is None
    )


def test_a_dated_table_says_what_it_was_measured_on() -> None:
    seen = {"raybench": blocks(0.1, 0.1)}
    rows = tally.rows(Case("mlp_16", 5, 10), 5, 2, seen, 1e6, Peak(1e9, 1.5e9))
    text = bench.table(rows, "1.0 to 2.0")
    (about, head, rule, row) = (line for line in text.splitlines() if line)
    assert f"torch {torch.__version__}" in about
    assert "commit" in about
    assert "load 1.0 to 2.0" in about
    assert head.count("|") == rule.count("|") == row.count("|") == len(rows[0]) + 1
    assert row.startswith("| mlp_16 | 5 | raybench | 2 | 10 | 10 | 100 |")


# The measurement.


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells")
def test_memory_of_this_process_and_of_what_it_starts_is_seen() -> None:
    held = "x = bytearray(200_000_000); print('held', flush=True); input()"
    with Watch() as watch:
        block = bytearray(300_000_000)
        child = subprocess.Popen(
            [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        del block
    child.communicate("\n")
    assert watch.driver is not None
    assert watch.driver > 300_000_000
    assert watch.workers is not None
    assert watch.workers > 200_000_000
    with Watch() as after:
        pass
    assert after.workers is not None
    assert after.workers < watch.workers


def test_one_lane_and_one_loop_carry_out_the_sample() -> None:
    work = Work("mlp_16", 6, 2, block=1)
    ours, plain = RaybenchAlone(1).block(work, 3), Loop(1).block(work, 3)
    assert ours.runs == plain.runs == 3
    assert ours.seconds > 0
    assert plain.seconds > 0
    assert ours.stored is not None
    assert ours.stored > 1000
    assert plain.stored is None


def test_runs_that_diverge_are_told() -> None:
    runs = RaybenchAlone(1).block(Work("quadratic_deep", 24, None, block=1), 24)
    assert 0 < runs.diverged < runs.runs == 24


def test_a_contestant_that_fails_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    driver = Driver("loop", 1)
    try:
        with pytest.raises(RaybenchError, match=r"loop failed on mlp_17.*--peer"):
            driver.block(Work("mlp_17", 2))
    finally:
        driver.close()
    assert "mlp_17" in capfd.readouterr().err


def test_a_contestant_ends_by_itself_with_all_that_it_started() -> None:
    driver = Driver("joblib", 2)
    driver.block(Work("mlp_16", 2, 1))
    driver.close()
    assert driver._process.exitcode == 0, "joblib's processes were waited for, in vain"


@pytest.mark.parametrize(
    "peers",
    [
        pytest.param(("loop",), id="a loop"),
        pytest.param(None, id="all", marks=[pytest.mark.slow, pytest.mark.ray]),
    ],
)
def test_contestants_are_measured_on_the_same_runs(peers: tuple[str, ...] | None) -> None:
    names = bench.chosen(peers, silent)
    assert peers or {*CONTESTANTS} - {"optuna"} <= {*names}
    notes: list[str] = []
    rows = bench.measure(
        [Case("mlp_16", 3, 12)],
        names,
        blocks=1,
        sample=4,
        seconds=1.0,
        note=notes.append,
    )
    assert [row["contestant"] for row in rows] == [tally.WORDS[name] for name in names]
    assert [row["runs"] for row in rows] == [12 if name == "raybench" else 4 for name in names]
    sampled = len(names) - names.count("raybench")
    assert sum("a sample of 4 of 12 runs" in text for text in notes) == sampled
    for row in rows:
        assert row["ms a run"] * row["runs/s"] == pytest.approx(1000)
        assert 0 < row["peak %"] < 100
        assert row["diverged"] is None
        if row["contestant"] not in ("raybench", "raybench, one lane"):
            assert 0 < row["times raybench"] < math.inf
        if sys.platform == "linux":
            assert row["driver MB"] > 50
            assert row["workers MB"] >= 0
    assert rows[0]["start s"] > 0
    assert rows[0]["store MB"] > 0
