"""From the blocks of contestants to rows: rates, ratios with intervals, overheads, memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from raybench.bench.contestants import ALONE, Timed
from raybench.bench.driver import Seen
from raybench.bench.peak import Peak
from raybench.bench.workloads import Case
from raybench.stats import Interval, mean_interval

WORDS: Final[Mapping[str, str]] = {
    "raybench": "raybench",
    "tune": "Ray Tune, a process a run",
    "tune_reuse": "Ray Tune, reused actors",
    "joblib": "joblib, a loop a core",
    "optuna": "Optuna, a loop a core",
    "raybench_alone": "raybench, one lane",
    "loop": "plain loop",
}
"""How contestants are called where they are shown."""


def base(name: str) -> str:
    """Return which raybench a contestant is compared with: the one that uses what it uses."""
    return "raybench_alone" if name in ALONE else "raybench"


def ratio(seen: Sequence[Timed], of: Sequence[Timed]) -> Interval:
    """Return how many times the seconds a run of `of` those of `seen` are.

    The geometric mean over pairs of blocks, which lie side by side in time and so met the same
    load, with Student's interval of the logarithms (95 %): wide with two blocks, none with one.
    """
    pairs = zip(seen, of, strict=True)
    logs = [math.log((a.seconds / a.runs) / (b.seconds / b.runs)) for a, b in pairs]
    found = mean_interval(logs, method="t")
    mean, low, high = (math.exp(end) for end in (found.mean, found.low, found.high))
    return Interval(mean, low, high, found.n, found.method)


def rows(
    case: Case,
    length: int,
    cores: int,
    blocks: Mapping[str, Sequence[Seen]],
    flops: float,
    peak: Peak,
) -> list[dict[str, Any]]:
    """Return a row for each contestant.

    Args:
        case: what was measured.
        length: steps of a run.
        cores: that contestants used which are not alone.
        blocks: by contestant, in pairs.
        flops: floating-point operations of a run.
        peak: of the machine.
    """
    loop = _milliseconds(blocks["loop"]) if "loop" in blocks else None
    found = []
    for name, seen in blocks.items():
        each = _milliseconds(seen)
        own = 1 if name in ALONE else cores
        versus = ratio([s.timed for s in seen], [s.timed for s in blocks[base(name)]])
        itself = base(name) == name
        row = {
            "workload": case.workload,
            "steps": length,
            "contestant": WORDS[name],
            "blocks": len(seen),
            "runs": seen[0].timed.runs,
            "ms a run": each,
            "runs/s": 1000 / each,
            "times raybench": None if itself else versus.mean,
            "low": None if itself else versus.low,
            "high": None if itself else versus.high,
            "overhead ms": _overhead(each, length, loop, own),
            "start s": _most(s.timed.start for s in seen),
            "driver MB": _megabytes(s.driver for s in seen),
            "workers MB": _megabytes(s.workers for s in seen),
            "store MB": _megabytes(s.timed.stored for s in seen),
            "peak %": 100 * flops * 1000 / each / (peak.one if own == 1 else peak.all),
            "diverged": sum(s.timed.diverged for s in seen) or None,
        }
        found.append(row)
    return found


def _milliseconds(seen: Sequence[Seen]) -> float:
    return 1000 * sum(s.timed.seconds for s in seen) / sum(s.timed.runs for s in seen)


def _overhead(each: float, length: int, loop: float | None, cores: int) -> float | None:
    """Return what a run takes beyond its plain loop, spread over the cores; all of it at 1 step."""
    if length == 1:
        return each
    return None if loop is None else each - loop / cores


def _most(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def _megabytes(values: Any) -> float | None:
    most = _most(values)
    return None if most is None else most / 1e6
