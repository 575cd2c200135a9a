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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from ruamel.yaml import YAML

from raybench import history, usercode
from raybench.climbs import climbs
from raybench.errors import NothingMatched, RefusedError, UnavailableError
from raybench.journal import Journals
from raybench.plan import Climb, distinct, to_do
from raybench.progress import Progress
from raybench.rounds import FAILED, Executor, Rounds, TooManyFailures, Watcher, row_of
from raybench.schema import runs_table
from raybench.spec import digest
from raybench.storage import Root, below
from raybench.store import QUARANTINED, SuiteStore
from raybench.suite import Planned, Suite
from raybench.suite.later import Later, Searcher
from raybench.suite.protocol import Arm
from raybench.suite.sections import Select
from raybench.work import versions


@runtime_checkable
class Climber(Protocol):
    """An executor that can let the trials of asynchronous halving overtake one another."""

    def climb(
        self,
        climbs: Sequence[Climb],
        store: SuiteStore,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Carry out the rungs of trials, each as far as its bracket lets it."""
        ...


@dataclass
class Outcome:
    """What became of a suite.

    Attributes:
        total: runs of the suite, confirmations included as far as they are known.
        executed: runs that this call carried out.
        statuses: of all runs of the suite, from the store.
        lost_arms: arms of a tuned suite in which every trial diverged or failed.
        quarantined: how many of the failed runs are not run again unless asked for.
    """

    total: int
    executed: int
    statuses: Counter[str]
    lost_arms: list[str] = field(default_factory=list)
    quarantined: int = 0


@dataclass
class Session:
    """One suite, one store, one way to execute.

    Args:
        suite: what to run.
        root: the store, a folder or a URL.
        make_executor: called once there is something to execute, or trials to choose by results.
        watcher: told what happens.
        only: run ids to be run again, whatever their status; None for all that is missing.
        only_failed: of what is missing, only the runs that failed before, quarantined ones too.
    """

    suite: Suite
    root: Root
    make_executor: Callable[[], Executor]
    watcher: Watcher
    only: frozenset[str] | None = None
    only_failed: bool = False
    _journals: Journals = field(init=False, repr=False)

    def run(self) -> Outcome:
        """Do what is missing and return what became of the suite.

        Raises:
            RefusedError: the suite is past its limit of runs.
            UnavailableError: the store takes no more rows; what it has is kept.
            NothingMatched: `only` or `only_failed` leave nothing to run.
            RefusedError: also once one cause has failed more runs than the suite's limit.
        """
        suite = self.suite
        refuse_past_runs(suite)
        if self.only is not None and not suite.tune:
            known = {planned.run.run_id for planned in distinct(suite.runs)}
            if not known & self.only:
                raise NothingMatched(
                    f"{suite.name} has no such run; give the scale and overrides it was run with"
                )
        if suite.num_suggestions:
            _require_searcher()
        store = SuiteStore(self.root, suite.name)
        store.write_suite(resolved(suite))
        self._plan(store, suite.runs)
        self._store_skipped(store)
        executor: list[Executor] = []
        self._journals = Journals(store.folder / "journal", store.storage)
        try:
            runs, executed, lost = self._phases(store, executor)
        except TooManyFailures as stop:
            raise RefusedError(stopped(suite, stop, store.statuses(), self.root)) from stop
        finally:
            for each in executor:
                each.close()
            self._journals.close()
        if executed == 0 and (self.only is not None or self.only_failed):
            raise NothingMatched("no run matches: nothing failed before, or no such run id")
        statuses = store.statuses()
        counts = Counter(statuses.get(p.run.run_id, "missing") for p in distinct(runs))
        counts["skipped"] += sum(1 for p in runs if p.skipped)
        held = store.quarantined() & {planned.run.run_id for planned in runs}
        return Outcome(sum(counts.values()), executed, +counts, lost, len(held))

    def _phases(
        self, store: SuiteStore, executor: list[Executor]
    ) -> tuple[list[Planned], int, list[str]]:
        """Carry out one phase after the other; return all runs, how many were done, lost arms."""
        suite = self.suite
        later = Later(suite, lambda arm: self._searcher(arm, executor))
        executed = self._climb(later, store, executor) if suite.tune else 0
        executed += self._phase("search" if suite.tune else "run", suite.runs, store, executor)
        runs = list(suite.runs)
        lost: list[str] = []
        seen = {planned.run.run_id for planned in runs}
        count = 0
        while True:
            more = later.search(self._values(store, [*runs, *later.within_reach]))
            new = [planned for planned in more if planned.run.run_id not in seen]
            if not new and len(more) <= count:
                break
            seen |= {planned.run.run_id for planned in new}
            count, runs = len(more), [*suite.runs, *more]
            self._plan(store, runs)
            phase = " and ".join(dict.fromkeys(str(p.labels["phase"]) for p in new))
            executed += self._phase(phase, new, store, executor) if new else 0
        if suite.num_confirmations:
            confirmed, lost = later.confirm(self._values(store, [*runs, *later.within_reach]))
            runs += confirmed
            self._plan(store, runs)
            executed += self._phase("confirm", confirmed, store, executor)
        return runs, executed, lost

    def _values(self, store: SuiteStore, runs: Sequence[Planned]) -> dict[str, float]:
        """Return what each arm selects by, of those of its runs that have ended."""
        arms: dict[Select, set[str]] = {}
        for arm in self.suite.arms:
            arms.setdefault(arm.tune.select, set()).add(arm.name)
        values: dict[str, float] = {}
        for select, names in arms.items():
            found = store.summaries(select.column)
            own = {p.run.run_id for p in runs if p.labels.get("arm") in names}
            values |= {run_id: found[run_id] for run_id in own & found.keys()}
        return values

    def _searcher(self, arm: Arm, executor: list[Executor]) -> Searcher:
        # The executor comes first: it says how Ray is set up, which is read when Ray is imported.
        self._prepare([], executor)
        from raybench.cluster.searcher import OptunaSearcher

        return OptunaSearcher(arm.space, arm.seed)

    def _climb(self, later: Later, store: SuiteStore, executor: list[Executor]) -> int:
        """Let trials of asynchronous halving climb, where the executor can; return runs done."""
        runs = later.within_reach
        if not runs or self.only is not None or self.only_failed:
            return 0
        waiting = climbs(self.suite, later, self._values(store, runs))
        if not waiting:
            return 0
        self._prepare(runs, executor)
        climber = executor[0]
        if not isinstance(climber, Climber):
            return 0
        self.watcher.begin("rung", len(runs), 0, len(runs))
        executed: Counter[str] = Counter()

        def on_progress(progress: Progress) -> None:
            if progress.unstored:
                raise UnavailableError(progress.unstored)
            executed.update(progress.statuses)
            self.watcher.update(progress)

        climber.climb(waiting, store, on_progress)
        return executed.total()

    def _prepare(self, runs: Sequence[Planned], executor: list[Executor]) -> None:
        """Ask for what the runs need, and make the executor if there is none yet."""
        for procedure in {id(p.run.procedure): p.run.procedure for p in runs}.values():
            procedure.require()
        if not executor:
            executor.append(self.make_executor())

    def _phase(
        self, name: str, runs: Sequence[Planned], store: SuiteStore, executor: list[Executor]
    ) -> int:
        statuses = store.statuses()
        missing = to_do(runs, statuses)
        if self.only is not None:
            missing = [p for p in distinct(runs) if p.run.run_id in self.only]
        elif self.only_failed:
            missing = [p for p in missing if statuses.get(p.run.run_id) == FAILED]
        else:
            held = dict.fromkeys(store.quarantined(), QUARANTINED)
            missing = to_do(runs, statuses | held)
        finished = len(distinct(runs)) - len(to_do(runs, statuses))
        self.watcher.begin(name, len(distinct(runs)), finished, len(missing))
        if not missing:
            return 0
        self._prepare(missing, executor)
        Rounds(
            self.suite,
            store,
            executor[0],
            self.watcher,
            self._journals,
            fresh=self.only is not None,
            known=history.seconds(self.root, self.suite.name, self.suite.scale, runs),
        ).carry_out(missing)
        return len(missing)

    def _store_skipped(self, store: SuiteStore) -> None:
        # A run that was carried out before it was skipped keeps its row.
        statuses = store.statuses()
        skipped = [p for p in self.suite.runs if p.skipped and p.run.run_id not in statuses]
        if skipped:
            rows = [row_of(self.suite, p, "skipped", p.skipped) for p in skipped]
            store.write_part(f"skipped-{digest([p.run.run_id for p in skipped])}", runs_table(rows))

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


def _require_searcher() -> None:
    from raybench.cluster.searcher import require

    require()


def refuse_past_runs(suite: Suite) -> None:
    """Raise RefusedError if a suite has more runs than its limits allow."""
    count = len(distinct(suite.runs)) + suite.num_later
    most = suite.limits.runs
    if most is not None and count > most:
        raise RefusedError(
            f"{suite.name} has {count:,} runs and limits.runs is {most:,}; "
            "raise the limit or make the sweep smaller"
        )


def stopped(suite: Suite, stop: TooManyFailures, statuses: Mapping[str, str], root: Root) -> str:
    """Return what is said of a suite that ended because its runs fail: why, and how to go on."""
    counts = Counter(statuses.get(p.run.run_id, "not run") for p in distinct(suite.runs))
    listed = ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items()))
    return (
        f"{suite.name} was stopped: {stop.count:,} runs failed by one cause, and limits.failures "
        f"is {suite.limits.failures:g}:\n  {stop.cause}\n"
        f"kept in {below(root, suite.name)}: {listed}; `raybench status {root}` names runs and "
        "causes.\n"
        "Once the cause is mended the same command goes on with what failed or was not run; "
        "limits.failures=null carries on whatever fails"
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
