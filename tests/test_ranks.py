"""Several ranks give what one gives: in float64 to 1e-10, whatever is trained and however.

Ranks are forks of one process that runs this file, and that has done nothing yet but imports, which
take longer than all that is tested:

    python tests/test_ranks.py FOLDER '{"SIZE": ["CASE", ...], ...}'

They find each other by a file in FOLDER/SIZE; each writes what it has to show to RANK.pt there.
"""

from __future__ import annotations

import importlib
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import torch.distributed as dist

from raybench import ranks
from raybench import store as results
from raybench.checkpoints import Saves
from raybench.errors import Problem, RaybenchError, SuiteError, UsageError
from raybench.lanes import Lanes
from raybench.local import LocalExecutor
from raybench.models.adapter import adapt as adapt_model
from raybench.models.transformer import Transformer
from raybench.optim.adapter import adapt
from raybench.plan import Batch, batches
from raybench.procedures import PROCEDURES, stop
from raybench.procedures.base import DTYPES
from raybench.procedures.sharded import units
from raybench.procedures.stepper import Stepper
from raybench.procedures.train import Course, Train
from raybench.ranks import Ranks, Rows, Shard, cut, prepare
from raybench.record import Recorder
from raybench.rng import Seed
from raybench.session import Session
from raybench.spec import Run, Steps
from raybench.store import SuiteStore
from raybench.suite import Suite, load, parse
from raybench.tables import build
from raybench.work import Progress, run_batch

DIGITS: dict[str, Any] = {"name": "digits", "train": 47, "valid": 13, "test": 29}
IMAGES: dict[str, Any] = {**DIGITS, "layout": "image"}
TRAIN: dict[str, Any] = {
    "name": "train",
    "dtype": "float64",
    "data": DIGITS,
    "model": {"name": "mlp", "width": 7},
    "optimizer": {"name": "momentum", "lr": 0.05},
    "steps": "7it",
    "batch_size": 9,  # five batches of 9 and one of 2: on 4 ranks two have no row of it
    "record": {"at": {"linear": 2}, "probes": ["loss", "error", "grad_norm", "weight_norm"]},
}
CNN: dict[str, Any] = {"data": IMAGES, "model": {"name": "cnn", "width": 3}}
NOISY: dict[str, Any] = {
    "data": {**IMAGES, "augment": ["crop", "flip", "cutout", "noise"]},
    "model": {"name": "cnn", "width": 3},
}
FOREIGN = adapt("foreign_adam", torch.optim.Adam)
FULL: dict[str, Any] = {
    "shard": "full",
    "optimizer": {"name": "adam", "lr": 0.01},
    "exact": False,
}


class Tied(torch.nn.Module):
    """Uses a layer twice and another one's weights without calling it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(inputs, 6)
        self.twice = torch.nn.Linear(6, 6)
        self.unused = torch.nn.Linear(6, 6)
        self.read = torch.nn.Linear(6, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.twice(self.twice(self.first(x).tanh()).tanh())
        return torch.nn.functional.linear(hidden, self.read.weight, self.read.bias)


FOREIGN_MODEL = adapt_model("tied", Tied)
CASES: dict[str, dict[str, Any]] = {
    "mlp": {"lanes": 1},
    "mlp, lanes": {"lanes": 3},
    "mlp, fused lanes": {"lanes": 3, "exact": False},
    "one fused lane": {"lanes": 1, "exact": False},
    "dropout": {"model": {"name": "mlp", "width": 7, "dropout": 0.3}, "lanes": 2, "exact": False},
    "batch norm": {**CNN, "lanes": 2},
    "batch norm, fused lanes": {**CNN, "lanes": 2, "exact": False},
    "augmentation": {**NOISY, "lanes": 2},
    "augmentation, one lane": {**NOISY, "lanes": 1, "exact": False},
    "full batch": {"batch_size": None, "loss": "mse", "l2": 0.01, "lanes": 1},
    "accumulation": {"accumulate": 2, "model": {"name": "mlp", "width": 7, "dropout": 0.3}},
    "accumulation and batch norm": {**NOISY, "accumulate": 2, "lanes": 2, "exact": False},
    "more pieces than rows": {"accumulate": 20},
    "foreign optimizer": {"foreign": FOREIGN(lr=0.01), "lanes": 2},
    "by layer": {"optimizer": {"name": "lamb", "lr": 0.01}, "lanes": 2},
    "divided state": {"optimizer": {"name": "adam", "lr": 0.01}, "shard": "optimizer"},
    "divided average of fused lanes": {
        "optimizer": {"name": "schedule_free_adamw", "lr": 0.01},
        "shard": "optimizer",
        "lanes": 2,
        "exact": False,
    },
    "divided weights": {**FULL, "l2": 0.01},
    "divided weights, whole batch": {**FULL, "batch_size": None, "loss": "mse"},
    "divided weights, noise": {**FULL, **NOISY, "accumulate": 2},
    "divided weights, residual": {
        **FULL,
        "data": {**IMAGES, "augment": ["flip"]},
        "model": {"name": "resnet18k", "width": 2},
        "steps": "3it",
    },
    "divided weights, averages": {
        **FULL,
        "optimizer": {"name": "schedule_free_adamw", "lr": 0.01},
        "model": {"name": "mlp", "width": 7, "dropout": 0.3},
    },
    "divided weights, characters": {
        **FULL,
        "data": {"name": "text", "length": 8, "train": 20, "valid": 5, "test": 5},
        "model": {"name": "transformer", "width": 8, "heads": 2, "layers": 2, "dropout": 0.1},
        "record": {"at": {"linear": 2}},
        "steps": "4it",
    },
    "divided weights of a module": {**FULL, "foreign_model": True},
    "divided weights, float32": {**FULL, **NOISY, "dtype": "float32", "l2": 0.01, "near": 1e-4},
    "divided weights, bfloat16": {
        **FULL,
        "dtype": "float32",
        "precision": "bfloat16",
        "near": 0.05,
    },
    "until a target": {"stop": {"target": {"train/loss": 2.2}}, "lanes": 3, "exact": False},
    "until it is late": {"stop": {"wall": "9min"}, "lanes": 2},
}


ON_FOUR = [
    "batch norm, fused lanes",
    "augmentation, one lane",
    "divided state",
    "divided weights",
    "divided weights, noise",
]


def spec(changes: dict[str, Any]) -> Train:
    problems: list[Problem] = []
    made = build(PROCEDURES, {**TRAIN, **changes}, (), problems)
    assert isinstance(made, Train), problems
    return made


def carried_out(name: str, ranks: Ranks) -> dict[str, Any]:
    """Return weights, buffers and measurements of a case, for each lane."""
    changes = dict(CASES[name])
    size, exact = changes.pop("lanes", 1), changes.pop("exact", None)
    changes.pop("near", None)
    ranks = replace(ranks, shard=changes.pop("shard", "none"))
    foreign = changes.pop("foreign", None)
    model = FOREIGN_MODEL() if changes.pop("foreign_model", False) else None
    base = spec(changes)
    base = base.replace(optimizer=foreign or base.optimizer, model=model or base.model)
    runs = [
        Run(
            base.replace(
                optimizer=base.optimizer.replace(lr=base.optimizer.lr * (1 + k / 7)),
                data=base.data.replace(label_noise=0.1 * k),
            ),
            Seed(k),
        )
        for k in range(size)
    ]
    lanes = Lanes(size, dtype=DTYPES[base.dtype], exact=exact, ranks=ranks)
    recorder = Recorder(lanes)
    course = Course(lanes, runs)
    params, buffers = course.fit(
        course.network.params, course.network.buffers, recorder, narrow=True
    )
    accounts = recorder.accounts()
    if course.network.shards:
        held = sum(weight.numel() for weight in params.values())
        assert held < 0.8 * course.network.num_params
        params = dict(course.network.shards.whole(params))
    return {
        "params": params,
        "buffers": buffers,
        "metrics": [[metric.value for metric in account.metrics] for account in accounts],
        "named": [[(m.step, m.split, m.name) for m in account.metrics] for account in accounts],
        "ends": [(account.steps, account.stopped, account.diverged_at) for account in accounts],
    }


LASTING: dict[str, Any] = {
    "optimizer": {"name": "adam", "lr": 0.01},
    "model": {"name": "mlp", "width": 7, "dropout": 0.3},
    "steps": "12it",
}
SHARDS: tuple[Shard, ...] = ("none", "optimizer", "full")


class BrokenOff(Exception):
    """Training has come far enough."""


class Impatient(Recorder):
    """Breaks training off at a step."""

    last = 100

    def reach(self, step: int) -> None:
        if step > self.last:
            raise BrokenOff
        super().reach(step)


def checkpointed(folder: Path, own: Ranks, last: int = 100) -> dict[str, Any]:
    """Train with checkpoints, from the latest one in a folder to a last step, and return the end.

    One process alone has a lifted lane, as lanes in float64 are; several have one that is not.
    """
    base = spec(LASTING)
    lanes = Lanes(1, dtype=torch.float64, ranks=own, exact=None if own.size == 1 else False)
    saves = Saves(folder, ["run"], Steps(3, "it"), 2, own)
    recorder = Impatient(lanes, saves)
    recorder.last = last
    course = Course(lanes, [Run(base, Seed(5))])
    network = course.network
    try:
        params, _ = course.fit(network.params, network.buffers, recorder, saves=saves)
    except BrokenOff:
        return {}
    if network.shards:
        params = dict(network.shards.whole(params))
    return {
        "weights": {name: value.flatten() for name, value in params.items()},
        "metrics": [(m.step, m.split, m.name, m.value) for m in recorder.accounts()[0].metrics],
        "seconds": saves.before,
    }


def go_on_in_ranks(folder: Path, own: Ranks) -> dict[str, Any]:
    """Break training off and go on, with each way to divide; and go on from one process's."""
    found = {}
    for shard in SHARDS:
        ours = replace(own, shard=shard)
        checkpointed(folder / shard, ours, 7)
        found[shard] = checkpointed(folder / shard, ours)
        found[f"{shard}, from one"] = checkpointed(folder / f"{shard}, from one", ours)
    return found


@contextmanager
def process_group(rank: int, size: int, folder: Path) -> Iterator[Ranks]:
    """Join the other ranks for a while."""
    store = dist.FileStore(str(folder / "meeting"), size)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    try:
        yield Ranks.current()
    finally:
        dist.destroy_process_group()


SUITE = """\
version: 1
name: several
base:
  procedure: train
  dtype: float64
  data: {name: digits, train: 40, valid: 0, test: 20}
  model: {name: mlp, width: 5}
  optimizer: {name: adam, lr: 0.01}
  steps: 8it
  batch_size: 9
  record: {at: {linear: 3}}
sweep:
  - cases:
      shared: {}
      whole: {procedure: lazy}
      divided: {optimizer.lr: 0.02, resources: {shard: optimizer}}
      full: {optimizer.lr: 0.03, resources: {shard: full}}
      by layer: {optimizer: {name: lamb}, resources: {shard: full}}
    as: kind
seeds: 2
resources: {ranks: 2}
checkpoint: {every: 3it}
"""


def suite(overrides: Mapping[str, Any] | None = None) -> Suite:
    return load(parse(SUITE, "several.yaml"), None, overrides)


def batches_of(told: Suite) -> list[Batch]:
    made = batches(told.runs, suite=told.name, scale="", resources=told.resources, slots=1)
    return [replace(batch, checkpoint=told.checkpoint) for batch in made]


def carry_out_suite(root: Path) -> None:
    """Do as a worker of Ray Train does, of which each rank has one."""
    prepare(60)
    for batch in batches_of(suite()):
        *_, last = run_batch(batch, SuiteStore(root, batch.suite), "ray")
        assert last.finished


def rank_main(rank: int, size: int, folder: Path, names: Sequence[str]) -> None:
    if size == 2:  # several buckets, of which the first are summed during the backward pass
        ranks.BUCKET = 300
    if rank:  # its clock is ahead of the first one's, by more from each look to the next
        stop.time = SimpleNamespace(perf_counter=itertools.count(step=1e6).__next__)
    with process_group(rank, size, folder) as own:
        found = {name: carried_out(name, own) for name in names}
        if size == 2:
            carry_out_suite(folder / "store")
            found |= go_on_in_ranks(folder.parent / "checkpoints", own)
    torch.save(found, folder / f"{rank}.pt")


def main(folder: Path, cases: Mapping[str, Sequence[str]]) -> int:
    """Carry out cases, by number of ranks; return 0 if all has ended well."""
    # Before any pool of threads, which forks would lack; and what Adam imports is imported once.
    importlib.import_module("torch._dynamo")
    importlib.import_module("torch.distributed.fsdp")
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    codes = []
    for size, names in cases.items():
        own = folder / size
        own.mkdir()
        processes = [
            fork.Process(target=rank_main, args=(rank, int(size), own, names))
            for rank in range(int(size))
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            codes.append(process.exitcode)
    return int(any(codes))


ROOT = Path(__file__).parent.parent
PATIENCE = 240  # seconds


def in_ranks(folder: Path, cases: Mapping[int, Sequence[str]]) -> dict[int, list[dict[str, Any]]]:
    """Carry out cases, by number of ranks; return by it what each rank wrote.

    The ranks read no configuration of the network they are on.
    """
    process = subprocess.Popen(
        [sys.executable, __file__, str(folder), json.dumps(cases)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"},
        start_new_session=True,  # so that the forks can be ended with it
    )
    try:
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said[-4000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return {
        size: [
            torch.load(folder / str(size) / f"{rank}.pt", weights_only=True) for rank in range(size)
        ]
        for size in cases
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ranks have written."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """By number of ranks, what each of them has to show of all cases."""
    for shard in SHARDS:
        checkpointed(folder / "checkpoints" / f"{shard}, from one", Ranks.alone(), 7)
    made = in_ranks(folder, {2: list(CASES), 4: ON_FOUR})
    made[1] = [{name: carried_out(name, Ranks.alone()) for name in CASES}]
    return made


@pytest.mark.parametrize(
    ("size", "name"), [*((2, name) for name in CASES), *((4, name) for name in ON_FOUR)]
)
def test_ranks_change_nothing(found, name, size):
    alone = found[1][0][name]
    assert alone["ends"][0][0] > 0
    for own in found[size]:
        same(alone, own[name], CASES[name].get("near", 1e-10))


@pytest.mark.parametrize("shard", SHARDS)
def test_training_goes_on_from_a_checkpoint_on_any_number_of_ranks(found, folder, tmp_path, shard):
    whole = checkpointed(tmp_path, Ranks.alone())
    assert whole["seconds"] == 0
    ends = [each for own in found[2] for each in (own[shard], own[f"{shard}, from one"])]
    ends.append(checkpointed(folder / "checkpoints" / shard, Ranks.alone()))
    for end in ends:
        assert end["seconds"] > 0
        assert [m[:3] for m in end["metrics"]] == [m[:3] for m in whole["metrics"]]
        values = [m[3] for m in whole["metrics"]]
        assert [m[3] for m in end["metrics"]] == pytest.approx(values, rel=1e-10)
        for name, weight in whole["weights"].items():
            torch.testing.assert_close(end["weights"][name], weight, rtol=1e-10, atol=1e-10)


def test_a_batch_of_several_ranks(found, folder, tmp_path):
    """Its rows are those of one process; what cannot be shared has failed, on all ranks alike."""
    runs, ours = parts(folder / "2" / "store")
    runs = runs.set_index("label.kind")
    fine, wrong = ["shared", "divided", "full"], ["whole", "by layer"]
    ends = dict.fromkeys(fine, "done") | dict.fromkeys(wrong, "failed")
    assert sorted(runs["status"].items()) == sorted([*ends.items()] * 2)
    assert "lazy does not share its work: set resources.ranks: 1" in runs["reason"]["whole"].iloc[0]
    assert "lamb does not move each weight on its own" in runs["reason"]["by layer"].iloc[0]
    assert set(runs["ranks"]) == {2}
    told = suite({"resources.ranks": 1})
    assert Session(told, tmp_path, LocalExecutor, Quiet()).run().statuses == {"done": 10}
    theirs = results.table(tmp_path, name="metrics")
    ours, theirs = (
        frame.astype({"run_id": str, "split": str, "metric": str})
        .set_index(["run_id", "step", "split", "metric"])
        .sort_index()
        for frame in (ours, theirs)
    )
    kept = ours.index.unique("run_id")
    assert len(kept) == 2 * len(fine)
    pd.testing.assert_frame_equal(ours, theirs.loc[kept], rtol=0, atol=1e-10)


def parts(root: Path) -> list[pd.DataFrame]:
    """Return the tables of runs and of measurements, as they are without a session."""
    store = SuiteStore(root, "several")
    read = [
        store.read_part(path.stem.removeprefix("part-"))
        for path in (root / "several" / "runs").iterdir()
    ]
    return [
        pd.concat([part[name].to_pandas() for part in read if part and name in part])
        for name in ("runs", "metrics")
    ]


class Quiet:
    def begin(self, phase: str, total: int, finished: int, to_do: int) -> None:
        pass

    def update(self, progress: Progress) -> None:
        pass


def test_one_process_refuses_runs_of_several(tmp_path):
    with pytest.raises(UsageError, match=r"ranks: 2 needs 2 processes.* or set resources.ranks=1"):
        Session(suite(), tmp_path, LocalExecutor, Quiet()).run()


@pytest.mark.parametrize("gpu", [0, 1, 2])
def test_ranks_share_no_gpu(gpu):
    assert suite({"resources.gpu": gpu}).resources.gpu == gpu
    with pytest.raises(SuiteError, match=r"ranks 2 with gpu 0.5: each rank needs a GPU of its own"):
        suite({"resources.gpu": 0.5})
    suite({"resources.gpu": 0.5, "resources.ranks": 1})


def same(one: dict[str, Any], other: dict[str, Any], near: float = 1e-10) -> None:
    assert one["named"] == other["named"]
    assert one["ends"] == other["ends"]
    for ours, theirs in zip(one["metrics"], other["metrics"], strict=True):
        assert ours == pytest.approx(theirs, rel=near, abs=near)
    for kind in ("params", "buffers"):
        assert one[kind].keys() == other[kind].keys()
        for key, value in one[kind].items():
            torch.testing.assert_close(value, other[kind][key], rtol=near, atol=near)


@pytest.mark.parametrize(
    "changes", [{"optimizer": "lamb"}, {"optimizer": "prodigy"}, {"foreign": FOREIGN(lr=0.01)}]
)
def test_state_of_rules_on_all_weights_is_not_divided(changes):
    optimizer = changes.get("foreign") or spec(changes).optimizer
    lanes = Lanes(1, ranks=Ranks(0, 2, "optimizer"))
    with pytest.raises(RaybenchError, match="cannot be divided among ranks"):
        Stepper(lanes, [optimizer])
    Stepper(Lanes(1, ranks=Ranks(0, 1, "optimizer")), [optimizer])


@pytest.mark.parametrize("lanes", [1, 2])
def test_passes_in_bfloat16(lanes):
    """Close to full precision and not equal to it; weights are float32."""
    full, low = {"dtype": "float32", "lanes": lanes}, {"precision": "bfloat16"}
    CASES["full"], CASES["low"] = full, {**full, **low}
    try:
        ours, other = (carried_out(name, Ranks.alone()) for name in ("low", "full"))
    finally:
        del CASES["full"], CASES["low"]
    assert ours["named"] == other["named"]
    for one, two in zip(ours["metrics"], other["metrics"], strict=True):
        assert one != two
        assert one == pytest.approx(two, rel=0.1, abs=0.1)
    assert {value.dtype for value in ours["params"].values()} == {torch.float32}


def test_bfloat16_lowers_float32_only():
    problems: list[Problem] = []
    build(PROCEDURES, {**TRAIN, "precision": "bfloat16"}, (), problems)
    assert "leave dtype: float64 out" in str(problems)


def test_accumulation_changes_only_batch_norm():
    same(*(carried_out(name, Ranks.alone()) for name in ("mlp", "more pieces than rows")))
    assert spec({}).canonical == spec({"accumulate": 1}).canonical
    assert spec({}).canonical != spec({"accumulate": 2}).canonical


def test_sums_begin_during_the_backward_pass(monkeypatch):
    """In buckets of the last leaves first, which other ranks can rely on."""
    seen: list[str] = []

    class Work:
        def wait(self) -> None:
            seen.append("wait")

    def doubled(flat: torch.Tensor, *, async_op: bool) -> Work:
        assert async_op
        seen.append(f"sum {flat.numel()}")
        flat *= 2
        return Work()

    monkeypatch.setattr(ranks.dist, "all_reduce", doubled)
    monkeypatch.setattr(ranks, "BUCKET", 8 * 10)
    draw = torch.Generator().manual_seed(0)
    sizes = {"first": 4, "large": 11, "small": 3, "last": 7}
    leaves = {
        name: torch.randn(size, dtype=torch.float64, generator=draw).requires_grad_()
        for name, size in sizes.items()
    }
    unused = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    leaves["unused"] = unused
    earlier = {name: torch.ones_like(leaf) for name, leaf in leaves.items()}
    assert ranks.Sums.pay(leaves)
    sums = ranks.Sums(leaves, earlier)
    total = leaves["first"].square().sum()
    for name in ("large", "small", "last"):
        total = total + (total.detach() * leaves[name]).square().sum()
        leaves[name].register_hook(lambda grad, name=name: seen.append(name))
    wanted = torch.autograd.grad(total, [*leaves.values()], materialize_grads=True)
    assert "wait" not in seen
    found = sums.of(dict(zip(leaves, wanted, strict=True)))
    assert [*found] == [*leaves]
    for (name, leaf), grad in zip(leaves.items(), wanted, strict=True):
        assert found[name].shape == leaf.shape
        torch.testing.assert_close(found[name], 2 * (grad + 1), msg=name)
    begun = [each for each in seen if each.startswith("sum")]
    assert begun == ["sum 9", "sum 3", "sum 11", "sum 4"]
    assert not ranks.Sums.pay({"alone": unused})


def test_sums_of_a_chain_begin_before_its_gradients_are_all_there(monkeypatch):
    seen: list[str] = []

    class Work:
        def wait(self) -> None:
            pass

    def begun(flat: torch.Tensor, *, async_op: bool) -> Work:
        seen.append("sum")
        return Work()

    monkeypatch.setattr(ranks.dist, "all_reduce", begun)
    monkeypatch.setattr(ranks, "BUCKET", 1)
    leaves = {f"{place}": torch.ones(3, requires_grad=True) for place in range(3)}
    sums = ranks.Sums(leaves, {})
    x = torch.ones(3)
    for name, leaf in leaves.items():
        leaf.register_hook(lambda grad, name=name: seen.append(name))
        x = (x * leaf).sin()
    grads = torch.autograd.grad(x.sum(), [*leaves.values()])
    sums.of(dict(zip(leaves, grads, strict=True)))
    assert seen == ["sum", "2", "sum", "1", "sum", "0"]


def test_units_of_a_network():
    """Parts of about equal weight, which are called once; others belong to the part above."""
    network = Transformer(width=8, heads=2, layers=4).skeleton((8,), 20)
    found = units(network, (8,), Ranks(0, 2, "full"))
    sizes = {name: weight.numel() for name, weight in network.named_parameters()}
    inside = {
        unit: sum(size for name, size in sizes.items() if name.startswith(f"{unit}."))
        for unit in found
    }
    total = sum(sizes.values())
    assert len(found) >= 4
    assert all(total / 16 < size < total / 2 for size in inside.values())
    assert sum(inside.values()) > 0.8 * total
    tied = units(Tied(64, 10), (64,), Ranks(0, 8, "full"))
    assert tied == ["first"]


def test_one_run_at_a_time_divides_its_weights(tmp_path):
    with pytest.raises(SuiteError, match="lanes 3 with shard full: it divides the weights of one"):
        suite({"resources.shard": "full", "resources.lanes": 3})
    suite({"resources.shard": "full", "resources.lanes": 1})
    suite({"resources.shard": "full", "resources.lanes": 3, "resources.ranks": 1})


def test_rows_are_cut_evenly():
    assert [(r.start, r.stop) for r in cut(Rows.all_of(10), 4)] == [(0, 3), (3, 6), (6, 8), (8, 10)]
    assert [r.count for r in cut(Rows.all_of(2), 4)] == [1, 1, 0, 0]
    inner = cut(cut(Rows.all_of(9), 2)[1], 2)
    assert [(r.start, r.stop, r.total) for r in inner] == [(5, 7, 9), (7, 9, 9)]
    assert sum(r.share for r in inner) == pytest.approx(4 / 9)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
