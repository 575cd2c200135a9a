"""What Schmidt et al. 2021 ("Descending through a crowded valley", arXiv:2007.01547) claim.

The claims are those of the abstract, made checkable on a few optimizers and problems, each tuned
by random search and run again on fresh seeds. Scores are final test error (test loss where there
are no classes), lower is better; a diverged run is worse than any other.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from raybench.analysis.figure import Claim, Verdict
from raybench.analysis.rows import Missing
from raybench.stats import probability_of_improvement

CONTENDER = "adam"
TOP = 3
"""Adam is a contender among the best this many by mean rank."""
PLACES = 2
"""A change of this many places from one problem to another is a great one."""
PAPER = "Schmidt et al. 2021 (arXiv:2007.01547), abstract"


def scores(frame: pd.DataFrame) -> pd.DataFrame:
    """Return problems x seeds in rows, optimizers in columns; inf is diverged, nan is no run."""
    lost = frame["status"] == "diverged"
    table = frame.assign(value=frame["score"].mask(lost, np.inf))
    return table.pivot_table(
        index=["problem", "seed"], columns="optimizer", values="value", aggfunc="mean", dropna=False
    )


def _means(frame: pd.DataFrame) -> pd.DataFrame:
    # Mean score of each optimizer (columns) on each problem (rows); inf if any run diverged.
    means = scores(frame).groupby(level="problem").mean()
    if means.shape[0] < 2 or means.shape[1] < 2 or means.isna().any(axis=None):
        raise Missing("fewer than 2 problems or optimizers with finished runs of each")
    return means


def check_dominance(frame: pd.DataFrame) -> Verdict:
    """Check that no optimizer has the best mean score on every problem."""
    best = _means(frame).idxmin(axis=1)
    measured = ", ".join(f"{problem}: {name}" for problem, name in best.items())
    return Verdict(measured, "more than one winner", bool(best.nunique() > 1))


def check_contender(frame: pd.DataFrame) -> Verdict:
    """Check that Adam is among the best few by mean rank."""
    ranks = frame.drop_duplicates("optimizer").set_index("optimizer").sort_values("rank_mean")
    if CONTENDER not in ranks.index or len(ranks) <= TOP or ranks["rank_mean"].isna().any():
        raise Missing(f"no ranks of {CONTENDER} among more than {TOP} optimizers")
    place = list(ranks.index).index(CONTENDER) + 1
    mean, low, high = ranks.loc[[CONTENDER], ["rank_mean", "rank_low", "rank_high"]].iloc[0]
    measured = f"place {place} of {len(ranks)}: mean rank {mean:.2f} [{low:.2f}, {high:.2f}]"
    return Verdict(measured, f"place {TOP} or better", place <= TOP)


def check_consistency(frame: pd.DataFrame) -> Verdict:
    """Check that no optimizer is clearly better than Adam on every problem."""
    means, table = _means(frame), scores(frame)
    if CONTENDER not in means.columns:
        raise Missing(f"no runs of {CONTENDER}")
    clear = {
        str(name): sum(_clearly(table.loc[problem], str(name)) for problem in means.index)
        for name in means.columns
        if name != CONTENDER
    }
    most = max(clear, key=lambda name: clear[name])
    measured = f"{most} on {clear[most]} of {len(means)} problems" if clear[most] else "none on any"
    return Verdict(measured, "none on all of them", clear[most] < len(means))


def _clearly(seeds: pd.DataFrame, name: str) -> bool:
    ours, adam = seeds[name].dropna(), seeds[CONTENDER].dropna()
    return probability_of_improvement(ours, adam).low > 0.5


def check_variety(frame: pd.DataFrame) -> Verdict:
    """Check that places change from problem to problem."""
    places = _means(frame).rank(axis=1, method="min")
    change = places.max() - places.min()
    name = str(change.idxmax())
    measured = f"{name}: from place {places[name].min():g} to {places[name].max():g}"
    threshold = f"a change of at least {PLACES} places"
    return Verdict(measured, threshold, bool(change.max() >= PLACES))


CLAIMS = (
    Claim(
        "no optimizer dominates",
        "No tuned optimizer has the best mean test score on every problem.",
        PAPER,
        check_dominance,
    ),
    Claim(
        "Adam remains a strong contender",
        f"Tuned {CONTENDER} is among the best {TOP} by mean rank over problems and seeds.",
        PAPER,
        check_contender,
    ),
    Claim(
        "none consistently outperforms Adam",
        f"No optimizer is clearly better than {CONTENDER} on every problem (clearly: the interval "
        "of its probability of improvement is above one half).",
        PAPER,
        check_consistency,
    ),
    Claim(
        "performance varies across problems",
        f"Some optimizer's place differs by at least {PLACES} between two problems.",
        PAPER,
        check_variety,
    ),
)
