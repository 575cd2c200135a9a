"""From a suite file to runs: layers, sweep, search, derive, skip, seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, cast

from raybench.errors import Path, Problem
from raybench.procedures import PROCEDURES, Procedure
from raybench.rng import Seed
from raybench.spec import Run, Steps
from raybench.suite.axes import Assignment, Option, product
from raybench.suite.config import Config, Origins, copy, look_up, origin, put, put_all
from raybench.suite.expr import Expression, ExpressionError
from raybench.suite.later import Later
from raybench.suite.protocol import Arm, Trial
from raybench.suite.sections import (
    ONE_SHOT,
    Checkpoint,
    Halving,
    Limits,
    Resources,
    Seeds,
    Skip,
    Tune,
    resources_of_case,
    section,
)
from raybench.suite.source import Source
from raybench.tables import build

MAX_RUNS: Final = 2_000_000
CONFIRM_OFFSET: Final = 1_000_000
"""Seeds of confirmation runs begin here, so that the search has seen none of them."""


@dataclass(frozen=True)
class Planned:
    """A run of a suite, with the names that the suite gives it.

    Attributes:
        labels: case names, and for tuned suites `phase`, `arm` and `trial`.
        skipped: why it is left out on purpose; empty if it is not.
    """

    run: Run[Procedure]
    labels: Mapping[str, str | int]
    skipped: str = ""
    resources: Resources | None = None


@dataclass
class Suite:
    """A suite at one scale, checked: its sections, and its runs.

    Attributes:
        source: the file it came from.
        scale: the name of the scale, empty for a file without scales.
        document: the sections after scale and overrides, plain values.
        base: what all runs share.
        last: what the command line sets for all runs, whatever a case says.
        overrides: all that the command line changed, as it was given.
    """

    source: Source
    scale: str
    document: dict[str, Any]
    base: list[Assignment]
    last: list[Assignment]
    options: list[list[Option]]
    skip: list[Skip]
    derive: list[tuple[tuple[str, ...], Expression, Path]]
    seeds: Seeds
    limits: Limits
    resources: Resources
    tune: Tune | None
    checkpoint: Checkpoint | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    origins: dict[str, Path] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The suite's name."""
        return str(self.document["name"])

    @cached_property
    def runs(self) -> list[Planned]:
        """The runs that are known before any result: all of them, but for confirmations.

        Raises:
            SuiteError: some combination cannot be built; every mistake is shown once.
        """
        problems: list[Problem] = []
        found = list(self._expand(problems))
        if problems:
            raise self.source.fail(problems)
        return found

    def mistakes(self) -> list[Problem]:
        """Return what is wrong with the runs of a suite whose sections have mistakes themselves.

        What may only be missing because a section could not be read is left out.
        """
        problems: list[Problem] = []
        for _ in self._expand(problems):
            pass
        follow = ("needs a value", "needs a name", "no procedure", "unknown name", "needs a `tune`")
        return [p for p in problems if not any(text in p.message for text in follow)]

    @cached_property
    def arms(self) -> list[Arm]:
        """The arms of a tuned suite in the order of the sweep; empty for any other.

        Raises:
            SuiteError: a case changes the protocol to what cannot be.
        """
        if self.tune is None:
            return []
        problems: list[Problem] = []
        found = [arm for option in product(self.options) for arm in self._studies(option, problems)]
        if problems:
            raise self.source.fail(problems)
        return found

    @property
    def num_later(self) -> int:
        """Runs that will follow once results have shown which, at most."""
        later = (self.num_refinements, self.num_promotions, self.num_suggestions)
        return sum(later) + self.num_confirmations

    @property
    def num_refinements(self) -> int:
        """Runs that will follow once the first trials have shown where to look."""
        return sum(
            (arm.tune.most - arm.tune.first) * arm.tune.seeds for arm in self.searched if arm.space
        )

    @property
    def num_confirmations(self) -> int:
        """Runs that will follow once the search has picked a configuration for each budget.

        Fewer are carried out where two budgets pick the same trial.
        """
        return sum(arm.tune.confirm.seeds * len(arm.tune.sizes) for arm in self.searched)

    @property
    def num_promotions(self) -> int:
        """Runs that will follow as longer rungs of successive halving, at most."""
        return Later(self).num_promotions

    @property
    def num_suggestions(self) -> int:
        """Runs of trials that will be chosen by the results of earlier ones."""
        return sum(arm.tune.most * arm.tune.seeds for arm in self.searched if arm.adaptive)

    def confirmations(self, values: Mapping[str, float]) -> tuple[list[Planned], list[str]]:
        """Return the runs that confirm the picks of suites that search without a searcher.

        See `Later.confirm`.
        """
        return Later(self).confirm(values)

    def confirming(self, arm: Arm, trial: Trial, number: int, budget: str) -> list[Planned]:
        """Return the runs that confirm a trial as the pick of a budget."""
        labels = arm.labels("confirm", number, budget)
        return list(self._point(arm.option, trial, self._confirm_seeds(arm), labels, []))

    @cached_property
    def searched(self) -> list[Arm]:
        """The arms that have anything to search by trials: those that are not skipped."""
        named: dict[str, bool] = {}
        for planned in self.runs:
            if "arm" in planned.labels:
                name = str(planned.labels["arm"])
                named[name] = named.get(name, False) or not planned.skipped
        return [arm for arm in self.arms if named.get(arm.name, arm.adaptive)]

    def _studies(self, option: Option, problems: list[Problem]) -> Iterator[Arm]:
        tune = cast("Tune", self.tune)
        # What the command line sets of the protocol wins over the cases, as it does elsewhere.
        last = {key.split(".")[1] for key in self.overrides if key.startswith("tune.")}
        changes = {key: value for key, value in option.tune.items() if key not in last}
        if changes and "tune" not in self.overrides:
            given = {key: value for key, (value, _) in changes.items()}
            base = dict(self.document["tune"])
            for one, other in (("trials", "budgets"), ("budgets", "trials")):
                if one in given:
                    base.pop(other, None)
            where = next(iter(changes.values()))[1][:-1]
            changed = section("tune", {**base, **given}, where, problems)
            if changed is None:
                return
            tune = cast("Tune", changed)
        for study in range(tune.studies):
            yield Arm(option, tune, study)

    def _confirm_seeds(self, arm: Arm) -> list[Seed]:
        tune = arm.tune
        if not tune.confirm.reuse:
            return [self._seed(CONFIRM_OFFSET + index) for index in range(tune.confirm.seeds)]
        own = [self._seed(arm.study * tune.seeds + index) for index in range(tune.seeds)]
        fresh = tune.studies * tune.seeds
        return own + [self._seed(fresh + index) for index in range(tune.confirm.seeds)]

    def _seed(self, index: int) -> Seed:
        return Seed(self.seeds.base + index, self.seeds.base, self.seeds.fixed)

    def _expand(self, problems: list[Problem]) -> Iterator[Planned]:
        for count, planned in enumerate(self._combinations(problems)):
            if count == MAX_RUNS:
                where = self.origins.get("sweep", ("sweep",))
                problems.append(Problem(where, f"more than {MAX_RUNS:,} runs; split the suite"))
                return
            yield planned

    def _combinations(self, problems: list[Problem]) -> Iterator[Planned]:
        if self.tune is None:
            seeds = [self._seed(index) for index in range(self.seeds.count)]
            for option in product(self.options):
                if option.search:
                    path = next(iter(option.search.values()))[1][:-1]
                    problems.append(Problem(path, "a `search` needs a `tune` section", True))
                    return
                yield from self._point(option, {}, seeds, {}, problems)
            return
        for arm in self.arms:
            if arm.tune.one_shot and arm.study == 0:
                seeds = [self._seed(index) for index in range(arm.tune.one_shot)]
                labels = arm.labels(ONE_SHOT, budget=ONE_SHOT)
                yield from self._point(arm.option, {}, seeds, labels, problems)
            try:
                trials = arm.trials
            except ValueError as error:
                problems.append(Problem(self.origins["tune"], str(error)))
                return
            # Trials that are yet to be chosen are stood for by one, so that mistakes show now.
            for number, trial in enumerate([arm.middle] if arm.adaptive else trials):
                planned = list(self.trial(arm, "search", number, trial, problems))
                if number == 0 and planned and not self._can_select(arm, planned[0]):
                    message = f"{arm.name}: {arm.tune.select.metric} needs rows: set data.valid"
                    problems.append(Problem(self.origins["tune"], message))
                yield from (p for p in planned if p.skipped or not arm.adaptive)

    def _can_select(self, arm: Arm, planned: Planned) -> bool:
        # Without validation rows every trial would be carried out, and none could be picked.
        data = getattr(planned.run.procedure, "data", None)
        split = arm.tune.select.metric.partition("/")[0]
        return split != "valid" or getattr(data, "valid", None) != 0

    def trial(
        self,
        arm: Arm,
        phase: str,
        number: int,
        trial: Trial,
        problems: list[Problem],
        rung: int = 0,
    ) -> Iterator[Planned]:
        """Yield the runs of a trial of an arm, one for each seed.

        Args:
            arm: the arm.
            phase: search or refine; with halving, rungs before the last are called `rung`.
            number: of the trial.
            trial: what it sets.
            problems: mistakes are added to it.
            rung: from 0, where trials are stopped by halving.
        """
        first = arm.study * arm.tune.seeds
        seeds = [self._seed(first + index) for index in range(arm.tune.seeds)]
        labels = arm.labels(phase, number)
        yield from self._point(arm.option, trial, seeds, labels, problems, (arm, rung))

    def _point(
        self,
        option: Option,
        trial: Mapping[str, Any],
        seeds: Sequence[Seed],
        labels: Mapping[str, str | int],
        problems: list[Problem],
        search: tuple[Arm, int] | None = None,
    ) -> Iterator[Planned]:
        """Yield the runs of one fully resolved configuration, one for each seed.

        `search` is the arm and the rung of a trial; None outside of a search.
        """
        found: list[Problem] = []
        config, reason = self._resolve(option, trial, found)
        if search and search[0].halving and not found:
            labels = {**labels, **self._halved(config, search[0].halving, search[1], found)}
        if search and search[0].tune.blind:
            shown = look_up(config, PROCEDURES, "record.on")
            hidden = [split for split in shown if split != "test"]
            put(config, Assignment(("record", "on"), hidden, ()))
        procedure = None
        if not found:
            procedure = self._build(config, found)
        if procedure is None:
            if reason:
                return  # left out on purpose, and could not be built anyway
            # Resolved again with the places noted, which is too slow for the runs that are fine.
            problems += self._located(option, trial, found)
            return
        reason = reason or procedure.check() or ""
        named = {**option.labels, **labels}
        shared = self.document.get("resources", {})
        own = resources_of_case(option.resources, shared, self.overrides, problems)
        for seed in seeds:
            yield Planned(Run(procedure, seed), named, reason, own)

    def _halved(
        self, config: Config, halving: Halving, rung: int, problems: list[Problem]
    ) -> dict[str, str | int]:
        """Let a trial stop at the end of its rung, and return the labels that say so."""
        where = (*self.origins["tune"], "halving")
        try:
            steps = Steps.parse(look_up(config, PROCEDURES, "steps"))
            if look_up(config, PROCEDURES, "stop.at") is not None:
                raise ValueError("stop.at is what halving sets; leave it out")
            lengths = halving.rungs(steps)
        except KeyError:
            message = f"{config.get('procedure')} has no `steps` and `stop`, which halving needs"
            problems.append(Problem(where, message))
        except ValueError as error:
            problems.append(Problem(where, str(error)))
        else:
            if rung == len(lengths):
                return {"rung": rung + 1}
            put(config, Assignment(("stop", "at"), str(lengths[rung]), ()))
        return {"phase": "rung", "rung": rung + 1}

    def _resolve(
        self,
        option: Option,
        trial: Mapping[str, Any],
        problems: list[Problem],
        origins: Origins | None = None,
    ) -> tuple[Config, str]:
        config = copy(self._layers) if origins is None else {}
        if origins is not None:
            put_all(config, self.base, origins)
        put_all(config, option.sets, origins)
        for key, value in trial.items():
            put(config, Assignment(tuple(key.split(".")), value, option.search[key][1]), origins)

        put_all(config, self.last, origins)

        def lookup(name: str) -> Any:
            return look_up(config, PROCEDURES, name)

        for place, expression, path in self.derive:
            try:
                put(config, Assignment(place, expression.evaluate(lookup), path), origins)
            except ExpressionError as error:
                problems.append(Problem(path, f"{expression.text!r}: {error}"))
        for skip in self.skip:
            try:
                if skip.condition.evaluate(lookup):
                    return config, skip.because
            except ExpressionError as error:
                problems.append(Problem(skip.path, f"{skip.condition.text!r}: {error}"))
        return config, ""

    @cached_property
    def _layers(self) -> Config:
        config: Config = {}
        put_all(config, self.base)
        return config

    def _build(self, config: Config, problems: list[Problem]) -> Procedure | None:
        fields = {key: value for key, value in config.items() if key not in ("procedure", "vars")}
        name = config.get("procedure")
        if name is None:
            problems.append(Problem(("procedure",), "no procedure; set base.procedure: train"))
            return None
        made = build(PROCEDURES, {**fields, "name": name}, (), problems, shared=False)
        return cast("Procedure | None", made)

    def _located(
        self, option: Option, trial: Mapping[str, Any], found: list[Problem]
    ) -> list[Problem]:
        origins: Origins = {}
        problems: list[Problem] = []
        config, _ = self._resolve(option, trial, problems, origins)
        if problems:
            return problems
        self._build(config, problems)
        located = []
        for problem in problems:
            path = problem.path
            if path == ("name",):
                path = ("procedure",)
            where = origin(origins, path)
            while problem.on_key and where and isinstance(where[-1], int):
                where = where[:-1]  # the key of an axis is wrong, not one of its values
            located.append(Problem(where, problem.message, problem.on_key))
        return located or found
