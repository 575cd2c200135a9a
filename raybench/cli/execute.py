"""Verbs that carry out suites, or check them: run, validate."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raybench.cli.console import LiveLine, errors, output, print_json
from raybench.cli.forecast import refuse_past_limits, show_plan
from raybench.cli.options import (
    Address,
    Code,
    InProcess,
    Jobs,
    Json,
    Scale,
    Store,
    SuiteName,
    Words,
)
from raybench.cli.suites import load
from raybench.errors import SuiteError, UsageError
from raybench.storage import below

if TYPE_CHECKING:
    from raybench.rounds import Executor
    from raybench.suite import Source, Suite


def run(  # noqa: PLR0913  (each is an option of the command)
    suite: SuiteName,
    words: Words = None,
    scale: Scale = None,
    store: Store = "results",
    address: Address = None,
    in_process: InProcess = False,
    jobs: Jobs = None,
    last_failed: Annotated[
        bool, typer.Option("--lf", help="Only runs that failed before, quarantined ones too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("-n", "--dry-run", help="Show the plan only.")] = False,
    allow_code: Code = None,
    as_json: Json = False,
) -> None:
    """Run what is missing of a suite, and keep every result.

    Running it again does only what is new or failed. Without --address a Ray of its own is started
    on loopback, on all cores. A run that ends its process (killed, or a crash) is found and put in
    quarantine: only --lf tries it again. Ctrl-C and SIGTERM keep what has finished.

    Examples:
      raybench run quickstart

      raybench run my.yaml --scale paper optimizer.lr=0.1 -o results

      raybench run my.yaml -o s3://bucket/results     (docs/stores.md)

      raybench run my.yaml resources.lanes=1 --in-process     (for a debugger)

      raybench run my.yaml --allow-code my_opt.py     (optimizer: {name: my_opt:MyOptimizer})
    """
    made = load(suite, words or [], scale, allow_code)
    if dry_run:
        show_plan(made, store, as_json=as_json, keep=False)
        return
    refuse_past_limits(made, store, 1 if in_process else jobs)
    outcome = _carry_out(
        made, store, _executor(made, address, in_process, jobs), only_failed=last_failed
    )
    summary = {
        "suite": made.name,
        "total": outcome.total,
        "executed": outcome.executed,
        **dict(sorted(outcome.statuses.items())),
        "arms_without_a_pick": outcome.lost_arms,
        "quarantined": outcome.quarantined,
        "store": below(store, made.name),
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
    store: str,
    in_process: bool,
    allow_code: Sequence[Path] | None = None,
) -> None:
    """Run given runs of a suite again, whatever became of them; exit 1 if one fails."""
    made = load(suite, words, scale, allow_code)
    only = frozenset(run_ids)
    outcome = _carry_out(made, store, _executor(made, None, in_process, None), only=only)
    errors.print(f"{outcome.executed} runs carried out again")
    from raybench.store import SuiteStore

    statuses = SuiteStore(store, made.name).statuses()
    if any(statuses.get(run_id) == "failed" for run_id in only):
        raise typer.Exit(1)


def _carry_out(
    made: Suite,
    store: str,
    executor: Callable[[], Executor],
    *,
    only: frozenset[str] | None = None,
    only_failed: bool = False,
) -> Any:
    from raybench.session import Session

    watcher = LiveLine(made.name)
    _hear_sigterm()
    try:
        return Session(made, store, executor, watcher, only, only_failed).run()
    finally:
        watcher.close()


def _executor(
    made: Suite, address: str | None, in_process: bool, jobs: int | None
) -> Callable[[], Executor]:
    if in_process and (address or jobs):
        raise UsageError("--in-process uses no Ray: leave out --address and -j")
    if address and jobs:
        raise UsageError("-j sets the cores of one's own Ray; a cluster at --address has its own")

    def make() -> Executor:
        if in_process:
            from raybench.local import LocalExecutor

            return LocalExecutor()
        from raybench.cluster import connect

        connected = connect(address, jobs, made.resources)
        _hear_sigterm()  # Ray has taken it
        return connected

    return make


def _hear_sigterm() -> None:
    """Take SIGTERM (of a scheduler, of a container) for Ctrl-C, which keeps what has finished."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _print_outcome(
    summary: dict[str, Any], statuses: Counter[str], store: str, made: Suite
) -> None:
    listed = ", ".join(f"{count:,} {status}" for status, count in sorted(statuses.items()))
    output.print(f"{made.name}: {summary['executed']:,} runs carried out; in all {listed}")
    for arm in summary["arms_without_a_pick"]:
        output.print(f"  no trial of arm {arm} came to an end: nothing to confirm")
    if summary["quarantined"]:
        output.print(
            f"  {summary['quarantined']:,} of the failed runs end their process and are in "
            "quarantine: --lf tries them again"
        )
    output.print(f"results: {below(store, made.name)}", markup=False)
    from raybench.analysis import MODULES

    verify = f"   raybench verify {store}" if made.name.replace("_", "-") in MODULES else ""
    output.print(f"next:    raybench report {store}{verify}", markup=False)


def validate(
    suites: Annotated[
        list[str], typer.Argument(metavar="SUITE...", help="Files or bundled names.")
    ],
    allow_code: Code = None,
    as_json: Json = False,
) -> None:
    """Check suites at each of their scales, and show every mistake with its line and column.

    Example:  raybench validate my.yaml
    """
    from raybench import suite as reader
    from raybench import usercode
    from raybench.cli.suites import find

    for file in allow_code or ():
        usercode.allow(file)

    lines: list[str] = []
    checked: list[dict[str, Any]] = []
    unknown: UsageError | None = None
    for name in suites:
        try:
            path, label = find(name)
            checked += _validated(reader.read(path, label), label, lines)
        except UsageError as error:
            unknown = unknown or error
        except SuiteError as error:
            lines += error.lines
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


def _validated(source: Source, label: str, lines: list[str]) -> list[dict[str, Any]]:
    """Return a row for each scale of a suite that is valid; mistakes are added to `lines`."""
    from raybench.suite import load as read_scale

    scales = source.values.get("scales")
    rows: list[dict[str, Any]] = []
    for scale in scales if isinstance(scales, dict) and scales else [None]:
        try:
            made = read_scale(source, scale)
            rows.append({"suite": label, "scale": scale or "", "runs": len(made.runs)})
        except SuiteError as error:
            lines += [line for line in error.lines if line not in lines]
    return rows
