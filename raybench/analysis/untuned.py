"""Several untuned optimizers against one tuned one.

The abstract of Schmidt et al. 2021 (arXiv:2007.01547) has it that trying several optimizers with
their defaults does about as well as tuning a single one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D

from raybench.analysis import style
from raybench.analysis.figure import Claim, Figure, Tables, Verdict
from raybench.analysis.looks import AXIS, panels
from raybench.analysis.rows import Missing
from raybench.analysis.scores import (
    CONSTANT,
    ONE_SHOT,
    finals,
    lost_note,
    means,
    scored,
    tuned_budgets,
)
from raybench.stats import paired_difference

SINGLE = "adam"
"""The optimizer that a practitioner would tune."""
FEWEST = 3
"""Fewer untuned optimizers are not several."""
PAPER = "Schmidt et al. 2021 (arXiv:2007.01547), abstract"


def data_untuned(tables: Tables) -> pd.DataFrame:
    """Return one row for each problem and tuned optimizer, beside the best untuned one.

    The untuned optimizer of a problem is chosen by its mean validation score (test scores are
    drawn, not chosen by), with its defaults; `several` counts what it is chosen from. Columns:
    problem, metric, optimizer, mean, std, n (tuned, smallest budget), untuned, untuned_mean,
    untuned_std, several, difference (untuned - tuned over shared seeds, positive: tuning is
    better) with difference_low and difference_high, middle (the optimizer whose tuned mean is
    the median, the better one of an even number).
    """
    final = finals(scored(tables))
    final = final[final["schedule"] == CONSTANT]
    budgets = tuned_budgets(final)
    if not budgets:
        raise Missing("no tuned runs with a constant schedule")
    before = final[final["budget"] == ONE_SHOT]
    after = final[final["budget"] == budgets[0]]
    rows: list[dict[str, object]] = []
    for problem, tuned in after.groupby("problem"):
        untuned = before[before["problem"] == problem]
        validation = untuned.groupby("optimizer")["valid"].mean().dropna()
        if len(validation) < FEWEST or tuned["test"].isna().all():
            continue
        pick = str(validation.idxmin())
        rows += _against(untuned[untuned["optimizer"] == pick], tuned, len(validation))
    if not rows:
        raise Missing(f"no problem with {FEWEST} untuned optimizers and a tuned one")
    table = pd.DataFrame(rows)
    used = pd.concat([before, after])
    table.attrs["note"] = f"Tuned: budget {budgets[0]!r}. {lost_note(used)}"
    return table


def _against(pick: pd.DataFrame, tuned: pd.DataFrame, several: int) -> list[dict[str, object]]:
    cells = means(tuned).dropna(subset=["mean"]).sort_values("mean", kind="stable")
    middle = cells["optimizer"].iloc[(len(cells) - 1) // 2]
    own = pick.groupby("seed")["test"].mean()
    rows: list[dict[str, object]] = []
    for cell in cells.to_dict("records"):
        other = tuned[tuned["optimizer"] == cell["optimizer"]].groupby("seed")["test"].mean()
        both = pd.concat([own, other], axis=1, keys=["untuned", "tuned"]).dropna()
        both = both[np.isfinite(both).all(axis=1)]
        gap = paired_difference(both["untuned"], both["tuned"])
        rows.append(
            {
                **{str(k): cell[k] for k in ("problem", "metric", "optimizer", "mean", "std", "n")},
                "untuned": pick["optimizer"].iloc[0],
                "untuned_mean": own.mean(),
                "untuned_std": own.std() if np.isfinite(own).all() else np.nan,
                "several": several,
                "difference": gap.mean,
                "difference_low": gap.low,
                "difference_high": gap.high,
                "difference_n": gap.n,
                "interval": gap.method,
                "middle": cell["optimizer"] == middle,
            }
        )
    return rows


def draw_untuned(frame: pd.DataFrame) -> Picture:
    """Draw the tuned means, with the picked untuned one as a band, a panel a problem."""
    problems = sorted(frame["problem"].unique())
    most = int(frame.groupby("problem").size().max())
    picture, axes = panels(len(problems), 1.0 + 0.18 * most, across=3, width=9.0)
    for cell, problem in zip(axes, problems, strict=True):
        here = frame[frame["problem"] == problem].sort_values("mean", kind="stable")
        first = here.iloc[0]
        if np.isfinite(first["untuned_mean"]):
            spread = 0.0 if np.isnan(first["untuned_std"]) else first["untuned_std"]
            low, high = first["untuned_mean"] - spread, first["untuned_mean"] + spread
            cell.axvspan(low, high, color="#D55E00", alpha=0.2, lw=0)
            cell.axvline(first["untuned_mean"], color="#D55E00", lw=1.2)
        places = np.arange(len(here))
        cell.errorbar(
            here["mean"].replace(np.inf, np.nan),
            places,
            xerr=here["std"].fillna(0.0),
            ls="",
            marker="o",
            ms=3.4,
            color="#0072B2",
            elinewidth=1.0,
        )
        bold = {SINGLE, *here.loc[here["middle"], "optimizer"]}
        cell.set_yticks(places, [style.text(name, 18) for name in here["optimizer"]])
        for label, name in zip(cell.get_yticklabels(), here["optimizer"], strict=True):
            label.set_fontweight("bold" if name in bold else "normal")
        cell.set_ylim(len(here) - 0.4, -0.6)
        positive = here["mean"][np.isfinite(here["mean"])]
        if len(positive) and positive.min() > 0 and positive.max() / positive.min() > 10:
            style.log_axis(cell, "x")
        cell.set_title(style.text(problem, 24))
        picked = f"{style.text(first['untuned'], 18)} of {first['several']}"
        cell.set_xlabel(f"{AXIS[str(first['metric'])]}\n(untuned: {picked})")
    handles = [
        Line2D([], [], color="#0072B2", marker="o", ls="", label="tuned"),
        Line2D([], [], color="#D55E00", label="best untuned"),
    ]
    picture.legend(handles=handles, loc="outside upper right", ncols=2)
    return picture


def check_single(frame: pd.DataFrame) -> Verdict:
    """Check the best untuned optimizer against tuned Adam."""
    rows = frame[frame["optimizer"] == SINGLE]
    if rows.empty:
        raise Missing(f"no tuned runs of {SINGLE}")
    return _mostly(rows)


def check_middle(frame: pd.DataFrame) -> Verdict:
    """Check the best untuned optimizer against the tuned optimizer in the middle."""
    return _mostly(frame[frame["middle"]])


def _mostly(rows: pd.DataFrame) -> Verdict:
    if len(rows) < 2 or rows["difference_low"].isna().any():
        raise Missing("fewer than 2 problems, or 2 shared seeds, to compare on")
    kept = rows["difference_low"] <= 0
    behind = rows.loc[~kept, "problem"].tolist()
    measured = f"on {int(kept.sum())} of {len(rows)} problems"
    measured += f" (clearly worse: {', '.join(behind)})" if behind else ""
    return Verdict(measured, "more than half of the problems", bool(kept.mean() > 0.5))


_AS_WELL = (
    "The best of several untuned optimizers (one-shot, chosen by validation score) is not clearly "
    "worse than {} on more than half of the problems; clearly: the interval of the paired "
    "difference of test scores is above 0. Smallest tuned budget, constant schedule."
)
CLAIMS = (
    Claim(
        "several untuned do as well as tuned Adam",
        _AS_WELL.format(f"tuned {SINGLE}"),
        PAPER,
        check_single,
    ),
    Claim(
        "several untuned do as well as one tuned",
        _AS_WELL.format("the tuned optimizer whose mean is the median"),
        PAPER,
        check_middle,
    ),
)

FIGURES: dict[str, Figure] = {
    "several_untuned": Figure(
        "The best of several untuned optimizers, against each tuned one",
        "Mean and one standard deviation over seeds. Orange: the untuned optimizer that is best by "
        f"validation score. Bold: {SINGLE}, and the optimizer whose tuned mean is the median.",
        data_untuned,
        draw_untuned,
        CLAIMS,
    ),
}
