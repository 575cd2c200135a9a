"""Rows of hub sets are made once a machine and mapped by all processes, from files made here."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from signal import SIGALRM, raise_signal
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

import raybench
from raybench import cache
from raybench.cache import CACHE
from raybench.data import Pool, decoding, hub, mapped
from raybench.data.base import FOLDER
from raybench.data.decoding import Source, identity
from raybench.data.hub import Hub
from raybench.deadline import WallLimit, deadline
from raybench.journal import Journal
from raybench.rng import Seed
from raybench.spec import digest

torch.set_num_threads(1)

IMAGES = Hub(path="me/images", input="image")
TABLE = Hub(path="me/table", test_split=None, mean=(0.5,))


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the files with rows are, beside sets for RAYBENCH_DATA; other caches are empty."""
    for name, value in {
        FOLDER: tmp_path / "sets",
        CACHE: tmp_path / "cache",
        "HF_DATASETS_CACHE": tmp_path / "prepared",  # for other processes
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    save_images(tmp_path / "sets", seed=0)
    (tmp_path / "sets/me/table").mkdir()
    table = "".join(f"{i},{i * i % 7},{i % 3}\n" for i in range(11))
    (tmp_path / "sets/me/table/train.csv").write_text("a,b,label\n" + table)
    forget()
    yield tmp_path / "cache" / "data"
    forget()


def save_images(sets: Path, seed: int) -> None:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    )
    (sets / "me/images").mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for split, num in (("train", 6), ("test", 3)):
        pixels = list(draw.integers(0, 256, (num, 5, 5, 3), dtype=np.uint8))
        columns = {"image": pixels, "label": [i % 3 for i in range(num)]}
        part = datasets.Dataset.from_dict(columns, features)
        part.to_parquet(sets / f"me/images/{split}.parquet")


def forget() -> None:
    """Forget what this process has loaded and said, as if it were another one."""
    hub._load.cache_clear()
    mapped._warn.cache_clear()


def parts(data: Hub) -> tuple[Source, list[Any]]:
    source = Source(**{field: getattr(data, field) for field in Source._fields})
    return source, hub._parts(source, os.environ[FOLDER])


def assert_same(one: Pool, other: Pool) -> None:
    for a, b in zip(one[:2], other[:2], strict=True):
        assert isinstance(a, torch.Tensor)
        assert isinstance(b, torch.Tensor)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.numpy().tobytes() == b.numpy().tobytes()
    assert one[2:] == other[2:]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sets that this process has decoded, in order."""
    found: list[str] = []

    def decoded(source: Source, parts: Any) -> Pool:
        found.append(source.path)
        return decoding.decoded(source, parts)

    monkeypatch.setattr(hub, "decoded", decoded)
    return found


@pytest.mark.parametrize("data", [IMAGES, TABLE], ids=["images", "table"])
def test_mapped_rows_are_the_decoded_ones(rows: Path, made: list[str], data: Hub) -> None:
    expected = decoding.decoded(*parts(data))
    for _ in range(3):
        forget()
        pool = data.pool(Seed(0))
        assert_same(pool, expected)
        # As in memory of PyTorch's own, where sums may depend on it.
        assert [pool.x.data_ptr() % 64, pool.y.data_ptr() % 64] == [0, 0]
        assert pool.x.is_contiguous()
    assert made == [data.path]
    assert [path.suffix for path in sorted(rows.iterdir())] == [".lock", ".rows"]


def test_both_layouts_read_one_file(rows: Path, made: list[str]) -> None:
    image = IMAGES.pool(Seed(0))
    flat = Hub(path="me/images", input="image", layout="flat").pool(Seed(0))
    assert torch.equal(flat.x, image.x.flatten(1))
    assert made == ["me/images"]


def test_a_write_reaches_neither_the_file_nor_another_process(rows: Path) -> None:
    one = IMAGES.pool(Seed(0))
    (path,) = rows.glob("*.rows")
    before = path.read_bytes()
    code = (
        "from raybench.data.hub import Hub; from raybench.rng import Seed\n"
        "pool = Hub(path='me/images', input='image').pool(Seed(0))\n"
        "pool.x.zero_(); pool.y.zero_()\n"
        "assert '.rows' in open('/proc/self/maps').read()\n"
    )
    kept = one.x.clone()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.equal(one.x, kept)
    one.x.add_(1)
    assert path.read_bytes() == before
    forget()
    assert torch.equal(IMAGES.pool(Seed(0)).x, kept)


WORKER = """
import hashlib, os, sys, time
from pathlib import Path
import datasets
from raybench.data import decoding, hub
from raybench.rng import Seed

notes = Path(sys.argv[1])

def noted(what, function):
    def call(*given, **more):
        with notes.open("a") as file:
            file.write(f"{what} {os.getpid()}\\n")
        while what == "decoded" and notes.read_text().count("came") < 3:
            time.sleep(0.01)  # the others are to find this one at work
        return function(*given, **more)
    return call

decoding._decoded = noted("decoded", decoding._decoded)
hub.identity = noted("came", hub.identity)
builder = datasets.DatasetBuilder
builder._download_and_prepare = noted("fetched", builder._download_and_prepare)
print("ready", flush=True)
sys.stdin.readline()
pool = hub.Hub(path="me/images", input="image").pool(Seed(0))
print(hashlib.sha256(pool.x.numpy()).hexdigest(), ".rows" in open("/proc/self/maps").read())
"""


def test_processes_that_start_together_fetch_and_decode_once(rows: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(notes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        answers = {worker.communicate(timeout=120)[0] for worker in workers}
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    expected = hashlib.sha256(decoding.decoded(*parts(IMAGES)).x.numpy()).hexdigest()
    assert answers == {f"{expected} True\n"}
    lines = [line.split() for line in notes.read_text().splitlines()]
    times = Counter(what for what, _ in lines)
    assert times == {"fetched": 1, "came": 3, "decoded": 9}
    assert len({who for what, who in lines if what == "decoded"}) == 1


def test_a_process_that_died_while_it_wrote_leaves_nothing_in_the_way(rows: Path) -> None:
    code = (
        "import os; from pathlib import Path; from raybench.data.hub import Hub\n"
        "from raybench.rng import Seed\n"
        "Path.replace = lambda *given: os._exit(9)\n"
        "Hub(path='me/images', input='image').pool(Seed(0))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert sorted(path.suffix for path in rows.iterdir()) == [".lock", ".tmp"]
    assert_same(IMAGES.pool(Seed(0)), decoding.decoded(*parts(IMAGES)))
    assert sorted(path.suffix for path in rows.iterdir()) == [".lock", ".rows"]


SUITE = """\
version: 1
name: shared
base:
  procedure: train
  dtype: float64
  data: {name: hub, path: me/images, input: image}
  model: {name: cnn}
  optimizer: {name: sgd, lr: 0.1}
  steps: 2it
sweep: [{model.width: [2, 3, 4, 5]}]
seeds: 1
"""


@pytest.mark.slow
@pytest.mark.ray
def test_workers_of_ray_share_the_rows(rows: Path, tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(SUITE)

    def run(store: str, folder: Path, *more: str) -> pd.DataFrame:
        done = subprocess.run(
            [sys.executable, "-m", "raybench", "run", "shared.yaml", "-o", store, *more],
            cwd=tmp_path,
            env={**os.environ, CACHE: str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return raybench.table(tmp_path / store).sort_values("run_id")

    there = run("ray", rows.parent)
    assert len([*rows.glob("*.rows")]) == 1
    here = run("here", tmp_path / "other", "--in-process")
    for column in ("run_id", "status", "summary.test.loss"):
        assert here[column].tolist() == there[column].tolist()
    assert set(there["status"]) == {"done"}


def test_the_wall_limit_is_not_held_against_a_set(
    rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda *a, **k: raise_signal(SIGALRM))
        with pytest.raises(WallLimit), deadline(3600, Journal(None, "batch", [], "in-process")):
            IMAGES.pool(Seed(0))
    assert len(IMAGES.pool(Seed(0)).x) == 9


# Files that are not as they were written.


def flipped(place: int) -> Any:
    def flip(whole: bytes) -> bytes:
        changed = bytearray(whole)
        changed[place] ^= 1
        return bytes(changed)

    return flip


DAMAGES = {
    "empty": lambda whole: b"",
    "cut short": lambda whole: whole[:-1],
    "only its head": lambda whole: whole[:4096],
    "longer": lambda whole: whole + b"\0",
    "zeros, as after a power cut": lambda whole: bytes(len(whole)),
    "another check sum": flipped(3),
    "another head": flipped(20),
    "another number": flipped(5000),
    "another label": flipped(-100),
    "a pickle": lambda whole: b"cos\nsystem\n(S'exit'\ntR.",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(rows: Path, made: list[str], damage: str) -> None:
    IMAGES.pool(Seed(0))
    (path,) = rows.glob("*.rows")
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    assert path.read_bytes() != whole
    forget()
    assert_same(IMAGES.pool(Seed(0)), decoding.decoded(*parts(IMAGES)))
    assert made == ["me/images"] * 2
    assert path.read_bytes() == whole


# Folders that cannot be used.


@pytest.mark.parametrize("trouble", ["a file in its place", "no room", "no locks"])
def test_without_a_folder_only_the_sharing_is_lost(
    rows: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    sets = (IMAGES, TABLE)
    expected = [decoding.decoded(*parts(data)) for data in sets]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if trouble == "a file in its place":
        rows.parent.write_text("not a folder")
    elif trouble == "no room":
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    else:

        def refuse(*given: Any) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        lockless = SimpleNamespace(flock=refuse, LOCK_EX=fcntl.LOCK_EX)
        monkeypatch.setattr(mapped, "fcntl", lockless)
    try:
        pools = [data.pool(Seed(0)) for data in sets]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    for pool, other in zip(pools, expected, strict=True):
        assert_same(pool, other)
    said = [record.getMessage() for record in caplog.records if "cannot be used" in record.msg]
    assert len(said) == 1
    assert CACHE in said[0]
    assert not [path for path in rows.glob("*") if path.suffix != ".lock"]


# What the rows depend on.


def test_files_that_change_are_read_again(rows: Path, made: list[str], tmp_path: Path) -> None:
    first = IMAGES.pool(Seed(0))
    save_images(tmp_path / "sets", seed=1)
    forget()
    second = IMAGES.pool(Seed(0))
    assert made == ["me/images"] * 2
    assert not torch.equal(first.x, second.x)
    assert_same(second, decoding.decoded(*parts(IMAGES)))


def test_all_that_rows_depend_on_is_in_the_key(
    rows: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, found = parts(IMAGES)
    keys = [identity(source, found)]
    changed = {
        "path": "other", "config": "a", "train_split": "a", "test_split": "a", "input": "a",
        "label": "a", "mean": (1.0,), "std": (1.0,),
    }  # fmt: skip
    assert set(changed) == set(Source._fields) == {*Hub.model_fields} - {
        *Hub.__base__.model_fields, "layout",
    }  # fmt: skip
    keys += [identity(source._replace(**{f: value}), found) for f, value in changed.items()]
    keys += [identity(source, found[:1]), identity(source, found[::-1])]
    for module in ("datasets", "PIL", "numpy", "pandas", "torch"):
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[module], "__version__", "0")
            keys.append(identity(source, found))
    (tmp_path / "decoding.py").write_text("other code")
    with monkeypatch.context() as patch:
        patch.setattr(decoding, "__file__", str(tmp_path / "decoding.py"))
        keys.append(identity(source, found))
    assert len({digest(key) for key in keys}) == len(keys) == 17
    assert digest(keys[0]) == digest(json.loads(json.dumps(identity(source, found))))


# The folder.


def test_the_cache_has_a_place_and_a_size(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.folder() == rows.parent
    assert cache.size() == 0
    IMAGES.pool(Seed(0))
    (path,) = rows.glob("*.rows")
    assert cache.size() == path.stat().st_size > 4096
    monkeypatch.delenv(CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/a/home")
    assert cache.folder() == Path("/a/home/raybench")
