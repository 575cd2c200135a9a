"""The application, its options, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import typer

from raybench.cli import browse, exchange, execute, forecast, inspect, measure, present, remote
from raybench.cli.console import errors
from raybench.errors import RaybenchError
from raybench.redact import redacted

app = typer.Typer(
    name="raybench",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "One YAML file: tens of thousands of deep-learning runs on Ray, figures, checked claims."
        "\n\nStart with:  [bold]raybench run quickstart[/bold]   then   "
        "[bold]raybench report results[/bold]\n\n"
        "Exit codes: 0 done; 1 finished, some runs failed; 2 usage; 3 invalid suite; 4 refused "
        "(limits, or code that --allow-code does not name); 5 nothing matched; 6 no cluster, or "
        "store not writable; 7 a component is missing; 8 a claim failed in verify; 130 "
        "interrupted: everything finished is kept, and the same command goes on."
    ),
)

_RUN, _SEE, _KNOW = "Run", "Results", "Look up"
app.command("run", rich_help_panel=_RUN)(execute.run)
app.command("submit", rich_help_panel=_RUN)(remote.submit)
app.command("plan", rich_help_panel=_RUN)(forecast.plan)
app.command("validate", rich_help_panel=_RUN)(execute.validate)
app.command("bench", rich_help_panel=_RUN)(measure.bench)
app.command("status", rich_help_panel=_SEE)(inspect.status)
app.add_typer(inspect.runs, name="runs", rich_help_panel=_SEE)
app.command("figures", rich_help_panel=_SEE)(present.figures)
app.command("report", rich_help_panel=_SEE)(present.report)
app.command("verify", rich_help_panel=_SEE)(present.verify)
app.command("query", rich_help_panel=_SEE)(inspect.query)
app.add_typer(exchange.imports, name="import", rich_help_panel=_SEE)
app.command("export", rich_help_panel=_SEE)(exchange.export)
app.command("ls", rich_help_panel=_KNOW)(browse.ls)
app.command("show", rich_help_panel=_KNOW)(browse.show_one)
app.command("schema", rich_help_panel=_KNOW)(browse.schema)
app.command("doctor", rich_help_panel=_KNOW)(browse.doctor)


_INTERRUPTED = 130


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"raybench {version('raybench')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; every failure that is the user's ends in a message and its code."""
    if not os.environ.get("RAYBENCH_WARNINGS"):
        warnings.simplefilter("ignore")  # of libraries, to a user who did not write the code
    if sys.platform == "linux":
        # Read when pyarrow is imported: millions of rows are read a fifth faster with it.
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
    try:
        app()
    except RaybenchError as error:
        errors.print(
            redacted(str(error)), style="red" if error.exit_code != 3 else None, markup=False
        )
        sys.exit(error.exit_code)
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # what typer makes of Ctrl-C
            errors.print("interrupted; what has finished is kept, the same command goes on")
        raise
    except BrokenPipeError:
        # `raybench ... | head` closed the pipe: not an error, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
