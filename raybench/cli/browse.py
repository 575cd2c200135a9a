"""Verbs that look things up: ls, show, schema, doctor."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from raybench import cache
from raybench.cli.console import output, print_json, show, size
from raybench.cli.suites import bundled, find, launch_files
from raybench.errors import NothingMatched, RaybenchError, suggest
from raybench.redact import redacted

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def ls(
    kind: Annotated[
        str | None,
        typer.Argument(help="suites, data, models, optim, schedules, probes or procedures."),
    ] = None,
    library: Annotated[
        bool, typer.Option("--library", help="Also every component of the libraries.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List suites and components, with where each comes from.

    Example:  raybench ls optim
    """
    from raybench.catalog import TABLES

    kinds = ["suites", *TABLES]
    if kind is not None and kind not in kinds:
        raise NothingMatched(f"no kind {kind!r}{suggest(kind, kinds)}")
    rows: list[dict[str, Any]] = []
    for each in kinds if kind is None else [kind]:
        if each == "suites":
            rows += [{"kind": each, "name": name, "about": _about(name)} for name in bundled()]
            continue
        table = TABLES[each]
        for name in table:
            try:
                about = _first_line(table[name].__doc__)
            except RaybenchError as error:
                about = f"cannot be loaded: {redacted(str(error))}"
            rows.append({"kind": each, "name": name, "from": table.origin(name), "about": about})
        rows += _libraries(each, table, whole=library)
    show(rows, as_json=as_json)


def _libraries(kind: str, table: Any, *, whole: bool) -> Iterator[dict[str, Any]]:
    """Yield a row for each library that a table takes from, or for each name in it."""
    for prefix, source in table.sources.items():
        names = source.names()
        if whole:
            for name in (f"{prefix}:{inner}" for inner in names):
                about = _first_line(table[name].__doc__)
                yield {"kind": kind, "name": name, "from": table.origin(name), "about": about}
        elif names:
            about = f"{len(names)} more, such as {prefix}:{names[-1]}; list them with --library"
            yield {"kind": kind, "name": f"{prefix}:NAME", "from": prefix, "about": about}
        else:
            about = 'not installed: pip install "raybench[optim]"'
            yield {"kind": kind, "name": f"{prefix}:NAME", "from": prefix, "about": about}


def show_one(
    name: Annotated[
        str, typer.Argument(help="A component, a bundled suite, or a file that starts a cluster.")
    ],
    as_json: Json = False,
) -> None:
    """Show one component: what it is, its parameters with defaults, and where it comes from.

    Examples:
      raybench show adam

      raybench show cluster.yaml > cluster.yaml      (also rayjob.yaml, slurm.sh)
    """
    from raybench.catalog import TABLES

    found = [(kind, table) for kind, table in TABLES.items() if name in table]
    if not found and name in bundled():
        text = find(name)[0].read_text(encoding="utf-8")
        if as_json:
            print_json({"name": name, "kind": "suite", "text": text})
        else:
            sys.stdout.write(text)  # as it is: it may be on its way into a file
        return
    if not found and name in launch_files():
        text = launch_files()[name].read_text(encoding="utf-8")
        if as_json:
            print_json({"name": name, "kind": "launch", "text": text})
        else:
            sys.stdout.write(text)
        return
    if not found:
        components = (each for table in TABLES.values() for each in table)
        known = [*bundled(), *launch_files(), *components]
        raise NothingMatched(f"nothing is called {name!r}{suggest(name, known)}")
    shown = [_component(kind, table, name) for kind, table in found]
    if as_json:
        print_json(shown)
        return
    for item in shown:
        output.print(
            f"[bold]{item['name']}[/bold]  {item['kind']}, from {item['from']}, "
            f"revision {item['revision']}\n"
        )
        output.print(item["about"] + "\n", markup=False)
        show(item["parameters"], as_json=False)


show_one.__name__ = "show"


def _component(kind: str, table: Any, name: str) -> dict[str, Any]:
    from raybench.spec import hyper_fields
    from raybench.tables import part_of

    cls = table[name]
    hypers = hyper_fields(cls)
    parameters = []
    for field_name, field in cls.model_fields.items():
        inner = part_of(field)
        default = field.get_default(call_default_factory=True)
        parameters.append(
            {
                "parameter": field_name,
                "default": "required" if field.is_required() else _default(default),
                "may differ in a batch": "yes" if field_name in hypers else "",
                "about": field.description or (f"a {inner.kind}" if inner else ""),
            }
        )
    return {
        "name": name,
        "kind": kind,
        "from": table.origin(name),
        "revision": cls.revision,
        "about": "\n".join(line.strip() for line in (cls.__doc__ or "").strip().splitlines()),
        "parameters": parameters,
    }


def _default(value: Any) -> str:
    from raybench.spec import Spec

    if isinstance(value, tuple) and value and all(isinstance(v, Spec) for v in value):
        return "[" + ", ".join(part.name for part in value) + "]"
    if isinstance(value, Spec):
        changed = [f"{k}: {v}" for k, v in value.columns().items() if v is not None and k != "name"]
        return value.name or "{" + ", ".join(changed) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _about(suite: str) -> str:
    from raybench.suite import read

    path, label = find(suite)
    return " ".join(str(read(path, label).values.get("description", "")).split())


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().splitlines()[0] if doc else ""


def schema(
    what: Annotated[
        str, typer.Argument(help="suite (JSON Schema for editors), runs, metrics or arrays.")
    ] = "suite",
) -> None:
    """Print the JSON Schema of suite files, or the columns of a result table.

    Example:  raybench schema suite > .raybench/suite.schema.json, and in the first line of a suite
    # yaml-language-server: $schema=.raybench/suite.schema.json
    """
    from raybench.schema import DYNAMIC, SCHEMAS

    if what == "suite":
        from raybench.catalog import suite_schema

        print_json(suite_schema())
        return
    if what not in SCHEMAS:
        raise NothingMatched(f"no schema {what!r}{suggest(what, ['suite', *SCHEMAS])}")
    rows = [{"column": field.name, "type": str(field.type)} for field in SCHEMAS[what]]
    if what == "runs":
        rows += [{"column": name, "type": about} for name, about in DYNAMIC.items()]
    print_json(rows)


def doctor(
    store: Annotated[
        str, typer.Option("-o", "--store", metavar="FOLDER|URL", help="Store to test.")
    ] = "results",
    as_json: Json = False,
) -> None:
    """Check what runs need: versions, devices, Ray, components, a store that can be written.

    Exits with 1 if something does not work.

    Example:  raybench doctor
    """
    rows = [
        {"check": name, "ok": "ok" if good else "FAIL", "found": redacted(said)}
        for name, good, said in _checks(store)
    ]
    show(rows, as_json=as_json)
    if any(row["ok"] == "FAIL" for row in rows):
        raise typer.Exit(1)


def _checks(store: str) -> Iterator[tuple[str, bool, str]]:
    import torch

    from raybench.catalog import TABLES

    for name in ("raybench", "torch", "ray", "pyarrow", "duckdb", "pandas"):
        yield name, True, version(name)
    for name, extra in (("datasets", "data"), ("pytorch_optimizer", "optim")):
        try:
            yield name, True, version(name)
        except PackageNotFoundError:
            yield name, True, f'not installed; pip install "raybench[{extra}]" brings it'
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield "devices", True, ", ".join(devices) or f"CPU only, {os.cpu_count()} cores"
    for kind, table in TABLES.items():
        for name in table:
            if name in table.bundled:
                continue
            try:
                table[name]
                yield f"{kind}: {name}", True, f"from {table.origin(name)}"
            except RaybenchError as error:
                yield f"{kind}: {name}", False, str(error)
    yield _check_store(store)
    yield "cache", True, f"{cache.folder()}, {size(cache.size())}"
    yield _check_ray()


def _check_store(store: str) -> tuple[str, bool, str]:
    from raybench.storage import at

    try:
        at(store).check()
    except (RaybenchError, OSError) as error:
        return "store", False, f"{store} cannot be written: {error}"
    return "store", True, f"{store} can be written"


def _check_ray() -> tuple[str, bool, str]:
    from raybench.cluster import connect

    try:
        executor = connect(cpus=1)
    except RaybenchError as error:
        return "start Ray", False, str(error)
    executor.close()
    return "start Ray", True, "a local cluster on loopback starts and stops"
