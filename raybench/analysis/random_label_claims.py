"""What Zhang et al. 2017 (arXiv:1611.03530) claim about networks and random labels.

A run counts as fitted when its train error is at most that of the worst network of their table 1.
The checks read the data of the figures of `random_labels`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from raybench.analysis.figure import Claim, Verdict
from raybench.analysis.rows import ENDED, Missing, close, groups, need
from raybench.stats import Interval, paired_difference

PAPER = "Zhang et al. 2017 (arXiv:1611.03530)"
FITTED = 0.007
"""Train error of a network that fits: the worst of table 1 on CIFAR-10 has 99.34 % right."""
FACTOR = 8.0
"""What "a small constant factor" is taken to be; the paper names none."""
NEAR_CHANCE = 0.03
"""How far from chance the test error after random labels may lie."""
GAP = 0.052
"""The largest loss of test accuracy without regularizers in table 1: AlexNet, 81.22 to 76.07 %."""
NONE = "none"
AUGMENTED = "crop"
"""In the names of regularizers that change the images."""
TRUE, RANDOM = "true labels", "random labels"
SHUFFLED, MOVED, GAUSSIAN = "shuffled pixels", "random pixels", "Gaussian"


def check_fits(frame: pd.DataFrame) -> Verdict:
    """Check that every network fits every randomisation."""
    runs = frame.drop_duplicates("run_id")
    absent = {TRUE, RANDOM, SHUFFLED, MOVED, GAUSSIAN} - set(runs["randomisation"])
    if absent:
        raise Missing(f"no runs with {', '.join(sorted(absent))}")
    worst = runs.sort_values("train_error").iloc[-1]
    measured = (
        f"train error at most {worst['train_error']:.2%} ({worst['model']}, "
        f"{worst['randomisation']}); 0 in {int((runs['train_error'] == 0).sum())} of {len(runs)} "
        "runs"
    )
    passed = bool((runs["train_error"] <= FITTED).all())
    return Verdict(measured, f"at most {FITTED:.1%} in every run", passed)


def check_noise_is_easy(frame: pd.DataFrame) -> Verdict:
    """Check that random pixels and Gaussian noise are fitted before random labels."""
    runs = frame.drop_duplicates("run_id")
    said, passed = [], True
    for model, arm in runs.groupby("model"):
        times = arm.pivot_table(index="seed", columns="randomisation", values="fit_step")
        for name in (MOVED, GAUSSIAN):
            more = _paired(times, RANDOM, name)
            said.append(f"{model}: {name} {more.mean:.0f} [{more.low:.0f}, {more.high:.0f}]")
            passed &= more.low > 0
    return Verdict("; ".join(said), "every interval above 0 steps", bool(passed))


def _paired(table: pd.DataFrame, a: str, b: str) -> Interval:
    need(table, a, b)
    both = table[[a, b]].dropna()
    if len(both) < 2:
        raise Missing(f"fewer than 2 seeds with both {a} and {b}")
    return paired_difference(both[a], both[b])


def check_factor(frame: pd.DataFrame) -> Verdict:
    """Check that random labels take longer by a small factor only."""
    threshold = f"intervals within 1 and {FACTOR:g} times"
    runs = frame[close(frame["corruption"], 1.0) & frame["status"].isin(ENDED)]
    never = int(runs["fit_step"].isna().sum())
    if never:
        return Verdict(f"{never} of {len(runs)} runs never fit random labels", threshold, False)
    ends = groups(runs, ("model",))
    if ends.empty or ends["relative_low"].isna().any():
        raise Missing("2 or more seeds with random labels, and runs that fit true ones")
    measured = "; ".join(
        f"{a.model}: {a.relative_mean:.2f} [{a.relative_low:.2f}, {a.relative_high:.2f}] times"
        for a in ends.itertuples()
    )
    passed = (ends["relative_low"] > 1) & (ends["relative_high"] < FACTOR)
    return Verdict(measured, threshold, bool(passed.all()))


def check_rises(frame: pd.DataFrame) -> Verdict:
    """Check that test error rises with each level of corruption."""
    said, passed = [], True
    for model, arm in groups(frame, ("model", "corruption")).groupby("model"):
        levels, means = arm["corruption"].to_numpy(), arm["test_error_mean"].to_numpy()
        if len(means) < 3:
            raise Missing("fewer than 3 levels of corruption")
        steps = np.diff(means)
        least = int(steps.argmin())
        said.append(
            f"{model}: {means[0]:.1%} to {means[-1]:.1%}, least step {steps[least]:+.1%} (to "
            f"{levels[least + 1]:.0%})"
        )
        passed &= bool((steps > 0).all())
    return Verdict("; ".join(said), "every step above 0", passed)


def check_chance(frame: pd.DataFrame) -> Verdict:
    """Check that networks fitted to random labels do as well as chance."""
    ends = groups(frame[close(frame["corruption"], 1.0)], ("model",))
    if ends.empty:
        raise Missing("no runs with random labels")
    measured = "; ".join(
        f"{a.model}: {a.test_error_mean:.1%} [{a.test_error_low:.1%}, {a.test_error_high:.1%}]"
        for a in ends.itertuples()
    )
    chance = ends["chance"]
    passed = bool(((ends["test_error_mean"] - chance).abs() <= NEAR_CHANCE).all())
    return Verdict(measured, f"{chance.iloc[0]:.0%} within {NEAR_CHANCE:.0%}", passed)


def _by_regularizer(frame: pd.DataFrame, randomisation: str, value: str) -> pd.DataFrame:
    arm = frame[frame["randomisation"] == randomisation]
    table = arm.pivot_table(index="regularizer", columns="model", values=value, aggfunc="mean")
    if NONE not in table.index or len(table) < 2:
        raise Missing("runs both with and without regularizers")
    return table


def check_not_necessary(frame: pd.DataFrame) -> Verdict:
    """Check that networks without regularizers generalize nearly as well."""
    table = _by_regularizer(frame, TRUE, "test_error")
    said, gaps = [], []
    for model, errors in table.items():
        best = errors.drop(index=NONE).sort_values()
        gaps.append(float(errors[NONE] - best.iloc[0]))
        said.append(f"{model}: {errors[NONE]:.1%}, {best.iloc[0]:.1%} with {best.index[0]}")
    return Verdict("; ".join(said), f"at most {GAP:.1%} apart", max(gaps) <= GAP)


def check_not_sufficient(frame: pd.DataFrame) -> Verdict:
    """Check that weight decay and dropout do not keep networks from fitting random labels."""
    return _held_back(frame[~frame["regularizer"].str.contains(AUGMENTED)])


def check_augmented(frame: pd.DataFrame) -> Verdict:
    """Check that augmentation does not keep networks from fitting random labels."""
    chosen = frame["regularizer"].str.contains(AUGMENTED) | (frame["regularizer"] == NONE)
    return _held_back(frame[chosen])


def _held_back(frame: pd.DataFrame) -> Verdict:
    table = _by_regularizer(frame, RANDOM, "train_error").drop(index=NONE)
    arms = sorted(
        (float(error), f"{model}, {regularizer}")
        for model, errors in table.items()
        for regularizer, error in errors.dropna().items()
    )
    failing = [f"{name} {error:.1%}" for error, name in arms if error > FITTED]
    measured = f"mean train error at most {arms[-1][0]:.2%} ({arms[-1][1]})"
    if failing:
        rest = len(arms) - len(failing)
        measured = f"not fitted: {', '.join(failing)}; {rest} of {len(arms)} are"
    return Verdict(measured, f"at most {FITTED:.1%} in every arm", not failing)


LOSS_CLAIMS = (
    Claim(
        "everything is fitted",
        "Without regularizers every network fits true labels, random labels, shuffled pixels, "
        f"random pixels and Gaussian noise: final train error at most {FITTED:.1%} in every run.",
        f"{PAPER}, fig. 1a and table 1",
        check_fits,
    ),
    Claim(
        "noise is fitted sooner than random labels",
        "Random pixels and Gaussian noise, with true labels, are fitted in fewer steps than random "
        "labels on true images, paired over seeds, for every network.",
        f"{PAPER}, fig. 1a and section 2.2",
        check_noise_is_easy,
    ),
)
TIME_CLAIMS = (
    Claim(
        "a small constant factor",
        "Random labels take longer to fit than true ones, by a small constant factor only: the "
        f"interval of the ratio lies between 1 and {FACTOR:g} for every network. (The paper names "
        "no number.)",
        f"{PAPER}, fig. 1b and section 2.2",
        check_factor,
    ),
)
ERROR_CLAIMS = (
    Claim(
        "test error rises with corruption",
        "The mean test error of every network rises with every level of label corruption.",
        f"{PAPER}, fig. 1c",
        check_rises,
    ),
    Claim(
        "random labels end at chance",
        f"After random labels mean test error is within {NEAR_CHANCE:.0%} of chance.",
        f"{PAPER}, fig. 1c and table 1",
        check_chance,
    ),
)
TABLE_CLAIMS = (
    Claim(
        "regularizers are not necessary",
        "On true labels a network without regularizers has at most "
        f"{GAP:.1%} more test error than with the best of its regularizers.",
        f"{PAPER}, table 1 and section 3",
        check_not_necessary,
    ),
    Claim(
        "regularizers are not sufficient",
        "With weight decay, and with dropout, every network still fits random labels: mean final "
        f"train error at most {FITTED:.1%}.",
        f"{PAPER}, table 4 (appendix)",
        check_not_sufficient,
    ),
    Claim(
        "augmentation is not sufficient",
        "With random crops a convolutional network still fits random labels: mean final train "
        f"error at most {FITTED:.1%}.",
        f"{PAPER}, table 4 (appendix)",
        check_augmented,
        {
            "laptop": "not at this scale. Tried on digits, 3,000 steps of Adam: cnn_2c2d of width "
            "8 and rate 1e-3, train error 15 and 21 %; width 4 and 3e-3, 24 and 26 %; an MLP of "
            "256 units, 29 to 32 %."
        },
    ),
)
