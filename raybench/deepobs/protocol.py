"""What each run was for: the defaults, a trial of the search, or the confirmation of a winner.

Schmidt et al. 2021 (arXiv:2007.01547), section 2: a random search of 25, 50 or 75 trials with one
seed; the setting with the best validation value is run again with nine more seeds, and the run of
the search is the tenth. The trials of a budget are among those of the next; the last 25 come from
a refined space. The files do not say any of this: folders and seeds do.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

TUNING_SEED: Final = 42
"""DeepOBS's default seed, which every trial of the search has."""
ONE_SHOT: Final = "one_shot"
TUNED: Final = ("small", "medium", "large")
_SIZES: Final[Mapping[str, int]] = {"small": 25, "medium": 50}

Labels: TypeAlias = dict[str, str | int | None]


@dataclass(frozen=True)
class Candidate:
    """A run of one problem, optimizer and schedule.

    Attributes:
        budgets: whose folders hold its file; empty in a tree without budgets.
        setting: equal for runs with the same hyperparameters.
        ended: when it ended, as text that sorts by time.
        score: on validation data, lower is better; infinite if it was lost.
    """

    run_id: str
    budgets: frozenset[str]
    setting: str
    seed: int
    ended: str
    score: float


@dataclass(frozen=True)
class Role:
    """What a run was for: a row of the plan. A run may have several."""

    run_id: str
    phase: str
    budget: str | None
    trial: int | None

    @property
    def labels(self) -> Labels:
        """The role as labels."""
        return {"phase": self.phase, "budget": self.budget, "trial": self.trial}


def roles(runs: Sequence[Candidate]) -> list[Role]:
    """Return the roles of the runs of one problem, optimizer and schedule.

    A run that was repeated (same budget, setting and seed) counts as the latest of its repetitions;
    the others, and repetitions of settings that did not win, have no role.
    """
    defaults = [run for run in runs if ONE_SHOT in run.budgets]
    tuned = [run for run in runs if run.budgets != {ONE_SHOT}]
    if not any(run.budgets for run in runs) and len({run.setting for run in runs}) == 1:
        defaults, tuned = list(runs), []
    found = [Role(run.run_id, ONE_SHOT, ONE_SHOT, None) for run in _latest(defaults)]
    return found + _Search(tuned).roles() if tuned else found


class _Search:
    """The tuned runs of one problem, optimizer and schedule."""

    def __init__(self, runs: Sequence[Candidate]) -> None:
        self._runs = runs
        self._foldered = any(run.budgets for run in runs)
        seeds = {run.seed for run in runs}
        known = self._foldered or TUNING_SEED in seeds
        self._seed = TUNING_SEED if known else min(seeds)
        tries = [run for run in runs if run.seed == self._seed]
        self._tried = {run.setting: run for run in _latest(tries)}
        begun = {
            setting: min(run.ended for run in tries if run.setting == setting)
            for setting in self._tried
        }
        order = sorted(self._tried, key=lambda setting: (begun[setting], setting))
        self._trials = {setting: number for number, setting in enumerate(order)}
        self._smallest = {
            setting: min(
                (TUNED.index(b) for run in tries if run.setting == setting for b in run.budgets),
                default=0,
            )
            for setting in self._tried
        }

    def roles(self) -> list[Role]:
        """Return trials in their order, then the confirmations of each budget."""
        found = [
            Role(self._tried[setting].run_id, self._phase(setting), None, number)
            for setting, number in self._trials.items()
        ]
        for budget in self._budgets():
            found += [
                Role(run.run_id, "confirm", budget, self._trials.get(run.setting))
                for run in self._confirmations(budget)
            ]
        return found

    def _phase(self, setting: str) -> str:
        # With the last budget alone there is no telling which of its trials are the refined ones.
        last = len(TUNED) - 1
        refined = self._smallest[setting] == last and min(self._smallest.values()) < last
        return "refine" if refined else "search"

    def _budgets(self) -> list[str]:
        if self._foldered:
            return [budget for budget in TUNED if any(budget in run.budgets for run in self._runs)]
        size = len(self._trials)
        return [next((b for b, most in _SIZES.items() if size <= most), TUNED[-1])]

    def _confirmations(self, budget: str) -> list[Candidate]:
        """Return the run of the search that won a budget, and its repetitions with other seeds."""
        here = [
            run
            for run in self._runs
            if run.seed != self._seed and (budget in run.budgets or not self._foldered)
        ]
        # Where folders hold the files of smaller budgets too, what is new here is this budget's.
        smaller = frozenset(TUNED[: TUNED.index(budget)])
        again = [run for run in here if not run.budgets & smaller] or here
        if not again:
            return []
        counts = Counter(run.setting for run in _latest(again))
        winner = min(counts, key=lambda setting: (-counts[setting], self._score(setting), setting))
        repeated = _latest([run for run in again if run.setting == winner])
        return [*([self._tried[winner]] if winner in self._tried else []), *repeated]

    def _score(self, setting: str) -> float:
        run = self._tried.get(setting)
        return math.inf if run is None else run.score


def _latest(runs: Sequence[Candidate]) -> list[Candidate]:
    """Return the last run of each setting and seed, by setting and seed."""
    found: dict[tuple[str, int], Candidate] = {}
    for run in sorted(runs, key=lambda run: (run.setting, run.seed, run.ended, run.run_id)):
        found[run.setting, run.seed] = run
    return list(found.values())
