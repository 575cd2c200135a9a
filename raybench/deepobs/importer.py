"""From a tree of result files to a suite's tables.

One part holds what was found of one problem, optimizer and schedule, and is named after them:
importing again overwrites it. Everything that is in the files is data; a name in them only ever
becomes text in a cell.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from raybench import store as results
from raybench.deepobs import naming
from raybench.deepobs.protocol import Role, roles
from raybench.deepobs.result import UnreadableError, read
from raybench.deepobs.rows import SCALE, Cell, Found, digest, found, labels, metrics, row
from raybench.deepobs.tree import EXPECTED, Place, find
from raybench.errors import NothingMatched, UsageError
from raybench.schema import metrics_table, runs_table
from raybench.storage import Root
from raybench.store import SuiteStore


@dataclass
class Imported:
    """What an import has read and written.

    Attributes:
        files: files of runs that were found, copies in folders of several budgets included.
        others: files beside them that are not of runs.
        layout: which layout the tree has, in words.
        left_out: files of the older tree of two, which was passed over.
        unused: runs without a role in the protocol: repeated later, or repeated without having won.
        cells: what there is of each problem, for a table.
        statuses: runs by status.
        skipped: files (or folders) that are not imported, and why.
    """

    files: int
    others: int
    layout: str
    left_out: int
    unused: int = 0
    cells: dict[str, Counter[str]] = field(default_factory=dict)
    optimizers: set[str] = field(default_factory=set)
    schedules: set[str] = field(default_factory=set)
    statuses: Counter[str] = field(default_factory=Counter)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def import_results(
    folder: Path,
    root: Root,
    suite: str = "crowded_valley",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Imported:
    """Import a tree of DeepOBS results into a suite's tables, at scale `published`.

    What was imported before of the same problem, optimizer and schedule is replaced; the rest of
    the scale stays. Whatever else the suite has is not touched.

    Args:
        folder: any level of a tree.
        root: the store, a folder or a URL.
        suite: the suite's name.
        on_progress: told how many files have been read, and how many there are.

    Raises:
        NothingMatched: there is nothing to import in the folder.
        UsageError: the folder holds several trees, or the suite's name is not one.
    """
    tree = find(folder)
    account = Imported(len(tree.places), tree.others, tree.layout, tree.left_out)
    account.skipped += tree.closed
    store: SuiteStore | None = None
    plan: list[dict[str, Any]] = []
    done = 0
    for places in _cells(tree.places):
        runs = _read_all(places, account)
        done += len(places)
        on_progress(done, len(tree.places))
        if runs:
            store = store or _open(root, suite)
            plan += _write(runs, store, account)
    if store is None:
        reasons = "; ".join(f"{path} {why}" for path, why in account.skipped[:3])
        raise NothingMatched(f"no file in {folder} can be imported: {reasons}; {EXPECTED}")
    others = [scale for scale in results.scales(root, suite) if scale != SCALE]
    store.write_plan(SCALE, [*_kept(root, suite, plan), *plan], latest=not others)
    if not store.storage.written(store.folder / "suite.yaml"):
        store.write_suite(_suite(suite, folder))
    return account


def _open(root: Root, suite: str) -> SuiteStore:
    try:
        return SuiteStore(root, suite)
    except ValueError as error:
        raise UsageError(f"{error}: letters, digits, - and _") from error


def _cells(places: Sequence[Place]) -> list[list[Place]]:
    """Return the files of each problem, optimizer and schedule (as far as paths tell of it)."""
    cells: dict[Cell, list[Place]] = {}
    for place in places:
        cells.setdefault((place.problem, place.optimizer, place.schedule or ""), []).append(place)
    return [cells[cell] for cell in sorted(cells)]


def _read_all(places: Sequence[Place], account: Imported) -> list[Found]:
    """Read files, each once though it may lie in the folders of several budgets."""
    copies: dict[tuple[str, str], list[Place]] = {}
    for place in places:
        copies.setdefault((place.setting, place.path.name), []).append(place)
    runs = []
    for same in copies.values():
        place = same[0]
        budgets = frozenset(p.budget for p in same if p.budget is not None)
        try:
            result = read(place.path)
            if (result.problem, result.seed) != (place.problem, place.seed):
                raise UnreadableError(
                    f"says {result.problem}, seed {result.seed}, which is not what its path says"
                )
        except UnreadableError as error:
            account.skipped += [(str(p.path), str(error)) for p in same]
            continue
        runs.append(found(place, result, budgets))
    return runs


def _write(runs: Sequence[Found], store: SuiteStore, account: Imported) -> list[dict[str, Any]]:
    """Write the part of one problem and optimizer, and return its rows of the plan."""
    plan: list[dict[str, Any]] = []
    for schedule in sorted({run.schedule for run in runs}):
        here = {run.run_id: run for run in runs if run.schedule == schedule}
        place = next(iter(here.values())).place
        cell = (place.problem, naming.optimizer(place.optimizer), schedule)
        given = roles([run.candidate for run in here.values()])
        first: dict[str, dict[str, Any]] = {}
        for role in given:
            labelled = labels(cell, role)
            first.setdefault(role.run_id, labelled)
            plan.append({"run_id": role.run_id, "skipped": None, **labelled})
        part = f"published-{digest([place.problem, place.optimizer, schedule])}"
        kept = [here[run_id] for run_id in first]
        rows = [row(run, store.suite, part, first[run.run_id]) for run in kept]
        store.write_part(part, runs_table(rows), metrics_table(metrics(kept)))
        _count(cell, rows, given, account)
        account.unused += len(here) - len(kept)
    return plan


def _count(
    cell: Cell, rows: Sequence[dict[str, Any]], given: Sequence[Role], account: Imported
) -> None:
    problem, optimizer, schedule = cell
    account.optimizers.add(optimizer)
    account.schedules.add(schedule)
    statuses = Counter(str(each["status"]) for each in rows)
    account.statuses.update(statuses)
    counts = account.cells.setdefault(problem, Counter())
    counts.update(statuses)
    counts.update(role.phase for role in given)


def _kept(root: Root, suite: str, plan: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the plan as it was that are about other problems or optimizers."""
    if SCALE not in results.scales(root, suite):
        return []
    arms = {row["label.arm"] for row in plan}
    before = results.plan(root, suite, SCALE)
    before = before[~before["label.arm"].isin(arms)]
    rows = before.astype(object).where(before.notna(), None).to_dict("records")
    # A column of whole numbers with gaps comes back as floats.
    return [
        {str(k): int(v) if k == "label.trial" and v is not None else v for k, v in each.items()}
        for each in rows
    ]


def _suite(suite: str, folder: Path) -> str:
    """Return what stands for the resolved suite where none was run."""
    document = {
        "name": suite,
        "description": "Published results, imported from files that DeepOBS wrote.",
        "paper": "https://arxiv.org/abs/2007.01547",
        "scale": SCALE,
        "file": folder.absolute().name,
        "environment": {
            "raybench": version("raybench"),
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(document, text)
    return text.getvalue()
