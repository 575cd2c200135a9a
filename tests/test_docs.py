"""docs/optimizers.md is run as written: its files, its line of YAML, its commands, in its order.

Half of the rivals are left out; and in the default run a script called `raybench` stands before the
real one, with overrides that shorten every run, in one process.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
import typer

import raybench
from raybench import tables, usercode
from raybench.analysis import figures_for
from raybench.cli import app
from raybench.optim import OPTIMIZERS
from raybench.suite import Suite, load, parse

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "optimizers.md"
REAL = Path(sys.executable).parent / "raybench"
OWN = "signum"
SMALLER = [
    "steps=3it", "record.at.every=3it",
    "resources.lanes=8", 'tune.budgets={"small":2}', "tune.one_shot=2", "tune.confirm.seeds=1",
]  # fmt: skip
LEFT_OUT = ("amsbound", "amsgrad", "adabelief", "adabound", "adagrad", "nadam", "radam", "nag")
"""Rivals that are done without: the page takes half as long, and says nothing of them."""
CONTENDERS = ("optimizer", "better", "worse", "tuned", "untuned")
"""Columns of a figure's data that name optimizers."""
NEEDS_MORE = {"published": "import them first"}
"""Figures that a suite alone does not give, and what they say."""

NAMELESS = ("gains",)
"""Figures that draw all optimizers alike: which is which is in their data."""


@dataclass(frozen=True)
class Block:
    """A fenced block of the page."""

    language: str
    file: str
    text: str


def blocks() -> list[Block]:
    found = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    return [Block(*parts) for parts in found]


def with_line(suite: str, line: str) -> str:
    """Do what the page asks of an editor: add a line under `x-optimizers`."""
    return re.sub(r"^x-optimizers:.*\n", lambda at: at[0] + line, suite, count=1, flags=re.M)


def without_half(suite: str) -> str:
    found, count = re.subn(rf"^  ({'|'.join(LEFT_OUT)}): .*\n", "", suite, flags=re.M)
    assert count == len(LEFT_OUT)
    return found


def follow(folder: Path, *, smaller: bool) -> str:
    """Do what the page says, from its first block to its last command; return what was printed."""
    first = next(block.text for block in blocks() if block.language == "yaml")
    path = [str(REAL.parent), os.environ["PATH"]]
    if smaller:
        path.insert(0, str(smaller_one(folder / "bin")))
    words = {"PATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAYBENCH")} | words
    told = []
    for block in blocks():
        if block.language == "python":
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "yaml" and block.text == first:
            suite = folder / "mine.yaml"
            text = with_line(suite.read_text("utf-8"), block.text)
            suite.write_text(without_half(text), encoding="utf-8")
        elif block.language == "bash":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text],
                cwd=folder, env=environment, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, (block.text, done.stdout, done.stderr)
            told.append(done.stdout)
    return "\n".join(told)


def smaller_one(folder: Path) -> Path:
    """Write the script that adds overrides to `run` and `plan`; return its folder."""
    real, words = shlex.quote(str(REAL)), shlex.join(SMALLER)
    folder.mkdir()
    script = folder / "raybench"
    script.write_text(
        f'#!/bin/sh\ncase "$1" in\nrun) exec {real} "$@" --in-process {words} ;;\n'
        f'plan) exec {real} "$@" {words} ;;\n*) exec {real} "$@" ;;\nesac\n',
        encoding="utf-8",
    )
    script.chmod(0o755)
    return folder


@dataclass(frozen=True)
class Followed:
    """The folder in which the page was followed, and what its commands printed."""

    folder: Path
    told: str

    @property
    def results(self) -> Path:
        return self.folder / "results" / "crowded_valley"


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Followed:
    folder = tmp_path_factory.mktemp("reader")
    return Followed(folder, follow(folder, smaller=True))


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    before = dict(tables.FILES)
    yield
    tables.FILES.clear()
    tables.FILES.update(before)


def budgets_are_equal(made: Followed) -> None:
    table = raybench.table(made.folder / "results", "crowded_valley", scale="quick")
    assert not (table["status"] == "failed").any(), table["reason"].unique()
    keys = ["label.problem", "label.optimizer", "label.phase"]
    counts = table.groupby(keys).size().unstack("label.optimizer")
    assert OWN in counts.columns
    assert not counts.isna().any(axis=None)
    assert (counts.nunique(axis=1) == 1).all()
    own = table[table["label.optimizer"] == OWN]
    assert set(own["config.optimizer.name"]) == {"my_opt:Signum"}
    trials = own[own["label.phase"] == "search"]
    assert trials["config.optimizer.momentum"].nunique() == trials["label.trial"].nunique() > 1


def stands_in_every_figure(made: Followed) -> None:
    folder = made.results / "figures" / "quick"
    expected = set(figures_for("crowded_valley")) - set(NEEDS_MORE)
    assert {path.stem for path in folder.glob("*.csv")} == expected
    for name in sorted(expected):
        data = pd.read_csv(folder / f"{name}.csv")
        columns = [column for column in CONTENDERS if column in data.columns]
        assert columns, f"{name} names no optimizers"
        pairs = columns == ["tuned", "untuned"]  # each with each: the new one on both sides
        for part in [[column] for column in columns] if pairs else [columns]:
            own = data[(data[part] == OWN).any(axis=1)]
            assert not own.empty, name
            if "problem" in data.columns:
                assert set(own["problem"]) == set(data["problem"]), name
        if name not in NAMELESS:
            assert OWN in (folder / f"{name}.svg").read_text("utf-8"), name


def is_in_the_report(made: Followed) -> None:
    text = (made.results / "report-quick.html").read_text("utf-8")
    assert "my_opt:Signum" in text
    assert "raybench run mine.yaml --scale quick --allow-code my_opt.py" in text
    for figure in figures_for("crowded_valley").values():
        assert figure.title.replace("'", "&#39;") in text
    for why in NEEDS_MORE.values():
        assert why in text


def test_every_optimizer_has_the_same_runs(followed: Followed) -> None:
    budgets_are_equal(followed)
    assert "every optimizer has the same budget as its rivals" in followed.told


def test_the_new_optimizer_is_in_every_figure(followed: Followed) -> None:
    stands_in_every_figure(followed)


def test_the_report_shows_it_and_how_to_run_it(followed: Followed) -> None:
    is_in_the_report(followed)
    assert "results/crowded_valley/report-quick.html" in followed.told


@pytest.mark.slow
@pytest.mark.ray
def test_the_page_with_runs_of_their_full_length(tmp_path: Path) -> None:
    made = Followed(tmp_path, follow(tmp_path, smaller=False))
    budgets_are_equal(made)
    stands_in_every_figure(made)
    is_in_the_report(made)


def mine(folder: Path, *more: str, allowed: Sequence[str] = ("my_opt.py",)) -> Suite:
    for name in allowed:
        usercode.allow(folder / name)
    text = (folder / "mine.yaml").read_text("utf-8")
    for line in more:
        text = with_line(text, line)
    return load(parse(text, "mine.yaml"), "quick")


def ids(suite: Suite) -> dict[str, set[str]]:
    """Return the ids of an optimizer's runs, by its name in the figures."""
    found: dict[str, set[str]] = {}
    for planned in suite.runs:
        found.setdefault(str(planned.labels["optimizer"]), set()).add(planned.run.run_id)
    return found


def test_a_change_of_code_renews_its_own_runs_only(followed: Followed) -> None:
    file = followed.folder / "my_opt.py"
    text = file.read_text("utf-8")
    before = ids(mine(followed.folder))
    try:
        file.write_text(text.replace("step(self", "step(self ") + "\n# Done.\n", encoding="utf-8")
        assert ids(mine(followed.folder)) == before
        file.write_text(text.replace("1 - group", "1.5 - group"), encoding="utf-8")
        after = ids(mine(followed.folder))
    finally:
        file.write_text(text, encoding="utf-8")
    assert before.pop(OWN).isdisjoint(after.pop(OWN))
    assert after == before


def test_without_permission_it_is_refused(followed: Followed) -> None:
    done = subprocess.run(
        [REAL, "run", "mine.yaml", "--scale", "quick"],
        cwd=followed.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert "--allow-code my_opt.py" in done.stderr


def test_the_other_lines_of_yaml_can_be_used(followed: Followed) -> None:
    _, renamed, library = (block.text for block in blocks() if block.language == "yaml")
    assert {"soap", OWN} <= set(ids(mine(followed.folder, library)))
    text = (followed.folder / "mine.yaml").read_text("utf-8")
    usercode.allow(followed.folder / "my_opt.py")
    apart = load(parse(text.replace("name: crowded_valley\n", renamed, 1), "mine.yaml"), "quick")
    assert apart.name == "my_study"
    assert set(figures_for(apart.document["figures"])) == set(figures_for("crowded_valley"))
    assert ids(apart) == ids(mine(followed.folder))


def test_both_ways_to_write_it_give_the_same_weights(followed: Followed) -> None:
    for name in ("my_opt", "my_fast_opt"):
        usercode.allow(followed.folder / f"{name}.py")
    draw = torch.Generator().manual_seed(3)
    start = torch.randn(5, 2, generator=draw)
    ends = []
    grads = [torch.randn(5, 2, generator=draw) for _ in range(20)]
    for name in ("my_opt:Signum", "my_fast_opt:Signum"):
        rule = OPTIMIZERS[name](lr=0.05, momentum=0.7)
        weights = {"w": start.clone()}
        state = rule.init(weights)
        for g in grads:
            weights, state = rule.update({"w": g}, state, weights, 0.05)
        ends.append(weights["w"])
    assert (ends[0] - start).abs().max() > 0.1
    torch.testing.assert_close(ends[1], ends[0])


def commands() -> list[list[str]]:
    shells = [block.text for block in blocks() if block.language in ("bash", "text")]
    lines = [line for text in shells for line in text.splitlines()]
    return [shlex.split(line.partition(">")[0]) for line in lines]


def test_every_command_of_the_page_exists() -> None:
    assert len(commands()) >= 6
    for program, *words in commands():
        assert program == "raybench"
        group = typer.main.get_command(app)
        while hasattr(group, "commands"):
            group = group.commands[words.pop(0)]
        options = {option for parameter in group.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, words
        if "--scale" in words:
            suite = ROOT / "raybench" / "suites" / "crowded_valley.yaml"
            assert f"\n  {words[words.index('--scale') + 1]}:\n" in suite.read_text("utf-8")


def test_the_page_is_short_and_its_names_are_true() -> None:
    text = PAGE.read_text("utf-8")
    assert len(text.splitlines()) < 150
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (PAGE.parent / link).is_file(), link
    table = [line for line in text.splitlines() if line.startswith("| `")]
    named = {name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert len(named) >= 5
    assert named <= set(figures_for("crowded_valley"))
