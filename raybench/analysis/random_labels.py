"""Figures of the suite `random-labels`: networks that fit what cannot be learnt.

Zhang et al. 2017, "Understanding deep learning requires rethinking generalization"
(arXiv:1611.03530). The claims are in `random_label_claims`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator, PercentFormatter

from raybench.analysis import style
from raybench.analysis.double_descent import CLASSES
from raybench.analysis.figure import Figure, Tables
from raybench.analysis.random_label_claims import (
    ERROR_CLAIMS,
    FITTED,
    GAUSSIAN,
    LOSS_CLAIMS,
    MOVED,
    NONE,
    RANDOM,
    SHUFFLED,
    TABLE_CLAIMS,
    TIME_CLAIMS,
    TRUE,
)
from raybench.analysis.rows import ENDED, Missing, groups, need, observed, with_intervals
from raybench.stats import mean_interval

RANDOMISATIONS = {
    TRUE: "#0072B2",
    RANDOM: "#D55E00",
    SHUFFLED: "#009E73",
    MOVED: "#CC79A7",
    GAUSSIAN: "#E69F00",
    f"{GAUSSIAN}, {RANDOM}": "#7F7F7F",
}
"""In the order of figure 1a, with their colours; the last is ours."""
_DASHES = {SHUFFLED: "--", MOVED: "--", f"{GAUSSIAN}, {RANDOM}": ":"}
"""Of lines that lie on others: pixels that are only moved are fitted like true ones."""
_PIXELS = {"shuffled": SHUFFLED, "random_pixels": MOVED, "gaussian": GAUSSIAN}


def observations(tables: Tables) -> pd.DataFrame:
    """Return one row a run: what was randomised, by what it was held back, and how it did.

    Columns: run_id, model, regularizer, randomisation (a name of `RANDOMISATIONS`, or `partly`
    where some labels are corrupted), corruption (share of labels drawn anew from all classes),
    seed, status, train_error, test_error, fit_step (nan where it never fits).
    """
    runs = tables.runs
    need(runs, "run_id", "label.model", "config.data.label_noise", "config.data.name")
    tagged = runs.assign(
        regularizer=_words(runs, "label.regularizer", NONE),
        inputs=_words(runs, "config.data.inputs", "true"),
    )
    keys = {
        "run_id": "run_id",
        "model": "label.model",
        "regularizer": "regularizer",
        "inputs": "inputs",
        "noise": "config.data.label_noise",
        "data": "config.data.name",
    }
    values = {"train_error": "summary.train.error", "test_error": "summary.test.error"}
    frame = observed(tagged, keys, values)
    classes = frame["data"].map(CLASSES).astype(float)
    if classes.isna().any():
        raise Missing("a data set whose number of classes is known")
    # Label noise goes to wrong classes only, and the paper's to any: p (K - 1) / K of them change.
    frame["corruption"] = (frame["noise"].astype(float) * classes / (classes - 1)).round(6)
    frame["chance"] = 1 - 1 / classes
    frame["randomisation"] = [
        _named(str(i), float(p)) for i, p in zip(frame["inputs"], frame["corruption"], strict=True)
    ]
    return frame.assign(fit_step=frame["run_id"].map(_fit_steps(tables)).astype(float))


def _words(runs: pd.DataFrame, column: str, default: str) -> list[str]:
    # A case that does not set a label leaves it empty.
    if column not in runs.columns:
        return [default] * len(runs)
    return [str(word) if isinstance(word, str) and word else default for word in runs[column]]


def _named(inputs: str, corruption: float) -> str:
    whole = bool(np.isclose(corruption, 1.0))
    if inputs == "true":
        return RANDOM if whole else TRUE if corruption == 0 else "partly"
    return _PIXELS[inputs] + (f", {RANDOM}" if whole else "")


def _fit_steps(tables: Tables) -> dict[str, float]:
    need(tables.metrics, "run_id", "step", "split", "metric", "value")
    errors = _series(tables.metrics, "error")
    reached = errors[errors["value"] <= FITTED]
    return {str(run): float(step) for run, step in reached.groupby("run_id")["step"].min().items()}


def _series(metrics: pd.DataFrame, name: str) -> pd.DataFrame:
    chosen = (metrics["split"].astype(str) == "train") & (metrics["metric"].astype(str) == name)
    return metrics.loc[chosen, ["run_id", "step", "value"]].astype({"run_id": str})


def data_losses(tables: Tables) -> pd.DataFrame:
    """Return train loss at each recorded step, one row a run and step, with intervals."""
    frame = observations(tables)
    frame = frame[(frame["regularizer"] == NONE) & frame["randomisation"].isin(RANDOMISATIONS)]
    tags = ["run_id", "model", "randomisation", "seed", "train_error", "fit_step"]
    done = frame.loc[frame["status"].isin(ENDED), tags]
    long = (
        _series(tables.metrics, "loss").rename(columns={"value": "loss"}).merge(done, on="run_id")
    )
    if long.empty:
        raise Missing("no finished runs without regularizer")
    by = ["model", "randomisation", "step"]
    found = {
        cell: mean_interval(values.to_numpy(), method="t")
        for cell, values in long.groupby(by)["loss"]
    }
    cells = pd.DataFrame(
        [(one.mean, one.low, one.high, one.n) for one in found.values()],
        index=pd.MultiIndex.from_tuples(list(found), names=by),
        columns=["loss_mean", "loss_low", "loss_high", "loss_n"],
    )
    table = long.merge(cells.reset_index(), on=by)
    seeds = sorted({one.n for one in found.values()})
    many = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"
    lost = int((~frame["status"].isin(ENDED)).sum())
    table.attrs["note"] = f"{many} seeds a line; {lost} of {len(frame)} runs have no result."
    return table.sort_values(["model", "randomisation", "step", "seed"]).reset_index(drop=True)


def draw_losses(frame: pd.DataFrame) -> Picture:
    """Draw train loss over steps: a panel a model, a line a randomisation."""
    models = sorted(frame["model"].unique())
    picture, [row] = style.canvas(1, len(models), width=style.PAGE, height=2.7)
    for axes, model in zip(row, models, strict=True):
        here = frame[frame["model"] == model]
        for name, line in RANDOMISATIONS.items():
            arm = groups(here[here["randomisation"] == name], ("step",))
            band = (arm["step"], arm["loss_low"].clip(lower=0), arm["loss_high"])
            axes.fill_between(*band, color=line, alpha=0.2, lw=0)
            axes.plot(arm["step"], arm["loss_mean"], color=line, lw=1.3, ls=_DASHES.get(name, "-"))
        last = here["fit_step"].max()
        end = here["step"].max() if np.isnan(last) else min(1.5 * last, here["step"].max())
        axes.set(title=style.text(model), xlabel="step", xlim=(0, end), ylim=(0, 2.5))
    row[0].set_ylabel("train loss")
    there = set(frame["randomisation"])
    handles = [
        Line2D([], [], color=line, label=name, ls=_DASHES.get(name, "-"))
        for name, line in RANDOMISATIONS.items()
        if name in there
    ]
    picture.legend(handles=handles, loc="outside lower center", ncols=6, columnspacing=1.2)
    return picture


def data_corruption(tables: Tables) -> pd.DataFrame:
    """Return one row a run on true images without regularizer, with intervals at each level.

    `relative` is the time to fit over the mean time of the same model on true labels.
    """
    frame = observations(tables)
    frame = frame[(frame["regularizer"] == NONE) & (frame["inputs"] == "true")].copy()
    start = frame[frame["corruption"] == 0].groupby("model")["fit_step"].mean()
    frame["relative"] = frame["fit_step"] / frame["model"].map(start)
    return with_intervals(frame, ("model", "corruption"), ("test_error", "relative", "fit_step"))


def _lines(
    axes: Axes, frame: pd.DataFrame, value: str, legend: Literal["lower right", "upper left"]
) -> None:
    means = groups(frame, ("model", "corruption"))
    paint = style.colours(sorted(means["model"].unique()))
    for model, line in paint.items():
        arm = means[means["model"] == model]
        band = (arm["corruption"], arm[f"{value}_low"], arm[f"{value}_high"])
        axes.fill_between(*band, color=line, alpha=0.18, lw=0)
        axes.plot(
            arm["corruption"],
            arm[f"{value}_mean"],
            color=line,
            marker=style.marker(model),
            label=style.text(model),
        )
    axes.set_xlabel("label corruption")
    axes.xaxis.set_major_locator(MultipleLocator(0.2))
    axes.legend(loc=legend)


def draw_times(frame: pd.DataFrame) -> Picture:
    """Draw the time to fit against corruption, relative to true labels."""
    picture, [[axes]] = style.canvas(width=style.COLUMN, height=2.7)
    _lines(axes, frame, "relative", "lower right")
    axes.set(ylabel="time to fit over that of true labels", ylim=(0, None))
    return picture


def draw_errors(frame: pd.DataFrame) -> Picture:
    """Draw test error against corruption."""
    picture, [[axes]] = style.canvas(width=style.COLUMN, height=2.7)
    _lines(axes, frame, "test_error", "upper left")
    axes.axhline(frame["chance"].iloc[0], color=style.FAINT, lw=0.8, ls=":")
    style.percent_axis(axes)
    axes.set(ylabel="test error", ylim=(0, 1))
    return picture


def data_table(tables: Tables) -> pd.DataFrame:
    """Return one row a run on true images, with true or random labels, by regularizer."""
    frame = observations(tables)
    frame = frame[frame["randomisation"].isin([TRUE, RANDOM])]
    by = ("model", "regularizer", "randomisation")
    return with_intervals(frame, by, ("test_error", "train_error"))


def draw_table(frame: pd.DataFrame) -> Picture:
    """Draw train and test error, a row a network, regularizer and labels: table 1 as dots."""
    means = groups(frame, ("model", "randomisation", "regularizer"))
    means = means.iloc[::-1].reset_index(drop=True)
    size = 0.9 + 0.17 * len(means)
    picture, [row] = style.canvas(1, 2, width=style.PAGE, height=size)
    for axes, value in zip(row, ("train_error", "test_error"), strict=True):
        for place, (_, arm) in enumerate(means.iterrows()):
            line = RANDOMISATIONS[str(arm["randomisation"])]
            axes.hlines(place, arm[f"{value}_low"], arm[f"{value}_high"], color=line, lw=1.4)
            axes.plot(arm[f"{value}_mean"], place, "o", color=line, mec="white", mew=0.4, ms=4)
        axes.set(xlabel=value.replace("_", " "), xlim=(-0.03, 1.0))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    names = [f"{a.model}, {a.regularizer}" for a in means.itertuples()]
    row[0].set_yticks(range(len(means)), [style.text(name, 34) for name in names])
    row[1].set_yticks(range(len(means)), [""] * len(means))
    handles = [
        Line2D([], [], ls="", marker="o", color=RANDOMISATIONS[name], label=name)
        for name in (TRUE, RANDOM)
    ]
    picture.legend(handles=handles, loc="outside lower center", ncols=2)
    return picture


FIGURES: dict[str, Figure] = {
    "fig_1a_train_loss": Figure(
        "Networks fit labels and pixels that mean nothing",
        "Mean train loss over steps, without regularizers; bands: 95 % Student intervals. Axes end "
        "at 1.5 times the longest time to fit.",
        data_losses,
        draw_losses,
        LOSS_CLAIMS,
    ),
    "fig_1b_time_to_fit": Figure(
        "Corrupted labels take a few times longer to fit",
        f"First recorded step with train error at most {FITTED:.1%}, over its mean on true labels. "
        "A corrupted label is drawn from all classes, the true one included.",
        data_corruption,
        draw_times,
        TIME_CLAIMS,
    ),
    "fig_1c_test_error": Figure(
        "Test error rises with label corruption, though all labels are fitted",
        "Mean test error on true labels after training. Dotted: chance.",
        data_corruption,
        draw_errors,
        ERROR_CLAIMS,
    ),
    "table_1": Figure(
        "Train and test error with and without regularizers",
        "True images with true and with random labels; means over seeds.",
        data_table,
        draw_table,
        TABLE_CLAIMS,
    ),
}
