"""Test error over width: label noise, augmentation, weight decay, stopping early.

Nakkiran et al. 2019, "Deep double descent" (arXiv:1912.02292), figures 1, 4, 5 and 19 to 22.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture

from raybench.analysis import style
from raybench.analysis.descent_runs import (
    EPS,
    MARGIN,
    PAPER,
    STANDS,
    all_of,
    arm_of,
    band,
    crossing,
    hill,
    hues,
    mark_threshold,
    of_study,
    paired,
    seeds_by,
    shown,
)
from raybench.analysis.figure import Claim, Figure, Tables, Verdict
from raybench.analysis.peak import MAX_COUNT, NOT_FITTING, largest_rise
from raybench.analysis.rows import Missing, arms, groups, with_intervals

NOISY = (0.1, 0.2)
"""Levels of label noise with a peak."""
NO_PEAK = 0.5
"""A rise of less than this share of another one counts as no peak beside it."""
CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100}
_PART = 50_000  # training rows of CIFAR, the only set of which suites take all


def data_noise(tables: Tables) -> pd.DataFrame:
    """Return one row a run of the study `model_wise`, with means and intervals."""
    keys = ("augmentation", "label_noise", "width", "n", "num_params")
    frame = of_study(tables, keys, "model_wise")
    data = tables.runs["config.data.name"].dropna()
    classes = CLASSES.get(str(data.iloc[0]), 0) if len(data) else 0
    # Without a number of rows the whole training part is used.
    frame["targets"] = frame["n"].fillna(_PART) * classes
    frame["num_params"] = frame.groupby("width")["num_params"].transform("max")
    values = ("test_error", "train_error", "best_error")
    return with_intervals(frame, ("augmentation", "label_noise", "width"), values)


def draw_noise(frame: pd.DataFrame) -> Picture:
    """Draw test error above train error over width: a column with and without augmentation."""
    names = sorted(frame["augmentation"].unique(), reverse=True)
    picture, axes = style.canvas(2, len(names), width=3.4 * len(names) + 0.4, height=4.4)
    for column, name in enumerate(names):
        arm = frame[frame["augmentation"] == name]
        for noise, means in arms(groups(arm, ("label_noise", "width")), "label_noise"):
            line, label = style.noise_colour(noise), style.percent(noise)
            for row, value in enumerate(("test_error", "train_error")):
                band(axes[row][column], means, "width", value, line, label)
                mark_threshold(
                    axes[row][column],
                    means["width"].tolist(),
                    means["train_error_mean"].tolist(),
                    line,
                )
        for row in (0, 1):
            style.log_widths(axes[row][column], arm["width"].tolist())
            style.percent_axis(axes[row][column])
        axes[0][column].set(title=_AUGMENTATION.get(name, name))
        axes[1][column].set(xlabel="width", ylim=(0, None))
    axes[0][0].set_ylabel("test error")
    axes[1][0].set_ylabel("train error")
    axes[0][-1].legend(title="label noise")
    return picture


_AUGMENTATION = {"plain": "without augmentation", "augmented": "with augmentation"}


def data_stopping(tables: Tables) -> pd.DataFrame:
    """Return the rows of `model_wise` without augmentation that have a best test error."""
    frame = data_noise(tables)
    plain = frame[frame["augmentation"] == "plain"].reset_index(drop=True)
    if plain["best_error"].isna().all():
        raise Missing("no best test error of runs without augmentation")
    return plain


def draw_stopping(frame: pd.DataFrame) -> Picture:
    """Draw test error over width at the end and at its best moment: a panel a level of noise."""
    levels = arms(groups(frame, ("label_noise", "width")), "label_noise")
    picture, [row] = style.canvas(1, len(levels), width=2.4 * len(levels), height=2.6)
    for axes, (noise, means) in zip(row, levels, strict=True):
        band(axes, means, "width", "test_error", style.PALETTE[1], "at the end")
        band(axes, means, "width", "best_error", style.PALETTE[0], "at the best moment")
        errors = means["train_error_mean"].tolist()
        mark_threshold(axes, means["width"].tolist(), errors, style.INK)
        style.log_widths(axes, means["width"].tolist())
        style.percent_axis(axes)
        axes.set(title=f"{style.percent(noise)} label noise", xlabel="width")
    row[0].set_ylabel("test error")
    row[-1].legend()
    return picture


def data_decay(tables: Tables) -> pd.DataFrame:
    """Return one row a run of the study `weight_decay`, with means and intervals."""
    frame = of_study(tables, ("weight_decay", "width"), "weight_decay")
    return with_intervals(frame, ("weight_decay", "width"), ("test_error", "train_error"))


def draw_decay(frame: pd.DataFrame) -> Picture:
    """Draw test error over width for each weight decay, and over weight decay for three widths."""
    picture, [[left, right]] = style.canvas(1, 2, width=style.PAGE, height=2.8)
    means = groups(frame, ("weight_decay", "width"))
    colours = hues([value for value, _ in arms(means, "weight_decay")])
    for value, arm in arms(means, "weight_decay"):
        band(left, arm, "width", "test_error", colours[value], f"{value:g}")
        errors = arm["train_error_mean"].tolist()
        mark_threshold(left, arm["width"].tolist(), errors, colours[value])
    style.log_widths(left, means["width"].tolist())
    left.set(xlabel="width", ylabel="test error")
    left.legend(title="weight decay")
    places = {v: i for i, (v, _) in enumerate(arms(means, "weight_decay"))}
    widths = [width for width, _ in arms(means, "width")]
    for width in sorted({widths[0], _peak_width(frame), widths[-1]}):
        arm = means[means["width"] == width]
        arm = arm.assign(place=arm["weight_decay"].map(places)).sort_values("place")
        band(right, arm, "place", "test_error", style.scale_colour(width), f"{width:g}")
        right.plot(arm["place"], arm["train_error_mean"], color=style.scale_colour(width), ls=":")
    right.set_xticks(list(places.values()), [f"{value:g}" for value in places])
    right.set(xlabel="weight decay")
    right.legend(title="width")
    for axes in (left, right):
        style.percent_axis(axes)
    return picture


def _peak_width(frame: pd.DataFrame) -> float:
    table = seeds_by(arm_of(frame, weight_decay=0.0), "width")
    return float(largest_rise(table.mean().dropna()).peak_at)


def check_threshold(frame: pd.DataFrame) -> Verdict:
    """Check that the peak stands where networks begin to fit, at each level of noise."""
    threshold = f"right of train error {NOT_FITTING:.0%}, under {MAX_COUNT:g} nK parameters"
    verdicts = {}
    for noise in NOISY:
        arm = arm_of(frame, augmentation="plain", label_noise=noise)
        table = seeds_by(arm, "width")
        train = arm.groupby("width")["train_error"].mean()
        times = (arm["num_params"] / arm["targets"]).groupby(arm["width"]).first()
        small = train[train > NOT_FITTING]
        if small.empty or not times.max() > MAX_COUNT:
            raise Missing("the widths do not reach from too small to many times n K parameters")
        at = largest_rise(table.mean().dropna()).peak_at
        measured = f"width {at:g}, train error {train[at]:.1%}, {times[at]:.2f} nK"
        passed = at > small.index[-1] and times[at] < MAX_COUNT
        verdicts[style.percent(noise)] = Verdict(measured, threshold, bool(passed))
    return all_of(verdicts, threshold)


def check_sides(frame: pd.DataFrame) -> Verdict:
    """Check that the peak is above both of its sides, at each level of noise."""
    verdicts = {}
    for noise in NOISY:
        found = hill(seeds_by(arm_of(frame, augmentation="plain", label_noise=noise), "width"))
        verdicts[style.percent(noise)] = Verdict(found.words, STANDS, found.stands)
    return all_of(verdicts, STANDS)


def check_plateau(noise: float, frame: pd.DataFrame) -> Verdict:
    """Check that without label noise the rise over width is small beside that with `noise`."""
    heights = {
        p: largest_rise(
            seeds_by(arm_of(frame, augmentation="plain", label_noise=p), "width").mean().dropna()
        ).height
        for p in (0.0, noise)
    }
    measured = ", ".join(f"{h:.1%} at {style.percent(p)}" for p, h in heights.items())
    share = heights[0.0] / heights[noise] if heights[noise] > 0 else float("inf")
    threshold = f"without noise under {NO_PEAK:g} of that with {style.percent(noise)}"
    return Verdict(f"rise {measured}: {share:.2f}", threshold, share < NO_PEAK)


def check_noise(frame: pd.DataFrame) -> Verdict:
    """Check that more label noise gives a higher peak, paired over seeds."""
    low, high = (
        seeds_by(arm_of(frame, augmentation="plain", label_noise=noise), "width") for noise in NOISY
    )
    tops = [largest_rise(table.mean().dropna()).peak_at for table in (low, high)]
    both = pd.DataFrame({0: low[tops[0]], 1: high[tops[1]]})
    gap = paired(both, 1, 0)
    measured = f"the peak with 20 % stands {shown(gap)} above that with 10 %"
    return Verdict(measured, f"at least {MARGIN:.0%}, interval above 0", _above(gap.mean, gap.low))


def _above(mean: float, low: float) -> bool:
    return bool(mean >= MARGIN and low > 0)


def check_augmentation(frame: pd.DataFrame) -> Verdict:
    """Check that augmentation moves the threshold to wider networks, and the peak with it."""
    found = {}
    for name in ("plain", "augmented"):
        arm = arm_of(frame, augmentation=name, label_noise=NOISY[-1])
        table = seeds_by(arm, "width")
        train = arm.groupby("width")["train_error"].mean()
        fits = crossing(train.index.tolist(), train.tolist())
        found[name] = (fits, largest_rise(table.mean().dropna()).peak_at)
    (fits, peak), (fits_augmented, peak_augmented) = found["plain"], found["augmented"]
    if np.isnan(fits):
        raise Missing("no width fits its training rows")
    moved = np.isnan(fits_augmented) or fits_augmented > fits
    measured = (
        f"train error under {EPS:.0%} from width {fits:.3g} to {fits_augmented:.3g}, "
        f"peak from {peak:g} to {peak_augmented:g}"
    )
    return Verdict(measured, "both move right", bool(moved and peak_augmented > peak))


def check_stopped(frame: pd.DataFrame) -> Verdict:
    """Check that stopping at the best moment takes the peak away."""
    verdicts = {}
    threshold = f"peak at the best moment under {NO_PEAK:g} of that at the end"
    for noise in NOISY:
        arm = arm_of(frame, augmentation="plain", label_noise=noise)
        end, best = (
            hill(seeds_by(arm, "width", value)).height for value in ("test_error", "best_error")
        )
        passed = end >= MARGIN and best < NO_PEAK * end
        verdicts[style.percent(noise)] = Verdict(f"{best:.1%} for {end:.1%}", threshold, passed)
    return all_of(verdicts, threshold)


def check_stopping(frame: pd.DataFrame) -> Verdict:
    """Check that stopping at the best moment gains more at the peak than at the widest network."""
    verdicts = {}
    threshold = f"gains apart by at least {MARGIN:.0%}, interval above 0"
    for noise in NOISY:
        arm = arm_of(frame, augmentation="plain", label_noise=noise)
        end, best = (seeds_by(arm, "width", value) for value in ("test_error", "best_error"))
        found, gains = hill(end), end - best
        gap = paired(gains, found.rise.peak_at, float(gains.columns[-1]))
        measured = (
            f"gain {gains[found.rise.peak_at].mean():.1%} at width {found.rise.peak_at:g}, "
            f"{shown(gap)} more than at the widest"
        )
        passed = found.height >= MARGIN and _above(gap.mean, gap.low)
        verdicts[style.percent(noise)] = Verdict(measured, threshold, passed)
    return all_of(verdicts, threshold)


def check_decay(frame: pd.DataFrame) -> Verdict:
    """Check that some weight decay takes the peak over width away, and lowers test error there."""
    plain = seeds_by(arm_of(frame, weight_decay=0.0), "width")
    found = hill(plain)
    top = found.rise.peak_at
    decayed = {
        value: seeds_by(arm, "width")
        for value, arm in arms(frame.dropna(subset=["test_error"]), "weight_decay")
        if value > 0
    }
    if not decayed:
        raise Missing("no runs with weight decay")
    heights = {value: hill(table).height for value, table in decayed.items()}
    best = min(heights, key=lambda value: heights[value])
    gain = paired(pd.DataFrame({0: decayed[best][top], 1: plain[top]}), 1, 0)
    each = ", ".join(f"{height:.1%} with {value:g}" for value, height in heights.items())
    measured = (
        f"peak {found.height:.1%} without, {each}; at width {top:g} test error falls by "
        f"{shown(gain)} with {best:g}"
    )
    passed = found.height >= MARGIN and heights[best] < NO_PEAK * found.height
    threshold = f"a peak under {NO_PEAK:g} of that without, fall at least {MARGIN:.0%}"
    return Verdict(measured, threshold, bool(passed and _above(gain.mean, gain.low)))


_WHERE = f"{PAPER}, fig. 1, 4 and 5"

FIGURES: dict[str, Figure] = {
    "error_by_width": Figure(
        "Test error peaks where networks begin to fit their noisy labels",
        "Above: test error on clean labels; below: train error on the labels trained on. Bands: "
        f"intervals of the mean. Triangles: where mean train error falls under {EPS:.0%}, the "
        "interpolation threshold. (Nakkiran et al. 2019, figures 1, 4 and 5.)",
        data_noise,
        draw_noise,
        (
            Claim(
                "peak at the threshold",
                "With 10 % and with 20 % label noise test error peaks where networks begin to fit: "
                f"right of the last width whose mean train error is over {NOT_FITTING:.0%}, and "
                f"with fewer than {MAX_COUNT:g} n K parameters.",
                f"{_WHERE}; n K: Belkin et al. 2018 (arXiv:1812.11118)",
                check_threshold,
            ),
            Claim(
                "peak above both sides",
                "With 10 % and with 20 % label noise the peak is above the minimum on its left "
                "and above the widest network, paired over seeds.",
                _WHERE,
                check_sides,
            ),
            *(
                Claim(
                    f"a plateau without noise beside {style.percent(noise)}",
                    f"Without label noise the largest rise over width is less than {NO_PEAK:g} of "
                    f"that with {style.percent(noise)}.",
                    f"{PAPER}, fig. 4 and 5",
                    partial(check_plateau, noise),
                )
                for noise in NOISY
            ),
            Claim(
                "noise raises the peak",
                "The peak with 20 % label noise is higher than that with 10 %.",
                f"{PAPER}, fig. 4 and 5",
                check_noise,
            ),
            Claim(
                "augmentation moves the peak right",
                "With augmentation the interpolation threshold and the peak, at 20 % label noise, "
                "stand at wider networks.",
                f"{PAPER}, fig. 5",
                check_augmentation,
            ),
        ),
    ),
    "early_stopping": Figure(
        "Stopped at its best moment, test error has a lower peak",
        "Test error at the end of training and its lowest value over time (chosen on the test "
        f"rows, as in the paper). Triangles: mean train error falls under {EPS:.0%}. (Nakkiran et "
        "al. 2019, figures 19 and 20.)",
        data_stopping,
        draw_stopping,
        (
            Claim(
                "stopping early helps most at the peak",
                "With 10 % and 20 % label noise the gain from stopping at the best moment is "
                "larger at the peak's width than at the widest network, paired over seeds.",
                f"{PAPER}, fig. 9, 19 and 20, and the discussion of early stopping",
                check_stopping,
            ),
            Claim(
                "early stopping removes the peak",
                "With 10 % and 20 % label noise the peak over width of the lowest test error in "
                "time, measured over the higher of its two sides (the lowest point on its left, "
                f"the widest network), is less than {NO_PEAK:g} of that at the end.",
                f"{PAPER}, fig. 19 and the discussion of early stopping (fig. 20: not always)",
                check_stopped,
            ),
        ),
    ),
    "weight_decay": Figure(
        "Weight decay takes the peak away",
        "Left: test error over width, a line a weight decay; triangles: mean train error falls "
        f"under {EPS:.0%}. Right: over weight decay for the narrowest, the peak's and the widest "
        "network; dotted: train error. 20 % label noise. (Nakkiran et al. 2019, figures 21 and "
        "22.)",
        data_decay,
        draw_decay,
        (
            Claim(
                "weight decay removes the peak",
                "With the best weight decay the peak over width, measured over the higher of its "
                f"two sides, is less than {NO_PEAK:g} of that without, and test error at the "
                "peak's width is lower, paired over seeds.",
                f"{PAPER}, fig. 21 and 22; Nakkiran et al. 2021 (arXiv:2003.01897), fig. 1",
                check_decay,
            ),
        ),
    ),
}
