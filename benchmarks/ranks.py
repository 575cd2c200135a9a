# ruff: noqa: T201
"""What several ranks cost and save, on CPUs with gloo: rows for benchmarks/RESULTS.md.

    python benchmarks/ranks.py sums     # a step, its gradients summed early or late
    python benchmarks/ranks.py memory   # peak memory of each rank, by resources.shard

Ranks are processes of this script, one core each, without Ray.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raybench import ranks
from raybench.lanes import Lanes
from raybench.procedures import PROCEDURES
from raybench.procedures.stepper import Stepper
from raybench.procedures.train import Course
from raybench.record import Recorder
from raybench.rng import Seed
from raybench.spec import Run
from raybench.tables import build

NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18k, width 8": {"model": {"name": "resnet18k", "width": 8}, "batch_size": 64},
    "mlp, 4 layers of 256": {"model": {"name": "mlp", "width": 256, "depth": 4}},
    "mlp, 4 layers of 1024": {"model": {"name": "mlp", "width": 1024, "depth": 4}},
}
LARGE = {"model": {"name": "mlp", "width": 2048, "depth": 13}, "batch_size": 32, "steps": "3it"}
WAYS = (("none", 1), ("none", 2), ("optimizer", 2), ("full", 2), ("full", 4))
BLOCKS, STEPS = 8, 12


def course(changes: dict[str, Any], lanes: Lanes, optimizer: str) -> Course:
    """Return a run that is ready to be trained."""
    image = changes["model"]["name"] == "resnet18k"
    base = {
        "name": "train",
        "data": {"name": "digits", "layout": "image" if image else "flat"},
        "optimizer": {"name": optimizer, "lr": 0.001},
        "steps": "10000it",
        "record": {"at": {"linear": 1}, "train_rows": 100},
    }
    problems: list[Any] = []
    spec = build(PROCEDURES, {**base, **changes}, (), problems)
    assert not problems, problems
    return Course(lanes, [Run(spec, Seed(0))])


def sums(own: ranks.Ranks, name: str) -> dict[str, Any]:
    """Return milliseconds of a step both ways, in turns."""
    lanes = Lanes(1, ranks=own, exact=False)
    made = course(NETWORKS[name], lanes, "momentum")
    network = made.network
    stepper = Stepper(lanes, [made._optimizers[0]])
    params, buffers = network.params, network.buffers
    state = stepper.init(params)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    step = 0
    for block in range(BLOCKS):
        for early in (True, False) if block % 2 else (False, True):
            network._overlaps = early
            for _ in range(STEPS):
                own.barrier()
                began = time.perf_counter()
                grads, _, buffers = network.step_gradient(params, buffers, made.feed.pieces(step))
                params, state = stepper.update(grads, state, params, 1.0)
                step += 1
                if block:  # the first one warms up
                    seconds[early].append(time.perf_counter() - began)
    found = {True: "during", False: "after"}
    return {
        "MB of gradients": round(4e-6 * network.num_params, 1),
        **{f"median ms, {found[k]}": 1e3 * statistics.median(v) for k, v in seconds.items()},
        **{f"least ms, {found[k]}": 1e3 * min(v) for k, v in seconds.items()},
    }


def memory(own: ranks.Ranks) -> dict[str, Any]:
    """Return MB at the peak of a training, above what the process had before."""
    importlib.import_module("torch.distributed.fsdp")
    before = peak()
    lanes = Lanes(1, ranks=own, exact=False)
    made = course(LARGE, lanes, "adam")
    recorder = Recorder(lanes)
    made.fit(made.network.params, made.network.buffers, recorder)
    return {
        "weights, M": made.network.num_params / 1e6,
        "peak MB": peak() - before,
        "last loss": [m.value for m in recorder.accounts()[0].metrics if m.name == "loss"][-1],
    }


def peak() -> float:
    """Return the most memory that this process has had, in MB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmHWM in /proc/self/status")


def rank_main(rank: int, size: int, folder: str, what: str, way: str) -> None:
    """Be one of the ranks, and leave what was measured in a file."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/meeting", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    if what == "sums":
        found = sums(ranks.Ranks.current(), way)
    else:
        shard: Any = way
        found = memory(ranks.Ranks.current(shard))
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def measured(what: str, way: str, size: int) -> list[dict[str, Any]]:
    """Return what each rank has measured."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            spawn.Process(target=rank_main, args=(rank, size, folder, what, way))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(size)]


def main() -> None:
    """Measure, and print rows of a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["sums", "memory"])
    what = parser.parse_args().what
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    for way, size in WAYS if what == "memory" else ((name, 2) for name in NETWORKS):
        for rank, found in enumerate(measured(what, way, size)[: 1 if what == "sums" else size]):
            cells = [f"{key} {value:.4g}" for key, value in found.items()]
            print(f"| {way}, {size} ranks | rank {rank} | {' | '.join(cells)} |", flush=True)
    print("load", os.getloadavg())


if __name__ == "__main__":
    main()
