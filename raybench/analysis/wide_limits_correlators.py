"""Figures of the ensemble of finite networks (Halverson, Maiti and Stoner 2021, arXiv:2008.08601).

Its connected four-point function falls as 1 / N, with a coefficient that is known exactly, while
the two-point function is that of the limit at every width.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from raybench.analysis import style
from raybench.analysis.figure import Claim, Figure, Tables, Verdict
from raybench.analysis.rows import Missing, groups, observed, with_intervals
from raybench.analysis.wide_limits_study import numbers, slopes_within, study, told, with_exponents
from raybench.stats import mean_interval

SOURCE = "Halverson, Maiti and Stoner 2021 (arXiv:2008.08601), section 2"
SLOPE = (-1.1, -0.9)
FITTED = 20
"""Widths up to this one are fitted and pooled: beyond, the ratio sinks into the noise."""
ERRORS = 4.0


def data(tables: Tables) -> pd.DataFrame:
    """Return one row a run: the four-point ratio, what it must be, and its exponent."""
    keys = {"activation": "config.activation", "width": "config.width"}
    values = {
        "ratio": "summary.model.four_point",
        "ratio_se": "summary.model.four_point_se",
        "exact": "summary.model.four_point_exact",
        "background": "summary.model.background",
        "two_point": "summary.model.two_point",
        "two_point_se": "summary.model.two_point_se",
    }
    frame = numbers(observed(study(tables, "ensemble"), keys, values), "width")
    frame = frame.assign(
        scaled=frame["ratio"] * frame["width"],
        scaled_se=frame["ratio_se"] * frame["width"],
        coefficient=frame["exact"] * frame["width"],
    )
    frame = with_intervals(frame, tuple(keys), ("ratio", "scaled", "two_point"))
    fitted = frame[frame["width"] <= FITTED]
    slopes = with_exponents(fitted, ("activation",), ("ratio",)).drop_duplicates("activation")
    columns = ["ratio_slope", "ratio_slope_low", "ratio_slope_high"]
    return frame.merge(slopes[["activation", *columns]], on="activation", how="left")


def draw(frame: pd.DataFrame) -> Picture:
    """Draw the ratio against width, and the ratio times width against its exact value."""
    names = sorted(frame["activation"].unique())
    picture, [row] = style.canvas(1, 1 + len(names), height=2.8)
    palette = style.colours(names)
    for name in names:
        means = groups(frame[frame["activation"] == name], ("width",))
        _points(row[0], means, "ratio", palette[name], _label(name, means))
        row[0].plot(means["width"], means["exact"], color=palette[name], lw=0.9, ls="--")
        row[0].plot(means["width"], means["background"], color=palette[name], lw=0.7, ls=":")
    style.log_widths(row[0], frame["width"].tolist())
    style.log_axis(row[0], "y")
    row[0].set(xlabel="width N", ylabel="connected four-point ratio")
    row[0].set_ylim(top=row[0].get_ylim()[1] * 6)  # room for the legend
    row[0].legend(loc="upper right")
    for axes, name in zip(row[1:], names, strict=True):
        means = groups(frame[frame["activation"] == name], ("width",))
        _points(axes, means, "scaled", palette[name])
        exact = float(means["coefficient"].iloc[0])
        axes.axhline(exact, color=style.INK, lw=0.9, ls="--")
        style.log_widths(axes, frame["width"].tolist())
        axes.set(title=f"{style.text(name)}: exact {exact:.4g}", ylim=(0, 1.8 * exact))
        axes.set(xlabel="width N", ylabel="ratio times N")
    return picture


def _points(
    axes: Axes, means: pd.DataFrame, value: str, line: str, label: str | None = None
) -> None:
    middle = means[f"{value}_mean"]
    below = (middle - means[f"{value}_low"]).fillna(0)
    above = (means[f"{value}_high"] - middle).fillna(0)
    axes.errorbar(means["width"], middle, yerr=[below, above], color=line, ls="", marker="o",
                  ms=3, capsize=2, elinewidth=0.9, label=label)  # fmt: skip


def _label(name: str, means: pd.DataFrame) -> str:
    first = means.iloc[0]
    if np.isnan(first["ratio_slope"]):
        return style.text(name)
    return f"{style.text(name)}: slope {told(first, 'ratio_slope')}"


def check_slope(frame: pd.DataFrame) -> Verdict:
    """Check that the ratio falls as 1 / N."""
    return slopes_within(frame, "ratio_slope", *SLOPE)


def check_flat(frame: pd.DataFrame) -> Verdict:
    """Check the ratio times width at each width, by the spread of all experiments."""
    found = frame.dropna(subset=["scaled", "scaled_se"])
    if found.empty or found["width"].nunique() < 2:
        raise Missing("flatness needs two widths")
    away = [_standard_errors(cell, "scaled", "coefficient") for _, cell in _cells(found)]
    worst = max(abs(number) for number in away)
    measured = f"{worst:.2f} at most over {len(away)} widths"
    return Verdict(measured, f"{ERRORS:g} standard errors", worst <= ERRORS)


def check_exact(frame: pd.DataFrame) -> Verdict:
    """Check the coefficient pooled over widths against its exact value."""
    fitted = frame[(frame["width"] <= FITTED) & frame["scaled"].notna()]
    said, passed = [], True
    for name, arm in fitted.groupby("activation"):
        weights = 1 / arm.groupby("width")["scaled_se"].mean() ** 2
        by_seed = arm.pivot_table(index="seed", columns="width", values="scaled").dropna()
        pooled = (by_seed * weights).sum(axis=1) / weights.sum()
        interval = mean_interval(pooled.to_numpy(), method="t")
        if not interval.bounded:
            raise Missing("an interval needs two seeds")
        exact = float(arm["coefficient"].iloc[0])
        passed = passed and interval.low <= exact <= interval.high
        said.append(
            f"{name} {interval.mean:.4g} [{interval.low:.4g}, {interval.high:.4g}], exact "
            f"{exact:.4g}"
        )
    if not said:
        raise Missing("no finished runs")
    return Verdict("; ".join(said), "intervals hold the exact values", passed)


def check_two_point(frame: pd.DataFrame) -> Verdict:
    """Check the two-point function at each width."""
    found = frame.dropna(subset=["two_point", "two_point_se"]).assign(zero=0.0)
    if found.empty:
        raise Missing("no finished runs")
    away = [_standard_errors(cell, "two_point", "zero") for _, cell in _cells(found)]
    worst = max(abs(number) for number in away)
    return Verdict(f"{worst:.2f} at most", f"{ERRORS:g} standard errors", worst <= ERRORS)


def _cells(frame: pd.DataFrame) -> list[tuple[object, pd.DataFrame]]:
    return list(frame.groupby(["activation", "width"]))


def _standard_errors(cell: pd.DataFrame, value: str, truth: str) -> float:
    """Return how far the mean over runs is from the truth, by the runs' own standard errors."""
    error = np.sqrt((cell[f"{value}_se"] ** 2).sum()) / len(cell)
    return float((cell[value].mean() - cell[truth].iloc[0]) / error)


FIGURES: dict[str, Figure] = {
    "four_point": Figure(
        "Networks of finite width interact: the connected four-point function falls as 1 / N",
        "Left: connected four-point function over Wick's sum of the exact kernel, averaged over "
        "choices of inputs; dashed: exact; dotted: deviation between experiments (background). "
        f"Slopes are of widths up to {FITTED}. Right: the ratio times width against its exact "
        "value. Bars: intervals.",
        data,
        draw,
        (
            Claim(
                "the four-point function falls as 1/N",
                f"The log-log slope of the ratio over widths up to {FITTED} is between {SLOPE[0]:g}"
                f" and {SLOPE[1]:g} for each activation.",
                SOURCE,
                check_slope,
            ),
            Claim(
                "the ratio times N is flat",
                f"At each width the ratio times N is within {ERRORS:g} standard errors of the "
                "exact coefficient.",
                SOURCE,
                check_flat,
            ),
            Claim(
                "the coefficient is exact",
                f"Pooled over widths up to {FITTED}, weighted by precision, the 95 % t interval "
                "over seeds of the ratio times N holds E phi^4 / (E phi^2)^2 - 1 (5 for ReLU).",
                SOURCE,
                check_exact,
            ),
            Claim(
                "the two-point function is exact at every width",
                f"At each width the mean of G2 / K - 1 is within {ERRORS:g} standard errors of 0.",
                SOURCE,
                check_two_point,
            ),
        ),
    ),
}
