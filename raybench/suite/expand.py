"""From a suite file to runs: layers, sweep, search, derive, skip, seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, cast

from raybench.errors import Path, Problem
from raybench.procedures import PROCEDURES, Procedure
from raybench.rng import Seed
from raybench.spec import Run
from raybench.suite.axes import Assignment, Option, product
from raybench.suite.config import Config, Origins, copy, look_up, origin, put, put_all
from raybench.suite.expr import Expression, ExpressionError
from raybench.suite.sampling import points
from raybench.suite.sections import Limits, Resources, Seeds, Skip, Tune
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


@dataclass(frozen=True)
class Arm:
    """One point of the sweep that has a space to search."""

    name: str
    option: Option
    trials: Sequence[Mapping[str, Any]]


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
        """The arms of a tuned suite in the order of the sweep; empty for any other."""
        if self.tune is None:
            return []
        return [self._arm(option) for option in product(self.options)]

    @property
    def num_confirmations(self) -> int:
        """Runs that will follow once the search has picked a configuration for each arm."""
        if self.tune is None:
            return 0
        searched = {p.labels["arm"] for p in self.runs if not p.skipped}
        return self.tune.confirm.seeds * len(searched)

    def confirmations(self, values: Mapping[str, float]) -> tuple[list[Planned], list[str]]:
        """Return the runs that confirm the best trial of each arm whose search is complete.

        Args:
            values: the selection metric by run_id; infinite for runs that failed or diverged.

        Returns:
            The runs, and the names of arms in which no trial came to an end.
        """
        if self.tune is None:
            return [], []
        sign = 1.0 if self.tune.select.mode == "min" else -1.0
        scores: dict[str, dict[int, list[float]]] = {}
        for planned in self.runs:
            if planned.skipped or planned.labels.get("phase") != "search":
                continue
            of_arm = scores.setdefault(str(planned.labels["arm"]), {})
            of_trial = of_arm.setdefault(int(planned.labels["trial"]), [])
            value = values.get(planned.run.run_id, math.nan)
            of_trial.append(math.inf if math.isinf(value) else sign * value)
        problems: list[Problem] = []
        confirmed: list[Planned] = []
        lost: list[str] = []
        for arm in self.arms:
            trials = scores.get(arm.name, {})
            means = {trial: sum(scored) / len(scored) for trial, scored in trials.items()}
            if not means or any(math.isnan(mean) for mean in means.values()):
                continue  # skipped, or its search is not complete
            best = min(means, key=lambda trial: means[trial])
            if math.isinf(means[best]):
                lost.append(arm.name)
                continue
            labels: dict[str, str | int] = {"phase": "confirm", "arm": arm.name, "trial": best}
            confirmed += self._point(
                arm.option, arm.trials[best], self._confirm_seeds(), labels, problems
            )
        assert not problems, problems  # the same configuration was built for the search
        return confirmed, lost

    def _confirm_seeds(self) -> list[Seed]:
        count = self.tune.confirm.seeds if self.tune else 0
        return [self._seed(CONFIRM_OFFSET + index) for index in range(count)]

    def _seed(self, index: int) -> Seed:
        return Seed(self.seeds.base + index, self.seeds.base, self.seeds.fixed)

    def _arm(self, option: Option) -> Arm:
        tune = cast("Tune", self.tune)
        space = {key: distribution for key, (distribution, _) in option.search.items()}
        parts = [*option.labels.values()]
        parts += [f"{'.'.join(item.key)}={item.value}" for item in self._own(option)]
        drawn = points(space, tune.method, tune.trials, tune.seed) if space else [{}]
        return Arm("/".join(parts) or "all", option, drawn)

    def _own(self, option: Option) -> list[Assignment]:
        # What plain axes set names an arm too; what a case sets is behind the case's own name.
        return [item for item in option.sets if "cases" not in item.path]

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
        seeds = [self._seed(index) for index in range(self.tune.seeds)]
        try:
            arms = self.arms
        except ValueError as error:
            problems.append(Problem(self.origins["tune"], str(error)))
            return
        for arm in arms:
            for trial, values in enumerate(arm.trials):
                labels = dict[str, str | int](phase="search", arm=arm.name, trial=trial)
                yield from self._point(arm.option, values, seeds, labels, problems)

    def _point(
        self,
        option: Option,
        trial: Mapping[str, Any],
        seeds: Sequence[Seed],
        labels: Mapping[str, str | int],
        problems: list[Problem],
    ) -> Iterator[Planned]:
        """Yield the runs of one fully resolved configuration, one for each seed."""
        found: list[Problem] = []
        config, reason = self._resolve(option, trial, found)
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
        for seed in seeds:
            yield Planned(Run(procedure, seed), named, reason)

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
        token = json.dumps(config, sort_keys=True, default=str)
        if token not in self._built:
            made = build(PROCEDURES, {**fields, "name": name}, (), problems)
            if made is None:
                return None
            self._built[token] = cast("Procedure", made)
        return self._built[token]

    @cached_property
    def _built(self) -> dict[str, Procedure]:
        return {}

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
