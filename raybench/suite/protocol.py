"""The tuning protocol of an arm: which trials it has, and which of them each budget picks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raybench.suite.axes import Assignment, Option
from raybench.suite.sampling import Distribution, points
from raybench.suite.sections import ONE_SHOT, Halving, Tune

Trial = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """One point of the sweep that has a space to search, in one study.

    Attributes:
        tune: the protocol, with what a case changes of it.
        study: which repetition of the search, from 0.
    """

    option: Option
    tune: Tune
    study: int = 0

    @cached_property
    def name(self) -> str:
        """The names of its cases, and the settings of its other axes."""
        parts = [*self.option.labels.values()]
        parts += [f"{'.'.join(item.key)}={item.value}" for item in self._settings]
        return "/".join(parts) or "all"

    @cached_property
    def space(self) -> dict[str, Distribution]:
        """What is searched, in the order of the file."""
        return {key: space for key, (space, _) in self.option.search.items()}

    @cached_property
    def trials(self) -> list[Trial]:
        """Trials that are known before any result.

        Raises:
            ValueError: a grid over a space that is not finite, or rungs of trials that differ in
                length.
        """
        if not self.space or not self.tune.first:
            return [{}] if self.tune.first else []
        if self.halving and "steps" in self.space:
            raise ValueError("halving compares trials of one length: `steps` cannot be searched")
        if self.adaptive:
            return []
        return [*points(self.space, self.tune.method, self.tune.first, self.seed)]

    def refined(self, scores: Sequence[float]) -> list[Trial]:
        """Return the trials from the box of the best, once all first trials have a score.

        Schmidt et al. 2021 (arXiv:2007.01547): the generator starts again from its seed, on the
        bounds that the best trials span.

        Args:
            scores: of the first trials, lower is better; nan where one is not finished, infinite
                where it was lost.
        """
        refine, count = self.tune.refine, self.tune.most - self.tune.first
        done = len(scores) == len(self.trials) and not any(map(math.isnan, scores))
        if refine is None or count <= 0 or not self.space or not done:
            return []
        order = sorted(range(len(scores)), key=lambda trial: scores[trial])
        best = [trial for trial in order[: refine.best] if math.isfinite(scores[trial])]
        if not best:
            return []
        box = {
            key: space.around([self.trials[trial][key] for trial in best])
            for key, space in self.space.items()
        }
        return [*points(box, self.tune.method, count, self.seed)]

    def picks(self, scores: Sequence[float]) -> dict[str, int | None]:
        """Return the best trial of each budget; None where every trial of it was lost.

        A budget whose trials have not all come to an end has no entry.

        Args:
            scores: of all trials, as in `refined`.
        """
        found: dict[str, int | None] = {}
        # Where all first trials are lost there is no box, and no more trials will come.
        ends = self._finite or (bool(scores) and all(map(math.isinf, scores)))
        for budget, size in self.tune.sizes.items():
            size = min(size, len(scores)) if ends else size
            within = scores[:size]
            if not within or len(within) < size or any(map(math.isnan, within)):
                continue
            best = min(range(size), key=lambda trial: within[trial])
            found[budget] = best if math.isfinite(within[best]) else None
        return found

    def promoted(self, rungs: Sequence[Mapping[int, float]]) -> list[int]:
        """Return the trials that go on to the rung after those given.

        Each budget has a bracket of its own: its first trials, whatever larger budgets have. One
        whose rung is not over yet promotes none.

        Args:
            rungs: the score of each trial of each rung, as in `refined`.
        """
        brackets = [self._bracket(size, rungs) for size in self.tune.sizes.values()]
        return sorted({trial for bracket in brackets for trial in bracket or ()})

    def picks_of_rungs(
        self, rungs: Sequence[Mapping[int, float]], count: int
    ) -> dict[str, int | None]:
        """Return the pick of each budget, as `picks` does, by successive halving.

        A trial that was stopped is picked only where all that went on were lost.

        Args:
            rungs: as in `promoted`; of the rungs that have begun.
            count: rungs in all.
        """
        found: dict[str, int | None] = {}
        for budget, size in self.tune.sizes.items():
            members = [self._bracket(size, rungs[:rung]) for rung in range(min(count, len(rungs)))]
            last = self._bracket(size, rungs)
            if last is None or (last and len(rungs) < count):
                continue
            found[budget] = furthest([trials or [] for trials in members], rungs)
        return found

    def _bracket(self, size: int, rungs: Sequence[Mapping[int, float]]) -> list[int] | None:
        """Return which of the first `size` trials are left after these rungs; None if unknown."""
        assert self.halving is not None
        trials = list(range(min(size, len(self.trials))))
        share = len(trials)
        for scores in rungs:
            if any(math.isnan(scores.get(trial, math.nan)) for trial in trials):
                return None
            share = max(1, share // self.halving.eta)
            fine = [trial for trial in trials if math.isfinite(scores[trial])]
            trials = sorted(sorted(fine, key=scores.__getitem__)[:share])
        return trials

    @property
    def halving(self) -> Halving | None:
        """How its trials are stopped early; None where there is only one."""
        return self.tune.halving if self.space else None

    @property
    def adaptive(self) -> bool:
        """Whether the trials depend on the results of earlier ones."""
        return self.tune.method == "tpe" and bool(self.space)

    @property
    def middle(self) -> Trial:
        """The middle of the space."""
        return {key: space.quantile(0.5) for key, space in self.space.items()}

    @property
    def num_trials(self) -> int:
        """Trials that the arm will have in all."""
        return len(self.trials) if self._finite else self.tune.most

    @property
    def _settings(self) -> list[Assignment]:
        # What plain axes set names an arm too; what a case sets is behind the case's own name.
        return [item for item in self.option.sets if "cases" not in item.path]

    @property
    def _finite(self) -> bool:
        # Without a space there is one trial; a grid may have fewer points than the budget.
        return not self.space or self.tune.method == "grid"

    @property
    def seed(self) -> int:
        """The seed of its draws."""
        return self.tune.seed + self.study

    def labels(
        self, phase: str, trial: int | None = None, budget: str = ""
    ) -> dict[str, str | int]:
        """Return the labels of the arm's runs in a phase."""
        found: dict[str, str | int] = {"phase": phase, "arm": self.name}
        if trial is not None:
            found["trial"] = trial
        if budget:
            found["budget"] = budget
        if self.tune.studies > 1 and phase != ONE_SHOT:
            found["study"] = self.study
        return found


def furthest(members: Sequence[Sequence[int]], rungs: Sequence[Mapping[int, float]]) -> int | None:
    """Return the best trial of the last rung that has one which was not lost there or later."""
    lost: set[int] = set()
    for trials, scores in zip(reversed(members), reversed(rungs[: len(members)]), strict=True):
        lost |= {trial for trial in trials if not math.isfinite(scores[trial])}
        if fine := [trial for trial in trials if trial not in lost]:
            return min(fine, key=scores.__getitem__)
    return None


def unequal(arms: Sequence[Arm], axes: Sequence[Sequence[Option]]) -> dict[str, str]:
    """Return the arms that are tuned with less than their rivals, and what they have.

    Rivals differ only in the cases of the axes that set the optimizer or open a space to search.
    """
    rival = {
        label
        for options in axes
        for option in options
        if option.search or any(item.key[0] == "optimizer" for item in option.sets)
        for label in option.labels
    }
    groups: dict[tuple[object, ...], dict[str, tuple[int, int, int]]] = {}
    for arm in arms:
        shared = [item for item in arm.option.labels.items() if item[0] not in rival]
        settings = [
            (item.key, str(item.value)) for item in arm._settings if item.key[0] != "optimizer"
        ]
        budget = (arm.num_trials, arm.tune.seeds, arm.tune.one_shot)
        groups.setdefault((*shared, *settings, arm.study), {})[arm.name] = budget
    return {
        name: f"{budget[0]} trials of {budget[1]} seeds, {budget[2]} seeds untuned"
        for group in groups.values()
        for name, budget in group.items()
        if budget != max(group.values())
    }
