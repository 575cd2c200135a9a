"""A store at a URL: a real S3-compatible server, its moods, and what holds where nothing locks."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from moto.moto_server import werkzeug_app as moto
from pyarrow import fs
from typer.testing import CliRunner

from raybench import store as results
from raybench.cli.app import app
from raybench.errors import UnavailableError, UsageError
from raybench.journal import Journal, Journals, folder_of, send
from raybench.parts import listed
from raybench.pulse import Pulse
from raybench.schema import runs_table
from raybench.storage import Bucket, Storage, at, below, bucket, folder
from raybench.store import SuiteStore

COMMAND = str(Path(sys.executable).with_name("raybench"))
SECRET = "a-secret-that-is-never-shown"
SUITE = """\
version: 1
name: tiny
base:
  procedure: train
  dtype: float64
  data: {name: teacher_student, dim: 4, train: 16, valid: 0, test: 8}
  model: {name: mlp, width: 2}
  optimizer: {name: sgd, lr: 0.1}
  steps: 3it
  batch_size: 8
  record: {at: {linear: 1}}
sweep: [{model.width: [2, 3, 4]}]
seeds: 2
"""


class Server:
    """An S3 server on loopback; `mood` may answer a request in its place."""

    def __init__(self) -> None:
        from werkzeug.serving import make_server

        self._app = moto.DomainDispatcherApplication(moto.create_backend_app)
        self.mood: Callable[[dict[str, Any]], bool] = lambda environ: False
        self.refused = 0
        handler = moto.MotoRequestHandler
        quiet = type("Quiet", (handler,), {"log": lambda *given: None})
        self._server = make_server("127.0.0.1", 0, self._answer, True, request_handler=quiet)
        self.address = f"127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def _answer(self, environ: dict[str, Any], start: Any) -> Any:
        if self.mood(environ):
            self.refused += 1
            start("503 Slow Down", [("Content-Length", "0"), ("Connection", "close")])
            return [b""]
        return self._app(environ, start)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "RAYBENCH_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(folder, "PAUSES", (0.01,) * 12)


@pytest.fixture
def url(server: Server, tmp_path: Path) -> Iterator[str]:
    """A store in a new bucket."""
    name = f"bucket-{abs(hash(tmp_path)):x}"
    system = fs.S3FileSystem(
        endpoint_override=server.address,
        scheme="http",
        allow_bucket_creation=True,
        request_timeout=60,  # the server's first answer takes seconds of imports
    )
    system.create_dir(name)
    yield f"s3://{name}/results?endpoint_override={server.address}&scheme=http"
    server.mood = lambda environ: False


def rows(*ids: str, status: str = "done") -> Any:
    shared = {"suite": "tiny", "scale": "default", "seed": 0, "status": status, "wall_s": 1.0}
    started = pd.Timestamp("2026-01-01", tz="UTC")
    return runs_table([{"run_id": each, "started_at": started, **shared} for each in ids])


def elsewhere(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The same store as another machine sees it."""
    with monkeypatch.context() as patch:
        patch.setenv("RAYBENCH_CACHE", str(tmp_path / "other"))
        return Bucket(url)


# What a store may be called.


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"s3://key:{SECRET}@bucket/p", "must not hold"),
        (f"s3://bucket/p?secret_key={SECRET}", "unknown option 'secret_key'"),
        (f"s3://bucket/p?endpoint_override=http://me:{SECRET}@host", "must not hold"),
        (f"https://me:{SECRET}@host/p", "s3:// or gs://"),
        ("s3:///p", "no bucket"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_secrets(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        at(url)
    assert SECRET not in str(refused.value)


def test_folders_stay_folders(tmp_path: Path) -> None:
    assert at(f"file://{tmp_path}").folder == tmp_path
    assert type(at("results")) is Storage
    assert below("results/", "tiny") == "results/tiny"
    assert below("s3://b/p/?region=r", "tiny") == "s3://b/p/tiny?region=r"


# Parts.


def test_parts_go_to_the_bucket_and_come_back(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SuiteStore(url, "tiny")
    assert store.statuses() == {}
    assert store.read_part("b1") is None
    store.write_part("b1", rows("a", "b"))
    other = elsewhere(url, tmp_path, monkeypatch)
    other.pull(other.folder / "tiny" / "runs")
    assert [path.name for path in listed(other.folder / "tiny")] == ["part-b1.parquet"]
    # Of the same size, within the same second: only its content tells it from the first.
    store.write_part("b1", rows("c", "d"))
    assert sorted(store.statuses()) == ["c", "d"]
    other.pull(other.folder / "tiny" / "runs")
    (path,) = listed(other.folder / "tiny")
    assert pq.read_table(path)["run_id"].to_pylist() == ["c", "d"]


def test_merging_removes_what_it_stands_for_and_no_newer_row(url: str) -> None:
    store = SuiteStore(url, "tiny")
    for name in "abcd":
        store.write_part(name, rows(name))
    assert store.compact(2) == 4
    assert sorted(store.statuses()) == list("abcd")
    assert len(store.storage.names(store.folder / "runs")) == 1


def test_of_all_objects_below_a_folder_those_and_the_folders_in_it_are_told() -> None:
    def file(path: str) -> Any:
        return fs.FileInfo(path, fs.FileType.File, size=1)

    below = [file(f"b/p/{name}") for name in ("x", "runs/a", "runs/b", "journal/s/lock", "runs/")]
    found = {info.base_name: info.type for info in bucket._folded([file("b/p/"), *below], "b/p")}
    folder = fs.FileType.Directory
    assert found == {"x": fs.FileType.File, "runs": folder, "journal": folder}


def test_a_new_bucket_has_no_results_and_a_missing_one_takes_none(url: str, server: Server) -> None:
    ask = CliRunner().invoke(app, ["status", url])
    assert ask.exit_code != 0
    missing = SuiteStore(url.replace("bucket-", "missing-"), "tiny")
    with pytest.raises(UnavailableError, match="cannot be written"):
        missing.write_part("b1", rows("a"))


def test_what_is_written_again_while_it_is_read_is_read_whole(
    url: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, again = SuiteStore(url, "tiny"), []
    store.write_part("b1", rows("a"))

    def grow(environ: dict[str, Any]) -> bool:
        # Its size has been asked for by now.
        if environ["REQUEST_METHOD"] == "GET" and "part-b1" in environ["PATH_INFO"] and not again:
            again.append(1)
            store.write_part("b1", rows(*(f"r{number:03}" for number in range(500))))
        return False

    other = elsewhere(url, tmp_path, monkeypatch)
    server.mood = grow
    other.bring(path := other.folder / "tiny" / "runs" / "part-b1.parquet")
    assert again
    assert len(pq.read_table(path)) == 500


# Faults.


def test_a_server_that_refuses_a_third_of_all_requests_loses_nothing(
    url: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(0)
    before = server.refused
    server.mood = lambda environ: chance.random() < 1 / 3
    store = SuiteStore(url, "tiny")
    for number in range(12):
        store.write_part(f"b{number}", rows(f"r{number:02}"))
    assert sorted(store.statuses()) == [f"r{number:02}" for number in range(12)]
    assert server.refused > before


def test_an_upload_that_breaks_off_midway_leaves_nothing_and_is_sent_again(
    url: str, server: Server
) -> None:
    store = SuiteStore(url, "tiny")
    broken: list[int] = []

    def half(environ: dict[str, Any]) -> bool:
        if environ["REQUEST_METHOD"] != "PUT" or len(broken) > 1:
            return False
        size = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"].read(size // 2)
        broken.append(size)
        return True

    server.mood = half
    store.write_part("b1", rows("a", "b"))
    assert len(broken) == 2
    assert store.statuses() == {"a": "done", "b": "done"}


def test_a_server_that_stays_away_is_given_up(
    url: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "PAUSES", ())  # pyarrow's own attempts take seconds each
    server.mood = lambda environ: environ["REQUEST_METHOD"] == "PUT"
    store = SuiteStore(url, "tiny")
    with pytest.raises(UnavailableError, match="goes on with the rest") as lost:
        store.write_part("b1", rows("a"))
    assert SECRET not in str(lost.value)
    server.mood = lambda environ: False
    assert store.statuses() == {}, "half an upload is no part"


def full(monkeypatch: pytest.MonkeyPatch, times: float) -> list[Path]:
    """Let the disk be full for the next parts of `runs`."""
    tried: list[Path] = []
    original = pq.write_table

    def write(rows: Any, where: Path, **named: Any) -> None:
        original(rows, where, **named)
        if where.parent.name == "runs" and "part-" in where.name and len(tried) < times:
            tried.append(where)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq, "write_table", write)
    return tried


def test_a_disk_that_is_full_for_a_while_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = full(monkeypatch, 3)
    store = SuiteStore(tmp_path, "tiny")
    store.write_part("b1", rows("a"))
    assert (len(tried), store.statuses()) == (3, {"a": "done"})


def command(tmp_path: Path, *words: str) -> Any:
    file = tmp_path / "tiny.yaml"
    file.write_text(SUITE)
    return CliRunner().invoke(app, ["run", str(file), "--in-process", *words])


def test_a_disk_that_stays_full_ends_the_suite_and_a_resume_does_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / "store")
    with monkeypatch.context() as patch:
        full(patch, float("inf"))
        ended = command(tmp_path, "-o", root)
    assert isinstance(ended.exception, UnavailableError)
    assert ended.exception.exit_code == 6
    assert "No space left on device; make room there" in str(ended.exception)
    assert "the same command goes on" in str(ended.exception)
    assert not list(Path(root).rglob(".*tmp*"))
    assert command(tmp_path, "-o", root).exit_code == 0
    assert set(SuiteStore(root, "tiny").statuses().values()) == {"done"}


def test_a_store_that_cannot_be_written_says_so_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    ended = command(tmp_path, "-o", str(tmp_path / "file" / "store"))
    assert isinstance(ended.exception, UnavailableError)
    assert ended.exception.exit_code == 6
    assert "give another" in str(ended.exception)


# A whole suite.


def test_a_suite_in_a_bucket_gives_what_it_gives_in_a_folder(url: str, tmp_path: Path) -> None:
    there, here = url, str(tmp_path / "store")
    for root in (there, here):
        assert command(tmp_path, "-o", root).exit_code == 0, root
    pd.testing.assert_frame_equal(measured(there), measured(here))
    ask = CliRunner()
    again = command(tmp_path, "-o", there)
    assert "0 runs carried out" in again.output, "what is stored is not run again"
    run_id = measured(here)["run_id"].iloc[0]
    for words in (
        ["status", there],
        ["runs", "ls", there],
        ["runs", "show", run_id, there],
        ["runs", "logs", run_id, there],
        ["query", there, "select count(*) from metrics"],
        ["figures", there],
        ["report", there],
        ["plan", str(tmp_path / "tiny.yaml"), "-o", there],
    ):
        assert ask.invoke(app, words).exit_code == 0, words
    storage = at(there)
    assert "report-default.html" in storage.names(storage.folder / "tiny")
    assert storage.names(storage.folder / "tiny" / "figures" / "default")
    assert not storage.names(storage.folder / "tiny" / "journal")
    for file in [*storage.folder.rglob("*.yaml"), *storage.folder.rglob("*.parquet")]:
        assert SECRET.encode() not in file.read_bytes()


def measured(root: str) -> pd.DataFrame:
    keys = ["run_id", "split", "metric", "step"]
    found = results.table(root, "tiny", "metrics").astype(dict.fromkeys(keys[:3], str))
    return found.sort_values(keys, ignore_index=True)


MANY = ["seeds=20", "resources.batch=2", "resources.lanes=2"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    root = tmp_path_factory.mktemp("undisturbed")
    assert command(root, "-o", str(root / "store"), *MANY).exit_code == 0
    return measured(str(root / "store"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_server_that_refuses_for_a_while_now_and_then_changes_no_table(
    seed: int, url: str, server: Server, tmp_path: Path, undisturbed: pd.DataFrame
) -> None:
    chance, left = random.Random(seed), 0

    def bad(environ: dict[str, Any]) -> bool:
        nonlocal left
        if left == 0 and chance.random() < 0.03:
            left = chance.randrange(1, 6)  # requests in a row
        left = max(left - 1, 0)
        return left > 0

    before = server.refused
    server.mood = bad
    ended = command(tmp_path, "-o", url, *MANY)
    server.mood = lambda environ: False
    assert ended.exit_code == 0, ended.output
    assert server.refused > before
    pd.testing.assert_frame_equal(measured(url), undisturbed)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_store_that_takes_no_more_from_some_moment_on_is_resumed(
    number: int,
    seed: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: pd.DataFrame,
) -> None:
    root, original = str(tmp_path / "store"), pq.write_table
    for again in range(2):
        left = random.Random(f"{seed} {again}").randrange(2, 25)

        def write(rows: Any, where: Path, **named: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(number, os.strerror(number))
            original(rows, where, **named)

        with monkeypatch.context() as patch:
            patch.setattr(pq, "write_table", write)
            ended = command(tmp_path, "-o", root, *MANY)
        assert isinstance(ended.exception, UnavailableError), ended.output
        assert not list(Path(root).rglob(".*tmp*"))
    stored = len(SuiteStore(root, "tiny").statuses())
    assert stored < 60
    assert command(tmp_path, "-o", root, *MANY).exit_code == 0
    pd.testing.assert_frame_equal(measured(root), undisturbed)


@pytest.mark.slow
def test_on_ray_a_driver_that_dies_costs_nothing_that_was_stored(url: str, tmp_path: Path) -> None:
    here, more = str(tmp_path / "store"), ["seeds=40", "resources.batch=4"]
    assert command(tmp_path, "-o", here, *more).exit_code == 0
    words = [COMMAND, "run", "tiny.yaml", "-j", "2", "-o", url, *more]
    storage, said = at(url), tmp_path / "said.txt"
    parts = storage.folder / "tiny" / "runs"
    with said.open("w") as file, subprocess.Popen(words, cwd=tmp_path, stderr=file) as driver:
        while driver.poll() is None and len(storage.names(parts)) < 3:
            time.sleep(0.1)
        driver.kill()
    stored = len(storage.names(parts))
    assert 3 <= stored < 30, said.read_text()
    again = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "in all 120 done" in again.stdout
    assert "120 runs carried out" not in again.stdout
    pd.testing.assert_frame_equal(measured(url), measured(here))
    for verb in ("figures", "status"):
        assert CliRunner().invoke(app, [verb, url]).exit_code == 0, verb


# Sessions, where nothing can be locked.


def test_a_death_on_another_machine_is_seen_and_a_dead_session_taken_over(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = at(url), elsewhere(url, tmp_path, monkeypatch)
    journals = Journals(own.folder / "tiny" / "journal", own)
    inside = folder_of(other.folder / "tiny", journals.session)
    Journal(inside, "b1", ["a", "b"], "in-process", None, other).begin(["b"])
    (death,) = journals.deaths()
    assert (death.batch_id, death.run_ids) == ("b1", ("b",))
    living = Journals(other.folder / "tiny" / "journal", other)
    assert living.deaths() == [], "the first driver lives"
    monkeypatch.setattr("raybench.pulse.SILENT_SECONDS", -1.0)  # as when it has long been silent
    third = Journals(other.folder / "tiny" / "journal", other)
    assert [each.run_ids for each in third.deaths()] == [("b",)]
    for each in (third, living, journals):
        each.close()
    assert own.names(own.folder / "tiny" / "journal" / journals.session) == set()


RANK = """\
import sys
import threading
import time

from raybench.deadline import deadline
from raybench.journal import Journal, folder_of
from raybench.storage import at


def carry_out():
    storage = at(sys.argv[1])
    folder = folder_of(storage.folder / "tiny", sys.argv[2])
    journal = Journal(folder, "b1", ["a", "b"], "ray", 0.5, storage)
    journal.begin(["b"])
    with deadline(0.5, journal):
        time.sleep(60)


threading.Thread(target=carry_out).start()
"""


def test_a_rank_past_its_wall_limit_tells_other_machines(url: str, tmp_path: Path) -> None:
    own = at(url)
    journals = Journals(own.folder / "tiny" / "journal", own)
    there = {**os.environ, "RAYBENCH_CACHE": str(tmp_path / "other")}
    words = [sys.executable, "-c", RANK, url, journals.session]
    assert subprocess.run(words, env=there, check=False).returncode == 1
    (death,) = journals.deaths()
    assert (death.run_ids, death.slow) == (("b",), True)
    assert death.reason == "wall limit: still going after 0.5 s (limits.wall_s)"
    assert "in carry_out" in death.log
    journals.close()


def test_deaths_with_a_node_are_forgotten_for_good(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = at(url), elsewhere(url, tmp_path, monkeypatch)
    journals = Journals(own.folder / "tiny" / "journal", own)
    inside = folder_of(other.folder / "tiny", journals.session)
    for batch in ("b1", "b2"):
        Journal(inside, batch, ["a"], "in-process", None, other).begin(["a"])
    known = {death.name for death in journals.deaths()}
    for batch in ("b1", "b2"):
        Journal(inside, batch, ["a"], "in-process", None, other).begin(["a"])
    journals.forgive(["b1"], known)
    assert sorted(death.batch_id for death in journals.deaths()) == ["b1", "b2", "b2"]
    journals.close()


def test_of_a_death_on_another_machine_its_traceback_is_sent_or_all_of_it_forgotten(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = at(url), elsewhere(url, tmp_path, monkeypatch)
    journals = Journals(own.folder / "tiny" / "journal", own)
    inside = folder_of(other.folder / "tiny", journals.session)
    for name in ("b1", "b2"):
        journal = Journal(inside, name, ["a", "b"], "in-process", None, other)
        journal.begin(["b"])
        with journal._path.open("a") as file:  # what faulthandler appends while the process dies
            file.write(f"Fatal Python error: Segmentation fault\n  in {name}\n")
    send(other.folder / "tiny", journals.session, {"b1"}, other)
    first, second = sorted(journals.deaths(), key=lambda death: death.batch_id)
    assert first.reason == "the process crashed: Segmentation fault"
    assert first.log.endswith("  in b1")
    assert (second.batch_id, second.log) == ("b2", "")
    journals.forgive({"b1", "b2"}, known={first.name})
    assert [death.batch_id for death in journals.deaths()] == ["b1"]
    unseen = Journal(inside, "b3", ["a", "b"], "in-process", None, other)
    unseen.begin(["a"])
    journals.forgive({"b3"}, known={first.name})
    assert [death.batch_id for death in journals.deaths()] == ["b1"], "it died with its node"
    journals.close()


def test_a_pulse_goes_on_until_it_is_closed(url: str) -> None:
    storage = at(url)
    path = storage.folder / "tiny" / "lock"
    beaten = threading.Event()
    original = storage.write

    def write(target: Path, make: Callable[[Path], object]) -> None:
        original(target, make)
        if beats.append(1) or len(beats) > 2:
            beaten.set()

    beats: list[int] = []
    storage.write = write  # type: ignore[method-assign]
    pulse = Pulse(storage, path, seconds=0.01)
    assert beaten.wait(30)
    assert pulse.beats(path)
    pulse.close()
