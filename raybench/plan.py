"""From runs to batches: what is finished is left out, what may run together is put together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, TypeVar

from raybench import cost
from raybench.procedures import PROCEDURES, Procedure
from raybench.rng import Seed
from raybench.spec import Json, Run, digest, plain_config
from raybench.store import FINISHED, QUARANTINED
from raybench.suite import Checkpoint, Planned, Resources
from raybench.tables import build
from raybench.usercode import allowed, receive

T = TypeVar("T")

MAX_BATCH: Final = 256
PIECES: Final = 8
"""In how many a group goes on in which one run may hang or end its process: two more tries find it
among 64, where halves would take six."""
_BATCHES_PER_SLOT: Final = 8  # enough that the last batches of all slots end close together
_TAIL_PIECES: Final = 4  # into which the last batch of each slot is cut
_WORTH_SECONDS: Final = 2.0  # of a piece: smaller ones would cost more than an idle slot


@dataclass(frozen=True)
class Batch:
    """Runs with one batch key that are scheduled, stored and retried together.

    Attributes:
        resources: what the batch takes; `lanes` says how its runs are fused.
        suspect: whether one of the runs may end its process.
        session: whose journal tells which runs are in flight; empty for none.
        wall_s: how long a group may take, in seconds; None for as long as it likes.
        seconds: what one of its runs is expected to take.
        alike: runs with its batch key that one slot is expected to carry out, in all batches.
        checkpoint: when runs under way are stored; None for never.
    """

    batch_id: str
    suite: str
    scale: str
    runs: tuple[Planned, ...]
    resources: Resources
    suspect: bool = False
    session: str = ""
    wall_s: float | None = None
    seconds: float = field(default=0.0, compare=False)
    alike: float = field(default=0.0, compare=False)
    checkpoint: Checkpoint | None = None

    def encode(self) -> str:
        """Return the batch as JSON: what crosses to a worker instead of pickled code."""
        return json.dumps(
            {
                "batch_id": self.batch_id,
                "suite": self.suite,
                "scale": self.scale,
                "suspect": self.suspect,
                "session": self.session,
                "wall_s": self.wall_s,
                "alike": self.alike,
                "checkpoint": self.checkpoint and self.checkpoint.model_dump(mode="json"),
                "code": allowed(),
                "resources": self.resources.model_dump(),
                "runs": [
                    {
                        "id": planned.run.run_id,
                        "procedure": plain_config(planned.run.procedure),
                        "seed": [*planned.run.seed],
                        "labels": dict(planned.labels),
                    }
                    for planned in self.runs
                ],
            }
        )


@dataclass(frozen=True)
class Climb:
    """A trial that climbs the rungs of asynchronous halving as long as its bracket lets it.

    Attributes:
        bracket: the trials that it is compared with have the same.
        eta: the reduction factor.
        column: of the summary, by which rungs are compared.
        sign: 1 where lower is better, else -1.
        rungs: the trial's runs of each rung.
        scores: of rungs that are finished, lower is better; None for the others.
    """

    bracket: str
    eta: int
    column: str
    sign: float
    rungs: tuple[Batch, ...]
    scores: tuple[float | None, ...]


def decode(text: str) -> Batch:
    """Return the batch that `encode` wrote.

    Raises:
        RuntimeError: this process would give a run another id: it has another version of
            raybench, or of a component, than the driver.
    """
    form = json.loads(text)
    receive(form["code"])
    built: dict[str, Procedure] = {}
    runs = tuple(_decode_run(item, built) for item in form["runs"])
    return Batch(
        form["batch_id"],
        form["suite"],
        form["scale"],
        runs,
        Resources.model_validate(form["resources"]),
        form["suspect"],
        form["session"],
        form["wall_s"],
        alike=form["alike"],
        checkpoint=form["checkpoint"] and Checkpoint.model_validate(form["checkpoint"]),
    )


def _decode_run(item: Mapping[str, Any], built: dict[str, Procedure]) -> Planned:
    # Runs that differ in their seeds only share a procedure.
    form = json.dumps(item["procedure"])
    if form not in built:
        problems: list[Any] = []
        procedure = build(PROCEDURES, item["procedure"], (), problems, shared=False)
        if not isinstance(procedure, Procedure):
            raise RuntimeError(f"run {item['id']} cannot be built here: {problems}")
        built[form] = procedure
    value, base, fixed = item["seed"]
    run = Run(built[form], Seed(value, base, tuple(fixed)))
    if run.run_id != item["id"]:
        raise RuntimeError(
            f"run {item['id']} would be {run.run_id} here: the worker has other versions of "
            "raybench or its components than the driver"
        )
    return Planned(run, item["labels"])


def distinct(runs: Iterable[Planned]) -> list[Planned]:
    """Return each run once, though a suite may name it twice; skipped ones are left out."""
    found: dict[str, Planned] = {}
    for planned in runs:
        if not planned.skipped:
            found.setdefault(planned.run.run_id, planned)
    return list(found.values())


def to_do(runs: Iterable[Planned], statuses: Mapping[str, str]) -> list[Planned]:
    """Return the distinct runs that are not finished; failed ones run again, quarantined do not."""
    ended = (*FINISHED, QUARANTINED)
    return [p for p in distinct(runs) if statuses.get(p.run.run_id) not in ended]


def batches(
    runs: Sequence[Planned],
    *,
    suite: str,
    scale: str,
    resources: Resources,
    slots: int,
    known: Mapping[str, float] | None = None,
) -> list[Batch]:
    """Return the batches that hold `runs`, those that take longest first.

    So a long batch does not begin when all others have ended; and the last ones are small. With
    one slot nobody waits for anybody, and the order is that of the first runs.

    Args:
        runs: what is to be done.
        suite: the suite's name.
        scale: the scale's name.
        resources: `batch` fixes the number of runs in a batch; `auto` balances `slots`.
        slots: batches that can run at the same time.
        known: measured seconds of a run by batch key.
    """
    groups: dict[tuple[str, str], list[Planned]] = {}
    for planned in runs:
        groups.setdefault(_kind(planned), []).append(planned)
    each = cost.seconds(
        {k: group[0].run.procedure for (k, _), group in groups.items()}, known or {}
    )
    share = sum(each[k] * len(group) for (k, _), group in groups.items())
    share /= max(slots, 1) * _BATCHES_PER_SLOT
    found: list[tuple[float, Sequence[Planned]]] = []
    for (key, _), members in groups.items():
        most = _most(members[0].resources or resources, share / each[key])
        if _shared(members, resources):  # each batch starts its ranks anew
            takes = members[0].resources or resources
            at_once = max(1, int(slots / (takes.ranks * takes.cpu)))
            most = max(most, math.ceil(len(members) / at_once))
        count = math.ceil(len(members) / most)
        found += [(each[key], part) for part in pieces(members, count)]
    if slots > 1:
        found.sort(key=_length, reverse=True)
        if resources.batch == "auto":
            found = _tapered(found, slots, resources)
    made = []
    for seconds, part in found:
        ids: Json = [planned.run.run_id for planned in part]
        name = digest(ids)
        takes = part[0].resources or resources
        alike = max(len(groups[_kind(part[0])]) / max(slots, 1), len(part))
        made.append(Batch(name, suite, scale, tuple(part), takes, seconds=seconds, alike=alike))
    return made


def _kind(planned: Planned) -> tuple[str, str]:
    own = planned.resources.model_dump_json() if planned.resources else ""
    return planned.run.batch_key, own


def pieces(runs: Sequence[T], count: int) -> list[Sequence[T]]:
    """Return `count` pieces of nearly equal size, in order; fewer if there are fewer runs."""
    bounds = [len(runs) * index // count for index in range(count + 1)]
    return [runs[start:end] for start, end in pairwise(bounds) if start < end]


def _most(resources: Resources, share: float) -> int:
    """Return how many runs a batch holds at most, where so many would be a slot's fair share."""
    if isinstance(resources.batch, int):
        return resources.batch
    most = max(1, min(math.ceil(share - 1e-9), MAX_BATCH))
    if isinstance(resources.lanes, int):
        most = max(most, min(resources.lanes, MAX_BATCH))
    return most


def _shared(members: Sequence[Planned], resources: Resources) -> bool:
    """Return whether several ranks share each of the runs, in batches of no given size."""
    own = members[0].resources or resources
    return own.ranks > 1 and own.batch == "auto"


def _length(item: tuple[float, Sequence[Planned]]) -> float:
    return item[0] * len(item[1])


def _tapered(
    found: Sequence[tuple[float, Sequence[Planned]]], slots: int, resources: Resources
) -> list[tuple[float, Sequence[Planned]]]:
    """Return the batches with the last of each slot cut in pieces, as far as that is worth it."""
    whole, last = list(found[:-slots]), found[-slots:]
    for seconds, members in last:
        lanes = (members[0].resources or resources).lanes
        fewest = lanes if isinstance(lanes, int) else 1
        count = (
            1
            if _shared(members, resources)
            else min(
                _TAIL_PIECES,
                int(seconds * len(members) / _WORTH_SECONDS),
                len(members) // fewest,
            )
        )
        whole += [(seconds, part) for part in pieces(members, max(count, 1))]
    return sorted(whole, key=_length, reverse=True)
