"""Verbs that present results: figures, verify, report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raybench.cli.console import cell, output, print_json, show
from raybench.cli.inspect import Json, StoreArgument, SuiteOption
from raybench.cli.suites import bundled, command, resolved, retry
from raybench.errors import NothingMatched

if TYPE_CHECKING:
    from raybench.analysis.figure import Figure, Rendered, Tables

ScaleOption = Annotated[str | None, typer.Option("--scale", help="Default: the one run last.")]
UsingOption = Annotated[
    str | None,
    typer.Option("--using", help="Draw the figures of another suite, such as crowded_valley."),
]


def figures(
    target: Annotated[
        str, typer.Argument(metavar="[STORE|SUITE]", help="A store, or a suite in ./results.")
    ] = "results",
    suite: SuiteOption = None,
    scale: ScaleOption = None,
    using: UsingOption = None,
    as_json: Json = False,
) -> None:
    """Draw the figures of a store's suites: PNG, SVG, and the data behind each as CSV.

    Example:  raybench figures results
    """
    rows = []
    for store, name in _targets(target, suite):
        rows += [
            {
                "suite": name,
                "figure": drawn.name,
                "file": str(drawn.png) if drawn.png else f"not drawn: {drawn.missing}",
                "tables": " ".join(path.name for path in drawn.extra),
            }
            for drawn in _render(store, name, scale, using)
        ]
    show(rows, as_json=as_json)


def verify(
    store: StoreArgument = "results",
    suite: SuiteOption = None,
    scale: ScaleOption = None,
    using: UsingOption = None,
    as_json: Json = False,
) -> None:
    """Check the claims of each suite against the tables: PASS, FAIL or NOT RUN.

    FAIL (expected) is a claim of a paper that is known not to hold at this scale: the reason, with
    what was tried, is printed below it. Exits with 8 if any other claim fails.

    Example:  raybench verify results
    """
    from raybench.analysis.figure import evaluate

    rows = []
    for folder, name in _targets(store, suite):
        tables = _tables(folder, name, scale)
        for figure in _figures(folder, name, using).values():
            rows += [
                {
                    "verdict": checked.status,
                    "suite": name,
                    "claim": checked.claim.text,
                    "measured": checked.verdict.measured,
                    "threshold": checked.verdict.threshold,
                    "source": checked.claim.source,
                    "expected": checked.expected,
                }
                for checked in evaluate(figure, tables).verdicts
            ]
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            colour = {"PASS": "green", "FAIL": "red"}.get(str(row["verdict"]), "yellow")
            output.print(str(row["verdict"]), style=colour, end="  ")
            output.print(f"{row['suite']}: {row['claim']}", markup=False)
            output.print(
                f"      measured {cell(row['measured'])}; needs {row['threshold']}; "
                f"from {row['source']}",
                markup=False,
            )
            if row["expected"]:
                surprise = ", but it held" if row["verdict"] == "PASS" else ""
                output.print(f"      expected to fail{surprise}: {row['expected']}", markup=False)
    if not rows:
        raise NothingMatched(f"the suites in {store} make no claims")
    if any(row["verdict"] == "FAIL" for row in rows):
        raise typer.Exit(8)


def report(
    store: StoreArgument = "results",
    suite: SuiteOption = None,
    scale: ScaleOption = None,
    using: UsingOption = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page for each suite: figures, claims, failures, environment.

    Example:  raybench report results
    """
    rows = []
    for folder, name in _targets(store, suite):
        path, drawn = _write_report(folder, name, scale, using)
        rows += [{"suite": name, "what": d.name, "file": str(d.png)} for d in drawn if d.png]
        rows.append({"suite": name, "what": "report", "file": str(path)})
    show(rows, as_json=as_json)


def _targets(target: str, suite: str | None) -> Iterator[tuple[str, str]]:
    """Yield the store and the name of each suite that is meant."""
    from raybench import store as results

    path, store = Path(target), target
    if not path.exists() and (target in bundled() or target.endswith((".yaml", ".yml"))):
        store, suite = "results", path.stem
    elif path.is_file():
        store, suite = "results", _name_of(path)
    for name in results.suites(store) if suite is None else [suite]:
        yield store, name


def _name_of(file: Path) -> str:
    """Return the name that a suite file gives itself: its results are in a folder of that name."""
    from raybench.suite import read

    return str(read(file).values.get("name", file.stem))


def _tables(store: str, suite: str, scale: str | None) -> Tables:
    from raybench.store import scales, table

    runs, metrics = table(store, suite, scale=scale), table(store, suite, "metrics", scale)
    from raybench.analysis.figure import Tables

    known = scales(store, suite)
    chosen = scale or known[0]
    if PUBLISHED not in known or chosen == PUBLISHED:
        return Tables(runs, metrics, scale=chosen)
    return Tables(runs, metrics, table(store, suite, scale=PUBLISHED), chosen)


PUBLISHED = "published"
"""The scale of results that `raybench import` brought: figures of other scales compare with it."""


def _figures(store: str, suite: str, using: str | None) -> dict[str, Figure]:
    """Return the figures that `--using` names, or else the suite's `figures`, or its own."""
    from raybench.analysis import figures_for

    named = resolved(store, suite)[1].get("figures")
    return figures_for(str(using or named or suite))


def _render(
    store: str, suite: str, scale: str | None, using: str | None = None
) -> Sequence[Rendered]:
    from raybench.analysis.figure import render
    from raybench.storage import at
    from raybench.store import scales

    chosen = scale or scales(store, suite)[0]
    storage = at(store)
    folder = storage.folder / suite / "figures" / chosen
    with ThreadPoolExecutor(1) as reader:  # while the figures' modules are imported
        tables = reader.submit(_tables, store, suite, scale)
        wanted = _figures(store, suite, using)
        drawn = render(wanted, tables.result(), folder)
    files = (file for each in drawn for file in (each.csv, each.png, each.svg, *each.extra))
    storage.push(*(file for file in files if file is not None))
    return drawn


def _write_report(
    store: str, suite: str, scale: str | None, using: str | None
) -> tuple[Path, Sequence[Rendered]]:
    from raybench import page
    from raybench.causes import failures
    from raybench.storage import at
    from raybench.store import scales

    chosen = scale or scales(store, suite)[0]
    tables = _tables(store, suite, chosen)
    drawn = _render(store, suite, chosen, using)
    # A run that two budgets picked stands in the table twice.
    runs = tables.runs.drop_duplicates("run_id")
    text, document = resolved(store, suite)
    environment = document.get("environment", {})
    imported = chosen == PUBLISHED
    words = command(suite, document)
    found = failures(runs)
    failed = any(group.status == "failed" for group in found)
    data = page.ReportData(
        title=suite,
        description=str(document.get("description", "")),
        paper=str(document.get("paper", "")),
        scale=chosen,
        protocol=page.protocol(runs),
        counts=page.counts(runs),
        figures=drawn,
        failures=found,
        suite_yaml=text,
        environment=[(str(key), str(value)) for key, value in environment.items()],
        commands=[
            "raybench import deepobs FOLDER" if imported else shlex.join(words),
            f"raybench verify {store}",
        ],
        retry=retry(words, store) if failed and not imported else "",
        generated=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )
    storage = at(store)
    path = page.write_report(storage.folder / suite / f"report-{chosen}.html", data)
    storage.push(path)
    return path, drawn
