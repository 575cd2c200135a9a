"""Work on one batch: groups of lanes are trained, stored, and accounted for.

The only place where exceptions become statuses: a run never raises out of its batch.
"""

from __future__ import annotations

import datetime as dt
import gc
import importlib.metadata
import json
import logging
import platform
import socket
import time
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import torch

from raybench import sizing
from raybench.checkpoints import Saves, begun
from raybench.deadline import WallLimit, deadline
from raybench.errors import RaybenchError
from raybench.journal import Journal, folder_of
from raybench.lanes import Lanes
from raybench.plan import PIECES, Batch, pieces
from raybench.procedures.base import DTYPES
from raybench.progress import Progress
from raybench.ranks import Ranks, RanksApart
from raybench.record import Account, Recorder, summary
from raybench.redact import redacted
from raybench.schema import arrays_table, joined, metrics_table, runs_table
from raybench.store import FINISHED, SuiteStore
from raybench.suite import Planned

FLUSH_SECONDS: Final = 1.0
"""Finished groups are stored at least this often: the most that an interruption can lose."""

_log = logging.getLogger(__name__)


@dataclass
class _Tables:
    """The rows of a batch so far, as tables that are written as its part."""

    runs: list[pa.Table]
    metrics: list[pa.Table]
    arrays: list[pa.Table]

    def write(self, store: SuiteStore, part: str) -> None:
        if not Ranks.current().first:
            return
        store.write_part(
            part,
            joined(self.runs),
            joined(self.metrics) if self.metrics else None,
            joined(self.arrays) if self.arrays else None,
        )


def run_batch(batch: Batch, store: SuiteStore, engine: str) -> Generator[Progress, None, None]:
    """Carry out the runs of a batch, and report each time that some have been stored.

    What an earlier attempt at the same batch has stored is kept and not run again.

    Args:
        batch: the runs.
        store: where the batch's part is written.
        engine: what executes it, for the table (`in-process`, `subprocess`, `ray`). Only a process
            that is not the driver's own is ended when a group hangs in it.

    Raises:
        UnavailableError: the store takes nothing any more; a resume does what it has no row of.
    """
    sizing.confine(batch)
    ranks = Ranks.current()
    kept = _finished(store.read_part(batch.batch_id) or {})
    tables = _Tables(
        *([kept[name]] if name in kept else [] for name in ("runs", "metrics", "arrays"))
    )
    have = set(ranks.agree(kept["runs"]["run_id"].to_pylist() if kept else []))
    waiting = [planned for planned in batch.runs if planned.run.run_id not in have]
    progress = Progress(batch.batch_id)
    flushed = time.monotonic()
    pending = False
    folder = folder_of(store.folder, batch.session) if ranks.first else None
    journal = Journal(folder, batch.batch_id, _ids(waiting), engine, batch.wall_s, store.storage)
    keeper = _Keeper(store, batch)
    try:
        while waiting:
            group = keeper.begun(waiting) or _next_group(batch, waiting, journal)
            taken = set(_ids(group))
            waiting = [planned for planned in waiting if planned.run.run_id not in taken]
            for rows in _run_group(batch, group, engine, journal, keeper):
                tables.runs.append(runs_table(rows.runs))
                tables.metrics.append(metrics_table(rows.metrics))
                if rows.arrays["run_id"]:
                    tables.arrays.append(arrays_table(rows.arrays))
                progress.statuses.update(row["status"] for row in rows.runs)
                progress.reasons.update(
                    row["reason"] for row in rows.runs if row["status"] == "failed"
                )
                progress.lanes = max(progress.lanes, len(rows.runs))
            journal.end()
            pending = True
            due: bool = ranks.agree(time.monotonic() - flushed >= FLUSH_SECONDS)
            if waiting and due:
                pending = False  # what the store refused for a minute is not tried again below
                tables.write(store, batch.batch_id)
                keeper.drop()
                flushed = time.monotonic()
                yield progress
                progress = Progress(batch.batch_id)
    except RanksApart:
        journal.leave()  # this rank cannot go on either: what was in flight has died
        raise
    finally:
        # Also on Ctrl-C: what has been computed is kept.
        try:
            if pending:
                tables.write(store, batch.batch_id)
                keeper.drop()
        finally:
            journal.close()
    progress.finished = True
    yield progress


def _next_group(batch: Batch, waiting: Sequence[Planned], journal: Journal) -> Sequence[Planned]:
    """Return the runs that are trained next, as many as measuring says."""
    journal.begin(_ids(waiting))  # measuring lanes carries out their first steps
    try:
        with deadline(batch.wall_s, journal):
            width = sizing.lanes(batch, waiting, sizing.device_for(batch))
    except WallLimit:
        width = 1  # the run itself will show it, as its row
    return waiting[:width]


def _finished(part: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """Return the rows of runs that ended; those that failed are carried out again."""
    if "runs" not in part:
        return {}
    ended = pc.is_in(part["runs"]["status"], value_set=pa.array(FINISHED))
    ids = part["runs"].filter(ended)["run_id"]
    return {
        name: rows.filter(
            pc.is_in(rows["run_id"].cast(pa.string()), value_set=ids.combine_chunks())
        )
        for name, rows in part.items()
    }


class _Keeper:
    """The checkpoints of a batch's groups."""

    def __init__(self, store: SuiteStore, batch: Batch) -> None:
        self._store = store
        self._batch = batch
        self._ended: list[Saves] = []

    def begun(self, waiting: Sequence[Planned]) -> list[Planned]:
        """Return those of the waiting runs that were trained together until a process died."""
        if self._batch.checkpoint is None:
            return []
        ranks = Ranks.current()
        held: list[str] = []
        if ranks.first:
            held = begun(self._store.checkpoints, _ids(waiting), self._store.storage)
        found = set(ranks.agree(held))
        group = [planned for planned in waiting if planned.run.run_id in found]
        most = self._batch.resources.lanes
        return group[:most] if isinstance(most, int) else group

    def saves(self, group: Sequence[Planned]) -> Saves | None:
        """Return the checkpoints of a group that is about to be trained."""
        spec = self._batch.checkpoint
        if spec is None:
            return None
        return Saves(
            self._store.checkpoints,
            _ids(group),
            spec.every,
            spec.keep,
            Ranks.current(),
            self._store.storage,
        )

    def end(self, saves: Saves | None) -> None:
        """Note that a group has ended: its checkpoints go once its rows are stored."""
        self._ended += [saves] if saves else []

    def drop(self) -> None:
        """Remove the checkpoints of groups whose rows are stored."""
        while self._ended:
            self._ended.pop().drop()


@dataclass
class _Rows:
    runs: list[dict[str, Any]]
    metrics: dict[str, list[Any]]
    arrays: dict[str, list[Any]]


@dataclass(frozen=True)
class _Failed:
    """A run alone that raised. Holds no exception: its frames would keep the run's memory."""

    reason: str
    log: str


def _run_group(
    batch: Batch, group: Sequence[Planned], engine: str, journal: Journal, keeper: _Keeper
) -> Iterator[_Rows]:
    """Yield the rows of a group; one that fails is split until the runs at fault are alone."""
    started = dt.datetime.now(dt.UTC)
    clock = time.perf_counter()
    accounts: Sequence[Account | _Failed] = ()
    ranks, count, tight = Ranks.current(), 2, False
    journal.begin(_ids(group))
    saves = keeper.saves(group)
    try:
        with deadline(batch.wall_s, journal):
            accounts = _execute(batch, group, saves)
    except (Exception, WallLimit) as error:  # noqa: BLE001  (any failure of a run is its row)
        ranks.require_all(failed=True)
        if len(group) == 1:
            log = redacted("".join(traceback.format_exception(error)))
            accounts = [_Failed(reason(error), log[-8000:])]
        elif tight := sizing.is_out_of_memory(error):
            why = f"{len(group)} lanes did not fit in memory ({reason(error)})"
            sizing.remember_limit(batch, len(group) // 2, why)
        elif isinstance(error, WallLimit):
            count = PIECES  # each try may take as long again
    if accounts and not isinstance(accounts[0], _Failed):
        ranks.require_all(failed=False)
    if not accounts:
        if tight:
            # Not until here, where the exception and all that its frames held are gone.
            gc.collect()
            torch.cuda.empty_cache()
        for piece in pieces(group, count):
            yield from _run_group(batch, piece, engine, journal, keeper)
        return
    keeper.end(saves)
    wall = (time.perf_counter() - clock + (saves.before if saves else 0.0)) / len(group)
    shared = {
        "suite": batch.suite,
        "scale": batch.scale,
        "batch_id": batch.batch_id,
        "started_at": started,
        "wall_s": wall,
        "engine": engine,
        "lanes": len(group),
        "ranks": ranks.size,
        "log": sizing.memory_note(batch),
        **_place(str(sizing.device_for(batch))),
    }
    yield _rows(group, accounts, shared)


def _ids(runs: Sequence[Planned]) -> list[str]:
    return [planned.run.run_id for planned in runs]


def _execute(batch: Batch, group: Sequence[Planned], saves: Saves | None) -> list[Account]:
    procedure = group[0].run.procedure
    device = sizing.device_for(batch)
    compiling = sizing.compiling(batch, len(group))
    ranks = Ranks.current(batch.resources.shard)
    if ranks.size > 1 and not procedure.shared:
        raise RaybenchError(
            f"procedure {procedure.name} does not share its work: set resources.ranks: 1"
        )
    if ranks.divides_weights and len(group) > 1:
        raise RaybenchError(
            f"resources.shard: full divides the weights of one run at a time, not of {len(group)} "
            "lanes: set resources.lanes: 1"
        )
    lanes = Lanes(
        len(group),
        device=device,
        dtype=DTYPES[procedure.dtype],
        # With others a run is equal up to rounding, and one lane alone can share more.
        exact=False if ranks.size > 1 and len(group) == 1 else None,
        compiling=compiling,
        ranks=ranks,
    )
    recorder = Recorder(lanes, saves)
    procedure.execute(lanes, [planned.run for planned in group], recorder)
    sizing.remember_trained(batch, len(group), lanes.compiled)
    return recorder.accounts()


def _rows(
    group: Sequence[Planned], accounts: Sequence[Account | _Failed], shared: Mapping[str, Any]
) -> _Rows:
    rows = _Rows([], {n: [] for n in _METRIC_COLUMNS}, {n: [] for n in _ARRAY_COLUMNS})
    for planned, account in zip(group, accounts, strict=True):
        row = {**identity(planned), **shared}
        if isinstance(account, _Failed):
            lost = {"status": "failed", "reason": account.reason, "log": account.log}
            rows.runs.append({**row, **lost})
            continue
        status, why = _status(account)
        rows.runs.append(
            {
                **row,
                "status": status,
                "reason": why,
                "steps": account.steps,
                **account.facts,
                **{f"summary.{k}": v for k, v in summary(account.metrics).items()},
            }
        )
        run_id = row["run_id"]
        for metric in account.metrics:
            values = (run_id, metric.step, metric.epoch, metric.split, metric.name, metric.value)
            for name, value in zip(_METRIC_COLUMNS, values, strict=True):
                rows.metrics[name].append(value)
        for array in account.arrays:
            cells = (run_id, array.step, array.name, array.shape, array.values)
            for name, cell in zip(_ARRAY_COLUMNS, cells, strict=True):
                rows.arrays[name].append(cell)
    return rows


def _status(account: Account) -> tuple[str, str | None]:
    if account.diverged_at is not None:
        return "diverged", f"loss not finite at step {account.diverged_at}"
    return ("stopped", account.stopped) if account.stopped else ("done", None)


_METRIC_COLUMNS = ("run_id", "step", "epoch", "split", "metric", "value")
_ARRAY_COLUMNS = ("run_id", "step", "name", "shape", "values")


def identity(planned: Planned) -> dict[str, Any]:
    """Return the columns of `runs` that say which run a row is about."""
    run = planned.run
    return {
        "run_id": run.run_id,
        "procedure": run.procedure.name,
        "seed": run.seed.value,
        **run.procedure.columns("config."),
        **{f"label.{name}": value for name, value in planned.labels.items()},
    }


def reason(error: BaseException) -> str:
    """Return why a run failed: the error's type, its first line, and where it was raised."""
    said = (redacted(str(error)).strip().splitlines() or [""])[0][:300]
    if isinstance(error, RaybenchError | WallLimit):
        return said
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {said}{where}"


@lru_cache
def _place(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    return {"host": socket.gethostname(), "device": f"{device} {name}", "versions": versions()}


@lru_cache
def versions() -> str:
    """Return the versions of what results depend on, as JSON."""
    found = {"python": platform.python_version()}
    for name in ("raybench", "torch", "numpy", "ray"):
        found[name] = importlib.metadata.version(name)
    return json.dumps(found)
