"""What runs of a store took, and what had been expected of them before they were carried out."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from raybench import store as stores
from raybench.errors import NothingMatched
from raybench.storage import Root
from raybench.store import SuiteStore
from raybench.suite import Planned


@dataclass(frozen=True)
class Comparison:
    """How a suite's estimate compares with what its runs took.

    Attributes:
        runs: that had an estimate and have been carried out since.
        time: seconds that they took, divided by those that were expected.
        disk: likewise for the size of their results.
    """

    suite: str
    scale: str
    runs: int
    time: float
    disk: float


def measured(root: Root, suite: str, runs: Sequence[Planned]) -> dict[str, float]:
    """Return mean seconds of finished runs by batch key.

    Args:
        root: the store.
        suite: the suite's name.
        runs: of the suite.
    """
    if stores.suite_folder(root, suite) is None:
        return {}
    ended = SuiteStore(root, suite).ended()
    walls = dict(zip(ended["run_id"], ended["wall_s"], strict=True))
    found: dict[str, list[float]] = {}
    for planned in runs:
        wall = walls.get(planned.run.run_id, 0.0)
        if wall > 0:  # results that were imported have no times
            found.setdefault(planned.run.batch_key, []).append(wall)
    return {key: sum(each) / len(each) for key, each in found.items()}


def seconds(root: Root, suite: str, scale: str, runs: Sequence[Planned]) -> dict[str, float]:
    """Return seconds of a run by batch key, as far as finished runs or kept estimates tell them."""
    folder = stores.suite_folder(root, suite)
    kept = folder / _name(scale) if folder is not None else None
    if kept is None or not kept.exists():
        return measured(root, suite, runs)
    rows = pq.ParquetFile(kept).read(columns=["batch_key", "seconds"]).to_pandas()
    expected = rows.groupby("batch_key", observed=True)["seconds"].mean().dropna()
    return {**expected.to_dict(), **measured(root, suite, runs)}


def keep(
    store: SuiteStore,
    scale: str,
    runs: Sequence[Planned],
    per_key: Mapping[str, float],
    bytes_per_run: float,
) -> None:
    """Write what is expected of runs that are to do; of others the earlier estimate stays.

    Args:
        store: of the suite.
        scale: the scale's name.
        runs: that are to do.
        per_key: seconds of a run by batch key; nan where they are not known.
        bytes_per_run: of results.
    """
    keys = [planned.run.batch_key for planned in runs]
    now = dt.datetime.now(dt.UTC)
    rows = pd.DataFrame(
        {
            "run_id": [planned.run.run_id for planned in runs],
            "batch_key": keys,
            "seconds": [per_key.get(key, float("nan")) for key in keys],
            "bytes": bytes_per_run,
            "made_at": pd.Series(now, index=range(len(keys)), dtype="datetime64[us, UTC]"),
        }
    )
    path = store.folder / _name(scale)
    store.storage.bring(path)
    if path.exists():
        before = pq.ParquetFile(path).read().to_pandas()
        rows = pd.concat([before[~before["run_id"].isin(rows["run_id"])], rows])
    store.write_table(path.name, pa.Table.from_pandas(rows, preserve_index=False))


def comparisons(root: Root) -> list[Comparison]:
    """Return how each estimate that was kept in a store compares with what its runs took."""
    try:
        names = stores.suites(root)
    except NothingMatched:
        return []
    found = []
    for name in names:
        folder = stores.suite_folder(root, name)
        for path in sorted(folder.glob("estimate-*.parquet")) if folder else ():
            scale = path.stem.removeprefix("estimate-")
            made = _compared(SuiteStore(root, name), scale, path)
            found += [made] if made is not None else []
    return found


def _compared(store: SuiteStore, scale: str, path: Path) -> Comparison | None:
    expected = pq.ParquetFile(path).read().to_pandas().dropna(subset=["seconds"])
    taken = store.ended()
    both = expected.merge(taken, on="run_id")
    both = both[both["started_at"] > both["made_at"]]
    if both.empty or not both["seconds"].sum():
        return None
    bytes_per_run = store.num_bytes() / len(taken)
    return Comparison(
        store.suite,
        scale,
        len(both),
        float(both["wall_s"].sum() / both["seconds"].sum()),
        bytes_per_run / float(both["bytes"].mean()),
    )


def _name(scale: str) -> str:
    return f"estimate-{scale or 'default'}.parquet"
