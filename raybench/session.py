"""Carry out a suite: what is missing is executed and stored; tuned suites go on to confirm.

Nothing here trains: an executor does, and this keeps account of it.
"""

from __future__ import annotations

import datetime as dt
import io
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from ruamel.yaml import YAML

from raybench import history, usercode
from raybench.compaction import Compactor
from raybench.errors import NothingMatched, RefusedError
from raybench.plan import Batch, batches, distinct, to_do
from raybench.schema import runs_table
from raybench.spec import digest
from raybench.store import SuiteStore
from raybench.suite import Planned, Suite
from raybench.suite.sections import Select
from raybench.work import Progress, identity, versions

FAILED: Final = "failed"


class Executor(Protocol):
    """What carries out batches: in this process, or on Ray."""

    slots: int

    def run(
        self,
        batches: Sequence[Batch],
        store: SuiteStore,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Carry out the batches and report as their runs are stored."""
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


@dataclass
class Outcome:
    """What became of a suite.

    Attributes:
        total: runs of the suite, confirmations included as far as they are known.
        executed: runs that this call carried out.
        statuses: of all runs of the suite, from the store.
        lost_arms: arms of a tuned suite in which every trial diverged or failed.
    """

    total: int
    executed: int
    statuses: Counter[str]
    lost_arms: list[str] = field(default_factory=list)


@dataclass
class Session:
    """One suite, one store, one way to execute.

    Args:
        suite: what to run.
        root: the store's folder.
        make_executor: called once there is something to execute, and only then.
        watcher: told what happens.
        only: run ids to be run again, whatever their status; None for all that is missing.
        only_failed: of what is missing, only the runs that failed before.
    """

    suite: Suite
    root: Path
    make_executor: Callable[[], Executor]
    watcher: Watcher
    only: frozenset[str] | None = None
    only_failed: bool = False

    def run(self) -> Outcome:
        """Do what is missing and return what became of the suite.

        Raises:
            RefusedError: the suite is past its limit of runs.
            NothingMatched: `only` or `only_failed` leave nothing to run.
        """
        suite = self.suite
        refuse_past_runs(suite)
        if self.only is not None and not suite.tune:
            known = {planned.run.run_id for planned in distinct(suite.runs)}
            if not known & self.only:
                raise NothingMatched(
                    f"{suite.name} has no such run; give the scale and overrides it was run with"
                )
        store = SuiteStore(self.root, suite.name)
        store.write_suite(resolved(suite))
        self._plan(store, suite.runs)
        self._store_skipped(store)
        executor: list[Executor] = []
        try:
            executed = self._phase("search" if suite.tune else "run", suite.runs, store, executor)
            runs = list(suite.runs)
            lost: list[str] = []
            if suite.num_refinements:
                refined = suite.refinements(self._values(store, runs))
                runs += refined
                self._plan(store, runs)
                executed += self._phase("refine", refined, store, executor)
            if suite.num_confirmations:
                confirmed, lost = suite.confirmations(self._values(store, runs))
                runs += confirmed
                self._plan(store, runs)
                executed += self._phase("confirm", confirmed, store, executor)
        finally:
            for each in executor:
                each.close()
        if executed == 0 and (self.only is not None or self.only_failed):
            raise NothingMatched("no run matches: nothing failed before, or no such run id")
        statuses = store.statuses()
        counts = Counter(statuses.get(p.run.run_id, "missing") for p in distinct(runs))
        counts["skipped"] += sum(1 for p in runs if p.skipped)
        return Outcome(sum(counts.values()), executed, +counts, lost)

    def _values(self, store: SuiteStore, runs: Sequence[Planned]) -> dict[str, float]:
        """Return what each arm selects by, of those of its runs that have ended."""
        arms: dict[Select, set[str]] = {}
        for arm in self.suite.arms:
            arms.setdefault(arm.tune.select, set()).add(arm.name)
        values: dict[str, float] = {}
        for select, names in arms.items():
            column = select.metric.replace("/", ".") + (".best" if select.at == "best" else "")
            found = store.summaries(column)
            own = {p.run.run_id for p in runs if p.labels.get("arm") in names}
            values |= {run_id: found[run_id] for run_id in own & found.keys()}
        return values

    def _phase(
        self, name: str, runs: Sequence[Planned], store: SuiteStore, executor: list[Executor]
    ) -> int:
        statuses = store.statuses()
        missing = to_do(runs, statuses)
        if self.only is not None:
            missing = [p for p in distinct(runs) if p.run.run_id in self.only]
        elif self.only_failed:
            missing = [p for p in missing if statuses.get(p.run.run_id) == FAILED]
        finished = len(distinct(runs)) - len(to_do(runs, statuses))
        self.watcher.begin(name, len(distinct(runs)), finished, len(missing))
        if not missing:
            return 0
        for procedure in {id(p.run.procedure): p.run.procedure for p in missing}.values():
            procedure.require()
        if not executor:
            executor.append(self.make_executor())
        known = history.seconds(self.root, self.suite.name, self.suite.scale, runs)
        made = batches(
            missing,
            suite=self.suite.name,
            scale=self.suite.scale,
            resources=self.suite.resources,
            slots=executor[0].slots,
            fresh=self.only is not None,
            known=known,
        )
        orphans = self._execute(made, store, executor[0], last=False)
        if orphans:
            # A process died under these runs, and one of them may have killed it: each goes on by
            # itself, so that only the one at fault fails.
            alone = batches(
                orphans,
                suite=self.suite.name,
                scale=self.suite.scale,
                resources=self.suite.resources.replace(batch=1),
                slots=executor[0].slots,
                known=known,
            )
            self._execute(alone, store, executor[0], last=True)
        return len(missing)

    def _execute(
        self, made: Sequence[Batch], store: SuiteStore, executor: Executor, *, last: bool
    ) -> list[Planned]:
        """Carry out batches; return the runs that died with others, unless this is the last try."""
        by_id = {batch.batch_id: batch for batch in made}
        orphans: list[Planned] = []
        expected = sum(batch.seconds * len(batch.runs) for batch in made)
        behind = 0.0

        def on_progress(progress: Progress) -> None:
            nonlocal behind
            batch = by_id[progress.batch_id]
            behind += batch.seconds * progress.statuses.total()
            progress.share = behind / expected
            if progress.finished:
                lost = self._lost(batch, store)
                compactor.add(batch.batch_id)
                if lost and not last and len(batch.runs) > 1:
                    orphans.extend(lost)
                    progress.reasons.clear()
                elif lost:
                    self._store_lost(batch, lost, progress, store)
            self.watcher.update(progress)

        with Compactor(store) as compactor:
            executor.run(made, store, on_progress)
        return orphans

    def _lost(self, batch: Batch, store: SuiteStore) -> list[Planned]:
        """Return the runs that a finished batch has left without a row."""
        have = store.run_ids(batch.batch_id)
        return [p for p in batch.runs if p.run.run_id not in have]

    def _store_lost(
        self, batch: Batch, lost: Sequence[Planned], progress: Progress, store: SuiteStore
    ) -> None:
        reason = next(iter(progress.reasons), "the batch ended without this run")
        rows = [self._row(p, FAILED, reason, batch.batch_id) for p in lost]
        store.write_part(f"lost-{batch.batch_id}", runs_table(rows))
        progress.statuses[FAILED] += len(lost)
        progress.reasons[reason] += len(lost) - progress.reasons[reason]

    def _store_skipped(self, store: SuiteStore) -> None:
        # A run that was carried out before it was skipped keeps its row.
        statuses = store.statuses()
        skipped = [p for p in self.suite.runs if p.skipped and p.run.run_id not in statuses]
        if skipped:
            rows = [self._row(p, "skipped", p.skipped, "") for p in skipped]
            store.write_part(f"skipped-{digest([p.run.run_id for p in skipped])}", runs_table(rows))

    def _row(self, planned: Planned, status: str, reason: str, batch_id: str) -> dict[str, Any]:
        return {
            **identity(planned),
            "suite": self.suite.name,
            "scale": self.suite.scale,
            "status": status,
            "reason": reason,
            "batch_id": batch_id,
            "started_at": dt.datetime.now(dt.UTC),
        }

    def _plan(self, store: SuiteStore, runs: Sequence[Planned]) -> None:
        rows = [
            {
                "run_id": planned.run.run_id,
                "skipped": planned.skipped,
                **{f"label.{name}": value for name, value in planned.labels.items()},
            }
            for planned in runs
        ]
        store.write_plan(self.suite.scale, rows)


def refuse_past_runs(suite: Suite) -> None:
    """Raise RefusedError if a suite has more runs than its limits allow."""
    count = len(distinct(suite.runs)) + suite.num_refinements + suite.num_confirmations
    most = suite.limits.runs
    if most is not None and count > most:
        raise RefusedError(
            f"{suite.name} has {count:,} runs and limits.runs is {most:,}; "
            "raise the limit or make the sweep smaller"
        )


def resolved(suite: Suite) -> str:
    """Return the suite at its scale as YAML, with versions, commit and hardware."""
    document = {
        **{key: value for key, value in suite.document.items() if key != "overrides"},
        "scale": suite.scale,
        "file": suite.source.label.rpartition("/")[2],
        "overrides": dict(suite.overrides),
        "code": [f"{stem}.py" for stem in usercode.allowed()],
        "environment": environment(),
    }
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(document, text)
    return text.getvalue()


def environment() -> dict[str, str]:
    """Return what a suite ran on: versions, git commit, machine. Nothing secret, no paths."""
    return {
        "versions": versions(),
        "git": _git(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "written_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def _git() -> str:
    here = Path(__file__).parent

    def ask(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=False, timeout=10
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        tracked = ask("ls-files", "--error-unmatch", "session.py")
        commit = ask("rev-parse", "--short=12", "HEAD") if tracked else ""
        return commit + (" with changes" if commit and ask("status", "--porcelain") else "")
    except (OSError, subprocess.TimeoutExpired):
        return ""
