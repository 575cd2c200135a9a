"""The verb that measures raybench beside its peers: bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raybench.cli.console import errors, output, show
from raybench.cli.options import Json


def bench(  # noqa: PLR0913  (each is an option of the command)
    workload: Annotated[
        list[str] | None,
        typer.Option(
            help="A scale of the suite selfbench: one_step, mlp_16, mlp_64, mlp_256, cnn, "
            "random_features, quadratic_deep; may be given again. Default: one_step, mlp_64, "
            "mlp_256, cnn, quadratic_deep."
        ),
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            help="Steps of a run, 1 for the bare overhead; may be given again. Default: the "
            "workload's own, 1 for one_step, 700 for quadratic_deep, else 100."
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(help="Runs of a block; default 10000 for one_step, fewer of longer ones."),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="tune, tune_reuse, joblib, optuna, loop, or none; may be given again. Default: "
            "all that are installed."
        ),
    ] = None,
    blocks: Annotated[
        int, typer.Option(help="Turns of each contestant; an interval needs two, and likes more.")
    ] = 3,
    sample: Annotated[
        int | None,
        typer.Option(help="Runs of a block that a peer carries out; default: by --seconds."),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            help="About so long may a peer take for its part of a block; what it does once, "
            "whatever the number of runs, weighs less in longer ones."
        ),
    ] = 2.0,
    markdown: Annotated[
        Path | None,
        typer.Option(help="Also append the rows to this file, as a dated table."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure raybench beside its peers, on the same runs and in turns.

    Each contestant has a process of its own, and each block has fresh runs. What a contestant
    starts before its first run (Ray, workers and their imports) is in `start s` and in no other
    number. Takes about ten minutes on two idle cores; give --workload for less.

    Peers carry out plain PyTorch loops with the same weights, rows, steps and measurements:

    - tune: Ray Tune with a function and its defaults, so a process for each run, which is timed.

    - tune_reuse: Ray Tune with a class and reused actors.

    - joblib: a loop on each core. optuna: likewise, as the trials of a study in a journal.

    - loop: one loop in one process, beside raybench in one process with one lane.

    `times raybench`: seconds a run over those of raybench in the same block, the geometric mean
    over blocks; `low` and `high` are its 95 % interval (Student's, of logarithms). `overhead ms`:
    what a run takes beyond the plain loop, whose time is divided by the cores that are used; all of
    it at 1 step. `driver MB`: peak of the process that drives. `workers MB`: of all that it started
    together, pages they share counted once. `peak %`: share of the fastest float32 matrix product
    of the same number of one-thread processes.

    Examples:
      raybench bench

      raybench bench --workload one_step --runs 100000 --blocks 1 --peer none

      raybench bench --workload mlp_64 --runs 1000 --blocks 5 --markdown rows.md

      raybench bench --workload cnn --steps 1000 --peer loop       (one run at a time)
    """
    from raybench import bench as benchmark

    def note(text: str) -> None:
        errors.print(text, markup=False)

    contestants = benchmark.chosen(peer, note)
    cases = benchmark.cases(workload or (), steps or (), runs)
    began = benchmark.load()
    rows = benchmark.measure(
        cases, contestants, blocks=blocks, sample=sample, seconds=seconds, note=note
    )
    show(rows, as_json=as_json)
    if markdown is not None:
        with markdown.open("a", encoding="utf-8") as file:
            file.write(benchmark.table(rows, f"{began} to {benchmark.load()}"))
        output.print(f"appended to {markdown}") if not as_json else None
