"""Rows of one study of the suite `double-descent`, and what its figures share.

The interpolation threshold is where mean train error falls under `EPS`: with n fixed, the width or
the time at which the effective model complexity of Nakkiran et al. 2019 (arXiv:1912.02292,
definition 1) reaches n. They use 0.1 too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from raybench.analysis import style
from raybench.analysis.figure import Tables, Verdict
from raybench.analysis.peak import Rise, largest_rise
from raybench.analysis.rows import ENDED, Missing, close, need, observed
from raybench.stats import Floats, Interval, paired_difference

EPS = 0.10
"""Mean train error under which a network counts as fitting."""
MARGIN = 0.02
"""Least height of a rise that counts. What is compared is chosen on the same runs, so an interval
above zero alone would be too easy."""
PAPER = "Nakkiran et al. 2019 (arXiv:1912.02292)"
TEXT = ("augmentation", "study")
"""Keys that are words; all others are numbers."""

_HYPERS = {
    "label_noise": "config.data.label_noise",
    "width": "config.model.width",
    "n": "config.data.train",
    "num_params": "num_params",
    "weight_decay": "config.optimizer.weight_decay",
    "augmentation": "label.augmentation",
    "study": "label.study",
}
_VALUES = {
    "test_error": "summary.test.error",
    "train_error": "summary.train.error",
    "best_error": "summary.test.error.best",
}


def of_study(tables: Tables, keys: Sequence[str], *names: str) -> pd.DataFrame:
    """Return one row a run of the studies: keys, seed, status, test, train and best test error.

    Args:
        tables: of the suite.
        keys: names in `_HYPERS`.
        names: values of the label `study`.

    Raises:
        Missing: there are no such runs, or they lack a key.
    """
    chosen = runs_of(tables, *names)
    extra = {"run_id": "run_id"} if "run_id" in chosen.columns else {}
    frame = observed(chosen, {k: _HYPERS[k] for k in keys} | extra, _VALUES)
    for key in set(keys) - set(TEXT):
        frame[key] = pd.to_numeric(frame[key], errors="coerce").astype(float)
    return frame


def runs_of(tables: Tables, *names: str) -> pd.DataFrame:
    """Return the rows of `runs` that belong to the studies; raise `Missing` if there are none."""
    need(tables.runs, "label.study", "status", "seed")
    chosen = tables.runs[tables.runs["label.study"].isin(names)]
    if chosen.empty:
        raise Missing(f"no runs of the study {' or '.join(names)}")
    return chosen


def histories(tables: Tables, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame's finished runs at each recording: its columns with step, epoch and errors.

    How many runs there are, and how many of them are lost, stands in `attrs["note"]`.

    Args:
        tables: of the suite.
        frame: from `of_study`.

    Raises:
        Missing: no error was recorded.
    """
    need(tables.metrics, "run_id", "step", "epoch", "split", "metric", "value")
    done = frame[frame["status"].isin(ENDED)]
    long = tables.metrics[(tables.metrics["metric"] == "error")]
    long = long[long["run_id"].isin(set(done["run_id"]))]
    if long.empty:
        raise Missing("no errors over time")
    plain = long.astype({"run_id": str, "split": str})
    wide = plain.pivot_table(index=["run_id", "step", "epoch"], columns="split", values="value")
    wide = wide.rename(columns={"test": "test_error", "train": "train_error"}).reset_index()
    need(wide, "test_error", "train_error")
    kept = [c for c in done.columns if c not in (*_VALUES, "status")]
    moments = wide[["run_id", "step", "epoch", "test_error", "train_error"]]
    found = done[kept].merge(moments, on="run_id").rename_axis(columns=None)
    lost = len(frame) - len(done)
    found.attrs["note"] = (
        f"{len(done)} runs; {lost} without a result."
        if lost
        else (f"All {len(done)} runs finished.")
    )
    return found


def seeds_by(arm: pd.DataFrame, along: str, value: str = "test_error") -> pd.DataFrame:
    """Return finished values as a table [seeds, points along a column], complete or nan."""
    table = arm.pivot_table(index="seed", columns=along, values=value)
    if table.shape[1] < 3:
        raise Missing(f"fewer than 3 points along {along} with results")
    return table.sort_index(axis=1)


def arm_of(frame: pd.DataFrame, **where: float | str) -> pd.DataFrame:
    """Return the rows at given values of columns; raise `Missing` if there are none."""
    arm = frame
    for column, value in where.items():
        same = arm[column] == value if isinstance(value, str) else close(arm[column], value)
        arm = arm[same]
    arm = arm.dropna(subset=["test_error"])
    if arm.empty:
        raise Missing("no finished runs with " + ", ".join(f"{k} {v}" for k, v in where.items()))
    return arm


def lowest(table: pd.DataFrame) -> float:
    """Return the column whose mean over seeds is lowest."""
    columns = table.columns.to_numpy(dtype=float)
    return float(columns[int(np.nanargmin(table.mean().to_numpy(dtype=float)))])


def highest(table: pd.DataFrame) -> float:
    """Return the column whose mean over seeds is highest."""
    columns = table.columns.to_numpy(dtype=float)
    return float(columns[int(np.nanargmax(table.mean().to_numpy(dtype=float)))])


def paired(table: pd.DataFrame, a: float, b: float) -> Interval:
    """Return the mean of column a less column b, paired over seeds, with its interval."""
    both = table[[a, b]].dropna() if a != b else table[[a]].dropna()
    if len(both) < 2:
        raise Missing(f"fewer than 2 seeds with both {a:g} and {b:g}")
    return paired_difference(both[a], both[b])


class Hill(NamedTuple):
    """The largest rise of a mean curve, and how far it stands above both of its sides.

    Attributes:
        rise: its foot and top.
        left: top less foot, over seeds.
        right: top less the last point, over seeds.
    """

    rise: Rise
    left: Interval
    right: Interval

    @property
    def stands(self) -> bool:
        """Return whether both sides are at least `MARGIN` high with intervals above 0."""
        sides = (self.left, self.right)
        return self.rise.height > 0 and all(s.mean >= MARGIN and s.low > 0 for s in sides)

    @property
    def height(self) -> float:
        """Return how high the top stands over the higher of its two sides; 0 without a rise."""
        return max(min(self.left.mean, self.right.mean), 0.0) if self.rise.height > 0 else 0.0

    @property
    def words(self) -> str:
        """Return the numbers, for a verdict."""
        if self.rise.height <= 0:
            return "no rise"
        return (
            f"from {self.rise.low_at:g} to {self.rise.peak_at:g} {shown(self.left)}, "
            f"then down by {shown(self.right)}"
        )


def hill(table: pd.DataFrame) -> Hill:
    """Return the largest rise of the mean over seeds from left to right, and what follows it."""
    rise = largest_rise(table.mean().dropna())
    last = float(table.columns[-1])
    return Hill(rise, paired(table, rise.peak_at, rise.low_at), paired(table, rise.peak_at, last))


STANDS = f"both at least {MARGIN:.0%}, with intervals above 0"


def shown(difference: Interval) -> str:
    """Return a difference of errors with its interval, in per cent."""
    return f"{difference.mean:+.1%} [{difference.low:+.1%}, {difference.high:+.1%}]"


def all_of(verdicts: Mapping[str, Verdict], threshold: str) -> Verdict:
    """Return one verdict for several parts of a claim: it passes where all do."""
    measured = "; ".join(f"{name}: {v.measured}" for name, v in verdicts.items())
    return Verdict(measured, threshold, all(bool(v.passed) for v in verdicts.values()))


def crossing(places: Sequence[float], errors: Sequence[float], eps: float = EPS) -> float:
    """Return where a mean train error first falls under eps, between points on a log scale.

    Args:
        places: positive, rising: widths or times.
        errors: mean train error at each.
        eps: the error.

    Returns:
        The place; the first one if it lies under eps already, nan if none does.
    """
    under = np.flatnonzero(np.asarray(errors) <= eps)
    if not len(under):
        return float("nan")
    at = int(under[0])
    if at == 0:
        return float(places[0])
    share = (errors[at - 1] - eps) / (errors[at - 1] - errors[at])
    low, high = np.log(places[at - 1]), np.log(places[at])
    return float(np.exp(low + share * (high - low)))


def mark_threshold(axes: Axes, places: Sequence[float], errors: Sequence[float], hue: str) -> None:
    """Mark with a triangle on the x axis where mean train error falls under `EPS`."""
    at = crossing(places, errors)
    if np.isfinite(at) and at > places[0]:
        axes.plot(
            at,
            0.0,
            marker="^",
            ms=6,
            clip_on=False,
            zorder=5,
            color=hue,
            mec="white",
            mew=0.6,
            transform=axes.get_xaxis_transform(),
        )


def band(axes: Axes, means: pd.DataFrame, along: str, value: str, hue: str, label: str) -> None:
    """Draw means over a column with their intervals."""
    low, high = means[f"{value}_low"], means[f"{value}_high"]
    axes.fill_between(means[along], low, high, color=hue, alpha=0.18, lw=0)
    axes.plot(means[along], means[f"{value}_mean"], color=hue, marker="o", ms=2.6, label=label)


def heat(
    axes: Axes, table: pd.DataFrame, eps_of: pd.DataFrame | None = None, top: float | None = None
) -> None:
    """Draw a table of errors [rows: y, columns: x] on logarithmic axes, with a colour bar.

    Args:
        axes: where.
        table: positive index and columns, rising.
        eps_of: mean train errors of the same shape; their contour at `EPS` is drawn.
        top: error of the darkest colour; None for the largest there is.
    """
    x, y = table.columns.to_numpy(dtype=float), table.index.to_numpy(dtype=float)
    mesh = axes.pcolormesh(_edges(x), _edges(y), table.to_numpy(), cmap="magma_r", vmin=0, vmax=top)
    bar = axes.get_figure(root=True).colorbar(mesh, ax=axes)  # type: ignore[union-attr]
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    axes.set(xscale="log", yscale="log")
    axes.set_yticks(y, [f"{value:g}" for value in y])
    axes.set_yticks([], minor=True)
    axes.grid(visible=False)
    if eps_of is not None:
        errors = eps_of.to_numpy(dtype=float)
        if min(errors.shape) > 1 and np.nanmin(errors) < EPS < np.nanmax(errors):
            axes.contour(x, y, errors, levels=[EPS], colors="#00A0A0", linestyles="--")


def _edges(points: Floats) -> Floats:
    # Cells meet half-way between points on a logarithmic scale.
    logs = np.log(points)
    if len(logs) == 1:
        return np.asarray(np.exp([logs[0] - 0.5, logs[0] + 0.5]), dtype=np.float64)
    middle = (logs[1:] + logs[:-1]) / 2
    ends = [2 * logs[0] - middle[0]], [2 * logs[-1] - middle[-1]]
    edges: Floats = np.exp(np.concatenate([ends[0], middle, ends[1]]))
    return edges


def hues(values: Sequence[float]) -> dict[float, str]:
    """Return a colour for each of a few rising numbers, from light to dark."""
    ordered = sorted(values)
    scale = style.scale_colour
    last = max(len(ordered) - 1, 1)
    return {v: scale(8.0 * 256.0 ** (i / last)) for i, v in enumerate(ordered)}
