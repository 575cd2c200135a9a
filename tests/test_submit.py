"""Suites as jobs of a cluster that is elsewhere: a head of the test's own, with its token."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

import raybench
from raybench import store as results
from raybench.cli import app, console
from raybench.cli.suites import launch_files
from raybench.cluster import dashboard
from raybench.errors import MissingError
from raybench.work import Progress

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "cluster.md"
BIN = Path(sys.executable).parent

# What `status --address` reads of a job's log


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a LiveLine writes where there is no terminal."""
    text = io.StringIO()
    monkeypatch.setattr(console, "errors", Console(file=text, soft_wrap=True, width=160))
    monkeypatch.setattr(console, "_PLAIN_SECONDS", 0.0)
    return text


@pytest.mark.parametrize("phase", ["run", "search", "rung"])
def test_the_progress_of_a_job_is_read_from_its_log(printed: io.StringIO, phase: str) -> None:
    def read() -> tuple[int, int, str] | None:
        return console.last_progress(printed.getvalue().splitlines())

    assert read() is None
    line = console.LiveLine("a-study_2")
    line.begin(phase, 12_345, 1_000, 11_345)
    assert read() == (0, 11_345, "")
    line.update(Progress("a", waiting="waiting for a node: a batch needs 1 GPU"))
    assert read() == (0, 11_345, "")
    line.update(Progress("a", Counter(done=1_000, failed=2), Counter({"E: 1/3  went": 2}), lanes=8))
    told = read()
    assert told is not None
    assert told[:2] == (1_002, 11_345)
    assert re.fullmatch(r"[\d.]+ runs/s  in .* s  failed 2  1 batches x 8 lanes", told[2])
    line.update(Progress("a", Counter(done=10_343), finished=True))
    line.close()
    told = read()
    assert told is not None
    assert told[:2] == (11_345, 11_345)
    line.begin(phase, 0, 0, 0)
    assert read() == (0, 0, "")


# What is said where something is missing


@pytest.mark.parametrize("words", [["submit", "quickstart", "-o", "s3://b/r"], ["status"]])
def test_without_the_job_client_it_is_7(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "aiohttp" else found(name, *a)
    )
    with pytest.raises(MissingError, match="raybench\\[cluster\\]"):
        dashboard("http://127.0.0.1:1")
    monkeypatch.setattr(sys, "argv", ["raybench", *words, "--address", "http://127.0.0.1:1"])
    with pytest.raises(SystemExit) as ended:
        raybench.cli.main()
    assert ended.value.code == 7
    assert "pip install 'raybench[cluster]'" in " ".join(capsys.readouterr().err.split())


def commands() -> list[str]:
    """What a reader is told to type, on the page and in the files that start clusters."""
    page = PAGE.read_text("utf-8")
    found = re.findall(r"^    (raybench .*)$", page, re.M) + re.findall(r"`(raybench [^`]+)`", page)
    for file in launch_files().values():
        found += re.findall(r"^(?:#| *entrypoint:) +(raybench .*)$", file.read_text("utf-8"), re.M)
    return list(dict.fromkeys(found))


def test_the_commands_are_found() -> None:
    verbs = {shlex.split(line)[1] for line in commands()}
    assert verbs == {"run", "report", "show", "submit", "status", "runs"}
    assert len(commands()) >= 10


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_page_can_be_typed(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_opt.py").touch()
    words = shlex.split(re.split(r" > | +# ", line)[0])[1:]
    command: Any = typer.main.get_command(app)
    name = "raybench"
    while hasattr(command, "commands"):
        name = words.pop(0)
        command = command.commands[name]
    # Parses as the real command line does, and carries nothing out.
    with contextlib.closing(command.make_context(name, [*words])) as context:
        assert not context.args
    with pytest.raises(Exception, match="No such option"):
        command.make_context(name, [*words, "--adress", "x"])
    if name == "show":
        assert words[0] in launch_files()


# A head


SUITE = """\
version: 1
name: tiny
base:
  procedure: train
  data: {name: digits, train: 60, valid: 20, test: 40}
  model: {name: mlp, width: 5}
  optimizer: {name: sgd, lr: 0.05}
  steps: 10it
  batch_size: 16
sweep: [{cases: {good: {}, wild: {optimizer.lr: 1.0e+30}}}]
seeds: 3
"""
OWN = """\
import torch


class Own(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        if lr > 1:
            raise ValueError("far too fast")
        super().__init__(params, lr=lr)
"""


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Head:
    """A Ray with a dashboard and a token, on loopback, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        gcs, shown, self.metrics, client, agent = free_ports(5)
        self.url = f"http://127.0.0.1:{shown}"
        (folder / "token").write_text(secrets.token_hex(32))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RAYBENCH_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"  # whose python jobs find
        self._clean = {**kept, "HOME": str(folder), "PYTHONPATH": str(ROOT), "PATH": path}
        self._known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        own = {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else it takes the machine's own address
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "RAY_metrics_report_interval_ms": "500",
            "RAY_worker_niceness": "0",
        }
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(
            [
                BIN / "ray", "start", "--head", "--block", f"--port={gcs}",
                "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
                f"--dashboard-port={shown}", f"--metrics-export-port={self.metrics}",
                f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
                "--min-worker-port=0", "--max-worker-port=0",
                f"--temp-dir={folder / 'ray'}", "--num-cpus=2", "--num-gpus=0",
                "--object-store-memory=100000000", "--disable-usage-stats",
            ],
            env={**self._clean, **self._known, **own},
            stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def wait(self) -> None:
        end = time.monotonic() + 120
        while not self._ready():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < end, self("status", code=None).stderr
            time.sleep(0.5)

    def _ready(self) -> bool:
        try:
            self.scraped()  # served by the agent that starts jobs: up later than the dashboard
        except OSError:
            return False
        return self("status", code=None).returncode == 0

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __call__(
        self, *words: str, code: int | None = 0, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Give a command line to raybench, with the token unless another environment is given."""
        verb, *rest = words
        done = subprocess.run(
            [sys.executable, "-m", "raybench", verb, "--address", self.url, *rest],
            env={**self._clean, **(more or self._known)}, cwd=self.folder,
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert code is None or done.returncode == code, (done.stdout, done.stderr)
        assert (self.folder / "token").read_text() not in done.stdout + done.stderr
        return done

    def job(self, suite: str) -> dict[str, Any]:
        """Return what `status` tells of the job of a suite."""
        told = json.loads(self("status", "--json").stdout)
        assert [node["head"] for node in told["nodes"]] == [True]
        (row,) = [row for row in told["jobs"] if row["suite"] == suite]
        return dict(row)

    def scraped(self) -> dict[tuple[str, str, str], float]:
        """Return the sums of raybench's metrics by name, status or kind, and suite."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        found: Counter[tuple[str, str, str]] = Counter()
        for line in lines:
            if given := re.fullmatch(r"ray_(raybench_\w+){(.*)} (\S+)", line):
                labels = dict(re.findall(r'(\w+)="([^"]*)"', given[2]))
                which = labels.get("status", labels.get("kind", ""))
                found[given[1], which, labels["suite"]] += float(given[3])
        return dict(found)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="rb-"))  # short: it holds the names of Ray's sockets
    made = Head(folder)
    try:
        made.wait()
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def watched(head: Head) -> Iterator[dict[tuple[str, str, str], float]]:
    """Give the largest value that each metric has meanwhile, once that is over."""
    most: dict[tuple[str, str, str], float] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            for name, value in head.scraped().items():
                most[name] = max(value, most.get(name, value))

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield most
        finally:
            over.set()
        watching.result()


def submitted(head: Head, suite: str, code: int, *words: str) -> tuple[Path, str]:
    (head.folder / f"{suite}.yaml").write_text(SUITE.replace("tiny", suite))
    store = head.folder / "shared"
    done = head("submit", f"{suite}.yaml", "-o", str(store), "--follow", *words, code=code)
    assert f"raybench-{suite}-" in done.stdout
    return store, done.stderr


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("given", [{}, {"RAY_AUTH_TOKEN": "0" * 64}])
def test_without_the_token_nothing_is_told_or_taken(head: Head, given: dict[str, str]) -> None:
    mode = {"RAY_AUTH_MODE": "token" if given else "disabled"}
    for words in (["status"], ["submit", "quickstart", "-o", "/shared"]):
        refused = head(*words, code=6, **mode, **given)
        assert "missing or wrong" in refused.stderr
        assert "RAY_AUTH_TOKEN" in refused.stderr
        assert refused.stdout == ""
    assert not [row for row in json.loads(head("status", "--json").stdout)["jobs"]
                if row["suite"] == "quickstart"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.ray
def test_a_suite_is_carried_out_watched_and_counted(head: Head) -> None:
    with watched(head) as most:
        store, said = submitted(head, "tiny", 0)
    assert "6 runs carried out; in all 3 diverged, 3 done" in said
    statuses = results.table(store, "tiny")["status"]
    assert Counter(statuses) == {"done": 3, "diverged": 3}
    row = head.job("tiny")
    assert (row["state"], row["code"], row["done"], row["to do"]) == ("SUCCEEDED", 0, 6, 6)
    assert row["store"] == str(store)
    assert re.search(r"tiny +SUCCEEDED +0 +6 +6 ", head("status").stdout)

    told = head.scraped()
    assert told["raybench_runs_total", "done", "tiny"] == 3
    assert told["raybench_runs_total", "diverged", "tiny"] == 3
    # The others go with the process that set them.
    assert most["raybench_runs_total", "done", "tiny"] <= 3
    assert 0 <= most["raybench_lanes", "", "tiny"] <= 6
    assert 0 <= most["raybench_batches", "", "tiny"] <= 6
    assert most["raybench_runs_per_second", "", "tiny"] >= 0
    assert most["raybench_memory_bytes", "resident", "tiny"] > 50e6


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_ends_with_the_code_of_its_run(head: Head) -> None:
    (head.folder / "own.py").write_text(OWN)
    words = ["optimizer.name=own:Own", "--allow-code", "own.py"]
    store, said = submitted(head, "failing", 1, *words)
    assert "far too fast" in said
    assert Counter(results.table(store, "failing")["status"]) == {"done": 3, "failed": 3}
    row = head.job("failing")
    assert (row["state"], row["code"], row["done"], row["to do"]) == ("FAILED", 1, 6, 6)
    assert head.scraped()["raybench_runs_total", "failed", "failing"] == 3
