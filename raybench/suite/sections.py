"""The sections of a suite file that are not axes, as typed values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self, cast

from pydantic import Field, field_validator, model_validator

from raybench.errors import Path, Problem
from raybench.rng import STREAMS
from raybench.spec import Spec, Steps
from raybench.suite.expr import Expression, ExpressionError
from raybench.tables import construct

SECTIONS: Final = (
    "version", "name", "paper", "description", "base", "vars", "sweep", "search", "skip", "derive",
    "tune", "seeds", "limits", "resources", "checkpoint", "scales", "figures",
)  # fmt: skip
"""The keys of a suite file; keys that begin with `x-` are free for notes."""

Stream = Literal["init", "order", "data", "noise"]


class Seeds(Spec):
    """How many seeds, and which random streams follow them."""

    count: int = Field(default=1, ge=1)
    """Number of seeds."""
    base: int = Field(default=0, ge=0)
    """The first seed."""
    vary: tuple[Stream, ...] | None = None
    """Streams that follow the seed; all others stay fixed."""
    fix: tuple[Stream, ...] = ()
    """Streams that do not follow the seed, when `vary` is not given."""

    @property
    def fixed(self) -> tuple[str, ...]:
        """The streams that stay at seed `base`, sorted."""
        if self.vary is None:
            return tuple(sorted(set(self.fix)))
        return tuple(sorted(set(STREAMS) - set(self.vary)))


class Select(Spec):
    """By what the best trial of an arm is chosen."""

    metric: str = Field(default="valid/loss", pattern=r"^(train|valid)/\w+$")
    """`split/metric`. The test split cannot be chosen by."""
    mode: Literal["min", "max"] = "min"
    """Whether lower or higher is better."""
    at: Literal["final", "best"] = "final"
    """The value at the end, or the lowest over time."""

    @property
    def column(self) -> str:
        """Its name in a run's summary."""
        return self.metric.replace("/", ".") + (".best" if self.at == "best" else "")

    @property
    def sign(self) -> float:
        """What makes of a value a score, of which lower is better."""
        return 1.0 if self.mode == "min" else -1.0

    @model_validator(mode="after")
    def _lowest_is_for_min(self) -> Self:
        if self.mode == "max" and self.at == "best":
            raise ValueError("at: best is the lowest value over time; with mode: max use at: final")
        return self


class Confirm(Spec):
    """How the chosen configuration is run again."""

    seeds: int = Field(default=10, ge=1)
    """Seeds that the search has not used."""
    reuse: bool = False
    """Whether the run of the search that was chosen counts as one more seed, as in Schmidt et al.
    2021; its score is then biased, because it was chosen for being good."""


class Refine(Spec):
    """Trials past `after` come from a smaller box: what the best trials so far span."""

    after: int = Field(ge=1)
    """Trials from the whole space."""
    best: int = Field(default=10, ge=1)
    """How many of them, the best by the selection metric, span the box."""


class Halving(Spec):
    """Successive halving (Jamieson and Talwalkar 2016; Li et al. 2018, arXiv:1810.05934).

    All trials of a budget are a bracket. They are trained for `min_steps`, the first rung; the best
    1/eta of them go on to a rung eta times as long, and so on, to the last rung, which trains for
    all `steps`. Who goes on is decided once a rung is over, by the selection metric at its end, so
    it does not depend on what ran where or when. A rung trains its runs from their start, as runs
    of their own with `stop.at`: eta = 3 and 4 rungs cost 4/3 of what going on from saved weights
    would, and any rung can be repeated, resumed and shared by itself.
    """

    min_steps: Steps
    """Length of the first rung, in the unit that `steps` has."""
    eta: int = Field(default=3, ge=2)
    """The reduction factor: one trial in eta goes on, to a rung eta times as long."""
    asynchronous: bool = False
    """On Ray, whether a trial goes on at once if it is among the best 1/eta of those that have got
    as far (ASHA, by Ray Tune's AsyncHyperBandScheduler, one trial at a time in a worker): for runs
    that cannot share lanes. Who goes on then depends on the order of arrival, so another time it
    may be others. Without Ray, rungs are decided when they are over."""

    def rungs(self, steps: Steps) -> list[Steps]:
        """Return the lengths of the rungs before the last one, which is `steps` long.

        Raises:
            ValueError: `steps` has another unit, or is no longer than the first rung.
        """
        first = self.min_steps
        if first.unit != steps.unit:
            raise ValueError(f"min_steps {first} and steps {steps} must have one unit")
        if not 0 < first.count < steps.count:
            raise ValueError(f"min_steps {first} must be above 0 and less than steps {steps}")
        lengths, count = [], first.count
        while count < steps.count:
            lengths.append(Steps(count, first.unit))
            count *= self.eta
        return lengths


class Tune(Spec):
    """The tuning protocol: each arm searches its space, and its pick is confirmed."""

    method: Literal["random", "random_state", "halton", "sobol", "grid", "tpe"] = "random"
    """How trials are drawn; `random_state` is the sampler of Schmidt et al. 2021: numpy's legacy
    generator, trial by trial in the order of the keys. `tpe` chooses trials by the results of
    earlier ones: Optuna's tree-structured Parzen estimator, through Ray Tune."""
    trials: int = Field(default=20, ge=1)
    """Trials of each arm: the same for every arm."""
    budgets: Mapping[str, Annotated[int, Field(ge=1)]] | None = None
    """Several numbers of trials by name, {small: 25, large: 75}, in place of `trials`: they share
    their trials, and each has a pick of its own. {}: no search at all."""
    one_shot: int = Field(default=0, ge=0)
    """Seeds of each arm with its defaults, untuned."""
    at_once: int = Field(default=5, ge=1)
    """Of `tpe`: trials that are chosen together, before the results of any of them are known."""
    refine: Refine | None = None
    """Whether later trials come from a smaller box."""
    halving: Halving | None = None
    """Whether trials that do badly early are stopped early."""
    studies: int = Field(default=1, ge=1)
    """How often the whole search is repeated, each time with other trials and seeds: the spread
    between studies is what tuning itself adds to a result."""
    blind: bool = False
    """Whether runs of the search do not even measure the test split."""
    seeds: int = Field(default=1, ge=1)
    """Seeds of each trial; their mean is what counts."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draws."""
    select: Select = Select()
    """What the pick is made by."""
    confirm: Confirm = Confirm()
    """What follows the pick."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.budgets is not None and "trials" in self.model_fields_set:
            raise ValueError("budgets are in place of trials: give one of them")
        for name in self.budgets or {}:
            if name == ONE_SHOT or not name.isidentifier():
                raise ValueError(f"{name!r} cannot be a budget: a word, and not {ONE_SHOT}")
        if self.blind and self.confirm.reuse:
            raise ValueError("blind runs of the search have no test score that confirm could reuse")
        if self.refine and self.method in ("halton", "sobol", "grid", "tpe"):
            raise ValueError("refine draws at random: use method random or random_state")
        if self.halving and (self.refine or self.method == "tpe"):
            other = "refine" if self.refine else "tpe"
            raise ValueError(f"halving and {other}: trials would be chosen by scores of all rungs")
        if self.halving and self.halving.asynchronous and self.budgets is not None:
            raise ValueError("asynchronous halving has one bracket: give trials, not budgets")
        if "at_once" in self.model_fields_set and self.method != "tpe":
            raise ValueError(f"at_once is for method tpe; {self.method} knows all trials at once")
        if self.refine and self.refine.best > self.refine.after:
            raise ValueError(f"refine: the best {self.refine.best} of {self.refine.after} trials")
        return self

    @property
    def sizes(self) -> Mapping[str, int]:
        """Number of trials by name of the budget; one without a name where none is declared."""
        return {"": self.trials} if self.budgets is None else self.budgets

    @property
    def most(self) -> int:
        """Trials of the largest budget."""
        return max(self.sizes.values(), default=0)

    @property
    def first(self) -> int:
        """Trials that are known before any result."""
        return min(self.most, self.refine.after) if self.refine else self.most


ONE_SHOT: Final = "one_shot"
"""Phase and budget of the runs with an arm's defaults."""


class Limits(Spec):
    """`run` refuses to start past any of these, but for the last two, which it ends at."""

    runs: int | None = Field(default=None, ge=1)
    """Runs in all."""
    hours: float | None = Field(default=None, gt=0)
    """Estimated hours on the machine at hand."""
    gpu_hours: float | None = Field(default=None, gt=0)
    """Estimated GPU-hours."""
    disk_gb: float | None = Field(default=None, gt=0)
    """Estimated size of the results in GB."""
    failures: float | None = Field(default=0.25, gt=0)
    """How many runs may fail by one cause (the same error, but for numbers in it) before the suite
    stops: a number, or below 1 a share of the runs to do (10 may always fail); null: all."""
    wall_s: float | None = Field(default=None, gt=0)
    """Seconds that runs which train at the same time may take. Past it they are tried in smaller
    groups, and a run that is past it alone has failed. With --in-process code that never comes back
    to Python cannot be ended."""


class Resources(Spec):
    """What a batch takes; never part of a run's identity."""

    cpu: float = Field(default=1, gt=0)
    """CPU cores."""
    gpu: float = Field(default=0, ge=0)
    """GPUs: a whole number, or a share of one below 1 (0.25: four batches on each GPU)."""
    custom: Mapping[str, Annotated[float, Field(gt=0)]] = {}
    """What else a node must have, by the names that the cluster gives it (`ray start --resources`):
    {fast_disk: 1, "accelerator_type:A100": 0.001}."""
    placement: Literal["spread", "pack"] = "spread"
    """Whether batches go where the most is free, or fill one node before the next, which leaves
    whole nodes for other work, or to be given back. Of the ranks of a run: whether they go to
    different nodes or to as few as can be, as far as there is room."""
    lanes: int | Literal["auto"] = "auto"
    """Runs that train as one: a number, or measured (`auto`)."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether steps are compiled, which takes seconds each time but makes them faster: where that
    is expected to save time (`auto`), or wherever it can be done. Never in float64.
    On a GPU a step is one CUDA graph, which has not been tried on one yet."""
    batch: int | Literal["auto"] = "auto"
    """Runs scheduled and stored together: a number, or from the measured time (`auto`)."""
    ranks: int = Field(default=1, ge=1)
    """Processes that share each run, on Ray: each trains its slice of the rows of every batch, and
    gradients are averaged. Results equal those of one process. `cpu` and `gpu` are for each."""
    shard: Literal["none", "optimizer", "full"] = "none"
    """What the ranks of a run divide among them instead of each holding all of it: `optimizer`, the
    optimizer's state (ZeRO stage 1); `full`, weights and gradients too (FSDP2), for models that do
    not fit in the memory of one process. For rules that move each weight on its own."""
    retries: int = Field(default=3, ge=0)
    """How often a run is tried again after a process died in which it was the only one. Then it is
    in quarantine, and only --lf tries it. The loss of a whole node does not count."""

    @model_validator(mode="after")
    def _can_be_asked_for(self) -> Self:
        if self.gpu > 1 and self.gpu != int(self.gpu):
            raise ValueError(f"gpu {self.gpu:g}: a share is below 1, more is a whole number")
        if self.ranks > 1 and 0 < self.gpu < 1:
            raise ValueError(
                f"ranks {self.ranks} with gpu {self.gpu:g}: each rank needs a GPU of its own, so "
                "write gpu: 1; or ranks: 1, whose runs may share one"
            )
        if self.ranks > 1 and self.shard == "full" and self.lanes not in ("auto", 1):
            raise ValueError(
                f"lanes {self.lanes} with shard full: it divides the weights of one run at a time; "
                "leave lanes out"
            )
        for name, own in (("CPU", "cpu"), ("GPU", "gpu")):
            if name in {each.upper() for each in self.custom}:
                raise ValueError(f"custom: {name} has a field of its own, {own}")
        return self


class Checkpoint(Spec):
    """When runs that are under way are stored, to go on from there after their process died.

    Never part of a run's identity: a run that was continued has the numbers of one that was not.
    Procedures that train by another loop than `train` do without: they begin again.
    """

    every: Steps
    """How often: 10ep or 500it."""
    keep: int = Field(default=2, ge=1)
    """How many of them stay, until the results are stored; then all go."""

    @field_validator("every")
    @classmethod
    def _goes_on(cls, every: Steps) -> Steps:
        if every.count < 1:
            raise ValueError(
                "checkpoint.every is at least 1it; without checkpoint none are written"
            )
        return every


SPECS: Final[Mapping[str, type[Spec]]] = {
    "tune": Tune,
    "seeds": Seeds,
    "limits": Limits,
    "resources": Resources,
    "checkpoint": Checkpoint,
}


def resources_of_case(
    changes: Mapping[str, tuple[Any, Path]],
    shared: Mapping[str, Any],
    overrides: Mapping[str, Any],
    problems: list[Problem],
) -> Resources | None:
    """Return what batches of a case take; None for what the suite says, or after a problem.

    Args:
        changes: what the case says, with its places.
        shared: what the suite says.
        overrides: of the command line, which wins.
        problems: mistakes are added to it.
    """
    own = {k: item for k, item in changes.items() if f"resources.{k}" not in overrides}
    if not own or "resources" in overrides:
        return None
    if "retries" in own:
        message = "retries are of the whole suite: set them in `resources` there"
        problems.append(Problem(own["retries"][1], message, True))
        return None
    given = {**shared, **{key: value for key, (value, _) in own.items()}}
    where = next(iter(own.values()))[1][:-1]
    return cast("Resources | None", section("resources", given, where, problems))


@dataclass(frozen=True)
class Skip:
    """Runs that are left out on purpose, and why."""

    condition: Expression
    because: str
    path: Path


def skips(value: object, path: Path, problems: list[Problem]) -> list[Skip]:
    """Return the conditions of a `skip` list, each with its reason."""
    if not isinstance(value, list):
        problems.append(Problem(path, "skip is a list of {if: CONDITION, because: REASON}"))
        return []
    found = []
    for index, item in enumerate(value):
        inner = (*path, index)
        if not isinstance(item, Mapping) or set(item) != {"if", "because"}:
            problems.append(Problem(inner, "a skip has two keys: `if` and `because`"))
            continue
        condition = expression(item["if"], (*inner, "if"), problems)
        if condition is not None:
            found.append(Skip(condition, str(item["because"]), (*inner, "if")))
    return found


def derivations(
    value: object, path: Path, problems: list[Problem]
) -> list[tuple[tuple[str, ...], Expression, Path]]:
    """Return what `derive` computes: config path, expression, place; in the file's order."""
    if not isinstance(value, Mapping):
        problems.append(Problem(path, "derive is a mapping: {model.heads: 'model.width // 32'}"))
        return []
    found = []
    for key, text in value.items():
        parsed = expression(text, (*path, key), problems)
        if parsed is not None:
            found.append((tuple(key.split(".")), parsed, (*path, key)))
    return found


def expression(value: object, path: Path, problems: list[Problem]) -> Expression | None:
    """Return a checked expression, or None after adding to `problems`."""
    try:
        return Expression(str(value))
    except ExpressionError as error:
        problems.append(Problem(path, f"expression {str(value)!r}: {error}"))
        return None


def section(name: str, value: object, path: Path, problems: list[Problem]) -> Spec | None:
    """Return a section of `SPECS` as its spec."""
    cls = SPECS[name]
    if name == "seeds" and isinstance(value, int) and not isinstance(value, bool):
        value = {"count": value}
    if not isinstance(value, Mapping):
        fields = ", ".join(cls.model_fields)
        problems.append(Problem(path, f"{name} is a mapping of {fields}, not {value!r}"))
        return None
    if name == "seeds" and "vary" in value and "fix" in value:
        problems.append(Problem(path, "seeds take `vary` or `fix`, not both"))
        return None
    return construct(cls, value, path, problems)
