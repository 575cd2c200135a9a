"""The direction of imports, and the few rules of the tree that a linter does not know."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import raybench
from raybench.data import DATA
from raybench.models import MODELS
from raybench.optim import OPTIMIZERS
from raybench.optim.schedules import SCHEDULES
from raybench.probes import PROBES
from raybench.procedures import PROCEDURES
from raybench.spec import Spec

ROOT = Path(raybench.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
COMPONENTS = {
    "data": (DATA,),
    "models": (MODELS,),
    "optim": (OPTIMIZERS, SCHEDULES),
    "probes": (PROBES,),
    "procedures": (PROCEDURES,),
}


def module(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(file): file for file in FILES}


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, those under `raybench` in full."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            name = node.module or ""
            for alias in node.names:
                inner = f"{name}.{alias.name}"
                yield inner if inner in MODULES else name


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def own_imports(name: str) -> set[str]:
    return {found for found in imports(MODULES[name]) if within(found, "raybench")}


def test_there_is_something_to_look_at() -> None:
    assert len(FILES) > 40
    assert {"raybench.spec", "raybench.suite.load", "raybench.models"} <= MODULES.keys()
    assert "raybench.spec" in own_imports("raybench.tables")


def test_only_cluster_imports_ray() -> None:
    for name, file in MODULES.items():
        if any(within(found, "ray") for found in imports(file)):
            assert within(name, "raybench.cluster"), f"{name} imports ray"


def test_only_analysis_draws() -> None:
    for name, file in MODULES.items():
        if any(within(found, "matplotlib") for found in imports(file)):
            assert within(name, "raybench.analysis"), f"{name} imports matplotlib"


@pytest.mark.parametrize(
    "package",
    [
        "analysis",
        "causes",
        "deepobs",
        "exports",
        "parts",
        "stats",
        "storage",
        "store",
        "untrained",
        "page",
        "errors",
    ],
)
def test_readers_import_neither_torch_nor_ray(package: str) -> None:
    for name, file in MODULES.items():
        if within(name, f"raybench.{package}"):
            heavy = {f for f in imports(file) if within(f, "torch") or within(f, "ray")}
            assert not heavy, f"{name} imports {heavy}"


def test_reading_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, raybench, raybench.analysis.generic, raybench.store, raybench.stats, "
        "raybench.page, raybench.analysis\n"
        "heavy = {'torch', 'ray', 'pydantic', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("errors", set()),
        ("rng", set()),
        ("spec", {"rng"}),
        ("lanes", {"clock", "ranks", "spec"}),
        ("tables", {"errors", "spec"}),
        ("record", {"checkpoints", "lanes", "spec"}),
        ("checkpoints", {"errors", "ranks", "spec", "storage"}),
        ("clock", set()),
        ("ranks", set()),
        ("parts", {"schema", "storage"}),
        ("cache", set()),
        ("storage", {"cache", "errors"}),
        ("pulse", {"errors", "storage"}),
        ("store", {"errors", "parts", "schema", "storage", "untrained"}),
        ("untrained", set()),
        ("usercode", {"errors", "tables"}),
        ("schema", set()),
        ("causes", set()),
        ("redact", set()),
        ("journal", {"errors", "pulse", "storage"}),
        ("deadline", {"journal"}),
        ("stats", {"errors"}),
    ],
)
def test_low_layers_know_nothing_above_them(name: str, allowed: set[str]) -> None:
    inside = [module for module in MODULES if within(module, f"raybench.{name}")]
    found = {f for module in inside for f in own_imports(module)} - set(inside)
    assert found <= {f"raybench.{layer}" for layer in allowed}, found


@pytest.mark.parametrize("folder", ["data", "models", "optim", "probes"])
def test_components_stand_alone(folder: str) -> None:
    low = ("cache", "errors", "quadratic", "rng", "spec", "tables")
    for name in MODULES:
        if within(name, f"raybench.{folder}"):
            others = {f for f in own_imports(name) if not within(f, f"raybench.{folder}")}
            assert others <= {f"raybench.{layer}" for layer in low}, f"{name} imports {others}"


def test_lanes_do_not_know_what_is_trained() -> None:
    text = MODULES["raybench.lanes"].read_text(encoding="utf-8").lower()
    for word in ("optimizer", "model", "dataset", "accuracy", "epoch", "suite"):
        assert not re.search(rf"\b{word}s?\b", text), word


ORDER = [
    "procedures", "suite", "plan", "sizing", "progress", "work", "local", "cluster", "rounds",
    "session", "cli",
]  # fmt: skip


def test_imports_go_one_way() -> None:
    # `plan` reads suites, `work` reads plans and so on; the list is from low to high. A lower layer
    # may call a higher one only inside a function, and only `sizing` does (it asks `work` where).
    for place, low in enumerate(ORDER):
        for name, file in MODULES.items():
            if not within(name, f"raybench.{low}"):
                continue
            top = ast.parse(file.read_text(encoding="utf-8")).body
            found = {
                node.module
                for node in top
                if isinstance(node, ast.ImportFrom) and node.module is not None
            }
            for high in ORDER[place + 1 :]:
                assert not any(within(f, f"raybench.{high}") for f in found), f"{name} -> {high}"


def test_nothing_imports_the_command_line_or_tests() -> None:
    for name in MODULES:
        if not within(name, "raybench.cli") and name != "raybench.__main__":
            assert not any(within(f, "raybench.cli") for f in own_imports(name)), name
        assert not any(within(f, "tests") for f in imports(MODULES[name])), name


# Component folders.


@pytest.mark.parametrize("folder", sorted(COMPONENTS))
def test_every_file_of_components_is_imported_by_its_table(folder: str) -> None:
    """A file that no path of imports leads to would hold components that nobody can name."""
    package = f"raybench.{folder}"
    seen: set[str] = set()
    waiting = [package]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += [f for f in own_imports(name) if within(f, package)]
    assert seen >= {name for name in MODULES if within(name, package)} - USED_FROM_OUTSIDE


USED_FROM_OUTSIDE = {"raybench.data.augment", "raybench.models.operations"}
"""Not components: what procedures call on the rows of a component."""


def test_what_is_used_from_outside_is_used() -> None:
    for name in USED_FROM_OUTSIDE:
        assert any(name in own_imports(other) for other in MODULES)


@pytest.mark.parametrize("folder", sorted(COMPONENTS))
def test_every_concrete_component_is_in_its_table(folder: str) -> None:
    listed = {table[name] for table in COMPONENTS[folder] for name in table.bundled}
    bases = {base for cls in listed for base in cls.__mro__[1:]}
    kind = next(base for base in next(iter(listed)).__mro__ if base in bases and base is not Spec)

    def below(cls: type) -> Iterator[type]:
        for sub in cls.__subclasses__():
            yield sub
            yield from below(sub)

    for cls in below(Spec):
        if cls.__module__.startswith(f"raybench.{folder}.") and not cls.__abstractmethods__:
            part = not any(within(b.__module__, f"raybench.{folder}") for b in cls.__mro__[1:])
            named = {*vars(cls), *vars(cls).get("__annotations__", {})}
            foreign = not named.isdisjoint({"make", "load"})  # an adapter, or adapted by a test
            assert cls in listed or part or foreign, f"{cls.__name__} is in no table ({kind})"


def test_tables_are_literal() -> None:
    for folder in COMPONENTS:
        tree = ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            assert not isinstance(node, ast.For | ast.While | ast.DictComp), f"{folder}: a loop"


# The tree.


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_are_small_and_open_with_what_they_hide(name: str) -> None:
    text = MODULES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)), "a module opens with a sentence"


def test_no_file_is_called_utils() -> None:
    for file in FILES:
        words = {*file.relative_to(ROOT).with_suffix("").parts}
        assert not words & {"utils", "util", "helpers", "common", "misc"}, file


GLOBAL_NOISE = {
    "torch.manual_seed", "torch.seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all",
    "random.seed", "numpy.random.seed", "np.random.seed", "np.random.rand", "np.random.randn",
    "np.random.randint", "np.random.shuffle", "np.random.permutation", "random.random",
    "random.shuffle", "random.choice",
}  # fmt: skip
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"}


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_seeds_or_draws_globally() -> None:
    for name, file in MODULES.items():
        for called, node in calls(file):
            if called in GLOBAL_NOISE:
                assert (name, called) == ("raybench.models.adapter", "torch.manual_seed"), name
            if called.startswith("torch.") and called.removeprefix("torch.") in DRAWS:
                given = {keyword.arg for keyword in node.keywords}
                assert "generator" in given, f"{name}: {called} without a generator"
            if called == "np.random.default_rng":
                assert node.args, f"{name}: default_rng without a seed"


def test_nothing_from_a_stranger_runs_code() -> None:
    for name, file in MODULES.items():
        assert not {"pickle", "cloudpickle", "dill", "marshal", "shelve"} & set(imports(file)), name
        for called, node in calls(file):
            assert called not in {"eval", "exec", "os.system", "yaml.load"}, f"{name}: {called}"
            if called == "torch.load":
                assert any(k.arg == "weights_only" for k in node.keywords), name
            assert not any(
                k.arg == "shell" and ast.unparse(k.value) == "True" for k in node.keywords
            ), name


def test_exceptions_become_statuses_in_few_places() -> None:
    # Where a run's own failure is caught (the batch, the timing of its lanes, Ray's report), and
    # what the hub's client, the YAML reader and a compiler may raise, which is anything.
    allowed = (
        "raybench.work", "raybench.sizing", "raybench.estimate", "raybench.cluster",
        "raybench.compiling", "raybench.cli", "raybench.data.hub", "raybench.suite.source",
        "raybench.usercode",
    )  # fmt: skip
    for name, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                kind = ast.unparse(node.type) if node.type else "everything"
                if kind in ("Exception", "BaseException", "everything"):
                    assert any(within(name, place) for place in allowed), f"{name}: except {kind}"


def test_sizing_and_work_do_not_need_each_other() -> None:
    # `imports` also sees those inside of functions, where a cycle could hide.
    assert "raybench.sizing" in own_imports("raybench.work")
    assert not own_imports("raybench.sizing") & {"raybench.work", "raybench.session"}
