"""Verbs for a cluster that is elsewhere: submit, and status with --address."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from raybench.cli.console import duration, errors, last_progress, output, print_json, show
from raybench.cli.options import Code, Json, Scale, SuiteName, Words
from raybench.cli.suites import bundled, find, load
from raybench.errors import UsageError

if TYPE_CHECKING:
    from raybench.cluster.jobs import Jobs

_INTERRUPTED: Final = 130
_LISTED: Final = 20  # jobs: each is asked how far it is
_SECONDS: Final = 2.0  # between two looks


def submit(  # noqa: PLR0913  (each is an option of the command)
    suite: SuiteName,
    words: Words = None,
    address: Annotated[
        str | None,
        typer.Option(envvar="RAYBENCH_DASHBOARD", help="The dashboard: http://HEAD:8265."),
    ] = None,
    scale: Scale = None,
    store: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--store",
            envvar="RAYBENCH_STORE",
            help="Where all nodes can write: s3://..., gs://..., or the path of a shared folder.",
        ),
    ] = None,
    last_failed: Annotated[
        bool, typer.Option("--lf", help="Only runs that failed before, quarantined ones too.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show what it prints until it has ended.")
    ] = False,
    allow_code: Code = None,
    as_json: Json = False,
) -> None:
    """Run a suite on a cluster that is elsewhere, as a job: this machine may then be switched off.

    The suite, the files of --allow-code and this version of raybench travel; torch and Ray must be
    there. Submitting again does only what is missing. With --follow the exit code is that of the
    run, and Ctrl-C ends the following, not the job. The token of a cluster is read from
    RAY_AUTH_TOKEN or ~/.ray/auth_token.

    Examples:
      raybench submit quickstart --address http://head:8265 -o s3://bucket/results --follow

      raybench submit my.yaml --address http://localhost:8265 -o /shared/results --scale paper
    """
    if address is None:
        raise UsageError("--address is missing: the dashboard of a cluster, http://HEAD:8265")
    reachable = _for_all_nodes(store)
    made = load(suite, words or [], scale, allow_code)
    from raybench.cluster import dashboard
    from raybench.plan import distinct
    from raybench.session import refuse_past_runs

    refuse_past_runs(made)
    cluster = dashboard(address)
    more = ["--scale", made.scale] if made.scale else []
    more += ["-o", reachable, "--address", "auto", *(["--lf"] if last_failed else [])]
    known = {
        "suite": made.name,
        "scale": made.scale,
        "store": reachable,
        "runs": str(len(distinct(made.runs)) + made.num_later),
    }
    name = cluster.submit(*_travelling(suite, words or (), allow_code or (), more), known)
    if as_json:
        print_json({"job": name, "address": cluster.url, **known})
    else:
        output.print(f"{name}: {known['runs']} runs to {reachable}", markup=False)
    if follow:
        _follow(cluster, name)
    elif not as_json:
        output.print(
            f"next:    raybench status --address {cluster.url} -w\n"
            f"log:     ray job logs {name} --follow --address {cluster.url}\n"
            f"stop:    ray job stop {name} --address {cluster.url}",
            markup=False,
        )


def _travelling(
    suite: str, words: Sequence[str], code: Sequence[Path], more: Sequence[str]
) -> tuple[list[str], list[Path]]:
    """Return the command line of a job, and the files that it names and that go with it."""
    from raybench.cluster.jobs import FOLDER  # not before: Ray reads how it is set when imported

    path, _ = find(suite)
    files = [] if suite in bundled() and path == bundled()[suite] else [path]
    line = ["run", f"{FOLDER}/{path.name}" if files else suite, *words]
    for file in code:
        files.append(file)
        line += ["--allow-code", f"{FOLDER}/{file.name}"]
    return [*line, *more], files


def _follow(cluster: Jobs, name: str) -> None:
    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    try:
        code = cluster.follow(name, write)
    except KeyboardInterrupt:
        errors.print(
            f"no longer followed; the job goes on: raybench status --address {cluster.url} -w"
        )
        raise typer.Exit(_INTERRUPTED) from None
    if code:
        raise typer.Exit(code)


def _for_all_nodes(store: str | None) -> str:
    """Return a store that the nodes of a cluster can mean by this, as far as can be told here."""
    if store is None:
        raise UsageError("-o is missing: s3://..., gs://..., or a folder that all nodes share")
    if "://" in store:
        parts = urlsplit(store)
        if "@" in parts.netloc or re.search(r"secret|token|password|access_key", parts.query):
            raise UsageError(
                "-o holds a secret, which the cluster's dashboard would show; give the nodes a "
                "role, or set their environment (docs/cluster.md)"
            )
        return store
    if not Path(store).is_absolute():
        raise UsageError(
            f"-o {store} is a folder of this machine, and a job's nodes have their own: give "
            "s3://..., gs://..., or the absolute path of a folder that all nodes share"
        )
    errors.print(f"{store} must be the same folder on all nodes of the cluster", markup=False)
    return store


def show_cluster(address: str, *, watch: bool, as_json: bool) -> None:
    """Print the jobs, the nodes and the resources of a cluster, once or again and again."""
    from raybench.cluster import dashboard

    cluster = dashboard(address)
    while True:
        told = _told(cluster)
        if as_json:
            print_json(told)
        else:
            if watch:
                output.clear()
            _print(cluster.url, told)
        if not watch:
            return
        time.sleep(_SECONDS)


def _told(cluster: Jobs) -> dict[str, Any]:
    usage = cluster.usage()
    return {
        "jobs": [_row(cluster, job) for job in cluster.jobs()[:_LISTED]],
        "nodes": [
            {"node": node.address, "head": node.head, "resources": dict(node.resources)}
            for node in cluster.nodes()
        ],
        "taken": {name: list(pair) for name, pair in usage.taken.items()},
        "waiting": [{"needs": dict(bundle), "times": times} for bundle, times in usage.waiting],
    }


def _row(cluster: Jobs, job: Any) -> dict[str, Any]:
    progress = None if job.state == "PENDING" else last_progress(cluster.last_lines(job))
    done, to_do, said = progress or (None, None, "")
    return {
        "job": job.name,
        "suite": job.metadata.get("suite", ""),
        "scale": job.metadata.get("scale", ""),
        "state": job.state,
        "code": job.code,
        "done": done,
        "to do": to_do,
        "progress": said,
        "took": job.seconds,
        "store": job.metadata.get("store", ""),
    }


def _print(url: str, told: Mapping[str, Any]) -> None:
    if told["jobs"]:
        show([{**row, "took": duration(row["took"])} for row in told["jobs"]], as_json=False)
    else:
        output.print(f"no suite was submitted to {url}")
    nodes = [
        {
            "node": f"{node['node']} (head)" if node["head"] else node["node"],
            **node["resources"],
        }
        for node in told["nodes"]
    ]
    output.print()
    show(nodes, as_json=False)
    taken = [f"{name} {_amount(pair)}" for name, pair in sorted(told["taken"].items())]
    output.print("\ntaken:   " + (", ".join(taken) or "not known yet"))
    for each in told["waiting"]:
        needs = ", ".join(f"{amount:g} {name}" for name, amount in each["needs"].items())
        output.print(f"waiting: {each['times']} x {needs}", markup=False)


def _amount(pair: Sequence[float]) -> str:
    return f"{pair[0]:g} of {pair[1]:g}"
