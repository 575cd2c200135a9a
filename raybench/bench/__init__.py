"""raybench measured against its peers: the same runs, the same machine, one command."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from raybench.bench import loop, peak, tally
from raybench.bench.contestants import ALONE, CONTESTANTS
from raybench.bench.driver import Driver, Seen, drivers
from raybench.bench.markdown import load, table
from raybench.bench.workloads import WARM_UP, Case, cases
from raybench.errors import MissingError, UsageError, suggest

PEERS: Final = tuple(name for name in CONTESTANTS if not name.startswith("raybench"))
_PACKAGES: Final = {"optuna": "optuna"}  # what a peer needs that raybench does not


def chosen(peers: Sequence[str] | None, note: Callable[[str], None]) -> list[str]:
    """Return the contestants for some peers, raybench among them.

    Args:
        peers: names; `none` for none; None for all whose package is installed.
        note: told of a peer that is left out.

    Raises:
        UsageError: there is no such peer.
        MissingError: a peer that was asked for by name is not installed.
    """
    asked = [name for name in peers or PEERS if name != "none"]
    for name in asked:
        if name not in PEERS:
            raise UsageError(f"unknown peer {name!r}{suggest(name, [*PEERS, 'none'])}")
        package = _PACKAGES.get(name)
        if package and importlib.util.find_spec(package) is None:
            text = (
                f"peer {name} needs {package}, which is not installed: pip install raybench[bench]"
            )
            if peers:
                raise MissingError(text)
            note(f"{text}; it is left out")
            asked = [each for each in asked if each != name]
    if "loop" in asked:
        asked.append("raybench_alone")
    if not set(asked) - set(ALONE):
        # With no peer that uses every core there is nothing to compare it with.
        return [name for name in CONTESTANTS if name in asked] or ["raybench"]
    return [name for name in CONTESTANTS if name in asked or name == "raybench"]


def measure(
    found: Sequence[Case],
    contestants: Sequence[str],
    *,
    blocks: int,
    sample: int | None,
    seconds: float,
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Return a row for each case and contestant.

    In each block every contestant has its turn, in the opposite order in every second block:
    raybench with all of the block's runs, the others with a sample of them.

    Args:
        found: what to measure.
        contestants: who is measured, as `chosen` returned them.
        blocks: in how many they take turns; each has runs of its own.
        sample: how many runs of a block a peer carries out; None for as many as take `seconds`.
        seconds: see `sample`.
        note: told what is being measured.

    Raises:
        UsageError: no blocks, no sample, or no seconds.
        RaybenchError: a contestant failed.
    """
    if blocks < 1 or (sample is not None and sample < 1) or seconds <= 0:
        raise UsageError("--blocks, --sample and --seconds: more than 0, please")
    cores = _cores()
    note(f"measuring how fast {cores} cores multiply matrices ...")
    most = peak.measured(cores)
    rows: list[dict[str, Any]] = []
    with drivers([*contestants], cores) as started:
        for case in found:
            seen = _turns(case, started, blocks, sample, seconds, note)
            rows += tally.rows(case, case.length, cores, seen, loop.flops(case.first), most)
    return rows


def _turns(
    case: Case,
    started: dict[str, Driver],
    blocks: int,
    sample: int | None,
    seconds: float,
    note: Callable[[str], None],
) -> dict[str, list[Seen]]:
    length = case.length
    what = f"{case.workload}, {length:,} step{'s' * (length > 1)}"
    sizes: dict[str, int | None] = {}
    for name, driver in started.items():
        if name == "raybench" or sample is not None:
            sizes[name] = None if name == "raybench" else sample
            continue
        note(f"{what}: how many runs {tally.WORDS[name]} can be given ...")
        sizes[name] = _affordable(driver, case, seconds)
    seen: dict[str, list[Seen]] = {name: [] for name in started}
    for block in range(1, blocks + 1):
        for name in [*started] if block % 2 else [*reversed(started)]:
            count = sizes[name]
            runs = (
                f"{case.runs:,} runs"
                if count is None or count >= case.runs
                else f"a sample of {count:,} of {case.runs:,} runs"
            )
            note(f"{what}, block {block} of {blocks}: {runs} through {tally.WORDS[name]} ...")
            seen[name].append(started[name].block(case.work(block), count))
    return seen


def _affordable(driver: Driver, case: Case, seconds: float) -> int:
    """Return how many runs a contestant carries out in so many seconds, by some that warm it."""
    count = least = _cores()
    while True:
        timed = driver.block(case.work(WARM_UP), count).timed
        if timed.seconds > seconds / 4 or count >= case.runs:
            return max(least, min(math.ceil(seconds * timed.runs / timed.seconds), case.runs))
        count *= 8  # what it does once still outweighs its runs


def _cores() -> int:
    """Return how many cores every contestant may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


__all__ = ["PEERS", "cases", "chosen", "load", "measure", "table"]
