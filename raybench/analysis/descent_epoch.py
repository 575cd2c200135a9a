"""Test error over width and training time: heat maps, dynamics of three widths, epoch-wise descent.

Nakkiran et al. 2019, "Deep double descent" (arXiv:1912.02292), figures 2, 9 and 10.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from raybench.analysis import style
from raybench.analysis.descent_runs import (
    EPS,
    MARGIN,
    PAPER,
    STANDS,
    Hill,
    arm_of,
    band,
    crossing,
    heat,
    hill,
    histories,
    hues,
    lowest,
    mark_threshold,
    of_study,
    paired,
    seeds_by,
    shown,
)
from raybench.analysis.figure import Claim, Figure, Tables, Verdict
from raybench.analysis.peak import largest_rise
from raybench.analysis.rows import Missing, arms, groups, with_intervals

NOISE = 0.2
NO_RISE = 0.5
"""A rise over time of less than this share of another one counts as none."""
START = 0.01
"""Share of the training from which on rises over time count: in its first steps Adam overshoots in
wide networks, with and without label noise."""
EARLY = 0.1
"""Large networks fit in this share of the training: their mean train error is under `EPS` by
then. Small ones do not fit at all."""


def data_history(tables: Tables) -> pd.DataFrame:
    """Return errors of the study `epoch_wise` at each recording, with means over seeds.

    One row a run and recording; step 0, the untrained network, is left out.
    """
    keys = ("label_noise", "width", "n", "num_params")
    frame = histories(tables, of_study(tables, keys, "epoch_wise"))
    later = frame[frame["step"] > 0].reset_index(drop=True)
    by = ("label_noise", "width", "step")
    found = with_intervals(later, by, ("test_error", "train_error"))
    found.attrs.update(frame.attrs)
    return found


def draw_map(frame: pd.DataFrame) -> Picture:
    """Draw heat maps of test and train error over time and width, and three widths' curves."""
    arm = arm_of(frame, label_noise=NOISE)
    means = groups(arm, ("width", "step"))
    picture, [row] = style.canvas(1, 3, width=10.2, height=2.9)
    train = _table(means, "train_error_mean")
    top = float(np.nanquantile(_table(means, "test_error_mean"), 0.9))
    heat(row[0], _table(means, "test_error_mean"), train, top)
    heat(row[1], train, train)
    for axes, title in ((row[0], "test error"), (row[1], "train error")):
        axes.set(title=title, xlabel="epoch", ylabel="width")
    _draw_dynamics(row[2], means, _shown_large(frame))
    return picture


def _table(means: pd.DataFrame, value: str) -> pd.DataFrame:
    table = means.pivot_table(index="width", columns="epoch", values=value)
    return table.sort_index().sort_index(axis=1)


def _draw_dynamics(axes: Axes, means: pd.DataFrame, large: float) -> None:
    widths = [width for width, _ in arms(means, "width")]
    end = means[means["step"] == means["step"].max()].sort_values("width")
    peak = largest_rise(end.set_index("width")["test_error_mean"]).peak_at
    for width, name in ((widths[0], "small"), (peak, "intermediate"), (large, "large")):
        line = means[means["width"] == width]
        band(axes, line, "epoch", "test_error", style.scale_colour(width), f"{name}: {width:g}")
        errors = line["train_error_mean"].tolist()
        mark_threshold(axes, line["epoch"].tolist(), errors, style.scale_colour(width))
    style.log_axis(axes, "x")
    style.percent_axis(axes)
    axes.set(title="test error", xlabel="epoch", ylim=(0, None))
    axes.legend(title="width", loc="lower left")


def _shown_large(frame: pd.DataFrame) -> float:
    # The network that the claims are about; the widest where they cannot be told.
    try:
        return _large(frame)[0]
    except Missing:
        return float(frame["width"].max())


_TOP = 0.6  # what lies above are the first epochs, in which every network learns


def draw_time(frame: pd.DataFrame) -> Picture:
    """Draw test and train error of a large network over time, a line a level of noise."""
    picture, [[left, right]] = style.canvas(1, 2, width=style.PAGE, height=2.8)
    width = _shown_large(frame)
    large = frame[frame["width"] == width]
    for noise, arm in arms(groups(large, ("label_noise", "step")), "label_noise"):
        line, label = style.noise_colour(noise), style.percent(noise)
        for axes, value in ((left, "test_error"), (right, "train_error")):
            band(axes, arm, "epoch", value, line, label)
            errors = arm["train_error_mean"].tolist()
            mark_threshold(axes, arm["epoch"].tolist(), errors, line)
    for axes, name in ((left, "test error"), (right, "train error")):
        style.log_axis(axes, "x")
        style.percent_axis(axes)
        axes.set(xlabel="epoch", ylabel=name, ylim=(0, _TOP))
    left.set_title(f"width {width:g}")
    right.legend(title="label noise")
    return picture


def data_end(tables: Tables) -> pd.DataFrame:
    """Return the same rows at moments that stand for longer and longer training."""
    frame = data_history(tables)
    steps = sorted(frame["step"].unique())
    last = steps[-1]
    chosen = {min(steps, key=lambda s: abs(np.log(s / (last * share)))) for share in _SHARES}
    found = frame[frame["step"].isin(chosen)].reset_index(drop=True)
    found.attrs.update(frame.attrs)
    return found


_SHARES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def draw_end(frame: pd.DataFrame) -> Picture:
    """Draw test error over width, a line a training time."""
    picture, [[axes]] = style.canvas(width=4.8, height=3.1)
    means = groups(arm_of(frame, label_noise=NOISE), ("step", "width"))
    colours = hues([step for step, _ in arms(means, "step")])
    for step, line in arms(means, "step"):
        label = f"{line['epoch'].iloc[0]:.3g}"
        band(axes, line, "width", "test_error", colours[step], label)
        errors = line["train_error_mean"].tolist()
        mark_threshold(axes, line["width"].tolist(), errors, colours[step])
    style.log_widths(axes, means["width"].tolist())
    style.percent_axis(axes)
    axes.set(xlabel="width", ylabel="test error", ylim=(0, None))
    axes.legend(title="epochs", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return picture


def _over_time(frame: pd.DataFrame, noise: float, width: float) -> pd.DataFrame:
    # [seeds, steps], without the overshoot of the first steps.
    later = frame[frame["step"] >= START * frame["step"].max()]
    return seeds_by(arm_of(later, label_noise=noise, width=width), "step")


def _fitted(frame: pd.DataFrame, share: float) -> dict[float, bool]:
    """Return for each width whether mean train error is under `EPS` at a share of the training."""
    arm = arm_of(frame, label_noise=NOISE)
    steps = np.array([step for step, _ in arms(arm, "step")])
    at = steps[steps <= share * steps[-1]]
    if not len(at):
        raise Missing(f"no recording in the first {share:.0%} of training")
    means = arm[arm["step"] == at[-1]].groupby("width")["train_error"].mean()
    return {float(str(width)): bool(error <= EPS) for width, error in means.items()}


def _large(frame: pd.DataFrame) -> tuple[float, dict[float, Hill]]:
    """Return the large network whose hill over time is highest, and the hills of all large ones."""
    large = [width for width, fits in _fitted(frame, EARLY).items() if fits]
    if not large:
        raise Missing(f"no network fits its rows in the first {EARLY:.0%} of training")
    hills = {width: hill(_over_time(frame, NOISE, width)) for width in large}
    best = max(large, key=lambda w: min(hills[w].left.mean, hills[w].right.mean))
    return best, hills


def check_large(frame: pd.DataFrame) -> Verdict:
    """Check that test error of a large network falls, rises and falls again over time."""
    width, hills = _large(frame)
    found, table = hills[width], _over_time(frame, NOISE, width)
    first = paired(table, float(table.columns[0]), found.rise.low_at)
    others = ", ".join(
        f"{w:g}: {h.left.mean:+.1%} and {-h.right.mean:+.1%}" for w, h in hills.items()
    )
    measured = f"width {width:g}: down by {shown(first)}, {found.words} (rise and fall at {others})"
    return Verdict(measured, STANDS, bool(found.stands and first.low > 0))


def check_small(frame: pd.DataFrame) -> Verdict:
    """Check that no network that does not fit in the end falls, rises and falls over time."""
    small = [width for width, fits in _fitted(frame, 1.0).items() if not fits]
    if not small:
        raise Missing("every network fits its rows in the end")
    hills = {width: hill(_over_time(frame, NOISE, width)) for width in small}
    falls = {w: h.right.mean if h.rise.height > 0 else 0.0 for w, h in hills.items()}
    measured = ", ".join(f"{fall:.1%} at width {w:g}" for w, fall in falls.items())
    passed = max(falls.values()) < MARGIN
    return Verdict(f"second fall {measured}", f"each under {MARGIN:.0%}", bool(passed))


def check_middle(frame: pd.DataFrame) -> Verdict:
    """Check that networks at the threshold end worse than they once were: a U, to be stopped early.

    The width is the one at which test error is highest at the end of training, past those too small
    to fit.
    """
    end = frame[frame["step"] == frame["step"].max()]
    over_width = seeds_by(arm_of(end, label_noise=NOISE), "width").mean()
    width = largest_rise(over_width).peak_at
    table = _over_time(frame, NOISE, width)
    low = lowest(table)
    gap = paired(table, float(table.columns[-1]), low)
    measured = f"width {width:g}: {shown(gap)} from step {low:g} to the end"
    threshold = f"at least {MARGIN:.0%}, interval above 0"
    return Verdict(measured, threshold, bool(gap.mean >= MARGIN and gap.low > 0))


def check_clean(frame: pd.DataFrame) -> Verdict:
    """Check that without label noise the same large network has no comparable rise over time."""
    width, _ = _large(frame)
    rises = {p: largest_rise(_over_time(frame, p, width).mean()).height for p in (0.0, NOISE)}
    measured = (
        f"width {width:g}: rise {rises[0.0]:.1%} without noise, {rises[NOISE]:.1%} with {NOISE:.0%}"
    )
    passed = rises[NOISE] > 0 and rises[0.0] < NO_RISE * rises[NOISE]
    return Verdict(measured, f"under {NO_RISE:g} of the rise with noise", bool(passed))


def check_threshold(frame: pd.DataFrame) -> Verdict:
    """Check that the threshold moves to smaller networks as training gets longer."""
    arm = arm_of(frame, label_noise=NOISE)
    means = groups(arm, ("step", "width"))
    reached = {}
    for step, line in arms(means, "step"):
        at = crossing(line["width"].tolist(), line["train_error_mean"].tolist())
        if np.isfinite(at):
            reached[step] = at
    if len(reached) < 2:
        raise Missing("networks begin to fit at fewer than 2 of these times")
    places = list(reached.values())
    words = ", ".join(f"width {at:.3g} at step {step:g}" for step, at in reached.items())
    return Verdict(words, "falls from each time to the next", bool(np.all(np.diff(places) < 0)))


_CAPTION = (
    f"20 % label noise. Dashed contour and triangles: mean train error falls under {EPS:.0%}, the "
    "interpolation threshold."
)

FIGURES: dict[str, Figure] = {
    "width_by_epoch": Figure(
        "Test error over width and training time",
        "Heat maps of mean test and train error, and test error of a small, an intermediate and a "
        f"large network over time. {_CAPTION} (Nakkiran et al. 2019, figures 2 and 9.)",
        data_history,
        draw_map,
        (
            Claim(
                "a large network's test error falls, rises, falls",
                f"With {NOISE:.0%} label noise test error of a large network (one that fits in the "
                f"first {EARLY:.0%} of training) first falls over time, then rises by at least "
                f"{MARGIN:.0%}, then falls again by at least as much, paired over seeds. The rise "
                f"is the largest from an earlier to a later recording, the first {START:.0%} of "
                "training (in which Adam overshoots) left out. It is checked at the width "
                "where the effect is largest; all large widths are listed. (What counts as large, "
                "and the cut, are ours, set after a first look at these runs.)",
                f"{PAPER}, fig. 2, 9 and 10",
                check_large,
            ),
            Claim(
                "a small network's does not",
                "No network that does not fit in the end has such a second fall after its largest "
                f"rise: it is under {MARGIN:.0%}.",
                f"{PAPER}, fig. 9",
                check_small,
            ),
            Claim(
                "the intermediate network had better stop early",
                "At the width with the highest test error at the end (the top of the largest rise "
                "over width), test error at the end is above its minimum over time, paired over "
                "seeds.",
                f"{PAPER}, fig. 9",
                check_middle,
            ),
        ),
    ),
    "epoch_wise": Figure(
        "Epoch-wise double descent of a large network",
        "Mean test and train error over training time, with intervals, of the large network whose "
        f"rise and second fall are largest; cut off at {_TOP:.0%}. "
        f"Triangles: mean train error falls under {EPS:.0%}. (Nakkiran et al. 2019, figure 10.)",
        data_history,
        draw_time,
        (
            Claim(
                "no rise over time without noise",
                "Without label noise the rise over time of the same network is less than "
                f"{NO_RISE:g} of that with {NOISE:.0%}.",
                f"{PAPER}, fig. 10",
                check_clean,
            ),
        ),
    ),
    "error_by_width_and_time": Figure(
        "The peak over width comes with training time",
        f"Test error over width after shorter and longer training. {_CAPTION} (Nakkiran et al. "
        "2019, figure 1 right.)",
        data_end,
        draw_end,
        (
            Claim(
                "longer training fits with smaller networks",
                f"The width at which mean train error falls under {EPS:.0%} becomes smaller from "
                "each of the drawn times to the next.",
                f"{PAPER}, fig. 1 and 2, definition 1",
                check_threshold,
            ),
        ),
    ),
}
