"""Test error over the number of samples: where more data hurt.

Nakkiran et al. 2019, "Deep double descent" (arXiv:1912.02292), figures 11 and 12.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture

from raybench.analysis import style
from raybench.analysis.descent_runs import (
    EPS,
    MARGIN,
    PAPER,
    arm_of,
    band,
    crossing,
    heat,
    hues,
    mark_threshold,
    of_study,
    paired,
    seeds_by,
    shown,
)
from raybench.analysis.figure import Claim, Figure, Tables, Verdict
from raybench.analysis.peak import Rise, largest_rise
from raybench.analysis.rows import Missing, arms, groups, with_intervals
from raybench.stats import Interval

NOISE = 0.2


def data_sizes(tables: Tables) -> pd.DataFrame:
    """Return runs over width for several n, at 20 % noise, with means and intervals.

    Of `more_data` and of `model_wise` without augmentation: the same network and training. At a
    scale without `more_data` of `sample_wise`.
    """
    keys = ("study", "label_noise", "width", "n", "num_params")
    try:
        more = of_study(tables, keys, "more_data")
    except Missing:
        frame = of_study(tables, keys, "sample_wise")
    else:
        middle = of_study(tables, (*keys, "augmentation"), "model_wise")
        middle = middle[middle["augmentation"] == "plain"].drop(columns="augmentation")
        frame = pd.concat([more, middle], ignore_index=True)
    frame = frame[np.isclose(frame["label_noise"], NOISE)].reset_index(drop=True)
    return with_intervals(frame, ("n", "width"), ("test_error", "train_error"))


def draw_sizes(frame: pd.DataFrame) -> Picture:
    """Draw test and train error over width, a line a number of samples."""
    picture, [[left, right]] = style.canvas(1, 2, width=style.PAGE, height=2.8)
    means = groups(frame, ("n", "width"))
    colours = hues([n for n, _ in arms(means, "n")])
    for n, arm in arms(means, "n"):
        for axes, value in ((left, "test_error"), (right, "train_error")):
            band(axes, arm, "width", value, colours[n], f"{n:g}")
            errors = arm["train_error_mean"].tolist()
            mark_threshold(axes, arm["width"].tolist(), errors, colours[n])
    for axes, name in ((left, "test error"), (right, "train error")):
        style.log_widths(axes, means["width"].tolist())
        style.percent_axis(axes)
        axes.set(xlabel="width", ylabel=name, ylim=(0, None))
    right.legend(title="samples")
    return picture


def data_samples(tables: Tables) -> pd.DataFrame:
    """Return one row a run of the study `sample_wise`, with means and intervals."""
    keys = ("label_noise", "width", "n", "num_params")
    frame = of_study(tables, keys, "sample_wise")
    values = ("test_error", "train_error", "best_error")
    return with_intervals(frame, ("label_noise", "n", "width"), values)


def draw_samples(frame: pd.DataFrame) -> Picture:
    """Draw the heat map of test error over samples and width, and lines over samples."""
    arm = arm_of(frame, label_noise=_noisiest(frame))
    means = groups(arm, ("width", "n"))
    picture, [[left, right]] = style.canvas(1, 2, width=style.PAGE + 0.4, height=3.0)
    test, train = (
        means.pivot_table(index="width", columns="n", values=f"{value}_mean")
        for value in ("test_error", "train_error")
    )
    heat(left, test, train)
    left.set(xlabel="number of samples", ylabel="width", title="test error")
    widths = [width for width, _ in arms(means, "width")]
    colours = hues(widths)
    for width in widths[:: max(len(widths) // 4, 1)]:
        line = means[means["width"] == width]
        band(right, line, "n", "test_error", colours[width], f"{width:g}")
        right.plot(line["n"], line["best_error_mean"], color=colours[width], ls=":")
        # From the right: the largest n that the network fits.
        places, errors = line["n"].tolist(), line["train_error_mean"].tolist()
        mark_threshold(right, places, [EPS - (e - EPS) for e in errors], colours[width])
    style.log_axis(right, "x")
    style.percent_axis(right)
    right.set(xlabel="number of samples", title="test error", ylim=(0, None))
    right.legend(title="width")
    return picture


def _noisiest(frame: pd.DataFrame) -> float:
    return float(frame["label_noise"].max())


def check_shift(frame: pd.DataFrame) -> Verdict:
    """Check that more samples move the threshold and the peak to wider networks."""
    peaks, fits = {}, {}
    for n, arm in arms(frame.dropna(subset=["test_error"]), "n"):
        peaks[n] = largest_rise(seeds_by(arm, "width").mean().dropna()).peak_at
        train = arm.groupby("width")["train_error"].mean()
        fits[n] = crossing(train.index.tolist(), train.tolist())
    if len(peaks) < 2:
        raise Missing("fewer than 2 numbers of samples")
    words = ", ".join(f"width {fits[n]:.3g} and {peaks[n]:g} at n = {n:g}" for n in peaks)
    passed = all(np.all(np.diff(list(each.values())) > 0) for each in (peaks, fits))
    return Verdict(f"threshold and peak: {words}", "both rise with n", bool(passed))


def check_hurts(frame: pd.DataFrame) -> Verdict:
    """Check that at some width more samples do worse."""
    found = _harms(frame, "test_error")
    width = max(found, key=lambda w: found[w][1].mean)
    rise, gap = found[width]
    also = ", ".join(f"{w:g}" for w, (_, each) in found.items() if _counts(each)) or "none"
    measured = (
        f"width {width:g}: {shown(gap)} from {rise.low_at:g} to {rise.peak_at:g} samples; "
        f"widths where more hurt: {also}"
    )
    return Verdict(measured, f"at least {MARGIN:.0%}, interval above 0", _counts(gap))


def check_stopped(frame: pd.DataFrame) -> Verdict:
    """Check that at no width more samples do worse if training stops at the best moment."""
    found = _harms(frame, "best_error")
    width = max(found, key=lambda w: found[w][1].mean)
    rise, gap = found[width]
    harmed = [f"{w:g}" for w, (_, each) in found.items() if _counts(each)]
    measured = (
        f"largest rise {shown(gap)}, at width {width:g} from {rise.low_at:g} to {rise.peak_at:g} "
        f"samples; widths where more hurt: {', '.join(harmed) or 'none'}"
    )
    return Verdict(measured, f"none by {MARGIN:.0%} with its interval above 0", not harmed)


def _harms(frame: pd.DataFrame, value: str) -> dict[float, tuple[Rise, Interval]]:
    """Return the largest rise over n at each width, at the highest label noise."""
    found = {}
    for width, arm in arms(arm_of(frame, label_noise=_noisiest(frame)), "width"):
        table = seeds_by(arm, "n", value)
        rise = largest_rise(table.mean().dropna())
        found[width] = rise, paired(table, rise.peak_at, rise.low_at)
    return found


def _counts(gap: Interval) -> bool:
    return bool(gap.mean >= MARGIN and gap.low > 0)


FIGURES: dict[str, Figure] = {
    "error_by_width_and_samples": Figure(
        "More samples move the peak to wider networks",
        "Mean test and train error over width, a line a number of samples; 20 % label noise. "
        f"Triangles: mean train error falls under {EPS:.0%}. Between two peaks the lines come "
        "close: there more samples help little. (Nakkiran et al. 2019, figure 11 left.)",
        data_sizes,
        draw_sizes,
        (
            Claim(
                "more samples move the peak right",
                "The interpolation threshold and the peak over width stand at wider networks for "
                f"each larger number of samples, at {NOISE:.0%} label noise.",
                f"{PAPER}, fig. 11 and 12",
                check_shift,
            ),
        ),
    ),
    "samples": Figure(
        "At some widths more samples do worse",
        "Left: mean test error over number of samples and width; dashed: mean train error "
        f"{EPS:.0%}, the interpolation threshold. Right: over the number of samples at fixed "
        "widths, with intervals; dotted: at the best moment of training; triangles: the number of "
        f"samples at which mean train error rises over {EPS:.0%}. The highest level of label "
        "noise. (Nakkiran et al. 2019, figures 11 right and 12.)",
        data_samples,
        draw_samples,
        (
            Claim(
                "more samples can hurt",
                "There is a width at which a network trained on more samples has a test error that "
                f"is at least {MARGIN:.0%} higher, paired over seeds. The width and the numbers of "
                "samples are chosen on the same runs.",
                f"{PAPER}, fig. 11 and 12",
                check_hurts,
            ),
            Claim(
                "not with early stopping",
                "At no width do more samples do worse, by the same measure, if each run is stopped "
                "at the moment of its lowest test error.",
                f"{PAPER}, the discussion of early stopping; fig. 19 and 20",
                check_stopped,
            ),
        ),
    ),
}
