"""A run that goes on from a checkpoint has the numbers of one that was never disturbed."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from raybench import store as results
from raybench.checkpoints import Saves, begun, forget
from raybench.errors import SuiteError
from raybench.local import LocalExecutor
from raybench.plan import batches, decode, distinct
from raybench.procedures.feed import Feed
from raybench.progress import Progress
from raybench.ranks import Ranks
from raybench.session import Outcome, Session
from raybench.spec import Steps, digest
from raybench.store import SuiteStore
from raybench.suite import Checkpoint, Suite, load, parse

SUITE = """\
version: 1
name: long
base:
  procedure: train
  dtype: float64
  data: {name: digits, train: 60, valid: 20, test: 40}
  model: {name: mlp, width: 5}
  optimizer: {name: adam, lr: 0.01}
  steps: 24it
  batch_size: 16
  record: {at: {linear: 6}}
sweep: [{optimizer.lr: [0.003, 0.01, 0.03]}]
seeds: 2
resources: {lanes: 6, batch: 6}
checkpoint: {every: 5it, keep: 2}
"""


class Watch:
    def begin(self, phase: str, total: int, finished: int, to_do: int) -> None:
        pass

    def update(self, progress: Progress) -> None:
        pass


def suite(overrides: Mapping[str, Any] | None = None) -> Suite:
    return load(parse(SUITE, "long.yaml"), None, overrides)


def carried_out(root: Path, overrides: Mapping[str, Any] | None = None) -> Outcome:
    return Session(suite(overrides), root, LocalExecutor, Watch()).run()


def curves(root: Path) -> pd.DataFrame:
    frame = results.table(root, name="metrics")
    frame = frame.astype({"run_id": str, "split": str, "metric": str})
    return frame.sort_values(["run_id", "step", "split", "metric"]).reset_index(drop=True)


def rows(root: Path) -> pd.DataFrame:
    frame = results.table(root).sort_values("run_id").reset_index(drop=True)
    return frame[
        [c for c in frame if c.startswith("summary.") or c in ("run_id", "status", "steps")]
    ]


def files(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "long" / "checkpoints").glob("*/step-*.pt"))


def interrupt(
    monkeypatch: pytest.MonkeyPatch, at: int, error: Callable[[], BaseException]
) -> list[int]:
    """Raise once when the rows of step `at` are asked for; return the steps that are."""
    ask, seen, waiting = Feed.pieces, [], [error]

    def pieces(feed: Feed, step: int, count: int) -> Any:
        seen.append(step)
        if step == at and waiting:
            raise waiting.pop()()
        return ask(feed, step, count)

    monkeypatch.setattr(Feed, "pieces", pieces)
    return seen


KINDS: dict[str, dict[str, Any]] = {
    "native": {},
    "one lane, float32": {"dtype": "float32", "resources.lanes": 1, "resources.batch": 1},
    "fused, float32": {"dtype": "float32"},
    "foreign": {"optimizer.name": "pytorch_optimizer:AdaBelief"},
    "not elementwise": {"optimizer.name": "lamb"},
    "averages": {"optimizer.name": "schedule_free_adamw"},
    "fixed order": {"order": "fixed", "drop_last": True},
    "buffers": {
        "model": {"name": "resnet18k", "width": 1},
        "data.layout": "image",
        "batch_size": 30,
        "seeds": 1,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_suite_goes_on_where_it_was(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = KINDS[kind]
    carried_out(tmp_path / "whole", overrides)
    seen = interrupt(monkeypatch, 13, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        carried_out(tmp_path / "broken", overrides)
    assert files(tmp_path / "broken") == ["step-000000000005.pt", "step-000000000010.pt"]
    seen.clear()
    carried_out(tmp_path / "broken", overrides)
    assert min(seen[: 24 - 10]) == 10
    assert seen[: 24 - 10] == list(range(10, 24))
    again, whole = curves(tmp_path / "broken"), curves(tmp_path / "whole")
    exact = "float32" not in kind
    tolerance: dict[str, Any] = {"check_exact": True} if exact else {"rtol": 1e-5}
    pd.testing.assert_frame_equal(again, whole, **tolerance)
    pd.testing.assert_frame_equal(rows(tmp_path / "broken"), rows(tmp_path / "whole"), **tolerance)
    assert not (tmp_path / "broken" / "long" / "checkpoints").is_dir() or not files(
        tmp_path / "broken"
    )


def test_ended_lanes_stay_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = {
        "optimizer.name": "sgd",
        "optimizer.lr": [0.001, 0.3, 1e200],
        "stop": {"target": {"train/loss": 2.0}},
        "record": {"at": {"every": "1it"}},
    }
    carried_out(tmp_path / "whole", overrides)
    assert set(rows(tmp_path / "whole")["status"]) == {"done", "stopped", "diverged"}
    interrupt(monkeypatch, 22, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        carried_out(tmp_path / "broken", overrides)
    carried_out(tmp_path / "broken", overrides)
    pd.testing.assert_frame_equal(
        curves(tmp_path / "broken"), curves(tmp_path / "whole"), check_exact=True
    )
    pd.testing.assert_frame_equal(
        rows(tmp_path / "broken"), rows(tmp_path / "whole"), check_exact=True
    )


def test_pieces_of_a_group_that_failed_go_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried_out(tmp_path / "whole")
    seen = interrupt(monkeypatch, 13, lambda: RuntimeError("once"))
    assert carried_out(tmp_path / "broken").statuses == {"done": 6}
    assert seen == [*range(14), *range(10, 24), *range(10, 24)]
    pd.testing.assert_frame_equal(
        curves(tmp_path / "broken"), curves(tmp_path / "whole"), check_exact=True
    )
    assert not files(tmp_path / "broken")


def test_runs_that_are_to_begin_anew_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = interrupt(monkeypatch, 13, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        carried_out(tmp_path)
    everything = frozenset(planned.run.run_id for planned in distinct(suite().runs))
    seen.clear()
    Session(suite(), tmp_path, LocalExecutor, Watch(), only=everything).run()
    assert seen == list(range(24))


def test_checkpoints_change_no_identity_and_cross_to_workers() -> None:
    plain = suite({"checkpoint": None})
    assert plain.checkpoint is None
    assert [p.run.run_id for p in plain.runs] == [p.run.run_id for p in suite().runs]
    made = batches(suite().runs, suite="s", scale="", resources=suite().resources, slots=1)
    spec = Checkpoint(every=Steps(3, "ep"))
    object.__setattr__(made[0], "checkpoint", spec)
    assert decode(made[0].encode()).checkpoint == spec


def test_a_length_of_nothing_is_refused() -> None:
    with pytest.raises(SuiteError, match="at least 1it"):
        suite({"checkpoint.every": "0ep"})


# What is stored.


def saves(folder: Path, *run_ids: str, keep: int = 2) -> Saves:
    return Saves(folder, run_ids, Steps(1, "it"), keep)


def test_a_damaged_file_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    own = saves(tmp_path, "a", "b")
    for step in (1, 2, 3):
        own.save(step, {"weights": torch.tensor([float(step)])})
    damaged = sorted(tmp_path.glob("*/step-*.pt"))
    assert [path.name for path in damaged] == ["step-000000000002.pt", "step-000000000003.pt"]
    damaged[-1].write_bytes(damaged[-1].read_bytes()[:-100])
    loaded = saves(tmp_path, "b").load()
    assert loaded is not None
    assert loaded.step == 2
    assert loaded.places == (1,)
    assert loaded.state["weights"].tolist() == [2.0]
    damaged[0].write_bytes(b"no checkpoint")
    assert saves(tmp_path, "b").load() is None


class Stranger:
    """What a file of somebody else may hold."""


def test_only_plain_values_are_written_and_read(tmp_path: Path) -> None:
    own = saves(tmp_path, "a")
    own.save(1, {"weights": torch.zeros(2)})
    own.save(2, {"weights": Stranger()})
    (path,) = tmp_path.glob("*/step-*.pt")
    assert path.name == "step-000000000001.pt"
    held = io.BytesIO()
    torch.save({"format": 1, "seconds": 0.0, "state": Stranger()}, held)
    path.write_bytes(held.getvalue())
    assert saves(tmp_path, "a").load() is None


def test_the_group_that_is_furthest_goes_first(tmp_path: Path) -> None:
    saves(tmp_path, "a", "b", "c", "d").save(10, {})
    saves(tmp_path, "d", "b").save(20, {})
    assert begun(tmp_path, ["a", "b", "c", "d", "e"]) == ["b", "d"]
    assert begun(tmp_path, ["a", "c", "e"]) == ["a", "c"]
    assert begun(tmp_path, ["e"]) == []
    furthest = saves(tmp_path, "b").load()
    assert furthest is not None
    assert (furthest.step, furthest.places) == (20, (1,))
    forget(tmp_path, ["a"])
    assert begun(tmp_path, ["a", "b"]) == ["b"]


class Other(Ranks):
    """A second rank, to whom the first one says where to go on."""

    first = False  # type: ignore[assignment]

    def agree(self, value: Any) -> Any:
        assert value is None
        return (1, digest(["a"]), ["a"])


def test_a_process_that_does_not_write_reads(tmp_path: Path) -> None:
    quiet = Saves(tmp_path, ["a"], Steps(1, "it"), 2)
    quiet._ranks = Other()
    quiet.save(1, {})
    assert not list(tmp_path.iterdir())
    own = saves(tmp_path, "a")
    own.save(1, {})
    assert quiet.load() is not None
    quiet.drop()
    assert begun(tmp_path, ["a"]) == ["a"]
    own.drop()
    assert begun(tmp_path, ["a"]) == []


def test_seconds_go_on_too(tmp_path: Path) -> None:
    own = saves(tmp_path, "a")
    own.before = 100.0
    own.save(1, {})
    later = saves(tmp_path, "a")
    later.load()
    assert later.before >= 100.0
    assert later.seconds() >= later.before


def test_a_store_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder would be")
    saves(tmp_path / "taken", "a").save(1, {})
    assert (tmp_path / "taken").is_file()


def test_the_store_says_where(tmp_path: Path) -> None:
    assert SuiteStore(tmp_path, "long").checkpoints == tmp_path / "long" / "checkpoints"
