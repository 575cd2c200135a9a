"""Which optimizers stand above which: mean ranks, and which of them the data tell apart.

Ranks inside each problem and seed have intervals over seeds, for these problems; the
critical-difference diagram (Demsar 2006, JMLR 7, fig. 1) asks about problems of their kind, and
its blocks are problems.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from raybench.analysis import contest, style
from raybench.analysis.figure import Claim, Figure, Tables, Verdict
from raybench.analysis.looks import names
from raybench.analysis.rows import Missing
from raybench.analysis.scores import ONE_SHOT, complete, largest, lost_note, scored
from raybench.stats import cliques, friedman, mean_ranks, nemenyi_difference

ALPHA = 0.05
"""Level of Friedman's and Nemenyi's tests."""


def ranks(frame: pd.DataFrame) -> pd.DataFrame:
    """Return optimizer, rank_mean, rank_low and rank_high over problems and seeds.

    Args:
        frame: problem, optimizer, seed, status, score, one row a run.
    """
    table = contest.scores(frame)
    # [problems x seeds, optimizers] -> [optimizers, problems, seeds], with nan where no run is.
    blocks = [table.loc[problem].T for problem in table.index.unique("problem")]
    seeds = sorted(set(frame["seed"]))
    cube = np.stack(
        [block.reindex(columns=seeds).to_numpy(dtype=float) for block in blocks], axis=1
    )
    found = mean_ranks(cube)
    return pd.DataFrame(
        {
            "optimizer": table.columns,
            "rank_mean": [rank.mean for rank in found],
            "rank_low": [rank.low for rank in found],
            "rank_high": [rank.high for rank in found],
        }
    )


def data_ranking(tables: Tables) -> pd.DataFrame:
    """Return one row a run with its score, and of each optimizer the ranks and the test.

    Columns: problem, optimizer, seed, outcome (the run's status), score, budget; rank_mean,
    rank_low, rank_high (blocks: problem and seed); block_rank, friedman_p, critical_difference and
    blocks (blocks: mean scores on problems, or the seeds where there is one problem).
    """
    runs = largest(scored(tables))
    kept, out = complete(runs)
    if kept["optimizer"].nunique() < 2:
        raise Missing("fewer than 2 optimizers with scores on the same problems")
    frame = pd.DataFrame(
        {
            "problem": kept["problem"],
            "optimizer": kept["optimizer"],
            "seed": kept["seed"],
            "status": kept["status"],
            "score": kept["test"],
            "budget": kept["budget"],
        }
    ).reset_index(drop=True)
    table = frame.merge(ranks(frame), on="optimizer", how="left")
    table = table.merge(_tested(frame), on="optimizer", how="left")
    kind = "problems" if frame["problem"].nunique() > 1 else "seeds"
    p = table["friedman_p"].iloc[0]
    shown = f"p = {p:.2g}" if p >= 1e-12 else "p < 1e-12"
    test = "" if np.isnan(p) else f" Friedman's test (Iman and Davenport): {shown}."
    table.attrs["note"] = (
        f"Budget {runs['budget'].iloc[0]!r}. Blocks of the tests: "
        f"{table['blocks'].iloc[0]:g} {kind}.{test} {out} {lost_note(kept)}"
    ).replace("  ", " ")
    return table.rename(columns={"status": "outcome"})


def _tested(frame: pd.DataFrame) -> pd.DataFrame:
    by = "problem" if frame["problem"].nunique() > 1 else "seed"
    scores = frame.groupby([by, "optimizer"])["score"].mean().unstack().dropna(axis=0)
    table = pd.DataFrame({"optimizer": scores.columns})
    table["blocks"] = len(scores)
    if len(scores) < 2:
        return table.assign(block_rank=np.nan, friedman_p=np.nan, critical_difference=np.nan)
    found = friedman(scores.to_numpy(dtype=float).T)
    table["block_rank"] = found.ranks
    table["friedman_p"] = found.f_p_value
    table["critical_difference"] = nemenyi_difference(scores.shape[1], len(scores), ALPHA)
    return table


def draw_ranking(frame: pd.DataFrame) -> Picture:
    """Draw mean ranks with intervals, beside the critical-difference diagram."""
    rows = frame.drop_duplicates("optimizer")
    order = rows.sort_values("rank_mean", kind="stable")
    height = 0.9 + 0.19 * len(order)
    picture, [[left, right]] = style.canvas(1, 2, 9.0, max(height, 2.2))
    paint = style.colours([str(name) for name in order["optimizer"]])
    for place, row in enumerate(order.to_dict("records")):
        line = paint[str(row["optimizer"])]
        left.hlines(place, row["rank_low"], row["rank_high"], color=line, lw=1.8)
        left.plot(row["rank_mean"], place, marker="o", ms=4.2, mec="white", mew=0.5, color=line)
    names(left, [str(name) for name in order["optimizer"]])
    left.set(xlabel="mean rank over problems and seeds (1 is best)", title="ranks, with intervals")
    _draw_difference(right, rows)
    return picture


def _draw_difference(axes: Axes, rows: pd.DataFrame) -> None:
    axes.axis("off")
    axes.set_title("critical difference")
    order = rows.dropna(subset=["block_rank"]).sort_values("block_rank", kind="stable")
    if order.empty:
        axes.text(0.5, 0.5, "needs 2 blocks", ha="center", transform=axes.transAxes)
        return
    k, difference = len(order), float(order["critical_difference"].iloc[0])
    places = order["block_rank"].tolist()
    bars = cliques(places, difference)
    half = (k + 1) // 2
    bottom = 1.6 + 0.35 * len(bars) + half
    axes.set(xlim=(1 - 0.55 * k, k + 0.55 * k), ylim=(bottom, -2.4))
    axes.plot([1, k], [0, 0], color=style.INK, lw=0.9)
    for tick in range(1, k + 1):
        axes.plot([tick, tick], [0, -0.25], color=style.INK, lw=0.8)
        if k <= 10 or tick % 2:
            axes.text(tick, -0.4, str(tick), ha="center", va="bottom", fontsize=6.5)
    drawn = min(difference, k - 1.0)
    axes.plot([1, 1 + drawn], [-1.7, -1.7], color=style.INK, lw=1.4, marker="|", ms=5)
    more = " (beyond the axis)" if difference > k - 1 else ""
    axes.text(1 + drawn / 2, -1.85, f"CD = {difference:.2f}{more}", ha="center", fontsize=7)
    for level, clique in enumerate(bars):
        ends = (places[clique[0]] - 0.06 * k / 10, places[clique[-1]] + 0.06 * k / 10)
        height = 0.45 + 0.35 * level
        axes.plot(ends, [height] * 2, color=style.INK, lw=2.6, solid_capstyle="round")
    for place, (name, rank) in enumerate(zip(order["optimizer"], places, strict=True)):
        _lead(axes, str(name), rank, place, k, 1.4 + 0.35 * len(bars))


def _lead(axes: Axes, name: str, rank: float, place: int, k: int, top: float) -> None:
    # The better half is named on the left, best on top; the other on the right, worst on top.
    left = place < (k + 1) // 2
    height = top + (place if left else k - 1 - place)
    end = 1 - 0.04 * k if left else k + 0.04 * k
    axes.plot([rank, rank, end], [0, height, height], color=style.FAINT, lw=0.7, zorder=0)
    axes.text(
        end + (-0.01 * k if left else 0.01 * k),
        height,
        f"{style.text(name, 18)}  {rank:.2f}" if left else f"{rank:.2f}  {style.text(name, 18)}",
        ha="right" if left else "left",
        va="center",
        fontsize=7,
    )


Check = Callable[[pd.DataFrame], Verdict]


def _of(check: Check, *, tuned: bool) -> Check:
    def checked(frame: pd.DataFrame) -> Verdict:
        if frame["problem"].nunique() < 2:
            raise Missing("fewer than 2 problems")
        if (frame["budget"] == ONE_SHOT).any() == tuned:
            raise Missing("no tuned runs, or too few to rank" if tuned else "tuned runs are ranked")
        # `status` in a figure's data would put another note in its caption.
        return check(frame.rename(columns={"outcome": "status"}))

    return checked


CLAIMS: tuple[Claim, ...] = (
    *(dataclasses.replace(claim, check=_of(claim.check, tuned=True)) for claim in contest.CLAIMS),
    Claim(
        "no untuned optimizer dominates",
        "With their defaults, no optimizer has the best mean test score on every problem.",
        contest.PAPER,
        _of(contest.check_dominance, tuned=False),
    ),
    Claim(
        "untuned performance varies across problems",
        "With their defaults, some optimizer's place differs by at least "
        f"{contest.PLACES} between two problems.",
        contest.PAPER,
        _of(contest.check_variety, tuned=False),
    ),
)

FIGURES: dict[str, Figure] = {
    "ranking": Figure(
        "Optimizers by mean rank, and which of them are told apart",
        "Left: rank inside each problem and seed (a diverged run ranks last), averaged, with 95 % "
        "percentile bootstrap intervals over seeds. Right: mean ranks of the mean scores; "
        "optimizers under one bar differ by less than Nemenyi's critical difference at level "
        f"{ALPHA:g} (Demsar 2006). Constant schedule.",
        data_ranking,
        draw_ranking,
        CLAIMS,
    ),
}
