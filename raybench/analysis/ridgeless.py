"""Risk of least squares against its closed forms, and random features on images.

Hastie et al. 2019, "Surprises in high-dimensional ridgeless least squares interpolation"
(arXiv:1903.08560); Belkin et al. 2018 (arXiv:1812.11118). The claims are in `ridgeless_claims`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from raybench.analysis import ridgeless_claims as claims
from raybench.analysis import style, theory
from raybench.analysis.figure import Figure, Tables
from raybench.analysis.rows import Missing, arms, groups, need, observed, with_intervals

_GRID = 400  # points of a theory curve on each side of gamma = 1


def _study(tables: Tables, *names: str) -> pd.DataFrame:
    need(tables.runs, "label.study")
    runs = tables.runs[tables.runs["label.study"].isin(names)]
    if runs.empty:
        raise Missing(f"no runs of {' or '.join(names)}")
    return runs


def _linear(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one row a run of the linear studies, with what theory expects of it."""
    need(runs, "summary.model.excess_risk", "config.data.dim", "config.data.train")
    keys = {
        "study": "label.study",
        "n": "config.data.train",
        "p": "config.data.dim",
        "signal": "config.data.signal",
        "decay": "config.data.decay",
        "noise": "config.data.label_noise",
        "ridge": "config.ridge",
        "outputs": "config.data.outputs",
    }
    values = {"risk": "summary.model.excess_risk", "norm": "summary.model.weight_norm"}
    frame = observed(runs.assign(**{k: runs.get(k) for k in keys.values()}), keys, values)
    numeric = ["n", "p", "signal", "decay", "noise", "ridge", "outputs"]
    frame[numeric] = frame[numeric].apply(pd.to_numeric, errors="coerce").astype(float)
    frame["gamma"] = frame["p"] / frame["n"]
    frame["norm"] = frame["norm"] ** 2 / frame["outputs"]  # |b|^2 of one output
    by = ("study", "signal", "decay", "p")
    frame = with_intervals(frame, by, ("risk", "norm"))
    medians = frame.groupby(list(by), dropna=False)[["risk", "norm"]].transform("median")
    frame["risk_median"], frame["norm_median"] = medians["risk"], medians["norm"]
    return _expected(frame)


def _expected(frame: pd.DataFrame) -> pd.DataFrame:
    """Add `risk_limit` (asymptotic), `risk_exact` and `norm_exact` (finite n; nan if infinite)."""
    names = ("signal", "noise", "decay", "ridge", "n", "p")
    rows = frame[list(names)].to_numpy(dtype=float)
    found = np.full((len(frame), len(_THEORY)), np.nan)
    for place, (signal, noise, decay, ridge, n, p) in enumerate(rows):
        model = theory.Model(signal, noise**2, decay)
        if ridge > 0:
            found[place, 0] = theory.ridge(p / n, ridge, model)
            continue
        found[place, 0] = theory.ridgeless(p / n, model)
        found[place, 1] = theory.ridgeless_exact(n, p, model)
        found[place, 2] = theory.norm_exact(n, p, model)
    return frame.assign(**{name: found[:, i] for i, name in enumerate(_THEORY)})


_THEORY = ("risk_limit", "risk_exact", "norm_exact")


def data_isotropic(tables: Tables) -> pd.DataFrame:
    """Return one row a run of the well-specified model, ridgeless."""
    return _linear(_study(tables, "isotropic"))


def data_misspecified(tables: Tables) -> pd.DataFrame:
    """Return one row a run of the misspecified model."""
    return _linear(_study(tables, "misspecified"))


def data_ridge(tables: Tables) -> pd.DataFrame:
    """Return one row a run with the best ridge, and ridgeless ones of the same signals."""
    frame = _linear(_study(tables, "ridge", "isotropic"))
    tuned = frame.loc[frame["study"] == "ridge", "signal"].unique()
    if not len(tuned):
        raise Missing("no runs of ridge")
    return frame[frame["signal"].isin(tuned)].reset_index(drop=True)


def data_features(tables: Tables) -> pd.DataFrame:
    """Return one row a run on random features."""
    runs = _study(tables, "random_features", "few_rows", "many_rows")
    need(runs, "summary.test.error", "config.features.width", "config.data.train")
    keys = {
        "n": "config.data.train",
        "features": "config.features.width",
        "label_noise": "config.data.label_noise",
        "ridge": "config.ridge",
    }
    values = {
        "test_error": "summary.test.error",
        "test_loss": "summary.test.loss",
        "train_loss": "summary.train.loss",
        "norm": "summary.model.weight_norm",
    }
    frame = observed(runs, keys, values)
    frame[list(keys)] = frame[list(keys)].apply(pd.to_numeric, errors="coerce").astype(float)
    return with_intervals(frame, list(keys), tuple(values))


def _curve_grid(gamma: pd.Series) -> list[np.ndarray]:
    low, high = float(gamma.min()), float(gamma.max())
    sides = ((low, 0.999), (1.001, high))
    return [np.geomspace(a, b, _GRID) for a, b in sides if a < b]


def _points(axes: Axes, means: pd.DataFrame, value: str, line: str, marker: str) -> None:
    """Draw means with intervals; medians, hollow, where the mean is infinite."""
    finite = means[(means["p"] - means["n"]).abs() > 1]
    wide = means[(means["p"] - means["n"]).abs() <= 1]
    mean = finite[f"{value}_mean"]
    bars = np.abs(np.stack([mean - finite[f"{value}_low"], finite[f"{value}_high"] - mean]))
    axes.errorbar(
        finite["gamma"], mean, yerr=bars, fmt=marker, ms=3, color=line, elinewidth=0.8, zorder=3
    )
    axes.plot(wide["gamma"], wide[f"{value}_median"], marker, ms=3, color=line, mfc="white")


def draw_isotropic(frame: pd.DataFrame) -> Picture:
    """Draw risk against gamma for each signal-to-noise ratio, and its ratio to the exact mean."""
    picture, [[axes], [below]] = style.canvas(2, 1, width=4.8, height=4.8)
    means = groups(frame, ("signal", "p"))
    names = _colours(means["signal"], "SNR")
    for signal, arm in arms(means, "signal"):
        line = names[f"SNR {signal:g}"]
        model = theory.Model(signal, float(arm["noise"].iloc[0]) ** 2)
        for gamma in _curve_grid(means["gamma"]):
            axes.plot(gamma, theory.ridgeless(gamma, model), color=line, lw=1.0)
        for side in (arm[arm["p"] < arm["n"] - 1], arm[arm["p"] > arm["n"] + 1]):
            axes.plot(side["gamma"], side["risk_exact"], color=line, lw=0.8, ls=(0, (2, 1.5)))
        axes.axhline(signal, color=line, lw=0.6, ls=":")
        _points(axes, arm, "risk", line, "o")
        _ratio(below, arm, line)
    for each in (axes, below):
        _threshold(each)
    axes.set_ylim(0.05, 1.5 * float(means["risk_median"].max()))
    _risk_axes(axes, "excess risk")
    handles = [Line2D([], [], color=c, marker="o", label=k) for k, c in names.items()]
    axes.legend(handles=handles, loc="upper right")
    below.axhspan(1 - claims.RELATIVE, 1 + claims.RELATIVE, color=style.FAINT, alpha=0.15, lw=0)
    style.log_axis(below, "x")
    below.set(xlabel=axes.get_xlabel(), ylabel="risk / exact mean")
    axes.set_xlabel("")
    return picture


def _ratio(axes: Axes, arm: pd.DataFrame, line: str) -> None:
    known = arm[arm["risk_exact"].notna()]
    parts = [known[f"risk_{name}"] / known["risk_exact"] for name in ("low", "mean", "high")]
    low, mean, high = (part.to_numpy(dtype=float) for part in parts)
    bars = np.abs(np.stack([mean - low, high - mean]))
    axes.errorbar(
        known["gamma"], mean, yerr=bars, fmt="o", ms=2.5, color=line, elinewidth=0.8, alpha=0.7
    )


def draw_norm(frame: pd.DataFrame) -> Picture:
    """Draw the squared norm of the solution against gamma."""
    picture, [[axes]] = style.canvas(width=4.8, height=3.0)
    means = groups(frame, ("signal", "p"))
    names = _colours(means["signal"], "SNR")
    for signal, arm in arms(means, "signal"):
        line = names[f"SNR {signal:g}"]
        for side in (arm[arm["p"] < arm["n"] - 1], arm[arm["p"] > arm["n"] + 1]):
            axes.plot(side["gamma"], side["norm_exact"], color=line, lw=1.0)
        _points(axes, arm, "norm", line, "o")
    _threshold(axes)
    _risk_axes(axes, r"$\|\hat\beta\|^2$")
    axes.legend(handles=[Line2D([], [], color=c, marker="o", label=k) for k, c in names.items()])
    return picture


def draw_misspecified(frame: pd.DataFrame) -> Picture:
    """Draw risk against gamma for each decay of the approximation bias."""
    picture, [[axes]] = style.canvas(width=4.8, height=3.2)
    means = groups(frame, ("decay", "p"))
    names = _colours(means["decay"], "a =")
    for decay, arm in arms(means, "decay"):
        line = names[f"a = {decay:g}"]
        model = theory.Model(float(arm["signal"].iloc[0]), float(arm["noise"].iloc[0]) ** 2, decay)
        for gamma in _curve_grid(means["gamma"]):
            axes.plot(gamma, theory.ridgeless(gamma, model), color=line, lw=1.0)
        _points(axes, arm, "risk", line, "o")
        lowest = arm.nsmallest(1, "risk_mean")
        axes.plot(lowest["gamma"], lowest["risk_mean"], "o", ms=8, mfc="none", mec=line, zorder=4)
    axes.axhline(float(means["signal"].iloc[0]), color=style.FAINT, lw=0.6, ls=":")
    _threshold(axes)
    axes.set_ylim(0.7 * float(means["risk_mean"].min()), 1.5 * float(means["risk_median"].max()))
    _risk_axes(axes, "excess risk")
    axes.legend(handles=[Line2D([], [], color=c, marker="o", label=k) for k, c in names.items()])
    return picture


def draw_ridge(frame: pd.DataFrame) -> Picture:
    """Draw risk with the best ridge beside the ridgeless one."""
    picture, [[axes]] = style.canvas(width=4.8, height=3.2)
    means = groups(frame, ("study", "signal", "p"))
    names = _colours(means["signal"], "SNR")
    for signal, arm in arms(means, "signal"):
        line = names[f"SNR {signal:g}"]
        model = theory.Model(signal, float(arm["noise"].iloc[0]) ** 2)
        for gamma in _curve_grid(means["gamma"]):
            tuned = theory.ridge(gamma, theory.best_ridge(gamma, model), model)
            axes.plot(gamma, tuned, color=line, lw=1.2)
            axes.plot(gamma, theory.ridgeless(gamma, model), color=line, lw=0.7, alpha=0.6)
        rest = arm[arm["study"] == "ridge"]
        bars = np.abs(rest[["risk_low", "risk_high"]].sub(rest["risk_mean"], axis=0).to_numpy().T)
        axes.errorbar(
            rest["gamma"], rest["risk_mean"], yerr=bars, fmt="o", ms=3, color=line, elinewidth=0.8
        )
        _points(axes, arm[arm["study"] == "isotropic"], "risk", line, "x")
    _threshold(axes)
    axes.set_ylim(0.05, 1.5 * float(means["risk_median"].max()))
    _risk_axes(axes, "excess risk")
    handles = [Line2D([], [], color=c, label=k) for k, c in names.items()]
    handles += [
        Line2D([], [], color=style.INK, marker="o", ls="", ms=3, label="best ridge"),
        Line2D([], [], color=style.INK, marker="x", ls="", ms=3, label="least norm"),
    ]
    axes.legend(handles=handles, loc="lower right")
    return picture


def draw_shift(frame: pd.DataFrame) -> Picture:
    """Draw test error against the number of features for each number of rows."""
    picture, [[left, right]] = style.canvas(1, 2, width=style.PAGE, height=2.8)
    means = groups(claims.ridgeless_features(frame), ("n", "features"))
    names = _colours(means["n"], "n =")
    for axes, value in ((left, "test_error"), (right, "test_loss")):
        for n, arm in arms(means, "n"):
            line = names[f"n = {n:g}"]
            _band(axes, arm, value, line)
            axes.axvline(n, color=line, lw=0.8, ls=":")
        style.log_axis(axes, "x")
        axes.set_xlabel("number of random features")
    style.percent_axis(left)
    left.set(ylabel="test error", ylim=(0, None))
    style.log_axis(right, "y")
    right.set_ylabel("test squared error")
    left.legend(handles=[Line2D([], [], color=c, marker="o", label=k) for k, c in names.items()])
    return picture


def draw_features(frame: pd.DataFrame) -> Picture:
    """Draw test error, squared error and norm against the number of features, as Belkin et al."""
    picture, grid = style.canvas(3, 1, width=4.4, height=6.0)
    main = claims.main_rows(frame)
    means = groups(main, ("ridge", "label_noise", "features"))
    labels: dict[str, pd.DataFrame] = {}
    for ridge, rows in arms(means, "ridge"):
        rest = f", ridge {ridge:g}" if ridge else ", least norm"
        for noise, arm in arms(rows, "label_noise"):
            labels[f"{style.percent(noise)} noise{rest}"] = arm
    names = style.colours(labels)
    shown = (("test_error", "test error"), ("test_loss", "squared error"), ("norm", "norm"))
    for [axes], (value, title) in zip(grid, shown, strict=True):
        for label, arm in labels.items():
            _band(axes, arm, value, names[label])
            if value == "test_loss":
                axes.plot(
                    arm["features"], arm["train_loss_mean"].clip(lower=1e-8), lw=0.9,
                    ls=(0, (3, 1.5)), color=names[label],
                )  # fmt: skip
        axes.axvline(float(main["n"].iloc[0]), color=style.FAINT, lw=0.8, ls=":")
        axes.set_ylabel(title)
        style.log_axis(axes, "x")
        if value != "test_error":
            style.log_axis(axes, "y")
    style.percent_axis(grid[0][0])
    grid[0][0].set_ylim(0, None)
    grid[-1][0].set_xlabel("number of random features")
    handles = [Line2D([], [], color=c, marker="o", label=k) for k, c in names.items()]
    grid[0][0].legend(handles=handles)
    return picture


def _band(axes: Axes, arm: pd.DataFrame, value: str, line: str) -> None:
    low, high = arm[f"{value}_low"], arm[f"{value}_high"]
    axes.fill_between(arm["features"], low, high, color=line, alpha=0.18, lw=0)
    axes.plot(arm["features"], arm[f"{value}_mean"], color=line, marker="o")


def _threshold(axes: Axes) -> None:
    axes.axvline(1.0, color=style.FAINT, lw=0.8, ls=":")


def _risk_axes(axes: Axes, name: str) -> None:
    axes.set_yscale("log")
    style.log_axis(axes, "x")
    axes.set(xlabel=r"$\gamma = p\,/\,n$", ylabel=name)


def _colours(values: pd.Series, word: str) -> dict[str, str]:
    labels: Sequence[str] = [f"{word} {value:g}" for value in sorted(values.dropna().unique())]
    return dict(zip(labels, style.PALETTE, strict=False))


_POINTS = (
    "Points: mean over seeds with intervals; hollow: the median at p = n - 1, n and n + 1, where "
    "the mean is infinite. "
)

FIGURES: dict[str, Figure] = {
    "risk": Figure(
        "Risk of the minimum-norm fit follows its closed form on both sides of the peak",
        f"{_POINTS}Solid: the asymptotic form; dashed: the exact mean at this n; dotted: the null "
        "risk of each signal-to-noise ratio (SNR; noise of variance 1), and gamma = 1. Below: the "
        f"ratio to the exact mean where that is finite; grey: within {claims.RELATIVE:.0%}. Risk "
        "is the excess over the noise of a new row, exact for each run without test rows, a mean "
        "over outputs that share inputs. Before the peak it does not depend on the signal.",
        data_isotropic,
        draw_isotropic,
        claims.ISOTROPIC,
    ),
    "misspecified": Figure(
        "When part of the signal is unseen, the best size can lie past the peak",
        f"{_POINTS}Solid: the asymptotic form with a share (1 + gamma)^-a of the signal in inputs "
        "nobody sees, at SNR 5. Ringed: the lowest mean. Dotted: the null risk, and gamma = 1.",
        data_misspecified,
        draw_misspecified,
        claims.MISSPECIFIED,
    ),
    "ridge": Figure(
        "The best ridge leaves no peak",
        "Circles and thick lines: ridge noise gamma / signal, mean over seeds with intervals, and "
        "in the limit; crosses and thin lines: the minimum-norm fit, with the median at p = n - 1, "
        "n and n + 1, where its mean is infinite. Dotted: gamma = 1.",
        data_ridge,
        draw_ridge,
        claims.RIDGE,
    ),
    "norm": Figure(
        "The norm of the solution peaks with the risk",
        f"{_POINTS}Squared norm, a mean over outputs. Solid: its exact mean at this n. Dotted: "
        "gamma = 1.",
        data_isotropic,
        draw_norm,
        claims.NORM,
    ),
    "features_by_rows": Figure(
        "With random features the peak stands at as many features as rows",
        "Minimum-norm fit of one-hot labels on random ReLU features, 10 % of training labels "
        "wrong; mean test error and squared error on clean labels. Dotted: as many features as "
        "rows.",
        data_features,
        draw_shift,
        claims.SHIFT,
    ),
    "random_features": Figure(
        "Random features: the peak in error, squared error and norm, and none with ridge",
        "Test error, test (solid) and train (dashed) squared error, and norm of the coefficients, "
        "with bands of intervals. Dotted: as many features as rows. Train squared error is drawn "
        "down to 1e-8.",
        data_features,
        draw_features,
        claims.FEATURES,
    ),
}
