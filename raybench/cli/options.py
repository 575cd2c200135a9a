"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
STORE_HELP = "Where results are: a folder, or a URL: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX."
Store = Annotated[
    str,
    typer.Option("-o", "--store", metavar="FOLDER|URL", envvar="RAYBENCH_STORE", help=STORE_HELP),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Code = Annotated[
    list[Path] | None,
    typer.Option(
        "--allow-code",
        metavar="FILE.py",
        help="Run this file of yours: its classes are called FILE:NAME in the suite.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(envvar="RAYBENCH_ADDRESS", help="A running Ray cluster: auto, or host:port."),
]
Jobs = Annotated[
    int | None, typer.Option("-j", "--jobs", min=1, help="Cores of one's own Ray; default all.")
]
InProcess = Annotated[bool, typer.Option("--in-process", help="No Ray: one batch at a time, here.")]
