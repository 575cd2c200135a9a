"""The benchmark: its plain loop does the same work, and its rows say what was measured."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from raybench import bench, plainloop
from raybench.errors import UsageError
from raybench.lanes import Lanes
from raybench.plan import distinct
from raybench.record import Account, Recorder
from raybench.suite import Planned

torch.set_num_threads(1)  # as each loop has it

SPLITS = ("train", "valid", "test")


def drawn(trials: int) -> dict[str, list[Planned]]:
    """Runs of the bowl by optimizer."""
    found: dict[str, list[Planned]] = {}
    for planned in distinct(bench.WORKLOADS["quadratic_deep"].suite(4 * trials).runs):
        found.setdefault(str(planned.labels["optimizer"]), []).append(planned)
    return found


RUNS = drawn(8)
BOWL = bench.bowl(RUNS["sgd"][0])


def small_step(optimizer: str) -> Planned:
    """A run that comes to rest within its 100 epochs: its learning rate is near 0.003."""

    def distance(planned: Planned) -> float:
        procedure: Any = planned.run.procedure
        return abs(math.log(procedure.optimizer.lr / 3e-3))

    return min(RUNS[optimizer], key=distance)


def carried_out(planned: Planned) -> Account:
    lanes = Lanes(1)
    recorder = Recorder(lanes)
    planned.run.procedure.execute(lanes, [planned.run], recorder)
    return recorder.accounts()[0]


def by_split(account: Account) -> dict[str, list[float]]:
    return {
        split: [metric.value for metric in account.metrics if metric.split == split]
        for split in SPLITS
    }


@pytest.mark.parametrize(
    ("optimizer", "tolerance"),
    [("sgd", 2e-6), ("momentum", 2e-6), ("rmsprop", 0.02), ("adam", 2e-3)],
)
def test_plain_loop_gives_the_losses_of_raybench(optimizer: str, tolerance: float) -> None:
    planned = small_step(optimizer)
    history = plainloop.train(BOWL, bench.trial(planned))
    ours = by_split(carried_out(planned))
    assert len(history) == 101
    for split in SPLITS:
        theirs = [losses[split] for losses in history]
        np.testing.assert_allclose(theirs[-1], ours[split][-1], rtol=tolerance)
        assert theirs[-1] < theirs[0] / 2
        if tolerance < 1e-5:  # the same rule: the same losses on the way, too
            np.testing.assert_allclose(theirs, ours[split], rtol=1e-5)


def test_plain_loop_begins_and_ends_where_the_published_runs_do() -> None:
    """Published: 353.81277 and 353.44677 at the start, 87.29 after 100 epochs of SGD at 0.01."""
    history = plainloop.train(BOWL, plainloop.Trial("sgd", {"lr": 0.01}, 100))
    assert history[0]["valid"] == pytest.approx(353.81277, rel=1e-5)
    assert history[0]["test"] == pytest.approx(353.44677, rel=1e-5)
    assert history[-1]["test"] == pytest.approx(87.2928, abs=0.5)


def test_plain_loop_ends_with_the_epoch_that_diverges() -> None:
    history = plainloop.train(BOWL, plainloop.Trial("sgd", {"lr": 0.9}, 100))
    assert 2 <= len(history) < 101
    assert not math.isfinite(history[-1]["train"])
    assert all(math.isfinite(losses["train"]) for losses in history[:-1])


def test_plain_loop_sees_whole_batches_only() -> None:
    assert [rows.shape for rows in BOWL.batches] == [(128, 100)] * 7
    assert {split: rows.shape for split, rows in BOWL.splits.items()} == dict.fromkeys(
        SPLITS, (896, 100)
    )
    # The measured training rows are those of the batches, not the first ones of the set.
    trained = np.concatenate(BOWL.batches)
    np.testing.assert_array_equal(np.sort(trained, axis=0), np.sort(BOWL.splits["train"], axis=0))


def test_every_optimizer_of_the_workload_has_a_plain_twin() -> None:
    names = {bench.trial(runs[0]).optimizer for runs in RUNS.values()}
    assert names == plainloop.OPTIMIZERS.keys()
    assert len({len(runs) for runs in RUNS.values()}) == 1


def test_loops_keep_the_order_of_their_trials() -> None:
    trials = [plainloop.Trial("sgd", {"lr": lr}, 2) for lr in (1e-4, 1e-3, 1e-2)]
    with plainloop.Loops(BOWL, 2, trials[0]) as loops:
        seconds, histories = loops.run(trials)
        assert seconds > 0
        assert histories == [plainloop.train(BOWL, trial) for trial in trials]
        assert loops.run(trials[:1])[1] == histories[:1]


def test_row_compares_blocks_that_lie_side_by_side() -> None:
    ours = bench.Tally("raybench", [2.0, 4.0], [20, 20])
    plain = bench.Tally("plain", [1.0, 4.0], [5, 5])
    row = plain.row("bowl", ours)
    assert row["runs"] == 10
    assert row["ms a run"] == pytest.approx(500)
    assert row["runs/s"] == pytest.approx(2)
    assert row["times raybench"] == pytest.approx(0.5 / 0.15)
    assert (row["lowest"], row["highest"]) == (pytest.approx(2), pytest.approx(4))
    own = ours.row("bowl", ours)
    assert own["times raybench"] == 1
    assert own["lowest"] is None
    # One block, or another number of them, has no interval.
    assert bench.Tally("naive", [8.0], [4]).row("bowl", ours)["highest"] is None


@pytest.mark.parametrize(
    ("name", "runs", "peers", "message"),
    [
        ("quadratic", 1, 1, "did you mean 'quadratic_deep'"),
        ("one_step", 0, 1, "--runs 0"),
        ("one_step", 5, -1, "--peers -1"),
    ],
)
def test_what_cannot_be_measured_is_refused(name: str, runs: int, peers: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench.measure(name, runs, peers, note=lambda text: None)


def test_workloads_are_named_before_any_is_measured() -> None:
    assert bench.known([]) == ["one_step", "quadratic_deep"]
    assert bench.known(["quadratic_deep"] * 2) == ["quadratic_deep"]
    with pytest.raises(UsageError, match=r"unknown workload 'two_step'.*one_step, quadratic_deep"):
        bench.known(["one_step", "two_step"])


@pytest.mark.ray
def test_all_contestants_are_measured_on_the_same_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(
        bench.WORKLOADS["quadratic_deep"],
        form=bench.WORKLOADS["quadratic_deep"].form.replace("100ep", "2ep"),
        blocks=1,
    )
    monkeypatch.setattr(bench, "WORKLOADS", {"bowl": short})
    seen: list[int] = []
    loops = plainloop.Loops.run

    def counted(self: Any, trials: Any) -> Any:
        seen.append(len(trials))
        return loops(self, trials)

    monkeypatch.setattr(plainloop.Loops, "run", counted)
    notes: list[str] = []
    rows = bench.measure("bowl", 12, 1, notes.append)
    assert [row["what"] for row in rows] == [
        "raybench",
        "plain PyTorch loop per core",
        "naive Ray Tune",
    ]
    assert [row["runs"] for row in rows] == [12, 3, 1]
    assert seen == [3]
    assert rows[0]["times raybench"] == 1
    assert rows[0]["bytes a run"] > 100
    assert rows[1]["bytes a run"] is None
    for row in rows:
        assert row["ms a run"] * row["runs/s"] == pytest.approx(1000)
        assert 0 < row["times raybench"] < math.inf
    assert any("12 runs through raybench" in text for text in notes)
    assert any("3 of them in plain loops" in text for text in notes)
    assert any("1 of them through naive Ray Tune" in text for text in notes)
