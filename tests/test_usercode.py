"""A user's own file: nothing of it runs unless it is allowed, and then it needs no port."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import raybench
from raybench import tables, usercode
from raybench.cli import app
from raybench.errors import RefusedError, UsageError
from raybench.optim import OPTIMIZERS
from raybench.plan import batches, decode
from raybench.suite import Resources, load, parse

torch.set_num_threads(1)

OWN = '''
"""An optimizer of one's own."""
import torch


class Steady(torch.optim.Optimizer):
    """Steps of a fixed length."""

    def __init__(self, params, lr: float = 0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad / (p.grad.norm() + 1e-12))


def rows(count: int = 64):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, 5, generator=draw)
    return x.numpy(), (x[:, 0] > 0).long().numpy()


_HIDDEN = Steady
'''
SUITE = """\
version: 1
name: mine
base:
  procedure: train
  data: {name: "my_opt:rows", train: 32, test: 16}
  model: {name: mlp, width: 4}
  steps: 6it
  batch_size: 8
  record: {at: {linear: 1}}
sweep:
  - cases:
      sgd: {optimizer: {name: sgd, lr: 0.1}}
      steady: {optimizer: {name: "my_opt:Steady", lr: 0.1}}
seeds: 2
"""


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    before = dict(tables.FILES)
    yield
    tables.FILES.clear()
    tables.FILES.update(before)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_opt.py"
    path.write_text(OWN, encoding="utf-8")
    return path


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SUITE, encoding="utf-8")
    return path


def ids(text: str = SUITE) -> dict[str, str]:
    return {
        f"{p.labels['case']}/{p.run.seed.value}": p.run.run_id
        for p in load(parse(text, "mine.yaml")).runs
    }


def test_without_permission_nothing_is_loaded(
    file: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    done = CliRunner().invoke(app, ["run", str(suite), "-o", str(tmp_path / "out")])
    assert isinstance(done.exception, RefusedError)
    assert done.exception.exit_code == 4
    assert "--allow-code my_opt.py" in str(done.exception)
    assert not tables.FILES
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["--in-process", pytest.param("-j1", marks=pytest.mark.ray)])
def test_an_allowed_file_runs_in_process_and_on_workers(
    how: str, file: Path, suite: Path, tmp_path: Path
) -> None:
    store = tmp_path / "out"
    words = ["run", str(suite), "-o", str(store), how, "--allow-code", str(file)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (done.output, done.exception)
    table = raybench.table(store, "mine")
    assert set(table["config.optimizer.name"]) == {"sgd", "my_opt:Steady"}
    assert (table["status"] == "done").all()


def test_the_file_s_step_is_what_is_carried_out(file: Path) -> None:
    usercode.allow(file)
    cls = OPTIMIZERS["my_opt:Steady"]
    rule = cls(lr=0.5)
    params = {"w": torch.tensor([3.0, 4.0])}
    state = rule.init(params)
    moved, _ = rule.update({"w": torch.tensor([0.0, 2.0])}, state, params, 0.5)
    assert moved["w"].tolist() == pytest.approx([3.0, 3.5])
    assert OPTIMIZERS.origin("my_opt:Steady") == "my_opt.py"


def test_only_what_the_file_defines_and_shows_is_a_component(file: Path) -> None:
    usercode.allow(file)
    assert set(tables.FILES["my_opt"].names()) == {"Steady", "rows"}
    assert "my_opt:torch" not in OPTIMIZERS
    assert "my_opt:_HIDDEN" not in OPTIMIZERS


def test_ids_follow_the_code_and_not_its_comments(file: Path) -> None:
    usercode.allow(file)
    first = ids()
    file.write_text("# A remark.\n" + OWN.replace("0.01", "0.010"), encoding="utf-8")
    usercode.allow(file)
    assert ids() == first
    file.write_text(OWN.replace("+ 1e-12", "+ 1e-6"), encoding="utf-8")
    usercode.allow(file)
    changed = ids()
    assert set(changed.values()).isdisjoint(first.values())
    cls = OPTIMIZERS["my_opt:Steady"]
    assert cls.revision == tables.FILES["my_opt"].revision


def test_a_batch_carries_the_code_it_needs(file: Path) -> None:
    usercode.allow(file)
    runs = load(parse(SUITE, "mine.yaml")).runs
    (first, *_) = batches(runs, suite="mine", scale="", resources=Resources(), slots=1)
    text = first.encode()
    tables.FILES.clear()  # as in a worker that has seen nothing
    again = decode(text)
    assert [p.run.run_id for p in again.runs] == [p.run.run_id for p in first.runs]
    assert "my_opt" in tables.FILES


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("none.py", None, "No such file"),
        ("my-opt.py", "", "called like a word"),
        ("opt.txt", "", "called like a word"),
        ("bad.py", "def f(:\n", "bad.py:1"),
        ("breaks.py", "import no_such_module_of_anyone\n", "ModuleNotFoundError"),
    ],
)
def test_files_that_cannot_be_allowed(
    name: str, text: str | None, says: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=says):
        usercode.allow(path)


def test_a_name_that_the_file_lacks_is_told(file: Path) -> None:
    usercode.allow(file)
    with pytest.raises(Exception, match="did you mean 'Steady'"):
        load(parse(SUITE.replace("my_opt:Steady", "my_opt:Stedy"), "mine.yaml")).runs  # noqa: B018


def test_annotations_that_are_texts_and_dataclasses_load(tmp_path: Path) -> None:
    path = tmp_path / "late.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from raybench.optim.sgd import SGD\n\n\n@dataclass\nclass Thing:\n    x: int = 1\n\n\n"
        "class Late(SGD):\n    extra: float = 0.5\n",
        encoding="utf-8",
    )
    usercode.allow(path)
    assert OPTIMIZERS["late:Late"](lr=0.1).extra == 0.5  # type: ignore[attr-defined]
