"""Effective model complexity: how many samples a training procedure can fit.

Nakkiran et al. 2019, "Deep double descent" (arXiv:1912.02292), definition 1: EMC(T) is the largest
n for which the mean train error of T on n samples is at most eps. It is read off the grid of runs
over n: the largest n of the grid whose mean train error is at most eps, moved on to where the line
(over log n) to the next one crosses eps. Where all n of the grid fit it is a lower bound, where
none does an upper one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from raybench.analysis import style
from raybench.analysis.descent_runs import PAPER, histories, hues, of_study
from raybench.analysis.figure import Claim, Figure, Tables, Verdict
from raybench.analysis.rows import Missing, arms, close
from raybench.stats import RESAMPLES, Floats, percentile_interval, slope

EPS = 0.05
"""Mean train error that counts as fitting. Under the label noise of the runs: who fits the clean
labels only is left with about the level of noise, which is no fit of the training set."""
TIMES, SPAN = 8, 32.0
"""How many training times are drawn, and how many times longer the last is than the first."""


def emc(sizes: Floats, errors: Floats, eps: float = EPS) -> Floats:
    """Return the effective model complexity.

    Args:
        sizes: numbers of samples, rising, [S].
        errors: mean train errors, [..., S].
        eps: train error that counts as fitting.

    Returns:
        [...]: at least `sizes[0]` and at most `sizes[-1]`, which are bounds.
    """
    fits = errors <= eps
    places = np.where(fits, np.arange(len(sizes)), -1).max(axis=-1)
    last = np.clip(places, 0, len(sizes) - 2)
    below = np.take_along_axis(errors, last[..., None], axis=-1)[..., 0]
    above = np.take_along_axis(errors, last[..., None] + 1, axis=-1)[..., 0]
    rise = np.where(above > below, above - below, 1.0)
    share = np.clip((eps - below) / rise, 0.0, 1.0)
    logs = np.log(sizes)
    between = np.exp(logs[last] + share * (logs[last + 1] - logs[last]))
    found: Floats = np.where(
        places < 0, sizes[0], np.where(places == len(sizes) - 1, sizes[-1], between)
    )
    return found


def data_width(tables: Tables) -> pd.DataFrame:
    """Return the EMC at the end of training by width and level of noise, with intervals."""
    frame = of_study(tables, ("label_noise", "width", "n", "num_params"), "sample_wise")
    frame["num_params"] = frame.groupby("width")["num_params"].transform("max")
    done = frame.dropna(subset=["train_error"])
    rows = []
    for noise, width, table in _grids(done):
        size = float(done.loc[close(done["width"], width), "num_params"].iloc[0])
        rows.append({"label_noise": noise, "width": width, "num_params": size, **_interval(table)})
    return _with_slopes(_frame(rows), "num_params", ("label_noise",))


def data_time(tables: Tables) -> pd.DataFrame:
    """Return the EMC by training time in epochs, width and level of noise, with intervals.

    Train error at an epoch is read between recordings, on a line over the logarithm of epochs.
    """
    keys = ("label_noise", "width", "n")
    moments = histories(tables, of_study(tables, keys, "sample_wise"))
    moments = moments[moments["step"] > 0]
    if moments.empty:
        raise Missing("no recordings")
    ends = moments.groupby("n")["epoch"].agg(["min", "max"])
    last = ends["max"].min()
    epochs = np.geomspace(max(ends["min"].max(), last / SPAN), last, TIMES)
    curves = moments.sort_values("epoch").groupby([*keys, "seed"], sort=True)
    read = {
        key: np.interp(np.log(epochs), np.log(run["epoch"]), run["train_error"])
        for key, run in curves
    }
    rows = []
    for place, epoch in enumerate(epochs):
        at = pd.DataFrame(
            [(*key, errors[place]) for key, errors in read.items()],
            columns=[*keys, "seed", "train_error"],
        )
        for noise, width, table in _grids(at):
            rows.append(
                {"label_noise": noise, "width": width, "epoch": float(epoch), **_interval(table)}
            )
    return _with_slopes(_frame(rows), "epoch", ("label_noise", "width"))


def _grids(frame: pd.DataFrame) -> Iterator[tuple[float, float, pd.DataFrame]]:
    """Yield noise, width and train errors [seeds, n], of seeds with every n."""
    for noise, of_noise in arms(frame, "label_noise"):
        for width, arm in arms(of_noise, "width"):
            table = arm.pivot_table(index="seed", columns="n", values="train_error").dropna()
            if table.shape[1] >= 3 and len(table):
                yield noise, width, table.sort_index(axis=1)


def _interval(table: pd.DataFrame) -> dict[str, object]:
    sizes = table.columns.to_numpy(dtype=float)
    errors = table.to_numpy(dtype=float)
    estimate = float(emc(sizes, errors.mean(axis=0)))
    draws = np.random.default_rng(0).integers(0, len(errors), (RESAMPLES, len(errors)))
    found = percentile_interval(estimate, emc(sizes, errors[draws].mean(axis=1)), len(errors))
    several = len(errors) > 1
    return {
        "emc": estimate,
        "emc_low": found.low if several else np.nan,
        "emc_high": found.high if several else np.nan,
        "emc_n": len(errors),
        "bound": estimate in (sizes[0], sizes[-1]),
        "smallest_n": sizes[0],
        "largest_n": sizes[-1],
        "interval": found.method if several else "no interval: one seed",
    }


def _frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    if not rows:
        raise Missing("no width with results at 3 numbers of samples")
    return pd.DataFrame(rows)


def _with_slopes(frame: pd.DataFrame, along: str, by: tuple[str, ...]) -> pd.DataFrame:
    frame["slope"] = np.nan
    for index in frame.groupby(list(by)).groups.values():
        inside = frame.loc[index]
        inside = inside[~inside["bound"]]
        if len(inside) >= 3:
            frame.loc[index, "slope"] = float(slope(inside[along], inside["emc"]))
    return frame


def draw_width(frame: pd.DataFrame) -> Picture:
    """Draw the EMC against the number of parameters."""
    picture, [[axes]] = style.canvas(width=4.6, height=3.1)
    for noise, arm in arms(frame, "label_noise"):
        rise = arm["slope"].iloc[0]
        label = style.percent(noise) + ("" if np.isnan(rise) else f": slope {rise:.2f}")
        _points(axes, arm.sort_values("num_params"), "num_params", style.noise_colour(noise), label)
    return _finished(picture, axes, frame, "number of parameters", "label noise")


def draw_time(frame: pd.DataFrame) -> Picture:
    """Draw the EMC against epochs, a line a width, at the highest level of noise."""
    picture, [[axes]] = style.canvas(width=4.6, height=3.1)
    noisy = frame[close(frame["label_noise"], frame["label_noise"].max())]
    colours = hues([width for width, _ in arms(noisy, "width")])
    for width, arm in arms(noisy, "width"):
        _points(axes, arm.sort_values("epoch"), "epoch", colours[width], f"{width:g}")
    return _finished(picture, axes, frame, "epochs", "width")


def _points(axes: Axes, arm: pd.DataFrame, along: str, hue: str, label: str) -> None:
    axes.fill_between(arm[along], arm["emc_low"], arm["emc_high"], color=hue, alpha=0.18, lw=0)
    axes.plot(arm[along], arm["emc"], color=hue, marker="o", label=label)
    bound = arm[arm["bound"]]
    axes.plot(bound[along], bound["emc"], ls="", marker="o", color=hue, mfc="white", zorder=4)


def _finished(picture: Picture, axes: Axes, frame: pd.DataFrame, x: str, title: str) -> Picture:
    style.log_axis(axes, "x")
    style.log_axis(axes, "y")
    for n in sorted(set(frame["largest_n"])):
        axes.axhline(n, color=style.FAINT, lw=0.8, ls=":", zorder=0)
    axes.set(xlabel=x, ylabel="effective model complexity (samples)")
    axes.legend(title=title)
    return picture


def check_width(frame: pd.DataFrame) -> Verdict:
    """Check that the EMC rises from each width to the next, at each level of label noise."""
    words, passed = [], True
    for noise, arm in arms(frame, "label_noise"):
        inside = arm[~arm["bound"]].sort_values("width")
        if len(inside) < 3:
            continue  # most of these networks fit the whole grid, or none of it
        rises, rise = np.diff(inside["emc"]), inside["slope"].iloc[0]
        ends = inside.iloc[[0, -1]]
        words.append(
            f"{noise:.0%}: {ends['emc'].iloc[0]:.0f} [to {ends['emc_high'].iloc[0]:.0f}] at "
            f"{ends['num_params'].iloc[0]:g} parameters, {ends['emc'].iloc[1]:.0f} [from "
            f"{ends['emc_low'].iloc[1]:.0f}] at {ends['num_params'].iloc[1]:g}, slope {rise:.2f}"
        )
        apart = ends["emc_low"].iloc[1] > ends["emc_high"].iloc[0]
        passed &= bool((rises > 0).all() and apart)
    if not words:
        raise Missing("fewer than 3 widths whose EMC lies inside the grid of n")
    return Verdict("; ".join(words), "rises throughout, intervals of the ends apart", passed)


def check_time(frame: pd.DataFrame) -> Verdict:
    """Check that the EMC rises with training time at every width and level of noise."""
    found = []
    for noise, of_noise in arms(frame, "label_noise"):
        for width, arm in arms(of_noise, "width"):
            ordered = arm.sort_values("epoch")
            first, last = ordered.iloc[0], ordered.iloc[-1]
            if last["emc_low"] > last["smallest_n"]:  # else it may still be under the grid
                found.append((noise, width, first, last))
    if not found:
        raise Missing("no width whose EMC ends over the smallest n")
    apart = [last["emc_low"] > first["emc_high"] for _, _, first, last in found]
    noise, width, first, last = found[int(np.argmax([row[3]["emc"] for row in found]))]
    measured = (
        f"{sum(apart)} of {len(found)} widths; width {width:g} at {noise:.0%}: "
        f"{first['emc']:.0f} at epoch {first['epoch']:.3g}, {last['emc']:.0f} at "
        f"{last['epoch']:.3g}"
    )
    return Verdict(measured, "last interval above the first at each width", all(apart))


def check_noise(frame: pd.DataFrame) -> Verdict:
    """Check that label noise lowers the EMC: noisy labels are harder to fit."""
    levels = [noise for noise, _ in arms(frame, "label_noise")]
    if len(levels) < 2:
        raise Missing("one level of label noise only")
    clean, noisy = (
        frame[close(frame["label_noise"], p)].set_index("width") for p in (levels[0], levels[-1])
    )
    both = clean.join(noisy, rsuffix="_noisy", how="inner")
    both = both[~(both["bound"] & both["bound_noisy"])]
    if both.empty:
        raise Missing("no width whose EMC lies inside the grid of n")
    lower = both["emc_noisy"] < both["emc"]
    ratio = float((both["emc_noisy"] / both["emc"]).median())
    measured = f"lower at {int(lower.sum())} of {len(both)} widths, median ratio {ratio:.2f}"
    return Verdict(measured, "at all widths", bool(lower.all()))


_SOURCE = f"{PAPER}, definition 1 (section 2) and fig. 2"
_CAPTION = (
    f"The largest n whose mean train error is at most {EPS:.0%}, read off the grid of n. Bands: "
    "resampled seeds. Hollow: outside of the grid of n, so only a bound. Dotted: the largest n; "
    "where a line reaches a number of samples is their interpolation threshold. "
)

FIGURES: dict[str, Figure] = {
    "complexity_by_parameters": Figure(
        "Effective model complexity grows with the number of parameters",
        f"{_CAPTION}At the end of training. (Nakkiran et al. 2019, definition 1.)",
        data_width,
        draw_width,
        (
            Claim(
                "complexity grows with width",
                "The effective model complexity rises from each width to the next (where it lies "
                "inside the grid of n; levels of noise with fewer than 3 such widths are passed "
                "over), and the intervals of the first and the last are apart. (Its log-log slope "
                "over parameters is shown and not claimed: the paper gives no rate.)",
                _SOURCE,
                check_width,
            ),
            Claim(
                "label noise lowers complexity",
                "At each width the effective model complexity is lower with label noise.",
                f"{PAPER}, section 2 and fig. 4",
                check_noise,
            ),
        ),
    ),
    "complexity_by_epochs": Figure(
        "Effective model complexity grows with training time",
        f"{_CAPTION}At the highest level of label noise. (Nakkiran et al. 2019, definition 1.)",
        data_time,
        draw_time,
        (
            Claim(
                "complexity grows with epochs",
                "At each width and level of label noise whose effective model complexity ends over "
                "the smallest n of the grid, with its interval, that interval is above the one at "
                "the beginning.",
                _SOURCE,
                check_time,
            ),
        ),
    ),
}
