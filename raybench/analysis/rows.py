"""Out of the runs table: the columns a figure is about, with intervals over seeds.

Runs without a result (diverged, failed, skipped) stay as rows with empty values: they are in the
CSV and in the caption's count, and in no mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raybench.stats import Interval, mean_interval

DONE = "done"
ENDED = (DONE, "stopped")
"""Statuses of runs whose last values are results."""
MANY = 200
"""Over more values the interval of a mean is Student's, from which the bootstrap then differs by
less than the picture shows, at a hundred times the cost."""


class Missing(Exception):  # noqa: N818  (an outcome that is reported, not a failure)
    """The rows or columns that a figure or a claim needs are not in the tables."""


def need(frame: pd.DataFrame, *columns: str) -> None:
    """Raise `Missing` unless the table has rows and these columns."""
    absent = [column for column in columns if column not in frame.columns]
    if absent:
        raise Missing(f"no column {', '.join(absent)}")
    if frame.empty:
        raise Missing("no rows")


def first_present(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return the first of the columns that holds any value; raise `Missing` if none does."""
    for column in columns:
        if column in frame.columns and frame[column].notna().any():
            return column
    raise Missing(f"no column {' or '.join(columns)}")


def observed(
    runs: pd.DataFrame, keys: Mapping[str, str], values: Mapping[str, str]
) -> pd.DataFrame:
    """Return one row a run: `keys` and `values` (new name: column), `seed` and `status`.

    Values are numbers, and empty unless the run is done or was stopped. An optional value column
    that is not there stays empty; a key column must be there.
    """
    need(runs, "status", "seed", *keys.values())
    frame = pd.DataFrame({name: runs[column] for name, column in keys.items()})
    frame["seed"] = runs["seed"]
    frame["status"] = runs["status"].astype(str)
    for name, column in values.items():
        there = runs[column] if column in runs.columns else pd.Series(np.nan, index=runs.index)
        numbers = pd.to_numeric(there, errors="coerce").astype(float)
        frame[name] = numbers.where(frame["status"].isin(ENDED))
    return frame.sort_values([*keys, "seed"], kind="stable").reset_index(drop=True)


def with_intervals(frame: pd.DataFrame, by: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Add `<value>_mean`, `_low`, `_high`, `_n` over the rows of each group, and `interval`.

    The group's numbers are repeated on each of its rows, so that one CSV holds the runs and what
    is drawn of them. `interval` names how the bounds of the first value were made. Raises
    `Missing` where no run has a first value.
    """
    if not np.isfinite(frame[values[0]].to_numpy(dtype=float)).any():
        raise Missing(f"no finished run has a value of {values[0]}")
    result = frame.copy()
    number = frame.groupby(list(by), dropna=False, sort=False, observed=True).ngroup().to_numpy()
    order = np.argsort(number, kind="stable")
    starts = np.flatnonzero(np.diff(number[order], prepend=-1))
    for value in values:
        column = frame[value].to_numpy(dtype=float)[order]
        found = [_interval(sample) for sample in np.split(column, starts[1:])]
        for part in ("mean", "low", "high"):
            result[f"{value}_{part}"] = np.array([getattr(each, part) for each in found])[number]
        result[f"{value}_n"] = np.array([each.n for each in found])[number]
        if value == values[0]:
            methods = np.array([each.method for each in found], dtype=object)
    result["interval"] = methods[number]
    return result


def _interval(sample: NDArray[np.float64]) -> Interval:
    """Return the interval of the mean of the values that there are."""
    there = sample[np.isfinite(sample)]
    return mean_interval(there, method="t" if len(there) > MANY else "bootstrap")


def groups(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the first row of each group: the table of means that `with_intervals` repeats."""
    return frame.drop_duplicates(list(by)).sort_values(list(by)).reset_index(drop=True)


def arms(frame: pd.DataFrame, column: str) -> list[tuple[float, pd.DataFrame]]:
    """Return each number in a column, in order, with its rows."""
    values = sorted(float(value) for value in frame[column].dropna().unique())
    return [(value, frame[frame[column] == value]) for value in values]


def close(column: pd.Series, value: float) -> pd.Series:
    """Return which numbers of a column equal `value` within rounding."""
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    return pd.Series(np.isclose(numbers, value), index=column.index)


def notes(data: pd.DataFrame) -> str:
    """Return what a caption must add: how intervals were made, over how many, and who is missing.

    Read from the columns `interval`, `..._n` and `status`, and from `data.attrs`: `note` is added
    as it is, `over` says what intervals are over if not seeds.
    """
    said = [_intervals(data), _lost(data), str(data.attrs.get("note", ""))]
    return " ".join(part for part in said if part)


def _intervals(data: pd.DataFrame) -> str:
    counts = next((column for column in data.columns if column.endswith("_n")), None)
    if counts is None or "interval" not in data.columns:
        return ""
    used = data[data[counts] > 0]
    made = [
        str(name)
        for name in used["interval"].unique()
        if str(name).endswith(("bootstrap", "t interval"))
    ]
    low, high = int(used[counts].min()) if len(used) else 0, int(used[counts].max() or 0)
    over = f"{low}" if low == high else f"{low} to {high}"
    what = str(data.attrs.get("over", "seeds"))
    if not made:
        return f"No intervals: {over} {what.removesuffix('s') if high == 1 else what} a point."
    return f"Intervals: {' and '.join(sorted(made))} over {over} {what}."


def _lost(data: pd.DataFrame) -> str:
    if "status" not in data.columns:
        return ""
    counts = data["status"].value_counts()
    lost = [f"{counts[s]} {s}" for s in ("diverged", "failed", "skipped") if counts.get(s, 0)]
    if not lost:
        return f"All {len(data)} runs finished."
    return f"Of {len(data)} runs {', '.join(lost)}: in the data, in no mean."
