"""Machines that share nothing but a network: a head, a node, a bucket, and somebody's laptop.

Each is a network namespace with files of its own (tests/cluster/hosts.py), so this runs as root
only.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_nodes import CRASH, SUITE

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
STORE = "s3://shared/results"
TABLES = (
    "select run_id, split, metric, step, value from metrics order by all",
    "--json",
    "--limit=100000",
)


def _hosts() -> Any:
    given = importlib.util.spec_from_file_location("hosts", ROOT / "tests" / "cluster" / "hosts.py")
    assert given is not None
    assert given.loader is not None
    module = importlib.util.module_from_spec(given)
    given.loader.exec_module(module)
    return module


class Place:
    """A cluster of two machines with a token, a server of buckets, and a laptop."""

    def __init__(self, hosts: Any, token: str) -> None:
        self.hosts, self._token = hosts, token
        self.head, self.laptop = hosts["head"], hosts["laptop"]
        self.url = f"http://{self.head.address}:8265"
        served = f"from moto.server import main; main(['-H', '{hosts['s3'].address}', '-p', '80'])"
        hosts["s3"].start(sys.executable, "-c", served, log="log")
        self._ray("head", "--head", "--port=6379", f"--dashboard-host={self.head.address}")
        end = time.monotonic() + 200
        while self.ask("status", "--address", self.url, code=None) is None:
            assert time.monotonic() < end, self.head.read("log")
            time.sleep(1)
        self._ray("node", f"--address={self.head.address}:6379", '--resources={"far": 1}')
        while "far" not in self.said("status", "--address", self.url):
            assert time.monotonic() < end, hosts["node"].read("log")
            time.sleep(1)
        bucket = (
            "from pyarrow import fs\n"
            "system, name = fs.FileSystem.from_uri('s3://shared?allow_bucket_creation=true')\n"
            "system.create_dir(name)"
        )
        assert self.laptop.start(sys.executable, "-c", bucket).wait(120) == 0

    def _ray(self, name: str, *words: str) -> None:
        host = self.hosts[name]
        host.start(
            str(BIN / "ray"), "start", "--block", f"--node-ip-address={host.address}",
            "--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000", *words, log="log",
        )  # fmt: skip

    def ask(self, *words: str, code: int | None = 0) -> str | None:
        """Return what raybench answers on the laptop; None if that is not `code`."""
        asked = self.laptop.raybench(*words)
        said, _ = asked.communicate(timeout=240)
        assert self._token not in said
        assert code is None or asked.returncode == code, said
        return said if asked.returncode == 0 or code else None

    def said(self, *words: str) -> str:
        """Return what raybench says on the laptop."""
        said = self.ask(*words)
        assert said is not None
        return said

    def stored(self) -> tuple[int, int]:
        """Return how many rows the table of runs has, and of how many runs."""
        counted = "select count(*) as rows, count(distinct run_id) as runs from runs"
        said = self.ask("query", STORE, counted, "--json", code=None)
        (row,) = json.loads(said) if said else [{"rows": 0, "runs": 0}]
        return row["rows"], row["runs"]


@contextlib.contextmanager
def placed() -> Iterator[Place]:
    made = _hosts()
    if reason := made.missing():
        pytest.skip(reason)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY", "AWS_", "XDG_"))}
    token = secrets.token_hex(32)
    env = {
        **kept,
        "PATH": f"{BIN}{os.pathsep}{kept['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "3000",  # a minute goes by otherwise
        "RAY_worker_niceness": "0",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "a-secret-that-is-never-shown",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://{made.NETWORK}.1:80",
    }
    with tempfile.TemporaryDirectory(prefix="rb-") as folder:  # short: Ray's sockets lie in it
        names = ("s3", "head", "node", "laptop")
        with made.network(*names, folder=Path(folder), env=env) as hosts:
            yield Place(hosts, token)
        assert not list(Path(folder).iterdir()), "each host has written to itself only"


def undisturbed(folder: Path, *words: str) -> Any:
    """Return the metrics of the suite, carried out here."""
    (folder / "many.yaml").write_text(SUITE)
    for line in (["run", "many.yaml", "--in-process", *words], ["query", "results", *TABLES]):
        done = subprocess.run(
            [sys.executable, "-m", "raybench", *line],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
    return json.loads(done.stdout)


def test_from_a_laptop_a_suite_is_submitted_watched_and_read(tmp_path: Path) -> None:
    with placed() as place:
        laptop = place.laptop
        laptop.write("many.yaml", SUITE)
        words = ["submit", "many.yaml", "--address", place.url, "-o", STORE, "--follow"]
        job = laptop.raybench(*words, "seeds=50")
        terminal = "import pty, sys; pty.spawn(sys.argv[1:])"
        watch = [sys.executable, "-m", "raybench", "status", "--address", place.url, "-w"]
        live = laptop.start(sys.executable, "-c", terminal, *watch, log="live", COLUMNS="250")
        said, _ = job.communicate(timeout=400)
        assert job.returncode == 0, said
        assert "200 runs carried out; in all 200 done" in said
        # The screens so far: while it ran, and once it had ended.
        while not re.search(r"SUCCEEDED +0 +200 +200 ", laptop.read("live")):
            assert live.poll() is None, laptop.read("live")
            time.sleep(0.2)
        live.terminate()
        screens = laptop.read("live").split("\x1b[2J")
        node = place.hosts["node"].address
        assert [each for each in screens if "RUNNING" in each and node in each], screens

        # A crash on a machine that is neither the driver's nor the laptop's.
        laptop.write("crash.py", CRASH)
        more = ["optimizer.name=crash:Crash", "--allow-code", "crash.py", "seeds=1"]
        far = ["resources.custom={far: 0.1}", "resources.retries=0", "resources.lanes=1"]
        crashed = place.ask(*words, *more, *far, code=1)
        assert crashed is not None
        assert "the process crashed: Segmentation fault" in crashed
        failed = "select run_id from runs where status = 'failed'"
        (row,) = json.loads(place.said("query", STORE, failed, "--json"))
        assert "string_at" in place.said("runs", "logs", row["run_id"], STORE), "where it crashed"

        assert "report-default.html" in place.said("report", STORE)
        # A driver on the head, without a job.
        place.head.write("plain.yaml", SUITE.replace("name: many", "name: plain"))
        address = f"{place.head.address}:6379"
        driver = place.head.raybench(
            "run", "plain.yaml", "--address", address, "-o", STORE, "seeds=10"
        )
        said, _ = driver.communicate(timeout=240)
        assert driver.returncode == 0, said
        assert "40 runs carried out; in all 40 done" in said


@pytest.mark.parametrize(("loss", "seed"), [("unplugged", 1), ("parted", 2)])
def test_a_node_that_the_network_takes_away_is_made_up_for(
    loss: str, seed: int, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    moment = chance.randrange(20, 240)
    words = ["steps=60it", "seeds=100"]
    with placed() as place:
        place.head.write("many.yaml", SUITE)
        address = f"{place.head.address}:6379"
        driver = place.head.raybench("run", "many.yaml", "--address", address, "-o", STORE, *words)
        while driver.poll() is None and place.stored()[1] < moment:
            time.sleep(chance.uniform(0, 0.5))
        assert driver.poll() is None
        if loss == "unplugged":
            place.hosts.unplug("node")
        else:  # the head cannot tell it from a dead one, but it goes on storing
            place.hosts.part("head", "node")
        said, _ = driver.communicate(timeout=400)
        assert driver.returncode == 0, said
        assert "in all 400 done" in said
        assert place.stored() == (400, 400)
        there = json.loads(place.said("query", STORE, *TABLES))
    assert there == undisturbed(tmp_path, *words)
