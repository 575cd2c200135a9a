"""What strangers send runs no code, leads out of no folder, and secrets stay where they are."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from raybench import store as results
from raybench.cli.app import app
from raybench.cluster.environment import prepare
from raybench.redact import redacted

COMMAND = Path(sys.executable).parent / "raybench"
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEBYaDEXAMPLESESSION",
    "RAY_AUTH_TOKEN": "5f1d" * 16,
    "WANDB_API_KEY": "0a1b2c3d4e5f" * 3,
    "HF_TOKEN": "hf_" + "Zx9" * 10,
}
SUITE = """\
version: 1
name: leaky
base:
  procedure: train
  data: {name: digits, train: 60, valid: 20, test: 40}
  model: {name: mlp, width: 5}
  optimizer: {name: "leak:Leak", lr: 0.05}
  steps: 4it
  batch_size: 16
seeds: 1
"""
LEAK = """\
import os
import torch


class Leak(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)

    def step(self, closure=None):
        said = [v for k, v in os.environ.items() if k.endswith(("KEY", "TOKEN"))]
        raise RuntimeError(f"https://user:hunter2hunter2@host/ refused {said}")
"""


@pytest.fixture(scope="module")
def leaked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A store with a failed run whose message held all secrets, and all that was printed of it."""
    folder = tmp_path_factory.mktemp("leak")
    (folder / "leaky.yaml").write_text(SUITE)
    (folder / "leak.py").write_text(LEAK)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAYBENCH_", "RAY_"))}
    said = ""

    def ask(*words: str, code: int) -> None:
        nonlocal said
        done = subprocess.run(
            [COMMAND, *words], cwd=folder, env={**kept, **SECRETS}, capture_output=True, text=True
        )
        assert done.returncode == code, (words, done.stderr)
        said += done.stdout + done.stderr

    ask("run", "leaky.yaml", "--in-process", "--allow-code", "leak.py", code=1)
    (run_id,) = results.table(folder / "results", "leaky")["run_id"]
    ask("runs", "logs", run_id, "results", code=0)
    ask("runs", "show", run_id, "results", "--json", code=0)
    ask("status", "results", code=0)
    return folder / "results", said


def test_no_secret_is_printed_or_stored(leaked: tuple[Path, str]) -> None:
    store, said = leaked
    assert said.count("refused") >= 3  # the message is there
    stored = ""
    for file in store.rglob("*"):
        if file.suffix == ".parquet":
            stored += str(pq.ParquetFile(file).read().to_pylist())
        elif file.is_file():
            stored += file.read_text(encoding="utf-8", errors="replace")
    assert "RuntimeError: https://***@host/ refused" in stored
    for secret in (*SECRETS.values(), "hunter2"):
        assert secret not in said
        assert secret not in stored


def test_only_what_is_called_like_a_secret_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "abcdefgh1234")
    monkeypatch.setenv("SHORT_TOKEN", "loss")
    monkeypatch.setenv("HOMELAND", "abcdefgh9999")
    text = "loss abcdefgh1234 abcdefgh9999 s3://bucket/key a@b:c"
    assert redacted(text) == "loss *** abcdefgh9999 s3://bucket/key a@b:c"


def test_what_a_check_says_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    plugin = tmp_path / "leaky-0.1.dist-info"
    plugin.mkdir()
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky\nVersion: 0.1\n")
    (plugin / "entry_points.txt").write_text("[raybench.optim]\nleaky = leaky_plugin:Leak\n")
    (tmp_path / "leaky_plugin.py").write_text(
        "import os\nraise ImportError(f'the licence of {list(os.environ.items())}')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    listing = "from raybench.cli import browse; browse._check_ray = lambda: ('', True, '')"
    for verb in (["ls", "optim"], ["doctor"]):
        command = f"{listing}; from raybench.cli import app; app({verb})"
        done = subprocess.run(
            [sys.executable, "-c", command], env=environment, capture_output=True, text=True
        )
        assert "the licence of" in done.stdout, done.stderr
        assert not any(secret in done.stdout + done.stderr for secret in SECRETS.values())


@pytest.mark.parametrize("given", ["../../x", "..", "/etc/passwd", "a/b", "x' or '1'='1", "*", ""])
@pytest.mark.parametrize("verb", ["logs", "show"])
def test_a_run_id_leads_nowhere(verb: str, given: str, leaked: tuple[Path, str]) -> None:
    done = CliRunner().invoke(app, ["runs", verb, "--", given, str(leaked[0])])
    assert done.exit_code != 0
    assert "is not a run id" in str(done.exception)


@pytest.mark.parametrize("verb", ["figures", "report", "verify"])
@pytest.mark.parametrize("given", ["../outside", "/tmp", "..", "leaky/../leaky"])
def test_a_suite_name_leads_out_of_no_store(
    verb: str, given: str, leaked: tuple[Path, str], tmp_path: Path
) -> None:
    store, _ = leaked
    before = sorted(store.parent.rglob("*"))
    done = CliRunner().invoke(app, [verb, str(store), "--suite", given])
    assert done.exit_code != 0
    assert sorted(store.parent.rglob("*")) == before


class Payload:
    def __reduce__(self) -> object:
        return (os.mkdir, (os.environ["PAYLOAD"],))


def test_a_pickle_in_a_store_is_not_opened(
    leaked: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Old versions of Arrow opened what this kind of column's metadata holds.
    target = tmp_path / "ran"
    monkeypatch.setenv("PAYLOAD", str(target))
    poison = pickle.dumps(Payload())
    (part,) = (leaked[0] / "leaky" / "runs").glob("part-*.parquet")
    runs = pq.ParquetFile(part).read()
    marked = {"ARROW:extension:name": "arrow.py_extension_type",
              "ARROW:extension:metadata": poison}  # fmt: skip
    fields = [
        field.with_metadata(marked) if field.name == "reason" else field for field in runs.schema
    ]
    folder = tmp_path / "store" / "leaky"
    for name in ("runs", "metrics", "arrays"):
        (folder / name).mkdir(parents=True)
    schema = pa.schema(fields, metadata={"pandas": poison, "raybench": poison})
    pq.write_table(runs.cast(schema), folder / "runs" / "part-x.parquet")
    pq.write_table(
        pq.ParquetFile(leaked[0] / "leaky" / "plan-default.parquet").read(),
        folder / "plan-default.parquet",
    )
    assert results.table(tmp_path / "store", "leaky")["status"].tolist() == ["failed"]
    with results.connect(tmp_path / "store") as connection:
        assert connection.execute("select count(*) from runs").fetchone() == (1,)
    assert results.SuiteStore(tmp_path / "store", "leaky").read_part("x") is not None
    assert not target.exists()
    pickle.loads(poison)
    assert target.exists()  # it would have


def test_yaml_of_a_store_builds_no_objects(leaked: tuple[Path, str], tmp_path: Path) -> None:
    from raybench.cli.suites import resolved
    from raybench.errors import RaybenchError

    target = tmp_path / "ran"
    (tmp_path / "odd" / "runs").mkdir(parents=True)
    (tmp_path / "odd" / "suite.yaml").write_text(
        f"scale: !!python/object/apply:os.mkdir ['{target}']\n"
    )
    with pytest.raises(RaybenchError, match="damaged"):
        resolved(str(tmp_path), "odd")
    assert not target.exists()


@pytest.mark.parametrize(
    ("address", "given", "mode"),
    [
        (None, {}, "token"),
        ("auto", {}, "disabled"),
        ("auto", {"RAY_AUTH_TOKEN": "x" * 32}, "token"),
        ("auto", {"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "token"),
        ("auto", {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "x" * 32}, "disabled"),
        (None, {"RAY_AUTH_MODE": "disabled"}, "disabled"),
    ],
)
def test_the_mode_of_authentication_is_always_said(
    address: str | None,
    given: dict[str, str],
    mode: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", {**os.environ, **given, "HOME": str(tmp_path)})
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    prepare(address)
    assert os.environ["RAY_AUTH_MODE"] == mode
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    assert len(token) == (
        64 if address is None and not given else len(given.get("RAY_AUTH_TOKEN", ""))
    )
