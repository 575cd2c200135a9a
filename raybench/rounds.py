"""Carry out runs until each of them has a row, whatever becomes of the processes they train in.

A batch whose process dies comes back unfinished. Its runs that were not in flight go on in ordinary
batches of the next round; those that were go on in pieces, until the run that ends its process is
alone, and is put in quarantine: a failed row that only `--lf` tries again.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from raybench.causes import cause
from raybench.checkpoints import forget
from raybench.compaction import Compactor
from raybench.errors import UnavailableError
from raybench.journal import Death, Journals
from raybench.plan import PIECES, Batch, batches, pieces
from raybench.progress import Progress
from raybench.schema import runs_table
from raybench.spec import digest
from raybench.store import QUARANTINED, SuiteStore
from raybench.suite import Planned, Suite
from raybench.suite.sections import Limits
from raybench.work import identity

FAILED: Final = "failed"
_DIED: Final = "the process died (killed, or out of memory)"
_FEWEST: Final = 10  # failures before a share of the runs says anything


class Executor(Protocol):
    """What carries out batches: in this process, or on Ray."""

    slots: int

    def run(
        self,
        batches: Sequence[Batch],
        store: SuiteStore,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Carry out the batches and report as their runs are stored.

        What `on_progress` raises ends it, and is raised.
        """
        ...

    def close(self) -> None:
        """Let go of what the executor holds."""
        ...


class Watcher(Protocol):
    """What shows the progress of a suite."""

    def begin(self, phase: str, total: int, finished: int, to_do: int) -> None:
        """A phase of `total` runs begins: `finished` are stored, `to_do` are carried out now."""
        ...

    def update(self, progress: Progress) -> None:
        """Some runs have been stored."""
        ...


class TooManyFailures(Exception):  # noqa: N818  (reads as the reason it is)
    """One cause has failed more runs than `limits.failures` allows.

    Attributes:
        cause: what they share.
        count: how many they are.
    """

    def __init__(self, cause: str, count: int) -> None:
        super().__init__(cause)
        self.cause = cause
        self.count = count


def most_failures(limits: Limits, count: int) -> float:
    """Return how many of `count` runs may fail by one cause."""
    if limits.failures is None:
        return float("inf")
    share = limits.failures < 1
    return max(limits.failures * count, _FEWEST) if share else limits.failures


@dataclass
class Narrowed:
    """What is known of runs under which processes have died.

    Attributes:
        clear: runs that were not in flight.
        suspects: pieces of groups that were.
        guilty: runs that ended their process as often as they may, with how it ended.
    """

    clear: list[Planned] = field(default_factory=list)
    suspects: list[Sequence[Planned]] = field(default_factory=list)
    guilty: list[tuple[Planned, Sequence[Death]]] = field(default_factory=list)


def narrowed(
    waiting: Sequence[Planned],
    deaths: Sequence[Death],
    retries: int,
    held: Collection[str] = (),
) -> Narrowed:
    """Return how to go on with runs after some deaths.

    What counts for a run is the smallest group that it was in flight with. Of those, one run alone
    is tried `retries` times more, or not at all if it ran past its wall limit. Those of `held`
    are suspects from the beginning.
    """
    found = Narrowed()
    groups: dict[str, list[Planned]] = {}
    own: dict[str, list[Death]] = {}
    for death in deaths:
        for run_id in death.run_ids:
            own.setdefault(run_id, []).append(death)
    smallest = {name: min(those, key=lambda d: len(d.run_ids)) for name, those in own.items()}
    for planned in waiting:
        if planned.run.run_id in smallest:
            groups.setdefault(smallest[planned.run.run_id].name, []).append(planned)
        elif planned.run.run_id in held:
            found.suspects.append([planned])
        else:
            found.clear.append(planned)
    for members in groups.values():
        run_id = members[0].run.run_id
        size = len(smallest[run_id].run_ids)
        alone = [death for death in own[run_id] if len(death.run_ids) == 1]
        if len(alone) > retries or any(death.slow for death in alone):
            found.guilty.append((members[0], alone))
        else:
            # Pieces of what died, not of what is left of it: they get smaller each time.
            most = math.ceil(size / PIECES)
            found.suspects += pieces(members, math.ceil(len(members) / most))
    return found


@dataclass
class Rounds:
    """Carries out the runs of a phase.

    Args:
        suite: whose runs they are.
        store: where results go.
        executor: what carries out batches.
        watcher: told what happens.
        journals: of this session.
        fresh: whether runs are carried out though they are stored.
        known: seconds of a run by batch key, as far as they are known.
    """

    suite: Suite
    store: SuiteStore
    executor: Executor
    watcher: Watcher
    journals: Journals
    fresh: bool = False
    known: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._losses: Counter[str] = Counter()  # of a run: deaths that no run was in flight at
        self._endings: dict[str, str] = {}  # of a batch: how it broke, as the executor saw it
        self._failures: Counter[str] = Counter()
        self._round_number = 0

    def carry_out(self, missing: Sequence[Planned]) -> None:
        """Carry out runs until each has a row.

        Raises:
            TooManyFailures: one cause is past the suite's limit.
            UnavailableError: the store takes no more rows.
        """
        self._most = most_failures(self.suite.limits, len(missing))
        held = self.store.quarantined()
        waiting: Sequence[Planned] = missing
        if self.fresh:
            self._forget(missing)
        while waiting:
            if waiting is not missing:
                self.watcher.begin("retried", len(waiting), 0, len(waiting))
            retries = self.suite.resources.retries
            state = narrowed(waiting, self.journals.deaths(), retries, held)
            self._fail([self._verdict(*each) for each in state.guilty])
            waiting = self._round(state)
        self._forget(missing)

    def _forget(self, runs: Sequence[Planned]) -> None:
        """Remove the checkpoints of runs that begin anew, or that have a row."""
        if self.suite.checkpoint:
            ids = [planned.run.run_id for planned in runs]
            forget(self.store.checkpoints, ids, self.store.storage)

    def _round(self, state: Narrowed) -> list[Planned]:
        """Carry out batches once; return the runs that are to be tried again."""
        self._round_number += 1
        made = self._batches(state.clear)
        for group in state.suspects:
            made += [replace(batch, suspect=True) for batch in self._batches(self._as_one(group))]
        by_id = {batch.batch_id: batch for batch in made}
        known = {death.name for death in self.journals.deaths()}
        broken = {batch.batch_id: "the batch ended without an account" for batch in made}
        expected = sum(batch.seconds * len(batch.runs) for batch in made)
        behind = 0.0
        excused: set[str] = set()

        def on_progress(progress: Progress) -> None:
            nonlocal behind
            behind += by_id[progress.batch_id].seconds * progress.statuses.total()
            progress.share = behind / expected
            if self._only_waits(progress, known):
                return
            if progress.excused:
                excused.add(progress.batch_id)
            if progress.finished:
                del broken[progress.batch_id]
                if not progress.broken:  # of what has broken, a process may yet write the part anew
                    compactor.add(progress.batch_id)
            if progress.broken:
                broken[progress.batch_id] = progress.broken
                self._tell(progress)
            else:
                self.watcher.update(progress)
            self._tally(progress.reasons)

        with Compactor(self.store) as compactor:
            self.executor.run(made, self.store, on_progress)
        self._endings |= broken
        self.journals.forgive(excused, known)
        new = [death for death in self.journals.deaths() if death.name not in known]
        explained = {death.batch_id for death in new} | excused
        again: list[Planned] = []
        given_up: list[dict[str, Any]] = []
        for batch_id, why in broken.items():
            lost = self._without_row(by_id[batch_id])
            if batch_id not in explained:
                self._losses.update(planned.run.run_id for planned in lost)
            for planned in lost:
                if self._losses[planned.run.run_id] > self.suite.resources.retries:
                    given_up.append(self._row(planned, why, batch_id))
                else:
                    again.append(planned)
        self._fail(given_up)
        return again

    def _only_waits(self, progress: Progress, known: Collection[str]) -> bool:
        """Pass on that a batch waits for a node, or begins again since its own was lost.

        Raises:
            UnavailableError: the store took no rows.
        """
        if progress.unstored:
            raise UnavailableError(progress.unstored)
        self.journals.tell(progress.waiting)
        if progress.waiting:
            self.watcher.update(progress)
        begins_again = progress.excused and not progress.finished
        if begins_again:
            self.journals.forgive([progress.batch_id], known)
            self._tell(progress)
        return begins_again or bool(progress.waiting)

    def _tell(self, broken: Progress) -> None:
        """Pass on how a batch broke, which is not a failure of its runs yet."""
        reasons = Counter([broken.broken])
        told = Progress(broken.batch_id, reasons=reasons, finished=True, share=broken.share)
        self.watcher.update(told)

    def _batches(self, runs: Sequence[Planned]) -> list[Batch]:
        made = batches(
            runs,
            suite=self.suite.name,
            scale=self.suite.scale,
            resources=self.suite.resources,
            slots=self.executor.slots,
            known=self.known,
        )
        shared: dict[str, Any] = {
            "session": self.journals.session,
            "wall_s": self.suite.limits.wall_s,
            "checkpoint": self.suite.checkpoint,
        }
        return [replace(batch, batch_id=self._own(batch.batch_id), **shared) for batch in made]

    def _own(self, batch_id: str) -> str:
        """Return an id that a batch has in this round of this session only.

        A process that was given up, or whose driver died, may only be out of reach, and store what
        it computes later: it must not replace what another has stored since.
        """
        return digest([batch_id, self.journals.session, self._round_number])

    def _as_one(self, group: Sequence[Planned]) -> list[Planned]:
        """Return runs that go into one batch."""
        own = (group[0].resources or self.suite.resources).replace(batch=len(group))
        return [replace(planned, resources=own) for planned in group]

    def _without_row(self, batch: Batch) -> list[Planned]:
        """Return the runs of a broken batch that have no row."""
        part = self.store.read_part(batch.batch_id)
        have = set() if part is None else set(part["runs"]["run_id"].to_pylist())
        return [planned for planned in batch.runs if planned.run.run_id not in have]

    def _verdict(self, planned: Planned, deaths: Sequence[Death]) -> dict[str, Any]:
        last = deaths[-1]
        why = last.reason or self._endings.get(last.batch_id, _DIED)
        if not last.slow:
            tries = f"{len(deaths)} {'try' if len(deaths) == 1 else 'tries'}"
            why = f"{QUARANTINED} after {tries}: {why}"
        return self._row(planned, why, last.batch_id, last.log)

    def _row(self, planned: Planned, reason: str, batch_id: str, log: str = "") -> dict[str, Any]:
        row = row_of(self.suite, planned, FAILED, reason)
        return {**row, "batch_id": batch_id, "log": log or None}

    def _fail(self, rows: Sequence[dict[str, Any]]) -> None:
        """Store the rows of runs that have failed without writing them."""
        if not rows:
            return
        part = f"lost-{digest([row['run_id'] for row in rows])}"
        self.store.write_part(part, runs_table(rows))
        reasons = Counter(row["reason"] for row in rows)
        self.watcher.update(Progress(part, Counter({FAILED: len(rows)}), reasons, finished=True))
        self._tally(reasons)

    def _tally(self, reasons: Counter[str]) -> None:
        for reason, count in reasons.items():
            shared = cause(reason)
            self._failures[shared] += count
            if self._failures[shared] > self._most:
                raise TooManyFailures(shared, self._failures[shared])


def row_of(suite: Suite, planned: Planned, status: str, reason: str) -> dict[str, Any]:
    """Return the row of a run that no worker has written."""
    return {
        **identity(planned),
        "suite": suite.name,
        "scale": suite.scale,
        "status": status,
        "reason": reason,
        "batch_id": "",
        "started_at": dt.datetime.now(dt.UTC),
    }
