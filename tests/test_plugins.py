"""A package of one's own adds components through entry points, without a line of raybench in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from raybench import store as results

COMMAND = Path(sys.executable).parent / "raybench"
PACKAGE = Path(__file__).parent / "plugin"
SUITE = """\
version: 1
name: example_suite
base:
  procedure: train
  dtype: float64
  data: {name: stripes, rows: 80, train: 40, valid: 10, test: 20}
  model: {name: dropout_net, hidden: 6}
  optimizer: {name: sign_descent}
  steps: 12it
  batch_size: 8
  record: {at: {linear: 3}}
sweep:
  - optimizer.lr: [0.01, 0.05]
seeds: 4
"""
COMPONENTS = {"optim": "sign_descent", "models": "dropout_net", "data": "stripes"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package is installed into, for PYTHONPATH."""
    pytest.importorskip("hatchling")
    source = tmp_path_factory.mktemp("source") / "plugin"
    shutil.copytree(PACKAGE, source)
    target = tmp_path_factory.mktemp("installed")
    words = ["install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [sys.executable, "-m", "pip", *words, "--target", target, source],
        check=True,
        capture_output=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        timeout=300,
    )
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("suite")
    (made / "own.yaml").write_text(SUITE, encoding="utf-8")
    return made


def ask(*words: object, cwd: Path, installed: Path) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAYBENCH_", "RAY_"))}
    return subprocess.run(
        [COMMAND, *map(str, words)],
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def told(*words: object, cwd: Path, installed: Path) -> Any:
    done = ask(*words, "--json", cwd=cwd, installed=installed)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return json.loads(done.stdout)


def carried_out(store: str, *words: str, cwd: Path, installed: Path) -> pd.DataFrame:
    """The metrics of the suite after a run with these words, in one order."""
    said = told("run", "own.yaml", "-o", store, *words, cwd=cwd, installed=installed)
    assert (said["executed"], said["done"]) == (8, 8)
    frame = results.table(cwd / store, "example_suite", "metrics")
    keys = ["run_id", "split", "metric", "step"]
    return frame.sort_values(keys).reset_index(drop=True).astype(dict.fromkeys(keys[:3], str))


@pytest.fixture(scope="module")
def alone(installed: Path, folder: Path) -> pd.DataFrame:
    """What the suite gives when every run trains on its own."""
    words = ("--in-process", "resources.lanes=1")
    return carried_out("alone", *words, cwd=folder, installed=installed)


def test_the_package_is_small() -> None:
    lines = (PACKAGE / "raybench_example.py").read_text(encoding="utf-8").partition("class Lazy")
    code = [line for line in lines[0].splitlines() if line.strip()]
    assert len(code) <= 40
    assert "import raybench" not in lines[0]


def test_ls_shows_what_it_adds_and_where_from(installed: Path, folder: Path) -> None:
    rows = told("ls", cwd=folder, installed=installed)
    found = {row["kind"]: row for row in rows if row["name"] in COMPONENTS.values()}
    assert {kind: row["name"] for kind, row in found.items()} == COMPONENTS
    assert {row["from"] for row in found.values()} == {"raybench-example 0.3"}
    assert found["optim"]["about"].startswith("Steps by the sign")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("sign_descent", {"lr": "0.01", "momentum": "0.9"}),
        ("dropout_net", {"hidden": "12", "drop": "0.25"}),
        ("stripes", {"rows": "96", "width": "10", "seed": "7"}),
    ],
)
def test_show(name: str, parameters: dict[str, str], installed: Path, folder: Path) -> None:
    (shown,) = told("show", name, cwd=folder, installed=installed)
    defaults = {row["parameter"]: row["default"] for row in shown["parameters"]}
    assert parameters.items() <= defaults.items()
    assert shown["from"] == "raybench-example 0.3"
    differs = {row["parameter"] for row in shown["parameters"] if row["may differ in a batch"]}
    assert differs == ({"lr", "momentum"} if name == "sign_descent" else differs - {"hidden"})


def test_lanes_change_nothing(alone: pd.DataFrame, installed: Path, folder: Path) -> None:
    words = ("--in-process", "resources.lanes=4")
    fused = carried_out("fused", *words, cwd=folder, installed=installed)
    pd.testing.assert_frame_equal(alone, fused, check_exact=True)
    assert set(results.table(folder / "fused", "example_suite")["lanes"]) == {4}
    losses = alone[alone["metric"] == "loss"]
    assert losses["value"].nunique() > len(losses) / 2  # dropout and seeds differ


def test_its_figure_and_claim(alone: pd.DataFrame, installed: Path, folder: Path) -> None:
    assert len(alone)
    (row,) = told("figures", "alone", cwd=folder, installed=installed)
    assert row["figure"] == "errors"
    assert (folder / row["file"]).stat().st_size
    (claim,) = told("verify", "alone", cwd=folder, installed=installed)
    assert (claim["verdict"], claim["source"]) == ("PASS", "the plug-in")


def test_the_schema_knows_it(installed: Path, folder: Path) -> None:
    done = ask("schema", "suite", cwd=folder, installed=installed)
    assert '"sign_descent"' in done.stdout


def test_without_the_package_its_names_are_unknown(folder: Path, tmp_path: Path) -> None:
    done = ask("validate", "own.yaml", cwd=folder, installed=tmp_path)
    assert done.returncode == 3
    for name in COMPONENTS.values():
        assert f"'{name}'" in done.stderr


@pytest.mark.ray
def test_on_ray(alone: pd.DataFrame, installed: Path, folder: Path) -> None:
    words = ("-j", "2", "resources.lanes=4")
    on_ray = carried_out("on_ray", *words, cwd=folder, installed=installed)
    pd.testing.assert_frame_equal(alone, on_ray, check_exact=True)
    assert set(results.table(folder / "on_ray", "example_suite")["engine"]) == {"ray"}
