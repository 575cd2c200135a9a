"""Verbs that read results: status, runs, query."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from raybench.cli.console import cell, errors, output, print_json, show
from raybench.cli.options import STORE_HELP, Store
from raybench.cli.remote import show_cluster
from raybench.cli.suites import command, resolved, retry
from raybench.errors import NothingMatched, UsageError
from raybench.schema import TABLES, TableName
from raybench.storage import at

StoreArgument = Annotated[
    str, typer.Argument(metavar="[STORE]", envvar="RAYBENCH_STORE", help=STORE_HELP)
]
SuiteOption = Annotated[str | None, typer.Option("--suite", help="One suite of the store.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Where = Annotated[
    str | None,
    typer.Option("--where", help="SQL condition on `runs`, such as \"status = 'failed'\"."),
]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most this many rows.")]

runs = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="The runs of a store: ls, show, logs, retry.\n\nExample:  raybench runs ls results",
)


def status(
    store: StoreArgument = "results",
    address: Annotated[
        str | None,
        typer.Option(help="A cluster's dashboard, http://HEAD:8265, in place of a store."),
    ] = None,
    watch: Annotated[bool, typer.Option("-w", "--watch", help="Again every 2 seconds.")] = False,
    as_json: Json = False,
) -> None:
    """Show how far each suite of a store is, and why runs failed; or what a cluster does.

    Failures that differ only in numbers are one cause, with an example and the command that tries
    them again. With --address: the suites that were submitted there, how far they are, the nodes,
    what is taken of them and what waits for room.

    Examples:
      raybench status results -w

      raybench status --address http://head:8265 -w
    """
    if address is not None:
        show_cluster(address, watch=watch, as_json=as_json)
        return
    from raybench.journal import waiting

    while True:
        rows, causes = _status(store)
        waits = [
            {"suite": suite, "message": message}
            for suite in dict.fromkeys(str(row["suite"]) for row in rows)
            for message in waiting(at(store).folder / suite)
        ]
        if as_json:
            print_json({"suites": rows, "causes": causes, "waiting": waits})
        else:
            if watch:
                output.clear()
            show(rows, as_json=False)
            for wait in waits:
                output.print(f"\n{wait['suite']}: {wait['message']}", markup=False)
            for cause in causes:
                output.print(
                    f"\n{cause['count']:,} {cause['status']} in {cause['suite']}: "
                    f"{cause['reason']}\n"
                    f"  such as  raybench runs logs {cause['example']} {store}\n"
                    f"  again    {cause['retry']}",
                    markup=False,
                )
        if not watch:
            return
        time.sleep(2)


def _status(store: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from raybench import store as results
    from raybench.causes import failures

    rows: list[dict[str, Any]] = []
    causes: list[dict[str, Any]] = []
    for suite in results.suites(store):
        for scale in results.scales(store, suite):
            frame = results.table(store, suite, scale=scale, columns=_COUNTED)
            frame = frame.drop_duplicates("run_id")
            planned = results.plan(store, suite, scale)["run_id"].nunique()
            counts = frame["status"].value_counts().to_dict()
            rows.append(
                {
                    "suite": suite,
                    "scale": scale,
                    "runs": planned,
                    **{name: int(counts.get(name, 0)) for name in _STATUSES},
                    "to do": planned - len(frame) + int(counts.get("failed", 0)),
                    "core seconds": float(frame["wall_s"].sum()),
                }
            )
            failed = frame[frame["status"] == "failed"]
            if not len(failed):
                continue
            _, document = resolved(store, suite)
            named = "" if scale == "default" else scale
            again = retry(command(suite, {**document, "scale": named}), store)
            causes += [
                {
                    "suite": suite,
                    "scale": scale,
                    "status": group.status,
                    "reason": group.reason,
                    "count": group.count,
                    "example": group.run_ids[0],
                    "retry": again,
                }
                for group in failures(failed, examples=1)
            ]
    return rows, sorted(causes, key=lambda each: -each["count"])[:_MOST_CAUSES]


_COUNTED = ("run_id", "status", "wall_s", "reason")
_MOST_CAUSES = 10
_STATUSES = ("done", "stopped", "diverged", "failed", "skipped")


@runs.command("ls")
def runs_ls(
    store: StoreArgument = "results",
    suite: SuiteOption = None,
    where: Where = None,
    columns: Annotated[
        str | None, typer.Option("--columns", help="Columns, separated by commas.")
    ] = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List runs, latest first.

    Example:  raybench runs ls results --where "status = 'diverged'"
    """
    chosen = columns.split(",") if columns else list(_LISTED)
    quoted = ", ".join('"' + name.strip().replace('"', '""') + '"' for name in chosen)
    condition = " and ".join([*([f"({where})"] if where else []), *_only(suite)]) or "true"
    rows = _sql(
        store, f"select {quoted} from runs where {condition} order by started_at desc", limit
    )
    if not rows:
        raise NothingMatched(f"no run in {store} matches")
    show(rows, as_json=as_json)


_LISTED = ("run_id", "suite", "status", "seed", "steps", "wall_s", "lanes", "reason")


@runs.command("show")
def runs_show(
    run_id: Annotated[str, typer.Argument(help="A run id, or the beginning of one.")],
    store: StoreArgument = "results",
    as_json: Json = False,
) -> None:
    """Show everything that is known of one run: config, summary, where it ran.

    Example:  raybench runs show 4be91c
    """
    row = _one(store, run_id)
    if as_json:
        print_json(row)
        return
    for name, value in row.items():
        if value is not None and name != "log" and value == value:
            output.print(f"{name:32} {cell(value)}", markup=False)


@runs.command("logs")
def runs_logs(
    run_id: Annotated[str, typer.Argument(help="A run id, or the beginning of one.")],
    store: StoreArgument = "results",
) -> None:
    """Show why a run failed, with the traceback; for any other run, how it ended.

    Example:  raybench runs logs 4be91c
    """
    row = _one(store, run_id)
    output.print(
        f"{row['run_id']} {row['status']}: {row['reason'] or 'no remarks'}\n"
        f"started {row['started_at']} on {row['host']} ({row['device']}), "
        f"batch {row['batch_id']}, {row['lanes']} lanes",
        markup=False,
    )
    if row["log"]:
        output.print(str(row["log"]), markup=False)


@runs.command("retry")
def runs_retry(
    run_ids: Annotated[list[str], typer.Argument(help="Run ids, or beginnings of them.")],
    suite: Annotated[str, typer.Option("--suite", help="The suite's file, or a bundled name.")],
    store: Store = "results",
    scale: Annotated[str | None, typer.Option("--scale", help="As the runs were run.")] = None,
    words: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, as the runs were run.")
    ] = None,
    in_process: Annotated[bool, typer.Option("--in-process", help="Without Ray.")] = False,
    allow_code: Annotated[
        list[Path] | None, typer.Option("--allow-code", help="As the runs were run.")
    ] = None,
) -> None:
    """Run given runs again, whatever became of them.

    Example:  raybench runs retry 4be91c --suite quickstart
    """
    from raybench.cli.execute import retry

    ids = [str(_one(store, run_id)["run_id"]) for run_id in run_ids]
    retry(ids, suite, words or [], scale, store, in_process, allow_code)


def _only(suite: str | None) -> list[str]:
    return ["suite = '" + suite.replace("'", "''") + "'"] if suite else []


def _one(store: str, run_id: str) -> dict[str, Any]:
    if not run_id.isalnum():
        raise UsageError(f"{run_id!r} is not a run id: 16 hex digits, or the first few")
    rows = _sql(store, f"select * from runs where starts_with(run_id, '{run_id}')", 2)
    if not rows:
        raise NothingMatched(f"no run in {store} has an id that begins with {run_id}")
    if len({row["run_id"] for row in rows}) > 1:
        raise NothingMatched(f"several runs have an id that begins with {run_id}; give more of it")
    return rows[0]


def query(
    store: Annotated[str, typer.Argument(metavar="STORE", help=STORE_HELP)],
    sql: Annotated[str, typer.Argument(help="DuckDB SQL over runs, metrics and arrays.")],
    limit: Limit = 1000,
    as_json: Json = False,
) -> None:
    """Ask the tables anything, in SQL. `raybench schema runs` lists the columns.

    Example:  raybench query results 'select "config.model.width", avg("summary.test.error")
    from runs group by 1 order by 1'
    """
    rows = _sql(store, sql, limit, TABLES)
    if as_json:
        print_json(rows)
    elif rows:
        show(rows, as_json=False)
    else:
        errors.print("no rows")


def _sql(
    store: str, sql: str, limit: int, tables: Sequence[TableName] = ("runs",)
) -> list[dict[str, Any]]:
    import duckdb

    from raybench.store import connect

    with connect(store, tables) as connection:
        try:
            found = connection.execute(sql)
            names = [column[0] for column in found.description]
            rows = found.fetchmany(limit + 1)
        except duckdb.Error as error:
            raise UsageError(str(error)) from error
    if len(rows) > limit:
        errors.print(f"the first {limit:,} rows; --limit shows more")
    return [dict(zip(names, row, strict=True)) for row in rows[:limit]]
