"""Verbs that exchange results with other programs: import, export."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from raybench.cli.console import duration, errors, output, print_json, show
from raybench.cli.inspect import Json
from raybench.cli.options import Store
from raybench.errors import UsageError, suggest
from raybench.storage import below

if TYPE_CHECKING:
    from raybench.deepobs import Imported

imports = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help=(
        "Results of other programs, as runs of a suite: deepobs."
        "\n\nExample:  raybench import deepobs results_main"
    ),
)

_SECONDS: Final = 5.0  # between two lines of progress
_LISTED: Final = 10  # files that are named with why they were left out


@imports.callback()
def _options() -> None:
    pass


@imports.command("deepobs")
def deepobs(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", exists=True, file_okay=False, help="Any level of a tree of results."
        ),
    ],
    store: Store = "results",
    suite: Annotated[
        str, typer.Option("--suite", help="The suite that they are compared with.")
    ] = "crowded_valley",
    as_json: Json = False,
) -> None:
    """Import what DeepOBS wrote, such as the published runs of the optimizer benchmark.

    FOLDER is any level of BUDGET/SCHEDULE/PROBLEM/OPTIMIZER/SETTING/random_seed__*.json, with or
    without the first two. The runs are in the suite's tables at scale "published"; importing again
    replaces them.

    Example:  raybench import deepobs Crowded-Valley---Results/results_main
    """
    from raybench.deepobs import SCALE, import_results

    progress = _Progress("files")
    account = import_results(folder, store, suite, progress.update)
    if as_json:
        print_json(_document(account))
        return
    show(_rows(account), as_json=False)
    runs = sum(account.statuses.values())
    said = [
        f"{account.files:,} files in {duration(progress.seconds)}: {account.layout}",
        f"{runs:,} runs of {len(account.optimizers)} optimizers under {len(account.schedules)} "
        f"schedules are in {below(store, suite)} at scale {SCALE}",
    ]
    said += [
        f"{count:,} {what}"
        for count, what in (
            (account.left_out, "files of the older tree beside it are left out"),
            (account.unused, "runs were repeated later, or repeated without having won: left out"),
            (account.others, "other files are passed over"),
            (len(account.skipped), "files are skipped:"),
        )
        if count
    ]
    output.print("\n".join(said), markup=False)
    for path, reason in account.skipped[:_LISTED]:
        output.print(f"  {path} {reason}", markup=False)
    if len(account.skipped) > _LISTED:
        output.print("  ... --json lists them all")


def export(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="tensorboard, wandb or mlflow.")],
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the results.")],
    target: Annotated[
        str, typer.Argument(metavar="DEST", help="A folder; for mlflow also a tracking URI.")
    ],
    suite: Annotated[str | None, typer.Option("--suite", help="One suite of the store.")] = None,
    as_json: Json = False,
) -> None:
    """Write results for TensorBoard, Weights & Biases (offline) or MLflow, with every curve.

    Nothing is sent anywhere but to DEST; exporting again replaces what is there (W&B adds).

    Examples:
      raybench export tensorboard results boards        then  tensorboard --logdir boards

      raybench export wandb results boards              then  wandb sync boards/wandb/offline-*

      raybench export mlflow results http://localhost:5000
    """
    from raybench import exports

    if kind not in exports.WRITERS:
        raise UsageError(f"no export {kind!r}{suggest(kind, exports.WRITERS)}")
    progress = _Progress("runs")
    count = exports.export(kind, store, target, suite, progress.update)
    if as_json:
        print_json({"kind": kind, "runs": count, "dest": target})
    else:
        output.print(f"{count:,} runs in {duration(progress.seconds)} to {target}", markup=False)


class _Progress:
    """A line now and then about how far an import or export is."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = self._printed = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def update(self, done: int, total: int) -> None:
        """Tell of `done` of `total` files, if it is time."""
        if time.monotonic() - self._printed > _SECONDS:
            self._printed = time.monotonic()
            rate = done / self.seconds
            left = duration((total - done) / rate) if rate else "unknown"
            errors.print(f"{done:,}/{total:,} {self._what}  {rate:,.0f} {self._what}/s  eta {left}")


_PHASES: Final = ("one_shot", "search", "refine", "confirm")


def _rows(account: Imported) -> list[dict[str, Any]]:
    return [
        {
            "problem": problem,
            "runs": counts["done"] + counts["diverged"],
            "diverged": counts["diverged"],
            **{phase: counts[phase] for phase in _PHASES},
        }
        for problem, counts in sorted(account.cells.items())
    ]


def _document(account: Imported) -> dict[str, Any]:
    return {
        "files": account.files,
        "layout": account.layout,
        "runs": sum(account.statuses.values()),
        "statuses": dict(account.statuses),
        "problems": _rows(account),
        "optimizers": sorted(account.optimizers),
        "schedules": sorted(account.schedules),
        "left_out": account.left_out,
        "unused": account.unused,
        "others": account.others,
        "skipped": [{"file": path, "reason": reason} for path, reason in account.skipped],
    }
