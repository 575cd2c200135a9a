"""Every verb in a process of its own: what it prints, what it leaves, and its exit code."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import raybench
from raybench import store as results
from raybench.cli.app import app
from raybench.cli.suites import bundled, load
from raybench.schema import metrics_table, runs_table
from raybench.store import SuiteStore
from raybench.suite import read
from tests.commands import call

COMMAND = Path(sys.executable).parent / "raybench"
INTERRUPTIBLE = [
    sys.executable,
    "-c",
    "import os, signal, sys\n"
    "signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    "os.execv(sys.argv[1], sys.argv[1:])",
]
"""Before a command that is to hear of SIGINT: a shell's background jobs are started deaf to it."""
SMALL = """\
version: 1
name: small
description: Two widths.
base:
  procedure: train
  dtype: float64
  data: {name: digits, train: 64, valid: 16, test: 32}
  model: {name: mlp, width: 4}
  optimizer: {name: sgd, lr: 0.1}
  steps: 4it
  batch_size: 16
  record: {at: {linear: 2}, on: [train, test]}
sweep:
  - model.width: [4, 6]
seeds: 2
"""
BROKEN = """\
version: 1
name: broken
base:
  procedure: train
  data: {name: digitz}
  model: {name: mlp, widht: 4}
  optimizer: {name: sgd, lr: -1}
  steps: 4it
"""
VERBS = (
    "run", "plan", "validate", "bench", "status", "runs ls", "runs show", "runs logs",
    "runs retry", "figures", "report", "verify", "query", "ls", "show", "schema", "doctor",
    "import deepobs", "export", "submit",
)  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    """The test's environment without what would change a default, and away from the network."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAYBENCH_", "RAY_"))}
    return {**kept, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "COLUMNS": "160", **more}


def ask(*words: object, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    given = [str(word) for word in words]
    if "PYTHONPATH" in more:
        done = installed(given, cwd, environment(**more))
    else:
        done = call(given, cwd, environment(**more))
    assert "Traceback" not in done.stderr, done.stderr
    return done


def installed(
    words: Sequence[str], cwd: Path, more: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the command that the package installs."""
    return subprocess.run(
        [COMMAND, *words],
        cwd=cwd, env={**more}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def ok(*words: object, cwd: Path, code: int = 0, **more: str) -> str:
    done = ask(*words, cwd=cwd, **more)
    assert done.returncode == code, (words, done.stdout, done.stderr)
    return done.stdout


def told(*words: object, cwd: Path, code: int = 0, **more: str) -> Any:
    """What a verb says as JSON: standard output holds nothing else."""
    return json.loads(ok(*words, "--json", cwd=cwd, code=code, **more))


def written(folder: Path, text: str, name: str = "small.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def stored_ids(store: Path, suite: str = "small") -> list[str]:
    """The run ids in all parts, repetitions included."""
    parts = sorted((store / suite / "runs").glob("part-*.parquet"))
    return [run_id for part in parts for run_id in pq.read_table(part)["run_id"].to_pylist()]


def planned_ids(path: Path, *words: str) -> list[str]:
    return sorted(planned.run.run_id for planned in load(str(path), words, None).runs)


# A run twice.


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the suite `small`, and its runs in `results`."""
    folder = tmp_path_factory.mktemp("cli")
    written(folder, SMALL)
    first = told("run", "small.yaml", "--in-process", cwd=folder)
    assert (first["total"], first["executed"], first["done"]) == (4, 4, 4)
    return folder


def test_run_does_only_what_is_missing(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    plain = ask("run", "small.yaml", "--in-process", cwd=tmp_path)
    assert plain.returncode == 0
    assert "4 runs carried out" in plain.stdout
    assert "4 to do" in plain.stderr
    again = ask("run", "small.yaml", "--in-process", cwd=tmp_path)
    assert again.returncode == 0
    assert "0 to do" in again.stderr
    assert "0 runs carried out" in again.stdout
    words = "model.width=[4,6,8]"
    wider = told("run", "small.yaml", words, "--in-process", cwd=tmp_path)
    assert (wider["total"], wider["executed"], wider["done"]) == (6, 2, 6)
    assert sorted(stored_ids(tmp_path / "results")) == planned_ids(path, words)


def test_last_failed_runs_only_what_failed(tmp_path: Path) -> None:
    written(tmp_path, SMALL)
    words = ("model.width=4", "--in-process")
    failing = ask("run", "small.yaml", *words, "data.train=9999", cwd=tmp_path)
    assert failing.returncode == 1
    assert "9999 train rows asked for" in failing.stderr
    nothing = ask("run", "small.yaml", *words, "--lf", cwd=tmp_path)
    assert nothing.returncode == 5  # these two are missing, and have not failed
    again = told("run", "small.yaml", *words, "data.train=9999", "--lf", cwd=tmp_path, code=1)
    assert (again["executed"], again["failed"]) == (2, 2)
    causes = told("status", cwd=tmp_path)["causes"]
    assert [(cause["status"], cause["count"]) for cause in causes] == [("failed", 2)]
    rows = told("runs", "ls", "--where", "status = 'failed'", cwd=tmp_path)
    assert "Traceback" in ok("runs", "logs", rows[0]["run_id"], cwd=tmp_path)


def test_dry_run_starts_nothing(tmp_path: Path) -> None:
    written(tmp_path, SMALL)
    plan = told("run", "small.yaml", "-n", cwd=tmp_path)
    assert plan["rows"][-1]["to do"] == 4
    assert not (tmp_path / "results").exists()


# Verbs that read.


def test_plan(done: Path) -> None:
    told_plan = told("plan", "small.yaml", "seeds=3", cwd=done)
    row = told_plan["rows"][-1]
    assert (row["runs"], row["done"], row["to do"]) == (6, 4, 2)
    assert told_plan["cpu_seconds"] > 0
    assert "small" in ok("plan", "small.yaml", cwd=done)


def test_validate(done: Path) -> None:
    said = told("validate", "small.yaml", "quickstart", "width_sweep", cwd=done)
    assert said["valid"]
    assert [row["runs"] for row in said["suites"][:2]] == [4, 1008]
    assert {row["scale"] for row in said["suites"]} == {"", "laptop", "paper"}


def test_status(done: Path) -> None:
    (row,) = told("status", cwd=done)["suites"]
    assert (row["suite"], row["runs"], row["done"], row["to do"]) == ("small", 4, 4, 0)
    assert "small" in ok("status", "results", cwd=done)


def test_runs_ls_show_and_logs(done: Path) -> None:
    rows = told("runs", "ls", cwd=done)
    assert sorted(row["run_id"] for row in rows) == planned_ids(done / "small.yaml")
    run_id = rows[0]["run_id"]
    one = told("runs", "show", run_id[:8], cwd=done)
    assert one["run_id"] == run_id
    assert one["config.model.width"] in (4, 6)
    assert run_id in ok("runs", "show", run_id, cwd=done)
    assert "done" in ok("runs", "logs", run_id, cwd=done)


def test_runs_retry(tmp_path: Path) -> None:
    written(tmp_path, SMALL)
    ok("run", "small.yaml", "model.width=4", "--in-process", cwd=tmp_path)
    rows = told("runs", "ls", "--columns", "run_id,started_at", cwd=tmp_path)
    words = ("--suite", "small.yaml", "--in-process")
    ok("runs", "retry", rows[1]["run_id"], *words, cwd=tmp_path)
    after = told("runs", "ls", "--columns", "run_id,started_at", cwd=tmp_path)
    assert after[0]["run_id"] == rows[1]["run_id"]  # the latest first
    assert after[0]["started_at"] > rows[0]["started_at"]
    assert after[1] == rows[0]


def test_figures_and_report(done: Path) -> None:
    drawn = told("figures", cwd=done)
    assert {row["figure"] for row in drawn} == {"final_metrics", "learning_curves"}
    assert all((done / row["file"]).stat().st_size for row in drawn)
    rows = told("report", cwd=done)
    page = (done / rows[-1]["file"]).read_text(encoding="utf-8")
    assert "Two widths." in page


def test_query(done: Path) -> None:
    sql = 'select "config.model.width" width, count(*) n from runs group by 1 order by 1'
    assert told("query", "results", sql, cwd=done) == [
        {"width": 4, "n": 2},
        {"width": 6, "n": 2},
    ]
    everything = told("query", "results", "select * from runs", cwd=done)
    assert {row["status"] for row in everything} == {"done"}
    assert len(told("query", "results", "from metrics", "--limit", 3, cwd=done)) == 3
    assert ask("query", "results", "selec", cwd=done).returncode == 2


def test_a_closed_pipe_is_no_error(done: Path) -> None:
    words = [COMMAND, "query", "results", "from metrics, range(200)", "--limit", "9000"]
    with subprocess.Popen(
        words, cwd=done, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


def test_ls(tmp_path: Path) -> None:
    rows = told("ls", cwd=tmp_path)
    named = {(row["kind"], row["name"]) for row in rows}
    assert {("suites", "quickstart"), ("optim", "adam"), ("models", "mlp")} <= named
    assert all(row["about"] for row in rows)
    assert "adamw" in ok("ls", "optim", cwd=tmp_path)


def test_show(tmp_path: Path) -> None:
    (adam,) = told("show", "adam", cwd=tmp_path)
    assert {row["parameter"] for row in adam["parameters"]} >= {"lr", "beta1", "eps"}
    assert "Kingma" in ok("show", "adam", cwd=tmp_path)
    assert "name: quickstart" in ok("show", "quickstart", cwd=tmp_path)


def test_show_of_a_suite_is_json_where_json_is_asked_for(tmp_path: Path) -> None:
    told("show", "quickstart", cwd=tmp_path)


def test_schema_accepts_the_bundled_suites_and_refuses_a_broken_one(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(ok("schema", "suite", cwd=tmp_path))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for name, path in bundled().items():
        assert not list(validator.iter_errors(read(path, name).values)), name
    good = read(written(tmp_path, SMALL)).values
    assert validator.is_valid(good)
    assert not validator.is_valid({**good, "swep": []})
    assert not validator.is_valid({**good, "version": 2})
    assert not validator.is_valid({**good, "seeds": "many"})
    assert not validator.is_valid({**good, "sweep": {"model.width": [1]}})
    assert not validator.is_valid(read(written(tmp_path, BROKEN, "broken.yaml")).values)
    columns = {row["column"] for row in json.loads(ok("schema", "runs", cwd=tmp_path))}
    assert {"run_id", "status", "config.*"} <= columns


@pytest.mark.ray
def test_doctor(tmp_path: Path) -> None:
    secret = {"WANDB_API_KEY": "0a1b2c3d4e5f" * 3, "RAY_AUTH_TOKEN": "5f1d" * 16}
    answer = ask("doctor", "--json", cwd=tmp_path, **secret)
    assert not any(each in answer.stdout + answer.stderr for each in secret.values())
    rows = json.loads(answer.stdout)
    assert {row["ok"] for row in rows} == {"ok"}
    assert {"torch", "ray", "store", "cache", "start Ray"} <= {row["check"] for row in rows}
    assert not any(tmp_path.iterdir())


def test_help_of_every_verb_has_an_example(tmp_path: Path) -> None:
    said = [ok(*verb.split(), "--help", cwd=tmp_path) for verb in VERBS]
    without = [verb for verb, text in zip(VERBS, said, strict=True) if "Example" not in text]
    assert not without
    general = ok("-h", cwd=tmp_path)
    assert all(verb.split()[0] in general for verb in VERBS)
    assert "130 interrupted" in " ".join(general.split())
    told_version = installed(["--version"], tmp_path, environment())
    assert (told_version.returncode, told_version.stdout.split()[0]) == (0, raybench.__name__)


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv[0] = 'raybench'; import raybench.cli; "
        "print({'torch', 'ray', 'pandas', 'duckdb', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(shell: str, tmp_path: Path) -> None:
    # typer looks at the parent process unless told to believe the environment.
    more = {"SHELL": f"/bin/{shell}", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    script = ask("--show-completion", shell, cwd=tmp_path, **more)
    assert script.returncode == 0, script.stderr
    assert "_RAYBENCH_COMPLETE" in script.stdout


# Exit codes.


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "quickstrat", "--in-process"), "did you mean 'quickstart'?"),
        (("run", "no/such.yaml", "--in-process"), "no such file"),
        (("run", "small.yaml", "seeds", "--in-process"), "KEY=VALUE"),
        (("run", "small.yaml", "--in-process", "-j", "2"), "--in-process uses no Ray"),
        (("run", "small.yaml", "--scale", "paper"), "no scale 'paper'"),
        (("run", "small.yaml", "seeds=[", "--in-process"), "'[' is not a YAML value"),
        (("runs", "show", "4be9;drop"), "is not a run id"),
    ],
)
def test_usage_is_2(words: Sequence[str], said: str, done: Path) -> None:
    answer = ask(*words, cwd=done)
    assert answer.returncode == 2
    assert said in answer.stderr


def test_an_invalid_suite_is_3_with_every_mistake_in_its_place(tmp_path: Path) -> None:
    written(tmp_path, BROKEN, "broken.yaml")
    for words in (("validate", "broken.yaml"), ("run", "broken.yaml", "--in-process")):
        answer = ask(*words, cwd=tmp_path)
        assert answer.returncode == 3
        lines = answer.stderr.splitlines()
        places = [line.split(" ")[0] for line in lines if line.startswith("broken.yaml:")]
        assert places == ["broken.yaml:5:16:", "broken.yaml:6:22:", "broken.yaml:7:30:"]
        assert "did you mean 'digits'?" in answer.stderr
        assert lines[-1] == "3 errors"
    said = told("validate", "broken.yaml", cwd=tmp_path, code=3)
    assert not said["valid"]
    assert len(said["errors"]) == 3


def test_a_mistake_on_the_command_line_is_not_shown_in_the_file(done: Path) -> None:
    answer = ask("run", "small.yaml", "optimizer.lrr=1", "--in-process", cwd=done)
    assert answer.returncode in (2, 3)
    assert "did you mean 'lr'?" in answer.stderr
    assert "small.yaml:1:1" not in answer.stderr


def test_past_the_limits_is_4(tmp_path: Path) -> None:
    written(tmp_path, SMALL)
    answer = ask("run", "small.yaml", "limits.runs=3", "--in-process", cwd=tmp_path)
    assert answer.returncode == 4
    assert "limits.runs is 3" in answer.stderr
    assert not (tmp_path / "results").exists()
    answer = ask("run", "small.yaml", "limits.hours=1e-9", "--in-process", cwd=tmp_path)
    assert answer.returncode == 4


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("runs", ("limits.runs=3",)),
        ("hours", ("limits.hours=1e-9",)),
        ("gpu_hours", ("limits.gpu_hours=1e-9", "resources.gpu=1")),
        ("disk_gb", ("limits.disk_gb=1e-9",)),
    ],
)
def test_every_limit_is_kept_before_anything_starts(
    limit: str, words: Sequence[str], tmp_path: Path
) -> None:
    written(tmp_path, SMALL)
    # Nothing listens there: a run that came as far as asking for a cluster would exit with 6.
    answer = ask("run", "small.yaml", *words, "--address", "127.0.0.1:1", cwd=tmp_path)
    assert answer.returncode == 4, answer.stderr
    assert f"limits.{limit} is" in answer.stderr
    assert ask("plan", "small.yaml", *words, cwd=tmp_path).returncode == 4
    assert ask("run", "small.yaml", "--address", "127.0.0.1:1", cwd=tmp_path).returncode == 6


def test_plan_keeps_its_estimate_and_tells_how_far_off_it_was(tmp_path: Path) -> None:
    written(tmp_path, SMALL)
    assert told("plan", "small.yaml", cwd=tmp_path)["past_estimates"] == []
    ok("run", "small.yaml", "--in-process", cwd=tmp_path)
    [past] = told("plan", "small.yaml", cwd=tmp_path)["past_estimates"]
    assert (past["suite"], past["runs"]) == ("small", 4)
    assert past["time"] > 0
    assert past["disk"] > 0
    assert "earlier estimates in this store: runs took" in ok("plan", "small.yaml", cwd=tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ("status", "nowhere"),
        ("figures", "nowhere"),
        ("query", "nowhere", "select 1"),
        ("runs", "show", "ffffffffffffffff"),
        ("report", "--suite", "other"),
        ("verify",),  # no claims are made about this suite
        ("ls", "optimisers"),
        ("show", "adm"),
    ],
)
def test_nothing_matched_is_5(words: Sequence[str], done: Path) -> None:
    answer = ask(*words, cwd=done)
    assert answer.returncode == 5
    assert len(answer.stderr.strip()) > 10


def test_a_store_that_cannot_be_written_is_6(tmp_path: Path) -> None:
    written(tmp_path, SMALL)
    (tmp_path / "results").write_text("in the way")
    answer = ask("run", "small.yaml", "--in-process", cwd=tmp_path)
    assert answer.returncode == 6
    assert "cannot be written" in answer.stderr


def broken_plugin(folder: Path) -> Path:
    info = folder / "half-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[raybench.optim]\nhalf = not_there_at_all:Half\n")
    return folder


def test_a_missing_component_is_7(tmp_path: Path) -> None:
    written(tmp_path, SMALL)
    path = {"PYTHONPATH": str(broken_plugin(tmp_path / "plugin"))}
    answer = ask("run", "small.yaml", "optimizer=half", "--in-process", cwd=tmp_path, **path)
    assert answer.returncode == 7
    assert "not_there_at_all" in answer.stderr
    (row,) = [r for r in told("ls", "optim", cwd=tmp_path, **path) if r["name"] == "half"]
    assert "cannot be loaded" in row["about"]


def test_a_broken_plugin_disturbs_nothing_else(tmp_path: Path) -> None:
    path = {"PYTHONPATH": str(broken_plugin(tmp_path / "plugin"))}
    json.loads(ok("schema", "suite", cwd=tmp_path, **path))


def test_a_set_from_the_hub_without_the_extra_says_what_to_install(tmp_path: Path) -> None:
    written(tmp_path, SMALL)
    away = tmp_path / "away"
    away.mkdir()
    (away / "datasets.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'datasets'\", name='datasets')"
    )
    words = ("data={name: mnist, layout: flat}", "seeds=1", "--in-process")
    answer = ask("run", "small.yaml", *words, cwd=tmp_path, PYTHONPATH=str(away))
    assert 'pip install "raybench[data]"' in answer.stderr
    assert answer.returncode == 7


def quickstart_store(root: Path, noisy: Sequence[float]) -> Path:
    """A store in which the suite `quickstart` has given these test errors with label noise."""
    clean = (0.5, 0.2, 0.1, 0.1, 0.11, 0.1, 0.1)
    train = (0.5, 0.2, 0.08, 0.01, 0.0, 0.0, 0.0)
    rows = [
        {
            "run_id": f"{index:02x}{noise:02x}{seed:012x}",
            "suite": "quickstart",
            "scale": "",
            "procedure": "train",
            "status": "done",
            "seed": seed,
            "num_params": 75 * 4 * 2**index + 10,
            "steps": 1,
            "wall_s": 0.1,
            "started_at": pd.Timestamp("2026-01-01", tz="UTC"),
            "config.data.name": "digits",
            "config.data.train": 250,
            "config.data.label_noise": 0.2 if noise else 0.0,
            "config.model.width": 4 * 2**index,
            "summary.test.error": (noisy if noise else clean)[index] + 0.01 * (seed - 2.5),
            "summary.train.error": train[index],
            "summary.test.loss": 0.1,
        }
        for index in range(7)
        for noise in (0, 1)
        for seed in range(6)
    ]
    kept = SuiteStore(root, "quickstart")
    kept.write_suite("name: quickstart\nversion: 1\n")
    kept.write_plan("", [{"run_id": row["run_id"], "skipped": ""} for row in rows])
    empty = metrics_table({name: [] for name in ("run_id", "step", "epoch", "split", "metric")})
    kept.write_part("all", runs_table(rows), empty)
    return root


def test_a_failing_claim_is_8(tmp_path: Path) -> None:
    falling = quickstart_store(tmp_path / "falling", (0.6, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1))
    rows = told("verify", falling, cwd=tmp_path, code=8)
    assert "FAIL" in {row["verdict"] for row in rows}
    assert "FAIL" in ok("verify", falling, cwd=tmp_path, code=8)
    ok("report", falling, cwd=tmp_path)  # a claim that fails is reported as failing
    peaked = quickstart_store(tmp_path / "peaked", (0.6, 0.4, 0.3, 0.35, 0.4, 0.35, 0.3))
    rows = told("verify", peaked, cwd=tmp_path)
    assert {row["verdict"] for row in rows} == {"PASS"}
    assert all(row["source"] and row["threshold"] for row in rows)


@pytest.mark.filterwarnings("ignore:Attempting to set identical low and high")
def test_a_failure_that_is_expected_is_no_failure_of_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raybench.analysis.quickstart import FIGURES

    falling = quickstart_store(tmp_path / "falling", (0.6, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1))
    for name, figure in list(FIGURES.items()):
        claims = tuple(
            dataclasses.replace(claim, expected={"default": "not at this scale: tried 3 rates"})
            for claim in figure.claims
        )
        monkeypatch.setitem(FIGURES, name, dataclasses.replace(figure, claims=claims))
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(app, ["verify", str(falling)])
    assert answer.exit_code == 0, answer.output
    assert "FAIL (expected)" in answer.output
    assert "expected to fail: not at this scale: tried 3 rates" in " ".join(answer.output.split())
    CliRunner().invoke(app, ["report", str(falling)], catch_exceptions=False)
    page = next((falling / "quickstart").glob("report-*.html")).read_text()
    assert "Expected to fail: not at this scale: tried 3 rates" in page


def test_an_interrupted_run_keeps_all_and_goes_on(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    words = ["steps=600it", "data.train=512", "seeds=30", "resources.lanes=1"]
    command = [*INTERRUPTIBLE, COMMAND, "run", "small.yaml", *words, "--in-process"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        folder = tmp_path / "results" / "small" / "runs"
        while process.poll() is None and not list(folder.glob("part-*.parquet")):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    before = stored_ids(tmp_path / "results")
    total = planned_ids(path, *words)
    assert 0 < len(before) < len(total) == 60
    after = told("run", "small.yaml", *words, "--in-process", cwd=tmp_path)
    assert after["executed"] == len(total) - len(before)
    assert sorted(stored_ids(tmp_path / "results")) == total
    assert set(results.table(tmp_path / "results", "small")["status"]) == {"done"}
    assert "the same command goes on" in said


UNEQUAL = """\
version: 1
name: unequal
base:
  procedure: train
  data: {name: digits, train: 64, valid: 16, test: 32}
  model: {name: mlp, width: 4}
  steps: 4it
tune: {budgets: {small: 3}, one_shot: 2}
sweep:
  - cases:
      sgd: {optimizer: {name: sgd}, search: {optimizer.lr: {log_uniform: [1e-3, 1]}}}
      adam: {optimizer: {name: adam}, search: {optimizer.lr: {log_uniform: [1e-3, 1]}},
             tune: {budgets: {small: 2}}}
    as: optimizer
"""


def test_plan_counts_all_phases_and_tells_unequal_budgets(tmp_path: Path) -> None:
    (tmp_path / "unequal.yaml").write_text(UNEQUAL, encoding="utf-8")
    said = ok("plan", "unequal.yaml", cwd=tmp_path)
    assert "in all 29 runs of 2 arms" in said  # 2 x 2 untuned, 3 + 2 trials, 2 x 10 confirmations
    assert "unequal budgets: adam has only 2 trials" in said
    facts = json.loads(ok("plan", "unequal.yaml", "--json", cwd=tmp_path))
    assert facts["runs_in_all"] == 29
    assert list(facts["unequal_budgets"]) == ["adam"]


def test_plan_of_the_paper_is_exact_and_needs_no_network(tmp_path: Path) -> None:
    said = ok("plan", "crowded_valley", "--scale", "paper", cwd=tmp_path, RAYBENCH_DATA="/nowhere")
    assert "in all 53,760 runs of 480 arms" in said
    assert "every optimizer has the same budget as its rivals" in said
    assert "40,320 runs: time of their counted operations" in said
    assert "6,720 runs are not in the times below" in said  # whose text has no known length


def test_libraries_are_listed_when_asked(tmp_path: Path) -> None:
    short = ok("ls", "optim", cwd=tmp_path)
    assert "pytorch_optimizer:NAME" in short
    assert "pytorch_optimizer:SOAP" not in short
    assert "pytorch_optimizer:SOAP" in ok("ls", "optim", "--library", cwd=tmp_path)
    assert "s begins at 1" in ok("show", "rmsprop_tf", cwd=tmp_path)
