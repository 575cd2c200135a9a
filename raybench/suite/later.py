"""What a tuned suite goes on to as results come in: more trials, longer rungs, confirmation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from raybench.spec import Steps
from raybench.suite.protocol import Arm, Trial, furthest

if TYPE_CHECKING:
    from raybench.suite.expand import Planned, Suite


class Searcher(Protocol):
    """What chooses trials by the results of earlier ones; equal results give equal trials."""

    def ask(self, count: int) -> list[Trial]:
        """Return the next trials."""
        ...

    def tell(self, scores: Sequence[float]) -> None:
        """Take the scores of all trials asked for last: lower is better, infinite where lost."""
        ...


@dataclass
class _Asked:
    """An adaptive search so far."""

    searcher: Searcher
    trials: list[Trial] = field(default_factory=list)
    told: int = 0


@dataclass(frozen=True)
class Climbing:
    """A trial of asynchronous halving: the runs of each rung, and its scores (nan: not ended)."""

    arm: Arm
    eta: int
    rungs: list[list[Planned]]
    scores: list[float]


class Later:
    """The runs of a tuned suite that depend on results.

    Everything follows from the suite and the results alone: whoever asks again with the same
    results gets the same runs, which is how a suite is resumed.

    Args:
        suite: the suite.
        searcher: makes what an arm with an adaptive method asks for its trials.
    """

    def __init__(self, suite: Suite, searcher: Callable[[Arm], Searcher] | None = None) -> None:
        self._suite = suite
        self._make = searcher
        self._asked: dict[int, _Asked] = {}
        places = {(arm.name, arm.study): place for place, arm in enumerate(suite.arms)}
        self._runs: dict[tuple[int, int, int], list[Planned]] = {}
        for planned in suite.runs:
            if "trial" in planned.labels:
                labels = planned.labels
                place = places[str(labels["arm"]), int(labels.get("study", 0))]
                self._runs.setdefault((place, int(labels["trial"]), 0), []).append(planned)

    def search(self, values: Mapping[str, float]) -> list[Planned]:
        """Return the runs of the search that follow the suite's own, as far as results say.

        Args:
            values: as for `confirm`.
        """
        found: list[Planned] = []
        for place, arm in self._arms():
            if arm.halving:
                for rung, scores in enumerate(self._rungs(place, arm, values)[1:], start=1):
                    for number in scores:
                        found += self._of(place, arm, number, arm.trials[number], rung)
            else:
                trials = self._trials(place, arm, values)
                for number in range(len(arm.trials), len(trials)):
                    found += self._of(place, arm, number, trials[number])
        return found

    def confirm(self, values: Mapping[str, float]) -> tuple[list[Planned], list[str]]:
        """Return the runs that confirm the best trial of each arm and budget that is complete.

        Args:
            values: the selection metric by run_id; infinite for runs that failed or diverged.

        Returns:
            The runs, and the names of arms in which no trial came to an end.
        """
        confirmed: list[Planned] = []
        lost: list[str] = []
        for place, arm in self._arms():
            if arm.halving:
                trials = arm.trials
                if climbed := self._climbed(place, arm, values):
                    picks = {"": furthest([list(scores) for scores in climbed], climbed)}
                else:
                    rungs = self._rungs(place, arm, values)
                    picks = arm.picks_of_rungs(rungs, self._count(place, arm))
            else:
                trials = self._trials(place, arm, values)
                picks = arm.picks(self._scores(place, arm, trials, values))
            for budget, pick in picks.items():
                if pick is None:
                    lost.append(" ".join(filter(None, (arm.name, budget))))
                else:
                    confirmed += self._suite.confirming(arm, trials[pick], pick, budget)
        return confirmed, lost

    @property
    def num_promotions(self) -> int:
        """Runs of the rungs after the first, if no two budgets promote one trial."""
        return sum(sum(self._sizes(place, arm)[1:]) for place, arm in self._arms() if arm.halving)

    def samples(self) -> list[Planned]:
        """Return a run that costs the same for each that halving or tpe will lead to."""
        found: list[Planned] = []
        for place, arm in self._arms():
            confirming = arm.tune.confirm.seeds * len(arm.tune.sizes)
            if arm.halving:
                for rung, size in enumerate(self._sizes(place, arm)):
                    run = self._of(place, arm, 0, arm.trials[0], rung)[:1]
                    found += run * size if rung else []
                found += run * confirming
            elif arm.adaptive:
                run = list(self._suite.trial(arm, "search", 0, arm.middle, []))[:1]
                found += run * (arm.tune.most * arm.tune.seeds + confirming)
        return found

    def _sizes(self, place: int, arm: Arm) -> list[int]:
        """Return how many runs each rung of an arm has, if no two budgets promote one trial."""
        assert arm.halving is not None
        return [
            sum(
                max(1, min(size, arm.num_trials) // arm.halving.eta**rung) * arm.tune.seeds
                for size in arm.tune.sizes.values()
            )
            for rung in range(self._count(place, arm))
        ]

    def _arms(self) -> list[tuple[int, Arm]]:
        searched = {id(arm) for arm in self._suite.searched}
        return [
            (place, arm)
            for place, arm in enumerate(self._suite.arms)
            if id(arm) in searched and (arm.trials or arm.adaptive)
        ]

    def _trials(self, place: int, arm: Arm, values: Mapping[str, float]) -> list[Trial]:
        """Return the trials of an arm that are known."""
        if arm.adaptive:
            return self._suggested(place, arm, values)
        return [*arm.trials, *arm.refined(self._scores(place, arm, arm.trials, values))]

    def _suggested(self, place: int, arm: Arm, values: Mapping[str, float]) -> list[Trial]:
        """Return the trials asked for so far; the next ones once the last have all ended."""
        if place not in self._asked:
            if self._make is None:
                return []
            self._asked[place] = _Asked(self._make(arm))
        asked = self._asked[place]
        while True:
            scores = self._scores(place, arm, asked.trials, values)[asked.told :]
            if any(map(math.isnan, scores)):
                return asked.trials
            if scores:
                asked.searcher.tell(scores)
                asked.told = len(asked.trials)
            room = arm.tune.most - len(asked.trials)
            if room == 0:
                return asked.trials
            asked.trials += asked.searcher.ask(min(room, arm.tune.at_once))

    def _rungs(self, place: int, arm: Arm, values: Mapping[str, float]) -> list[dict[int, float]]:
        """Return the score of each trial of each rung that has begun; nan where it is not over."""
        if climbed := self._climbed(place, arm, values):
            return climbed
        rungs: list[dict[int, float]] = []
        numbers = list(range(len(arm.trials)))
        while numbers and len(rungs) < self._count(place, arm):
            runs = {n: self._of(place, arm, n, arm.trials[n], len(rungs)) for n in numbers}
            rungs.append({n: _score(arm, own, values) for n, own in runs.items()})
            numbers = arm.promoted(rungs)
        return rungs

    def _climbed(self, place: int, arm: Arm, values: Mapping[str, float]) -> list[dict[int, float]]:
        """Return the rungs of an asynchronous bracket as they are stored; none if it is not over.

        It is over once one trial has come to the end: there is no other order that had to be kept.
        """
        if arm.halving is None or not arm.halving.asynchronous:
            return []
        rungs: list[dict[int, float]] = []
        numbers = list(range(len(arm.trials)))
        while numbers and len(rungs) < self._count(place, arm):
            runs = {n: self._of(place, arm, n, arm.trials[n], len(rungs)) for n in numbers}
            scores = {n: _score(arm, own, values) for n, own in runs.items()}
            rungs.append({n: score for n, score in scores.items() if not math.isnan(score)})
            numbers = [n for n, score in rungs[-1].items() if math.isfinite(score)]
        over = len(rungs) == self._count(place, arm) and len(rungs[0]) == len(arm.trials)
        return rungs if over and rungs[-1] else []

    @cached_property
    def within_reach(self) -> list[Planned]:
        """All runs that asynchronous halving may come to: what is stored says which it did."""
        return [p for trial in self.climbing({}) for own in trial.rungs for p in own]

    def climbing(self, values: Mapping[str, float]) -> list[Climbing]:
        """Return the trials of asynchronous brackets that are not over."""
        found: list[Climbing] = []
        for place, arm in self._arms():
            halving = arm.halving
            if not halving or not halving.asynchronous or self._climbed(place, arm, values):
                continue
            for number, trial in enumerate(arm.trials):
                count = range(self._count(place, arm))
                rungs = [self._of(place, arm, number, trial, rung) for rung in count]
                if not any(planned.skipped for planned in rungs[0]):
                    scores = [_score(arm, own, values) for own in rungs]
                    found.append(Climbing(arm, halving.eta, rungs, scores))
        return found

    def _count(self, place: int, arm: Arm) -> int:
        """Return how many rungs an arm has."""
        assert arm.halving is not None
        first = next(own for (at, _, _), own in self._runs.items() if at == place)
        steps: Steps = first[0].run.procedure.steps  # type: ignore[attr-defined]
        return len(arm.halving.rungs(steps)) + 1

    def _scores(
        self, place: int, arm: Arm, trials: Sequence[Trial], values: Mapping[str, float]
    ) -> list[float]:
        runs = [self._of(place, arm, number, trial) for number, trial in enumerate(trials)]
        return [_score(arm, own, values) for own in runs]

    def _of(self, place: int, arm: Arm, number: int, trial: Trial, rung: int = 0) -> list[Planned]:
        """Return the runs of a trial, one for each seed."""
        key = (place, number, rung)
        if key not in self._runs and (rung or number >= len(arm.trials)):
            phase = "search" if arm.adaptive or arm.halving else "refine"
            self._runs[key] = list(self._suite.trial(arm, phase, number, trial, [], rung))
        return self._runs.get(key, [])


def _score(arm: Arm, runs: Sequence[Planned], values: Mapping[str, float]) -> float:
    """Return the mean over a trial's seeds, lower is better.

    nan while one of them has not ended; infinite for a trial that is skipped.
    """
    own = [values.get(p.run.run_id, math.nan) for p in runs if not p.skipped]
    if not own:
        return math.inf
    sign = arm.tune.select.sign
    return sum(math.inf if math.isinf(value) else sign * value for value in own) / len(own)
