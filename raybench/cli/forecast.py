"""What a suite would take, before anything starts: the verb plan, and the limits that run keeps."""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from raybench.cli.console import duration, output, print_json, show, size
from raybench.cli.options import Code, Json, Scale, Store, SuiteName, Words
from raybench.cli.suites import load
from raybench.errors import RefusedError, UnavailableError

if TYPE_CHECKING:
    from raybench.estimate import Estimate
    from raybench.history import Comparison
    from raybench.suite import Planned, Suite


def plan(
    suite: SuiteName,
    words: Words = None,
    scale: Scale = None,
    store: Store = "results",
    allow_code: Code = None,
    as_json: Json = False,
) -> None:
    """Show what a suite would run and cost, and start nothing.

    Counts what is done, failed and to do; measures a few steps of some runs to estimate time and
    disk. The estimate is kept in the store: `run` orders its batches by it, and later plans tell
    how far off it was. Refuses (exit 4) past the suite's limits.

    Example:  raybench plan double_descent_width --scale paper
    """
    show_plan(load(suite, words or [], scale, allow_code), store, as_json=as_json, keep=True)


def show_plan(made: Suite, store: str, *, as_json: bool, keep: bool) -> None:
    """Show what a suite would run and cost; `keep` writes the estimate to the store."""
    from raybench.history import comparisons
    from raybench.plan import distinct
    from raybench.suite.protocol import unequal

    rows, todo, finished = _counts(made, store)
    cost = _estimate(made, todo, finished, os.cpu_count() or 1)
    past = comparisons(store)
    if keep:
        _keep(made, store, todo, cost)
    skipped = Counter(planned.skipped for planned in made.runs if planned.skipped)
    facts = {
        "suite": made.name,
        "scale": made.scale,
        "arms_to_confirm": len(made.arms),
        "refinements": made.num_refinements,
        "promotions": made.num_promotions,
        "suggestions": made.num_suggestions,
        "confirmations": made.num_confirmations,
        "runs_in_all": len(distinct(made.runs)) + made.num_later,
        "unequal_budgets": unequal(made.arms, made.options),
        "batch_keys": cost.keys,
        "measured_keys": cost.measured,
        "lanes_measured": cost.lanes,
        "cpu_seconds": cost.seconds,
        "wall_seconds": cost.wall_seconds,
        "gpu_hours": cost.gpu_hours,
        "disk_bytes": cost.disk_bytes,
        "runs_counted": cost.counted,
        "runs_without_estimate": cost.unknown,
        "past_estimates": [asdict(each) for each in past],
    }
    if as_json:
        print_json({**facts, "rows": rows, "skipped": dict(skipped)})
    else:
        _print_plan(made, rows, cost, skipped)
        _print_past(past)
    _check_limits(made, cost)


def _keep(made: Suite, store: str, todo: Sequence[Planned], cost: Estimate) -> None:
    """Keep the estimate, if there is one and the store can be written."""
    from raybench.history import keep
    from raybench.store import SuiteStore

    if todo and not math.isnan(cost.seconds):
        with contextlib.suppress(UnavailableError):  # `run` will tell
            results = SuiteStore(store, made.name)
            keep(results, made.scale, todo, cost.per_key, cost.bytes_per_run)


def _print_past(past: Sequence[Comparison]) -> None:
    if past:
        times, disks = (sorted(x) for x in ([p.time for p in past], [p.disk for p in past]))
        count = f"{len(past)} suite{'s' if len(past) > 1 else ''}"
        output.print(
            f"earlier estimates in this store: runs took {_span(times)} times the estimated time, "
            f"results {_span(disks)} times the disk ({count}, {sum(p.runs for p in past):,} runs)"
        )


def _span(ratios: Sequence[float]) -> str:
    """Return the lowest and the highest of sorted ratios, or the only one."""
    low, high = f"{ratios[0]:.2f}", f"{ratios[-1]:.2f}"
    return low if low == high else f"{low} to {high}"


def _counts(
    made: Suite, store: str
) -> tuple[list[dict[str, Any]], list[Planned], dict[str, float]]:
    """Return a row a case with counts, the runs to do, and the seconds of finished ones."""
    from raybench.history import measured
    from raybench.plan import distinct, to_do
    from raybench.store import SuiteStore, suite_folder

    runs = distinct(made.runs)
    statuses: dict[str, str] = {}
    if suite_folder(store, made.name) is not None:
        kept = SuiteStore(store, made.name)
        statuses = kept.statuses() | dict.fromkeys(kept.quarantined(), "quarantined")
    rows = _count_rows(runs, statuses)
    return rows, to_do(runs, statuses), measured(store, made.name, runs)


_BOOKKEEPING = ("phase", "arm", "trial", "rung")
_COUNTED = ("done", "stopped", "diverged", "failed", "quarantined")
_MOST_ROWS = 30


def _count_rows(runs: Sequence[Planned], statuses: dict[str, str]) -> list[dict[str, Any]]:
    """Return a row a case with counts; where cases are many, those of the last axes are summed."""
    groups: dict[tuple[str, ...], Counter[str]] = {}
    for planned in runs:
        # A number of a `study` is that of a repeated search; a suite's own studies have names.
        names = tuple(
            str(value)
            for key, value in planned.labels.items()
            if key not in _BOOKKEEPING and (key != "study" or isinstance(value, str))
        )
        status = statuses.get(planned.run.run_id, "")
        counter = groups.setdefault(names, Counter())
        counter["runs"] += 1
        counter[status if status in _COUNTED else "missing"] += 1
    depth = max(map(len, groups), default=0)
    while len(groups) > _MOST_ROWS and depth > 1:
        depth -= 1
        merged: dict[tuple[str, ...], Counter[str]] = {}
        for names, counts in groups.items():
            merged.setdefault(names[:depth], Counter()).update(counts)
        groups = merged
    rows = [_count_row(" ".join(names), counts) for names, counts in groups.items()]
    if len(rows) > 1:
        return [*rows, _count_row("total", sum(groups.values(), Counter()))]
    return [{**row, "case": row["case"] or "all"} for row in rows]


def _count_row(name: str, counts: Counter[str]) -> dict[str, Any]:
    return {
        "case": name,
        "runs": counts["runs"],
        **{status: counts[status] for status in ("done", "stopped", "diverged")},
        "failed": counts["failed"] + counts["quarantined"],
        "to do": counts["missing"] + counts["failed"],
    }


def _estimate(
    made: Suite, todo: Sequence[Planned], finished: dict[str, float], cores: int
) -> Estimate:
    from raybench.estimate import estimate
    from raybench.suite.later import Later

    slots = max(1, int(cores / made.resources.cpu))
    samples = Later(made).samples() if todo or made.num_suggestions else []
    extra = made.num_later - len(samples) if todo else 0
    todo = [*todo, *samples]
    return estimate(
        todo, finished_seconds=finished, resources=made.resources, slots=slots, extra_runs=extra
    )


def _print_plan(
    made: Suite, rows: list[dict[str, Any]], cost: Estimate, skipped: Counter[str]
) -> None:
    at = f" at scale {made.scale}" if made.scale else ""
    show(rows, as_json=False, title=f"{made.name}{at}")
    for reason, count in skipped.items():
        output.print(f"{count:,} skipped: {reason}")
    _print_protocol(made)
    if not cost.keys and not made.num_later:
        output.print("nothing to do")
        return
    if cost.problem:
        output.print(f"some runs could not be measured: {cost.problem}", markup=False)
    if cost.counted:
        from raybench.estimate import COUNTED_SHARE

        output.print(
            f"{cost.counted:,} runs: time of their counted operations, at {COUNTED_SHARE:g} of the "
            "speed of matrix products here"
        )
    if cost.unknown:
        output.print(f"{cost.unknown:,} runs are not in the times below")
    if math.isnan(cost.seconds):
        output.print(f"time unknown; at least {size(cost.disk_bytes)} of results")
        return
    output.print(
        f"about {duration(cost.wall_seconds)} on {os.cpu_count()} cores here "
        f"({duration(cost.seconds)} of one core, {_hours(cost.gpu_hours)} GPU-h), "
        f"{size(cost.disk_bytes)} of results"
    )
    if cost.measured:
        output.print(
            f"from {cost.measured} of {cost.keys} shapes measured at up to {cost.lanes} lanes"
        )
    if made.resources.gpu and not cost.on_gpu:
        output.print("measured without a GPU, which the suite asks for: one will be faster")


def _hours(hours: float) -> str:
    return f"{hours:.3g}" if hours < 100 else f"{hours:,.0f}"


def _print_protocol(made: Suite) -> None:
    from raybench.plan import distinct
    from raybench.suite.protocol import unequal

    if not made.arms:
        return
    if made.num_refinements:
        output.print(f"then {made.num_refinements:,} runs from the box of each arm's best trials")
    if made.num_promotions:
        output.print(f"then at most {made.num_promotions:,} runs of rungs that are longer")
    if made.num_suggestions:
        output.print(f"then {made.num_suggestions:,} runs of trials that tpe chooses as it goes")
    if made.num_confirmations:
        output.print(f"then {made.num_confirmations:,} confirmation runs, chosen by the search")
    output.print(
        f"in all {len(distinct(made.runs)) + made.num_later:,} runs of {len(made.arms)} arms"
    )
    less = unequal(made.arms, made.options)
    if not less:
        output.print("every optimizer has the same budget as its rivals")
    for name, budget in less.items():
        output.print(f"unequal budgets: {name} has only {budget}", style="yellow", markup=False)


def refuse_past_limits(made: Suite, store: str, slots: int | None) -> None:
    """Refuse before anything starts; time and disk are measured only if a limit asks for them.

    Args:
        made: the suite.
        store: where its results are.
        slots: cores that it will have; None for all that are here.
    """
    from raybench.session import refuse_past_runs

    refuse_past_runs(made)
    limits = made.limits
    if limits.hours or limits.gpu_hours or limits.disk_gb:
        _, todo, finished = _counts(made, store)
        cost = _estimate(made, todo, finished, slots or os.cpu_count() or 1)
        _check_limits(made, cost)
        _keep(made, store, todo, cost)


def _check_limits(made: Suite, cost: Estimate) -> None:
    from raybench.session import refuse_past_runs

    refuse_past_runs(made)
    limits = made.limits
    for name, most, expected in (
        ("hours", limits.hours, cost.wall_seconds / 3600),
        ("gpu_hours", limits.gpu_hours, cost.gpu_hours),
        ("disk_gb", limits.disk_gb, cost.disk_bytes / 1e9),
    ):
        if most is not None and (math.isnan(expected) or (cost.unknown and name != "disk_gb")):
            raise RefusedError(
                f"{made.name} has limits.{name} and its time cannot be estimated: {cost.problem}; "
                f"fetch what is missing first, or leave the limit out with limits.{name}=null"
            )
        if most is not None and expected > most:
            raise RefusedError(
                f"{made.name} is estimated at {expected:.3g} {name} and limits.{name} is {most:g}; "
                "raise the limit, or make the sweep smaller"
            )
