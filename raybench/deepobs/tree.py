"""Where the files of runs lie, and what their place says.

    [<any>/][<budget>/][<schedule>/]<problem>/<optimizer>/<setting>/random_seed__<s>__<time>.json

A search may begin at any level: what lies above its folder is read from the folder's own path.
"""

from __future__ import annotations

import datetime as dt
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from raybench.deepobs.naming import BUDGETS, SCHEDULES
from raybench.errors import NothingMatched, UsageError

EXPECTED: Final = (
    "a tree looks like results_main/<oneshot|small_budget|medium_budget|large_budget>/"
    "<none|cosine|cosine_wr|ltr>/<problem>/<optimizer>/<setting>/random_seed__42__<time>.json; "
    "the levels of budget and schedule may be missing"
)
_FILE: Final = re.compile(r"random_seed__(\d{1,18})(?:__(.*))?\.json")
_MAIN, _FIRST = "results_main", "results"


@dataclass(frozen=True)
class Place:
    """What the path of a run's file says.

    Attributes:
        base: the folder that holds the budgets, or the problems where there are none.
        budget: `one_shot`, `small`, `medium` or `large`; None outside of such folders.
        schedule: None where the tree has no level for it.
        problem: DeepOBS's name, such as `mnist_vae`.
        optimizer: the class's name.
        setting: the folder named after the hyperparameters.
        ended: when the run ended, as the file's name has it.
    """

    path: Path
    base: Path
    budget: str | None
    schedule: str | None
    problem: str
    optimizer: str
    setting: str
    seed: int
    ended: str

    @property
    def ended_at(self) -> dt.datetime | None:
        """When the run ended (taken as UTC: the files name no zone), if that can be read."""
        try:
            return dt.datetime.strptime(self.ended, "%Y-%m-%d-%H-%M-%S").replace(tzinfo=dt.UTC)
        except ValueError:
            return None


@dataclass(frozen=True)
class Tree:
    """The files of a tree.

    Attributes:
        places: files that are named like a run's, sorted by path.
        others: how many files are not.
        layout: which of the published layouts it has, in words.
        left_out: files of an older tree beside the newer one.
        closed: folders that cannot be listed, and why.
    """

    places: list[Place]
    others: int = 0
    layout: str = "plain DeepOBS output"
    left_out: int = 0
    closed: tuple[tuple[str, str], ...] = ()


def find(folder: Path) -> Tree:
    """Find the files of runs under a folder; symbolic links to folders are not followed.

    Args:
        folder: any level of a tree.

    Raises:
        NothingMatched: there is none.
        UsageError: several trees lie side by side, and none is called results_main.
    """
    places: list[Place] = []
    closed: list[tuple[str, str]] = []
    others = 0
    for path in _files(folder.absolute(), closed):
        place = _place(path)
        if place is None:
            others += 1
        else:
            places.append(place)
    if not places:
        raise NothingMatched(f"no DeepOBS results in {folder}; {EXPECTED}")
    places.sort(key=lambda place: place.path)
    return replace(_tree(folder, places), others=others, closed=tuple(closed))


def _tree(folder: Path, places: list[Place]) -> Tree:
    bases = sorted({place.base for place in places})
    chosen = [base for base in bases if base.name == _MAIN] if len(bases) > 1 else bases
    if len(chosen) != 1:
        raise UsageError(
            f"{folder} holds {len(bases)} trees of results ({', '.join(map(str, bases[:4]))}"
            f"{', ...' if len(bases) > 4 else ''}); import one of them at a time"
        )
    kept = [place for place in places if place.base == chosen[0]]
    tree = Tree(kept, left_out=len(places) - len(kept))
    budgets = {place.budget for place in kept} - {None}
    if not budgets:
        return tree
    if chosen[0].name != _FIRST or "medium" in budgets:
        return replace(tree, layout="the tree of 2021, budgets of 25, 50 and 75 trials")
    # In the first version of the paper the large budget is what the second calls medium.
    renamed = [replace(p, budget="medium") if p.budget == "large" else p for p in kept]
    return replace(tree, places=renamed, layout="the tree of 2020, budgets of 25 and 50 trials")


def _files(folder: Path, closed: list[tuple[str, str]]) -> Iterator[Path]:
    """Yield the files under a folder, and note the folders that cannot be listed."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if not entry.name.startswith("."):
                            waiting.append(Path(entry.path))
                    elif entry.is_file():
                        yield Path(entry.path)
        except OSError as error:
            closed.append((str(here), f"cannot be listed: {error.strerror or error}"))


def _place(path: Path) -> Place | None:
    named = _FILE.fullmatch(path.name)
    if named is None or len(path.parts) < 5 or not _is_text(path):
        return None
    above = list(path.parts[:-4])
    schedule = SCHEDULES.get(above[-1])
    if schedule is not None:
        above.pop()
    budget = BUDGETS.get(above[-1]) if above else None
    if budget is not None:
        above.pop()
    problem, optimizer, setting = path.parts[-4:-1]
    return Place(
        path,
        Path(*above),
        budget,
        schedule,
        problem,
        optimizer,
        setting,
        int(named[1]),
        named[2] or "",
    )


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
