"""The studies of the suite `wide-limits`: the runs of one, and exponents of what they measure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from raybench.analysis.figure import Tables, Verdict
from raybench.analysis.rows import Missing, need
from raybench.stats import RESAMPLES, Interval, percentile_interval, slope


def study(tables: Tables, name: str) -> pd.DataFrame:
    """Return the runs of one study; raise `Missing` where there are none."""
    need(tables.runs, "label.study", "status", "seed")
    runs = tables.runs[tables.runs["label.study"].astype(str) == name]
    if runs.empty:
        raise Missing(f"no runs of the study {name}")
    return runs.reset_index(drop=True)


def numbers(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Return the table with these columns as numbers."""
    made = {c: pd.to_numeric(frame[c], errors="coerce").astype(float) for c in columns}
    return frame.assign(**made)


def exponent(cell: pd.DataFrame, value: str, x: str = "width") -> Interval:
    """Return the log-log slope of the mean of `value` over seeds on `x`.

    The bounds are those of a percentile bootstrap in which seeds are drawn for each `x` by itself,
    as the runs at one width say nothing about those at another; resamples with a mean of 0 or less
    have no slope and are left out, and there are no bounds where they are more than half. Raises
    `Missing` with fewer than two points, or a mean of 0 or less.
    """
    finite = cell[np.isfinite(cell[value].to_numpy(dtype=float))]
    samples = {float(at): g[value].to_numpy(dtype=float) for at, g in finite.groupby(x)}
    if len(samples) < 2:
        raise Missing(f"a slope of {value} needs two values of {x}")
    places = list(samples)
    means = [sample.mean() for sample in samples.values()]
    if min(means) <= 0:
        raise Missing(f"a slope of {value} needs positive means")
    estimate = float(slope(places, means))
    draw = np.random.default_rng(0)
    drawn = [
        sample[draw.integers(0, sample.size, (RESAMPLES, sample.size))].mean(axis=1)
        for sample in samples.values()
    ]
    curves = np.stack(drawn, axis=-1)
    curves = curves[(curves > 0).all(axis=1)]
    fewest = min(sample.size for sample in samples.values())
    if fewest < 2 or len(curves) < RESAMPLES // 2:
        why = "one seed" if fewest < 2 else "means that reach 0"
        return Interval(estimate, np.nan, np.nan, fewest, f"no interval: {why}")
    return percentile_interval(estimate, slope(places, curves), fewest)


def with_exponents(frame: pd.DataFrame, by: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Add `<value>_slope`, `_slope_low` and `_slope_high` over widths, repeated in each group."""
    result = frame.copy()
    for _, rows in result.groupby(list(by), sort=False):
        for value in values:
            try:
                found = exponent(rows, value)
            except Missing:
                found = Interval(np.nan, np.nan, np.nan, 0, "")
            result.loc[rows.index, f"{value}_slope"] = found.mean
            result.loc[rows.index, f"{value}_slope_low"] = found.low
            result.loc[rows.index, f"{value}_slope_high"] = found.high
    return result


def told(row: pd.Series, name: str, digits: int = 2) -> str:
    """Return a number of a row with its bounds, as a legend or a verdict has it."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    bounds = "" if np.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{row[name]:.{digits}f}{bounds}"


def slopes_within(frame: pd.DataFrame, name: str, low: float, high: float) -> Verdict:
    """Return whether every slope in column `name` lies between two numbers."""
    found = frame[name].dropna().unique()
    if not len(found) or frame[name].isna().any():
        raise Missing("a slope needs two widths of each curve, with positive means")
    measured = f"{found.min():.3f} to {found.max():.3f} over {len(found)} curves"
    passed = bool(((found >= low) & (found <= high)).all())
    return Verdict(measured, f"{low:g} to {high:g}, each", passed)


def whole(frame: pd.DataFrame, column: str) -> pd.Series:
    """Return a column of finished runs; raise `Missing` where one has no number."""
    done = frame[frame["status"] == "done"]
    if done.empty or done[column].isna().any():
        raise Missing(f"finished runs without {column}")
    return done[column]
