"""Figures of any suite: final metrics against what varies, and learning curves.

Lines are the suite's cases (`label.*`), or else the settings that are names rather than numbers.
Whatever else varies is averaged over, and the caption says so.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from raybench.analysis import style
from raybench.analysis.figure import Figure, Tables
from raybench.analysis.rows import DONE, Missing, groups, need, with_intervals

MAX_METRICS, MAX_SETTINGS, MAX_LINES = 3, 4, 10
"""What fits on a page; what is left out is named in the caption and stays in the CSV."""
PREFERRED = ("test.error", "test.loss", "valid.error", "valid.loss", "train.error", "train.loss")
MAX_ROWS = 50_000
"""With more, the CSV beside the figure holds means and not the runs."""
_HIDDEN = ("label.phase", "label.trial", "label.arm")


def _series(runs: pd.DataFrame) -> pd.Series:
    # What each run's line is called.
    labels = [c for c in runs.columns if c.startswith("label.") and c not in _HIDDEN]
    columns = [c for c in labels if runs[c].notna().any()]
    if not columns:
        names = [c for c in runs.columns if c.startswith("config.") and not _numeric(runs[c])]
        columns = [c for c in names if runs[c].dropna().astype(str).nunique() > 1]
    if "label.phase" in runs.columns and runs["label.phase"].nunique() > 1:
        columns = [*columns, "label.phase"]
    if not columns:
        return pd.Series("all runs", index=runs.index)
    # Joined once for each combination, of which there are few.
    codes = runs.groupby(columns, dropna=False, sort=False, observed=True).ngroup()
    first = runs.loc[~codes.duplicated(), columns].astype(object).fillna("").astype(str)
    names = [" / ".join(filter(None, row)) or "all runs" for row in first.to_numpy()]
    return pd.Series(np.array(names, dtype=object)[codes], index=runs.index, dtype=str)


def _numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _settings(runs: pd.DataFrame) -> list[str]:
    # The numbers that vary, those with the most values first.
    columns = [c for c in runs.columns if c.startswith("config.") and _numeric(runs[c])]
    varying = {c: runs[c].nunique() for c in columns if runs[c].nunique() > 1}
    return sorted(varying, key=lambda c: (-varying[c], c))


def _metrics(runs: pd.DataFrame) -> list[str]:
    names = [
        c.removeprefix("summary.")
        for c in runs.columns
        if c.startswith("summary.") and not c.endswith(".best")
        if _numeric(runs[c]) and runs[c].notna().any()
    ]
    first = [name for name in PREFERRED if name in names]
    return [*first, *sorted(set(names) - set(first))]


def data_final(tables: Tables) -> pd.DataFrame:
    """Return one row for each run, metric and varying setting, with means and intervals."""
    runs = tables.runs
    need(runs, "status", "seed")
    runs = runs.reset_index(drop=True)
    metrics, settings, series = _metrics(runs), _settings(runs), _series(runs)
    if not metrics:
        raise Missing("no finished run has a summary")
    done = runs["status"].astype(str) == DONE
    parts = [
        pd.DataFrame(
            {
                "metric": metric,
                "setting": setting.removeprefix("config."),
                "x": pd.to_numeric(runs[setting]).astype(float) if setting else 0.0,
                "series": series,
                "seed": runs["seed"],
                "value": runs[f"summary.{metric}"].astype(float).where(done),
            }
        )
        for metric in metrics[:MAX_METRICS]
        for setting in settings[:MAX_SETTINGS] or [""]
    ]
    frame = with_intervals(
        pd.concat(parts, ignore_index=True), ("metric", "setting", "series", "x"), ("value",)
    )
    lost = runs["status"].astype(str).value_counts().drop(DONE, errors="ignore")
    if len(frame) > MAX_ROWS:
        frame = groups(frame, ("metric", "setting", "series", "x")).drop(columns=["seed", "value"])
    frame.attrs["over"] = "runs"
    frame.attrs["note"] = _sentences(
        f"{len(runs)} runs" + "".join(f", {count} {name}" for name, count in lost.items()) + ".",
        _left_out("metrics", metrics[MAX_METRICS:]),
        _left_out("settings", [s.removeprefix("config.") for s in settings[MAX_SETTINGS:]]),
        _left_out("lines", _drawn(series)[1]),
        "" if "value" in frame else "The CSV holds the means; the runs are in the table.",
    )
    return frame


def _sentences(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _left_out(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"Not drawn, {what}: {shown}." if names else ""


def _drawn(series: pd.Series) -> tuple[list[str], list[str]]:
    # Names of the lines that fit, those with the most runs first, and of the rest.
    counts = series.value_counts()
    order = sorted((str(name) for name in counts.index), key=lambda name: (-counts[name], name))
    return sorted(order[:MAX_LINES]), sorted(order[MAX_LINES:])


def draw_final(frame: pd.DataFrame) -> Picture:
    """Draw a grid: metrics in rows, settings in columns, a line a series."""
    metrics, settings = list(frame["metric"].unique()), list(frame["setting"].unique())
    paint = style.colours(_drawn(frame["series"])[0])
    if settings == [""]:
        return _draw_rows(frame, metrics, paint)
    width = min(1.4 + 2.3 * len(settings), 10.0)
    picture, grid = style.canvas(len(metrics), len(settings), width, 0.5 + 1.7 * len(metrics))
    for row, metric in zip(grid, metrics, strict=True):
        for axes, setting in zip(row, settings, strict=True):
            axes.sharey(row[0])
            cell = frame[(frame["metric"] == metric) & (frame["setting"] == setting)]
            _draw_lines(axes, cell, paint)
            axes.tick_params(labelleft=axes is row[0])
            axes.set_xlabel(style.text(setting) if row is grid[-1] else "")
        _log_values(row, frame.loc[frame["metric"] == metric, "value_mean"].dropna())
        row[0].set_ylabel(style.text(metric))
    _legend(picture, paint)
    return picture


def _draw_lines(axes: Axes, cell: pd.DataFrame, paint: dict[str, str]) -> None:
    for name, colour in paint.items():
        arm = cell[cell["series"] == name].drop_duplicates("x").dropna(subset=["x"])
        arm = arm.sort_values("x")
        axes.fill_between(
            arm["x"], arm["value_low"], arm["value_high"], color=colour, alpha=0.15, lw=0
        )
        line = "-" if arm["value_n"].max() > 1 else ""  # single runs are points
        axes.plot(arm["x"], arm["value_mean"], ls=line, color=colour, marker=style.marker(name))
    x = cell["x"].dropna()
    if len(x) and x.min() > 0 and x.max() / x.min() >= 8:
        style.log_axis(axes, "x")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))


def _log_values(row: list[Axes], values: pd.Series) -> None:
    if len(values) and values.min() > 0 and values.max() / values.min() >= 30:
        for axes in row:
            style.log_axis(axes, "y")


def _draw_rows(frame: pd.DataFrame, metrics: list[str], paint: dict[str, str]) -> Picture:
    # Nothing varies but the series: one row each, one panel a metric.
    width = min(1.8 + 2.0 * len(metrics), 10.0)
    picture, [row] = style.canvas(1, len(metrics), width, 0.7 + 0.22 * len(paint))
    for axes, metric in zip(row, metrics, strict=True):
        axes.sharey(row[0])
        for place, (name, colour) in enumerate(paint.items()):
            arm = frame[(frame["metric"] == metric) & (frame["series"] == name)]
            points = arm["value"] if "value" in arm else arm["value_mean"]
            axes.plot(
                points,
                np.full(len(arm), place),
                ls="",
                marker="o",
                ms=2,
                color=colour,
                alpha=0.3,
            )
            mean = arm.head(1)
            axes.hlines(place, mean["value_low"], mean["value_high"], color=colour, lw=1.6)
            axes.plot(
                mean["value_mean"], [place], marker="o", ms=4.2, color=colour, mec="white", mew=0.5
            )
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(left=axes is row[0], labelleft=axes is row[0])
        axes.set_xlabel(style.text(metric))
    row[0].set_yticks(range(len(paint)), [style.text(name, 32) for name in paint])
    row[0].set_ylim(len(paint) - 0.4, -0.6)
    return picture


def _legend(picture: Picture, paint: dict[str, str]) -> None:
    if list(paint) == ["all runs"]:
        return
    handles = [
        Line2D([], [], color=colour, marker=style.marker(name), label=style.text(name, 32))
        for name, colour in paint.items()
    ]
    picture.legend(handles=handles, loc="outside right upper")


def data_curves(tables: Tables) -> pd.DataFrame:
    """Return the median and middle half of each metric at each step, for each line."""
    need(tables.runs, "run_id", "status", "seed")
    need(tables.metrics, "run_id", "step", "split", "metric", "value")
    series = _series(tables.runs)
    table = _quartiles(tables.metrics, tables.runs["run_id"], series)
    lost = int((tables.runs["status"].astype(str) == "diverged").sum())
    table.attrs["note"] = _sentences(
        f"{lost} of {len(tables.runs)} runs diverged; their curves end before." if lost else "",
        _left_out("metrics", _shown(table)[1]),
        _left_out("lines", _drawn(series)[1]),
    )
    return table


def _quartiles(metrics: pd.DataFrame, run_ids: pd.Series, series: pd.Series) -> pd.DataFrame:
    """Return the quartiles over runs for each metric, series and step, and how many runs they are.

    There may be tens of millions of values, so groups are whole numbers and all are sorted at once.
    """
    split, name, owner = (
        metrics[column].astype("category").array for column in ("split", "metric", "run_id")
    )
    lines = pd.Categorical(series)
    line_of = pd.Series(lines.codes.astype(np.int32), index=run_ids).groupby(level=0).first()
    line = line_of.reindex(owner.categories, fill_value=-1).to_numpy()[owner.codes]
    place, steps = pd.factorize(metrics["step"], sort=True)
    shape = (len(split.categories), len(name.categories), len(lines.categories), len(steps))
    values = metrics["value"].to_numpy(dtype=float)
    wide = np.int32 if math.prod(shape) < 2**31 else np.int64
    group = split.codes.astype(wide)
    for codes, length in zip((name.codes, line, place), shape[1:], strict=True):
        group *= length
        group += codes.astype(wide, copy=False)
    kept = (line >= 0) & ~np.isnan(values)
    if not kept.any():
        raise Missing("no metrics of these runs")
    if not kept.all():
        group, values = group[kept], values[kept]
    # Numbers of 16 bits are sorted in one pass.
    order = np.argsort(group.astype(np.min_scalar_type(math.prod(shape))), kind="stable")
    group, values = group[order], values[order]
    first = np.flatnonzero(np.diff(group, prepend=group[:1] + 1))
    count = np.diff(first, append=len(group))
    for start, length in zip(first.tolist(), count.tolist(), strict=True):
        values[start : start + length].sort()
    at = np.unravel_index(group[first], shape)
    metric = [f"{a}.{b}" for a, b in itertools.product(split.categories, name.categories)]
    table = pd.DataFrame(
        {
            "metric": np.array(metric, dtype=object)[at[0] * shape[1] + at[1]],
            "series": np.asarray(lines.categories, dtype=object)[at[2]],
            "step": np.asarray(steps)[at[3]],
        }
    )
    for column, share in (("quarter", 0.25), ("median", 0.5), ("three_quarters", 0.75)):
        exact = first + share * (count - 1)
        below = np.floor(exact).astype(np.int64)
        above = values[np.ceil(exact).astype(np.int64)]
        with np.errstate(invalid="ignore"):  # between infinite values there is nothing
            table[column] = values[below] + (above - values[below]) * (exact - below)
    table["runs"] = count
    return table.sort_values(["metric", "series", "step"], ignore_index=True)


def _shown(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    names = sorted(frame["metric"].unique())
    order = [m for m in PREFERRED if m in names]
    order += [m for m in names if m not in order]
    return order[:4], order[4:]


def draw_curves(frame: pd.DataFrame) -> Picture:
    """Draw learning curves: a panel a metric, a line a series."""
    metrics = _shown(frame)[0]
    weights = frame.groupby("series")["runs"].max()
    names = pd.Series(np.repeat(weights.index.to_numpy(), weights.to_numpy()))
    paint = style.colours(_drawn(names)[0])
    picture, [row] = style.canvas(1, len(metrics), min(1.4 + 2.3 * len(metrics), 10.0), 2.5)
    for axes, metric in zip(row, metrics, strict=True):
        cell = frame[(frame["metric"] == metric) & (frame["step"] > 0)]
        for name, colour in paint.items():
            arm = cell[cell["series"] == name].sort_values("step")
            axes.fill_between(
                arm["step"], arm["quarter"], arm["three_quarters"], color=colour, alpha=0.15, lw=0
            )
            axes.plot(arm["step"], arm["median"], color=colour, marker=style.marker(name), ms=2.2)
        if len(cell):
            style.log_axis(axes, "x")
            if (cell["median"] > 0).all():
                style.log_axis(axes, "y")
        axes.set(xlabel="step", ylabel=style.text(metric))
    _legend(picture, paint)
    return picture


FIGURES: dict[str, Figure] = {
    "final_metrics": Figure(
        "Final metrics against the settings that vary",
        "Mean over all runs of a line at each value, with intervals: over seeds and over whatever "
        "else varies.",
        data_final,
        draw_final,
    ),
    "learning_curves": Figure(
        "Learning curves",
        "Median over the runs of a line, with the middle half as a band.",
        data_curves,
        draw_curves,
    ),
}
