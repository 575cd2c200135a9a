"""Figures of wide networks in training: lazy or learning, by parametrization.

How far weights, outputs' linearization and the tangent kernel move (Lee et al. 2019,
arXiv:1902.06720; Yang and Hu 2021, arXiv:2011.14522), muP's coordinate check, and the best
learning rate against width (Yang et al. 2022, arXiv:2203.03466).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from raybench.analysis import style
from raybench.analysis.figure import Claim, Figure, Tables, Verdict
from raybench.analysis.rows import Missing, arms, groups, observed, with_intervals
from raybench.analysis.wide_limits_rates import data_rates, draw_rates, rate_claims
from raybench.analysis.wide_limits_study import (
    exponent,
    numbers,
    slopes_within,
    study,
    told,
    whole,
    with_exponents,
)

LAZY = "Lee et al. 2019 (arXiv:1902.06720), fig. 1"
LEARNING = "Yang and Hu 2021 (arXiv:2011.14522), section 3"
MUP = "Yang et al. 2022 (arXiv:2203.03466), fig. 5 and section D.1"
CHANGE = (-1.1, -0.4)
"""Exponents of the tangent kernel's change: between the bound of theory, -1/2, and -1."""
LEARNT, WIDE = -0.2, 256
FLAT, GROWTH = 1.3, 8.0
MOVES = ("kernel_change", "linear_gap", "moved")
COORDINATES = {"hidden": "summary.model.coordinate.2", "output": "summary.model.coordinate.out"}


def data_tangent(tables: Tables) -> pd.DataFrame:
    """Return one row a run: how far it went from its start, with exponents over widths."""
    keys = {"arm": "label.arm", "width": "config.model.width"}
    values = {name: f"summary.model.{name}" for name in (*MOVES, "steps_taken", "rate")}
    values["train_loss"] = "summary.train.loss"
    frame = numbers(observed(study(tables, "tangent"), keys, values), "width")
    frame = with_intervals(frame, tuple(keys), MOVES)
    return with_exponents(frame, ("arm",), MOVES)


def draw_tangent(frame: pd.DataFrame) -> Picture:
    """Draw the changes against width, a panel each, a line a parametrization."""
    picture, [row] = style.canvas(1, 3, height=2.8)
    titles = ("change of the tangent kernel", "distance from linearization", "weights moved")
    palette = style.colours(sorted(frame["arm"].unique()))
    for axes, value, title in zip(row, MOVES, titles, strict=True):
        for name, arm in frame.groupby("arm"):
            means = groups(arm, ("width",))
            label = f"{style.text(name)}: {told(means.iloc[0], f'{value}_slope')}"
            _band(axes, means, value, palette[str(name)], label)
        style.log_widths(axes, sorted(frame["width"].unique())[::2])
        style.log_axis(axes, "y")
        axes.set(title=title, xlabel="width")
        axes.legend(title="slope", loc="lower left", fontsize=6)
    row[0].set_ylabel("relative change")
    return picture


def check_change(frame: pd.DataFrame) -> Verdict:
    """Check the exponent of the kernel's change in the NTK parametrization."""
    return slopes_within(_arm(frame, "ntk"), "kernel_change_slope", *CHANGE)


def check_linear(frame: pd.DataFrame) -> Verdict:
    """Check that the network nears its linearization in the NTK parametrization."""
    first = _arm(frame, "ntk").iloc[0]
    measured = f"slope {told(first, 'linear_gap_slope')}"
    return Verdict(measured, "interval below 0", bool(first["linear_gap_slope_high"] < 0))


def check_learnt(frame: pd.DataFrame) -> Verdict:
    """Check that the kernel of muP networks goes on changing however wide they are."""
    wide = _arm(frame, "mup")
    wide = wide[wide["width"] >= WIDE]
    found = exponent(wide, "kernel_change")
    measured = f"slope {found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"
    return Verdict(measured, f"interval above {LEARNT:g}", bool(found.low > LEARNT))


def data_coordinates(tables: Tables) -> pd.DataFrame:
    """Return one row a run: mean change of the last hidden layer's and the outputs' numbers."""
    keys = {"arm": "label.arm", "width": "config.model.width"}
    frame = numbers(observed(study(tables, "coordinates"), keys, COORDINATES), "width")
    return with_intervals(frame, tuple(keys), tuple(COORDINATES))


def draw_coordinates(frame: pd.DataFrame) -> Picture:
    """Draw the change of coordinates against width, a panel a layer, a line a parametrization."""
    picture, [row] = style.canvas(1, 2, width=5.4, height=2.7)
    palette = style.colours(sorted(frame["arm"].unique()))
    for axes, value in zip(row, COORDINATES, strict=True):
        for name, arm in frame.groupby("arm"):
            means = groups(arm, ("width",))
            _band(axes, means, value, palette[str(name)], style.text(name))
        style.log_widths(axes, frame["width"].tolist())
        style.log_axis(axes, "y")
        title = "last hidden layer" if value == "hidden" else "outputs"
        axes.set(title=title, xlabel="width")
    row[0].set_ylabel("mean |change| after the last step")
    row[0].legend()
    return picture


def check_flat(frame: pd.DataFrame) -> Verdict:
    """Check that coordinates of muP networks change by the same at each width."""
    ratios = {name: _means(frame, "mup", name) for name in COORDINATES}
    spread = {name: means.max() / means.min() for name, means in ratios.items()}
    measured = ", ".join(f"{name} {value:.3f}" for name, value in spread.items())
    return Verdict(measured, f"max / min < {FLAT:g}", max(spread.values()) < FLAT)


def check_growth(frame: pd.DataFrame) -> Verdict:
    """Check how the coordinates of standard networks grow with width."""
    means = {name: _means(frame, "standard", name) for name in COORDINATES}
    growth = {name: values.iloc[-1] / values.iloc[0] for name, values in means.items()}
    measured = ", ".join(f"{name} {value:.1f}-fold" for name, value in growth.items())
    return Verdict(measured, f"> {GROWTH:g}-fold", min(growth.values()) > GROWTH)


def _means(frame: pd.DataFrame, arm: str, value: str) -> pd.Series:
    chosen = _arm(frame, arm)
    whole(chosen, value)
    widths = [width for width, _ in arms(chosen, "width")]
    if len(widths) < 2 or widths[-1] < 32 * widths[0]:
        raise Missing("the check needs widths that span a factor of 32")
    return groups(chosen, ("width",)).set_index("width")[f"{value}_mean"]


def _arm(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    chosen = frame[frame["arm"] == name]
    if chosen.empty:
        raise Missing(f"no runs of {name}")
    return chosen


def _band(axes: Axes, means: pd.DataFrame, value: str, line: str, label: str) -> None:
    low, high = means[f"{value}_low"], means[f"{value}_high"]
    axes.fill_between(means["width"], low, high, color=line, alpha=0.18, lw=0)
    middle = means[f"{value}_mean"].where(np.isfinite(means[f"{value}_mean"]))
    axes.plot(means["width"], middle, color=line, marker="o", ms=2.8, label=label)


FIGURES: dict[str, Figure] = {
    "tangent_kernel": Figure(
        "Lazy training and feature learning: what training changes, against width",
        "Networks fitted to the same training loss by full-batch gradient descent at a rate of "
        "1 / (largest curvature at the start). Relative Frobenius change of the empirical tangent "
        "kernel; distance of the outputs from those of the network linearized at its start, over "
        "how far they moved; relative movement of the weights. Slopes and bands with intervals.",
        data_tangent,
        draw_tangent,
        (
            Claim(
                "the tangent kernel freezes with width",
                "In the NTK parametrization the log-log slope of the kernel's relative change over "
                f"width is between {CHANGE[0]:g} and {CHANGE[1]:g}.",
                LAZY,
                check_change,
            ),
            Claim(
                "wide networks train as linear models",
                "In the NTK parametrization the distance from the linearized network falls with "
                "width: its log-log slope is below 0 with its interval.",
                "Lee et al. 2019 (arXiv:1902.06720), section 2.3 and fig. 2",
                check_linear,
            ),
            Claim(
                "muP goes on learning features",
                f"In muP the kernel's relative change does not vanish: from width {WIDE} on its "
                f"log-log slope is above {LEARNT:g} with its interval.",
                LEARNING,
                check_learnt,
            ),
        ),
    ),
    "coordinate_check": Figure(
        "Coordinate check: how much a few steps of Adam change what layers give",
        "Mean absolute change, over the training rows, of the last hidden layer before its "
        "activation and of the outputs. Bands: intervals.",
        data_coordinates,
        draw_coordinates,
        (
            Claim(
                "muP's coordinates move alike at each width",
                f"In muP the largest mean change over widths is less than {FLAT:g} times the "
                "smallest, for the last hidden layer and for the outputs.",
                MUP,
                check_flat,
            ),
            Claim(
                "standard coordinates blow up with width",
                "In the standard parametrization the mean change grows more than "
                f"{GROWTH:g}-fold from the narrowest to the widest network, in both.",
                MUP,
                check_growth,
            ),
        ),
    ),
    "best_rate": Figure(
        "The best learning rate stays in muP and moves in the standard parametrization",
        "Left and middle: mean final test loss against learning rate, a line a width; ringed: the "
        "best. Right: the best learning rate against width. Bands and bars: intervals; a diverged "
        "run makes its learning rate infinitely bad. Hollow: at the end of the grid, only a bound.",
        data_rates,
        draw_rates,
        rate_claims(),
    ),
}
