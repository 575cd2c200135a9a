"""Verbs that carry out suites, or say what that would take: run, plan, validate, bench."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raybench.cli.console import LiveLine, duration, errors, output, print_json, show, size
from raybench.cli.suites import load
from raybench.errors import NothingMatched, RefusedError, SuiteError, UsageError

if TYPE_CHECKING:
    from raybench.estimate import Estimate
    from raybench.session import Executor
    from raybench.suite import Planned, Suite

SuiteName = Annotated[
    str, typer.Argument(metavar="SUITE", help="A .yaml file, or a bundled suite.")
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Overrides: seeds=3, resources.lanes=8, optimizer.lr=0.1, model.width=[8,16].",
    ),
]
Scale = Annotated[str | None, typer.Option("--scale", help="A key of the suite's `scales`.")]
Store = Annotated[
    Path, typer.Option("-o", "--store", envvar="RAYBENCH_STORE", help="Folder of the results.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Address = Annotated[
    str | None,
    typer.Option(envvar="RAYBENCH_ADDRESS", help="A running Ray cluster: auto, or host:port."),
]
Jobs = Annotated[
    int | None, typer.Option("-j", "--jobs", min=1, help="Cores of one's own Ray; default all.")
]
InProcess = Annotated[bool, typer.Option("--in-process", help="No Ray: one batch at a time, here.")]


def run(  # noqa: PLR0913  (each is an option of the command)
    suite: SuiteName,
    words: Words = None,
    scale: Scale = None,
    store: Store = Path("results"),
    address: Address = None,
    in_process: InProcess = False,
    jobs: Jobs = None,
    last_failed: Annotated[
        bool, typer.Option("--lf", help="Only runs that failed before.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("-n", "--dry-run", help="Show the plan only.")] = False,
    as_json: Json = False,
) -> None:
    """Run what is missing of a suite, and keep every result.

    Running it again does only what is new or failed. Without --address a Ray of its own is started
    on loopback, on all cores.

    Examples:
      raybench run quickstart

      raybench run my.yaml --scale paper optimizer.lr=0.1 -o results

      raybench run my.yaml resources.lanes=1 --in-process     (for a debugger)
    """
    if dry_run:
        plan(suite, words, scale, store, as_json)
        return
    made = load(suite, words or [], scale)
    _refuse_past_limits(made, store, jobs)
    outcome = _carry_out(made, store, _executor(address, in_process, jobs), only_failed=last_failed)
    summary = {
        "suite": made.name,
        "total": outcome.total,
        "executed": outcome.executed,
        **dict(sorted(outcome.statuses.items())),
        "arms_without_a_pick": outcome.lost_arms,
        "store": str(store / made.name),
    }
    if as_json:
        print_json(summary)
    else:
        _print_outcome(summary, outcome.statuses, store, made)
    if outcome.statuses["failed"]:
        raise typer.Exit(1)


def retry(
    run_ids: Sequence[str],
    suite: str,
    words: Sequence[str],
    scale: str | None,
    store: Path,
    in_process: bool,
) -> None:
    """Run given runs of a suite again, whatever became of them; exit 1 if one fails."""
    made = load(suite, words, scale)
    only = frozenset(run_ids)
    outcome = _carry_out(made, store, _executor(None, in_process, None), only=only)
    errors.print(f"{outcome.executed} runs carried out again")
    from raybench.store import SuiteStore

    statuses = SuiteStore(store, made.name).statuses()
    if any(statuses.get(run_id) == "failed" for run_id in only):
        raise typer.Exit(1)


def _carry_out(
    made: Suite,
    store: Path,
    executor: Callable[[], Executor],
    *,
    only: frozenset[str] | None = None,
    only_failed: bool = False,
) -> Any:
    from raybench.session import Session

    watcher = LiveLine(made.name)
    try:
        return Session(made, store, executor, watcher, only, only_failed).run()
    finally:
        watcher.close()


def _executor(address: str | None, in_process: bool, jobs: int | None) -> Callable[[], Executor]:
    if in_process and (address or jobs):
        raise UsageError("--in-process uses no Ray: leave out --address and -j")
    if address and jobs:
        raise UsageError("-j sets the cores of one's own Ray; a cluster at --address has its own")

    def make() -> Executor:
        if in_process:
            from raybench.local import LocalExecutor

            return LocalExecutor()
        from raybench.cluster import connect

        return connect(address, jobs)

    return make


def _print_outcome(
    summary: dict[str, Any], statuses: Counter[str], store: Path, made: Suite
) -> None:
    listed = ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items()))
    output.print(f"{made.name}: {summary['executed']:,} runs carried out; in all {listed}")
    for arm in summary["arms_without_a_pick"]:
        output.print(f"  no trial of arm {arm} came to an end: nothing to confirm")
    output.print(f"results: {store / made.name}")
    from raybench.analysis import MODULES

    verify = f"   raybench verify {store}" if made.name.replace("_", "-") in MODULES else ""
    output.print(f"next:    raybench report {store}{verify}")


def plan(
    suite: SuiteName,
    words: Words = None,
    scale: Scale = None,
    store: Store = Path("results"),
    as_json: Json = False,
) -> None:
    """Show what a suite would run and cost, and start nothing.

    Counts what is done, failed and to do; measures a few steps of some runs to estimate time and
    disk. Refuses (exit 4) past the suite's limits.

    Example:  raybench plan double_descent_width --scale paper
    """
    made = load(suite, words or [], scale)
    rows, todo, finished = _counts(made, store)
    cost = _estimate(made, todo, finished, os.cpu_count() or 1)
    skipped = Counter(planned.skipped for planned in made.runs if planned.skipped)
    facts = {
        "suite": made.name,
        "scale": made.scale,
        "arms_to_confirm": len(made.arms),
        "confirmations": made.num_confirmations,
        "batch_keys": cost.keys,
        "measured_keys": cost.measured,
        "lanes_measured": cost.lanes,
        "cpu_seconds": cost.seconds,
        "wall_seconds": cost.wall_seconds,
        "gpu_hours": cost.gpu_hours,
        "disk_bytes": cost.disk_bytes,
    }
    if as_json:
        print_json({**facts, "rows": rows, "skipped": dict(skipped)})
    else:
        _print_plan(made, rows, cost, skipped)
    _check_limits(made, cost)


def _counts(
    made: Suite, store: Path
) -> tuple[list[dict[str, Any]], list[Planned], dict[str, float]]:
    """Return a row a case with counts, the runs to do, and the seconds of finished ones."""
    from raybench.plan import distinct, to_do
    from raybench.store import SuiteStore, table

    statuses: dict[str, str] = {}
    seconds: dict[str, list[float]] = {}
    if (store / made.name / "runs").is_dir():
        statuses = SuiteStore(store, made.name).statuses()
    runs = distinct(made.runs)
    if statuses:
        walls = {}
        try:
            frame = table(store, made.name, scale=made.scale or None)
            walls = dict(zip(frame["run_id"], frame["wall_s"], strict=True))
        except NothingMatched:
            walls = {}  # never planned at this scale: the time is measured
        for planned in runs:
            if statuses.get(planned.run.run_id) == "done" and planned.run.run_id in walls:
                seconds.setdefault(planned.run.batch_key, []).append(walls[planned.run.run_id])
    groups: dict[str, Counter[str]] = {}
    for planned in runs:
        name = " ".join(str(v) for k, v in planned.labels.items() if k not in _BOOKKEEPING)
        counter = groups.setdefault(name, Counter())
        status = statuses.get(planned.run.run_id, "")
        counter["runs"] += 1
        counter[status if status in ("done", "diverged", "failed") else "missing"] += 1
    rows = [_count_row(name, counts) for name, counts in groups.items()]
    if len(rows) > 1:
        rows.append(_count_row("total", sum(groups.values(), Counter())))
    else:
        rows = [{**row, "case": row["case"] or "all"} for row in rows]
    means = {key: sum(walls) / len(walls) for key, walls in seconds.items()}
    return rows, to_do(runs, statuses), means


_BOOKKEEPING = ("phase", "arm", "trial")


def _count_row(name: str, counts: Counter[str]) -> dict[str, Any]:
    return {
        "case": name,
        "runs": counts["runs"],
        "done": counts["done"],
        "diverged": counts["diverged"],
        "failed": counts["failed"],
        "to do": counts["missing"] + counts["failed"],
    }


def _estimate(
    made: Suite, todo: Sequence[Planned], finished: dict[str, float], cores: int
) -> Estimate:
    from raybench.estimate import estimate

    slots = max(1, int(cores / made.resources.cpu))
    extra = made.num_confirmations if todo else 0
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
    if made.num_confirmations:
        output.print(f"then {made.num_confirmations:,} confirmation runs, chosen by the search")
    if not cost.keys and not made.num_confirmations:
        output.print("nothing to do")
        return
    if cost.problem:
        output.print(f"some runs could not be measured: {cost.problem}", markup=False)
    if math.isnan(cost.seconds):
        output.print(f"time unknown; at least {size(cost.disk_bytes)} of results")
        return
    output.print(
        f"about {duration(cost.wall_seconds)} on {os.cpu_count()} cores here "
        f"({duration(cost.seconds)} of one core, {cost.gpu_hours:.3g} GPU-h), "
        f"{size(cost.disk_bytes)} of results; "
        f"from {cost.measured} of {cost.keys} shapes measured at up to {cost.lanes} lanes"
    )
    if made.resources.gpu and not cost.on_gpu:
        output.print("measured without a GPU, which the suite asks for: one will be faster")


def _refuse_past_limits(made: Suite, store: Path, jobs: int | None) -> None:
    """Refuse before anything starts; time and disk are measured only if a limit asks for them."""
    from raybench.session import refuse_past_runs

    refuse_past_runs(made)
    limits = made.limits
    if limits.hours or limits.gpu_hours or limits.disk_gb:
        _, todo, finished = _counts(made, store)
        _check_limits(made, _estimate(made, todo, finished, jobs or os.cpu_count() or 1))


def _check_limits(made: Suite, cost: Estimate) -> None:
    from raybench.session import refuse_past_runs

    refuse_past_runs(made)
    limits = made.limits
    for name, most, expected in (
        ("hours", limits.hours, cost.wall_seconds / 3600),
        ("gpu_hours", limits.gpu_hours, cost.gpu_hours),
        ("disk_gb", limits.disk_gb, cost.disk_bytes / 1e9),
    ):
        if most is not None and math.isnan(expected):
            raise RefusedError(
                f"{made.name} has limits.{name} and its time cannot be estimated: {cost.problem}"
            )
        if most is not None and expected > most:
            raise RefusedError(
                f"{made.name} is estimated at {expected:.3g} {name} and limits.{name} is {most:g}; "
                "raise the limit, or make the sweep smaller"
            )


def validate(
    suites: Annotated[
        list[str], typer.Argument(metavar="SUITE...", help="Files or bundled names.")
    ],
    as_json: Json = False,
) -> None:
    """Check suites at each of their scales, and show every mistake with its line and column.

    Example:  raybench validate my.yaml
    """
    from raybench import suite as reader
    from raybench.cli.suites import find

    lines: list[str] = []
    checked: list[dict[str, Any]] = []
    unknown: UsageError | None = None
    for name in suites:
        try:
            path, label = find(name)
            source = reader.read(path, label)
        except UsageError as error:
            unknown = unknown or error
            continue
        except SuiteError as error:
            lines += error.lines
            continue
        scales = source.values.get("scales")
        for scale in scales if isinstance(scales, dict) and scales else [None]:
            try:
                made = reader.load(source, scale)
                checked.append({"suite": label, "scale": scale or "", "runs": len(made.runs)})
            except SuiteError as error:
                lines += [line for line in error.lines if line not in lines]
    if as_json:
        print_json({"valid": not lines, "suites": checked, "errors": lines})
        if lines:
            raise typer.Exit(3)
        return
    for row in checked:
        at = f" at scale {row['scale']}" if row["scale"] else ""
        output.print(f"{row['suite']}{at}: valid, {row['runs']:,} runs")
    if unknown is not None:
        errors.print(str(unknown), style="red", markup=False)
    if lines:
        raise SuiteError(lines)
    if unknown is not None:
        raise typer.Exit(unknown.exit_code)


def bench(
    runs: Annotated[int, typer.Option(help="Runs of one step each, through Ray.")] = 10_000,
    peers: Annotated[int, typer.Option(help="Runs of naive Ray Tune beside them.")] = 20,
    as_json: Json = False,
) -> None:
    """Measure the overhead of a run, beside naive Ray Tune (one trial a run) in the same command.

    Example:  raybench bench --runs 1000
    """
    from raybench.bench import overhead

    rows = overhead(runs, peers, note=lambda text: errors.print(text))
    show(rows, as_json=as_json)
