"""What a suite will cost: from runs that are finished, and from a few measured steps."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from raybench import cost, sizing
from raybench.plan import Batch, batches
from raybench.suite import Planned, Resources
from raybench.work import reason

_PROBE_SECONDS: Final = 2.0  # measuring more shapes than fit in this is left out
_PROBE_LANES: Final = 16
COUNTED_SHARE: Final = 0.5
"""Of the speed of large matrix products, what training is taken to reach. Measured on one core, in
batches of 128 rows: 0.5 for ResNet18-8 and CNN5-8, and over 1 for width 64, where convolutions
take fewer operations than are counted."""
_BYTES_PER_RUN: Final = 900.0  # of a row of `runs` in a part of 100, zstd (measured)
_BYTES_PER_PART: Final = 25_000.0  # whatever is in it: names and types of its columns
_MOST_PARTS: Final = 64  # more are merged
_BYTES_PER_NUMBER: Final = 6.0  # of a row of `metrics`
_NUMBERS_PER_RECORDING: Final = 4


@dataclass(frozen=True)
class Estimate:
    """What is expected of the runs that are still to do.

    Attributes:
        seconds: of one core or GPU, all runs together.
        wall_seconds: on the slots at hand.
        gpu_hours: GPU time that is held.
        disk_bytes: of the new rows.
        measured: batch keys whose time is known from finished runs or measured steps.
        keys: batch keys in all; the time of the others follows from theirs, see `cost`.
        lanes: how the runs of a batch were fused when they were measured.
        problem: why some runs could not be measured; times are nan if none could.
        counted: runs whose data are not at hand: their time is that of their operations, counted
            from shapes, at `COUNTED_SHARE` of the speed of matrix products here.
        unknown: those whose operations are not known either; they are in none of the times.
        on_gpu: whether it was measured on a GPU.
        per_key: seconds of a run by batch key, as far as its data are at hand.
        bytes_per_run: of results.
    """

    seconds: float
    wall_seconds: float
    gpu_hours: float
    disk_bytes: float
    measured: int
    keys: int
    lanes: int
    problem: str = ""
    counted: int = 0
    unknown: int = 0
    on_gpu: bool = False
    per_key: Mapping[str, float] = field(default_factory=dict)
    bytes_per_run: float = 0.0


def estimate(
    todo: Sequence[Planned],
    *,
    finished_seconds: Mapping[str, float],
    resources: Resources,
    slots: int,
    extra_runs: int = 0,
) -> Estimate:
    """Return what the runs in `todo` will cost.

    Args:
        todo: the runs.
        finished_seconds: mean seconds of finished runs by batch key: these need no measuring.
        resources: what a batch takes.
        slots: batches that run at the same time.
        extra_runs: runs that will follow but are not known yet (confirmations).
    """
    if not todo and not extra_runs:
        return Estimate(0, 0, 0, 0, 0, 0, 0)
    groups: dict[str, list[Planned]] = defaultdict(list)
    for planned in todo:
        groups[planned.run.batch_key].append(planned)
    known = {key: finished_seconds[key] for key in groups if key in finished_seconds}
    made = batches(todo, suite="", scale="", resources=resources, slots=slots)
    largest: dict[str, int] = {}
    for batch in made:
        key = batch.runs[0].run.batch_key
        largest[key] = max(largest.get(key, 0), len(batch.runs))
    absent = {
        key: missing
        for key, members in groups.items()
        if key not in known and (missing := members[0].run.procedure.missing())
    }
    at_hand = {key: members for key, members in groups.items() if key not in absent}
    lanes, recordings, problem = _measure(at_hand, known, resources, largest)
    if known:
        per_key = cost.seconds({key: of[0].run.procedure for key, of in at_hand.items()}, known)
    else:
        per_key = dict.fromkeys(at_hand, math.nan)
    per_key |= _counted({key: groups[key][0] for key in absent}, resources)
    seconds = sum(per_key[key] * len(groups[key]) for key in per_key)
    counted = sum(len(groups[key]) for key in absent if key in per_key)
    unknown = sum(len(groups[key]) for key in absent if key not in per_key)
    runs = len(todo) + extra_runs
    if unknown == len(todo):
        seconds = math.nan
    else:
        # What follows the search is like what is searched.
        seconds *= runs / len(todo)
        unknown, counted = (round(some * runs / len(todo)) for some in (unknown, counted))
    each = _BYTES_PER_RUN + _BYTES_PER_NUMBER * _NUMBERS_PER_RECORDING * recordings
    each += _BYTES_PER_PART * min(len(made), _MOST_PARTS) / runs
    return Estimate(
        seconds=seconds,
        wall_seconds=seconds / max(1, min(slots, runs)),
        gpu_hours=seconds * resources.gpu / 3600,
        disk_bytes=runs * each,
        measured=len(known),
        keys=len(groups),
        lanes=lanes,
        problem=problem or next(iter(absent.values()), ""),
        counted=counted,
        unknown=unknown,
        on_gpu=bool(todo) and sizing.device_for(_alone(todo[0], resources)).type == "cuda",
        per_key=per_key,
        bytes_per_run=each,
    )


def _measure(
    groups: Mapping[str, Sequence[Planned]],
    known: dict[str, float],
    resources: Resources,
    largest: Mapping[str, int],
) -> tuple[int, int, str]:
    """Add measured seconds per run to `known`; return lanes, recordings of a run, and a problem.

    Keys are taken from both ends inward, so that the smallest and the largest are among them.
    """
    began = time.monotonic()
    torch.set_num_threads(max(1, int(resources.cpu)))  # as the workers will have it
    lanes, recordings, problem = 1, 1, ""
    for key in _spread([key for key in groups if key not in known]):
        members = groups[key]
        asked = resources.lanes if isinstance(resources.lanes, int) else _PROBE_LANES
        width = min(largest[key], asked)
        device = sizing.device_for(_alone(members[0], resources))
        try:
            clock = sizing.timed(members[:width], device)
        except Exception as error:  # noqa: BLE001  (running it will say more; this only estimates)
            problem = problem or reason(error)
        else:
            known[key] = clock.seconds() / width
            lanes, recordings = max(lanes, width), max(recordings, clock.recordings)
        if time.monotonic() - began > _PROBE_SECONDS:
            break
    return lanes, recordings, problem


def _counted(absent: Mapping[str, Planned], resources: Resources) -> dict[str, float]:
    """Return the seconds of a run by batch key, for keys whose operations can be counted."""
    operations = {key: cost.operations(each.run.procedure) for key, each in absent.items()}
    known = {key: count for key, count in operations.items() if count is not None}
    if not known:
        return {}
    device = sizing.device_for(_alone(next(iter(absent.values())), resources))
    speed = COUNTED_SHARE * sizing.product_speed(device)
    return {key: count / speed for key, count in known.items()}


def _alone(planned: Planned, resources: Resources) -> Batch:
    return Batch("", "", "", (planned,), resources)


def _spread(keys: Sequence[str]) -> list[str]:
    """Return the keys with the first and the last one first, then halfway points."""
    order: list[int] = []
    spans = [(0, len(keys) - 1)]
    if keys:
        order += [0, len(keys) - 1]
    while spans:
        low, high = spans.pop(0)
        middle = (low + high) // 2
        if high - low > 1:
            order.append(middle)
            spans += [(low, middle), (middle, high)]
    return [keys[index] for index in dict.fromkeys(order)]
