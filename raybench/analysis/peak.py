"""What Nakkiran et al. 2019 (arXiv:1912.02292) claim about the peak of test error over width.

Where a network begins to fit its training set is the interpolation threshold. Two counts of it:
- effective model complexity (their definition 1): the most rows n that the training procedure
  fits with train error at most eps; the paper uses eps = 0.1. On a width axis with n fixed: the
  first width whose mean train error is under eps.
- Belkin et al. 2018 (arXiv:1812.11118): K outputs times n rows = number of parameters. It counts
  what a squared loss must fit, which comes later than every label being on the right side.
In the paper's figure 1 the peak stands where train error is 8 % (by our count of ResNet18k's
parameters about 0.55 nK); small networks trained on a squared loss peak past zero train error (1.4
to 1.9 nK in exploratory runs on digits). "At the threshold" therefore means: between the last width
that clearly does not fit and a small multiple of nK. The multiple was set after those exploratory
runs; the paper gives none.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from raybench.analysis.figure import Claim, Verdict
from raybench.analysis.rows import Missing, close
from raybench.stats import Interval, paired_difference

NOT_FITTING = 0.15
"""Mean train error over which a width is clearly too small to fit."""
MAX_COUNT = 3.0
"""The peak stands under this many times n K parameters."""
PEAK_NOISE = 0.2
"""Level of label noise that the claims are about."""
MARGIN = 0.02
"""Least height of a peak over either side. The widths compared are chosen on the same runs, so an
interval above zero alone would be too easy."""
NO_PEAK = 0.5
"""Without noise the rise is less than this share of the rise with it."""


class Rise(NamedTuple):
    """The largest rise of a curve from left to right."""

    low_at: float
    peak_at: float
    height: float


def largest_rise(mean: pd.Series) -> Rise:
    """Return the largest rise from a point to one on its right, over a curve indexed by width.

    The global maximum would be the narrowest network, which fits nothing; a curve that only falls
    rises by 0.
    """
    values = mean.to_numpy(dtype=float)
    if not len(values):
        raise Missing("no finished runs")
    heights = values - np.minimum.accumulate(values)
    peak = int(heights.argmax())
    low = int(values[: peak + 1].argmin())
    return Rise(float(mean.index[low]), float(mean.index[peak]), float(heights[peak]))


def _arm(frame: pd.DataFrame, noise: float) -> pd.DataFrame:
    arm = frame[close(frame["label_noise"], noise)].dropna(subset=["test_error"])
    if arm["width"].nunique() < 3:
        raise Missing(f"fewer than 3 widths with label noise {noise:g}")
    return arm


def _curve(arm: pd.DataFrame, value: str = "test_error") -> pd.Series:
    curve: pd.Series = arm.groupby("width")[value].mean().sort_index()
    return curve


def check_threshold(frame: pd.DataFrame) -> Verdict:
    """Check that the peak stands where networks begin to fit."""
    arm = _arm(frame, PEAK_NOISE)
    train, rise = _curve(arm, "train_error"), largest_rise(_curve(arm))
    times = (arm["num_params"] / arm["targets"]).groupby(arm["width"]).first()
    too_small = train[train > NOT_FITTING]
    if too_small.empty or not times.max() > MAX_COUNT:
        raise Missing("the widths do not reach from too small to fit to many times n K parameters")
    last, at = float(too_small.index[-1]), rise.peak_at
    threshold = f"width > {last:g} and < {MAX_COUNT:g} nK parameters"
    if rise.height <= 0:
        return Verdict("no peak", threshold, False)
    measured = f"width {at:g}: train error {train[at]:.1%}, {times[at]:.2f} nK parameters"
    return Verdict(measured, threshold, bool(at > last and times[at] < MAX_COUNT))


def check_sides(frame: pd.DataFrame) -> Verdict:
    """Check that the peak is above the minimum on its left and the end on its right."""
    arm = _arm(frame, PEAK_NOISE)
    rise = largest_rise(_curve(arm))
    threshold = f"both at least {MARGIN:.0%}, with intervals above 0"
    if rise.height <= 0:
        return Verdict("no peak", threshold, False)
    seeds = arm.pivot_table(index="seed", columns="width", values="test_error")
    ends = (rise.low_at, float(arm["width"].max()))
    sides = {at: _paired(seeds, rise.peak_at, at) for at in ends}
    measured = "; ".join(
        f"over width {at:g}: {side.mean:+.1%} [{side.low:+.1%}, {side.high:+.1%}]"
        for at, side in sides.items()
    )
    passed = all(side.mean >= MARGIN and side.low > 0 for side in sides.values())
    return Verdict(f"peak at width {rise.peak_at:g}; {measured}", threshold, passed)


def _paired(seeds: pd.DataFrame, a: float, b: float) -> Interval:
    both = pd.DataFrame({"a": seeds[a], "b": seeds[b]}).dropna()
    if len(both) < 2:
        raise Missing(f"fewer than 2 seeds with both widths {a:g} and {b:g}")
    return paired_difference(both["a"], both["b"])


def check_noise(frame: pd.DataFrame) -> Verdict:
    """Check that the curve without label noise has no comparable rise."""
    clean = largest_rise(_curve(_arm(frame, 0.0)))
    noisy = largest_rise(_curve(_arm(frame, PEAK_NOISE)))
    measured = f"rise {clean.height:.1%} without noise, {noisy.height:.1%} with {PEAK_NOISE:.0%}"
    passed = noisy.height > 0 and clean.height < NO_PEAK * noisy.height
    return Verdict(measured, f"under {NO_PEAK:g} of the rise with noise", passed)


CLAIMS = (
    Claim(
        "peak at the threshold",
        f"With {PEAK_NOISE:.0%} label noise test error peaks where networks begin to fit: right of "
        f"the last width whose mean train error is over {NOT_FITTING:.0%}, and with fewer than "
        f"{MAX_COUNT:g} n K parameters. The peak is the top of the largest rise of mean test error "
        "from left to right. (The multiple of n K is ours, set after exploratory runs on digits.)",
        "Nakkiran et al. 2019 (arXiv:1912.02292), fig. 1 and 4; n K: Belkin et al. 2018",
        check_threshold,
    ),
    Claim(
        "peak above both sides",
        f"With {PEAK_NOISE:.0%} label noise test error at the peak is above the minimum on its "
        "left and above the widest network, paired over seeds.",
        "Nakkiran et al. 2019 (arXiv:1912.02292), fig. 1, 4 and 5",
        check_sides,
    ),
    Claim(
        "no peak without noise",
        f"Without label noise the largest rise of mean test error is less than {NO_PEAK:g} of that "
        f"with {PEAK_NOISE:.0%}.",
        "Nakkiran et al. 2019 (arXiv:1912.02292), fig. 4 and 5",
        check_noise,
    ),
)
