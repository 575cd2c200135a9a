"""What each run of an optimizer benchmark counts for: problem, arm, budget, schedule, score.

A problem is scored by error where its runs have a test error, else by loss; lower is better. A
diverged run counts by a convention:

- `untrained`: with its value before the first step, as in the published data of Schmidt et al.
  2021 (arXiv:2007.01547), whose runner repeats that value to the end of a diverged run;
- `worst`: as infinitely bad.

Failed and skipped runs have no score and are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from raybench.analysis.figure import Tables
from raybench.analysis.rows import ENDED, Missing, need
from raybench.analysis.tuning import arm_keys

Convention = Literal["untrained", "worst"]

ONE_SHOT, CONSTANT = "one_shot", "constant"
BUDGETS = (ONE_SHOT, "small", "medium", "large")
"""In the order of their trials: none, 25, 50, 75 in the paper. Others come after, by name."""
SCHEDULES = (CONSTANT, "cosine", "cosine_restarts", "trapezoidal")
CELL = ("problem", "optimizer", "budget", "schedule")
"""What the mean of a final score is over all seeds of."""
_BUDGET_OF_PHASE = {"one_shot": ONE_SHOT, "confirm": "tuned", "": ONE_SHOT}


def scored(tables: Tables, diverged: Convention = "untrained") -> pd.DataFrame:
    """Return one row a run and label set: its place in the benchmark and its scores.

    Columns: run_id, problem, optimizer, schedule, budget (empty for trials of a search), phase,
    study, trial, seed, status, metric (error or loss), `test` and `valid` (the final values of
    that metric, nan where there is none). Without labels of a benchmark, runs count as one_shot
    and constant, and problems and optimizers are named by their configs.
    """
    return score_runs(tables.runs, tables.metrics, diverged)


def score_runs(
    runs: pd.DataFrame, metrics: pd.DataFrame, diverged: Convention = "untrained"
) -> pd.DataFrame:
    """Return the rows of `scored` for a table of runs and their metrics."""
    need(runs, "run_id", "status", "seed")
    runs = runs.reset_index(drop=True)
    keys = arm_keys(runs)
    phase = _text(runs, "label.phase", "")
    budget = _text(runs, "label.budget", "")
    frame = pd.DataFrame(
        {
            "run_id": runs["run_id"].astype(str),
            "problem": runs[keys["problem"]].astype(str),
            "optimizer": runs[keys["optimizer"]].astype(str),
            "schedule": _text(runs, "label.schedule", CONSTANT),
            "budget": budget.where(budget != "", phase.map(_BUDGET_OF_PHASE).fillna("")),
            "phase": phase,
            "study": _whole(runs, "label.study"),
            "trial": _whole(runs, "label.trial"),
            "seed": runs["seed"],
            "status": runs["status"].astype(str),
        }
    )
    frame["metric"] = _metric(frame["problem"], runs)
    for split in ("test", "valid"):
        frame[split] = _final(frame, runs, split)
    _count_diverged(frame, metrics, diverged)
    order = [*CELL, "phase", "study", "trial", "seed", "run_id"]
    return frame.sort_values(order, kind="stable").reset_index(drop=True)


def _text(runs: pd.DataFrame, column: str, missing: str) -> pd.Series:
    if column not in runs.columns:
        return pd.Series(missing, index=runs.index, dtype=object)
    values = runs[column].astype(object)
    return values.where(values.notna(), missing).astype(str)


def _whole(runs: pd.DataFrame, column: str) -> pd.Series:
    if column not in runs.columns:
        return pd.Series(0, index=runs.index)
    return pd.to_numeric(runs[column], errors="coerce").fillna(0).astype(int)


def _numbers(runs: pd.DataFrame, column: str) -> pd.Series:
    if column not in runs.columns:
        return pd.Series(np.nan, index=runs.index)
    return pd.to_numeric(runs[column], errors="coerce").astype(float)


def _metric(problem: pd.Series, runs: pd.DataFrame) -> pd.Series:
    classes = problem[_numbers(runs, "summary.test.error").notna()].unique()
    return pd.Series(np.where(problem.isin(list(classes)), "error", "loss"), index=runs.index)


def _final(frame: pd.DataFrame, runs: pd.DataFrame, split: str) -> pd.Series:
    error, loss = (_numbers(runs, f"summary.{split}.{m}") for m in ("error", "loss"))
    return error.where(frame["metric"] == "error", loss).where(frame["status"].isin(ENDED))


def _count_diverged(frame: pd.DataFrame, metrics: pd.DataFrame, convention: Convention) -> None:
    lost = frame["status"] == "diverged"
    if not lost.any():
        return
    for split in ("test", "valid"):
        if convention == "untrained":
            before = _untrained(frame, metrics, split)
            frame[split] = frame[split].mask(lost, before)
        # Where nothing was measured before the first step there is nothing to count with.
        frame[split] = frame[split].mask(lost & frame[split].isna(), np.inf)


def _untrained(frame: pd.DataFrame, metrics: pd.DataFrame, split: str) -> pd.Series:
    # Of the run itself, or else the median over the runs of its problem.
    if "step" not in metrics.columns:
        return pd.Series(np.nan, index=frame.index)
    first = metrics[(metrics["step"] == 0) & (metrics["split"] == split)]
    values = pd.Series(np.nan, index=frame.index)
    for metric in frame["metric"].unique():
        own = first[first["metric"] == metric].drop_duplicates("run_id")
        by_run = pd.Series(own["value"].to_numpy(dtype=float), index=own["run_id"].astype(str))
        found = frame["run_id"].map(by_run)
        values = values.where(frame["metric"] != metric, found)
    return values.fillna(values.groupby(frame["problem"]).transform("median"))


def finals(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that a benchmark reports: one-shot and confirmation runs."""
    found = frame[frame["budget"] != ""]
    if found["test"].isna().all():
        raise Missing("no test error or test loss of finished one-shot or confirmation runs")
    return found


def means(frame: pd.DataFrame, by: Sequence[str] = CELL) -> pd.DataFrame:
    """Return mean, deviation and counts of the test score in each cell.

    Columns: `by`, metric, mean, std (n - 1; nan for one seed), n (runs with a score), diverged,
    failed (failed or skipped).
    """
    status = frame["status"]
    marked = frame.assign(
        diverged=status == "diverged", failed=~status.isin([*ENDED, "diverged"]).to_numpy()
    )
    cells = marked.groupby([*by, "metric"], sort=False)
    table = cells.agg(
        mean=("test", "mean"),
        std=("test", "std"),
        n=("test", "count"),
        diverged=("diverged", "sum"),
        failed=("failed", "sum"),
    )
    return in_order(table.reset_index())


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort rows by problem, optimizer, budget and schedule: the last two in the paper's order."""
    keys = pd.DataFrame(index=frame.index)
    for column in CELL:
        if column in frame.columns:
            ranked = {name: i for i, name in enumerate(ordered(column, frame[column]))}
            keys[column] = frame[column].map(ranked)
    rows = keys.sort_values(list(keys.columns), kind="stable").index
    return frame.loc[rows].reset_index(drop=True)


def ordered(column: str, names: pd.Series) -> list[str]:
    """Return the different names: budgets and schedules as in the paper, others by alphabet."""
    known = {"budget": BUDGETS, "schedule": SCHEDULES}.get(column, ())
    given = sorted({str(name) for name in names.unique()})
    return [name for name in known if name in given] + [n for n in given if n not in known]


def tuned_budgets(frame: pd.DataFrame) -> list[str]:
    """Return the budgets with tuned runs, the smallest first."""
    return [b for b in ordered("budget", frame["budget"]) if b not in ("", ONE_SHOT)]


def largest(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows at the largest budget that is far enough to compare at, constant schedule.

    A budget is far enough where at least half as many arms have a score as at the one with most,
    so that a benchmark that is under way is not reduced to its first few tuned arms. Where no run
    has a constant schedule, all schedules are taken for one.
    """
    final = finals(frame)
    constant = final[final["schedule"] == CONSTANT]
    final = final if constant["test"].isna().all() else constant
    scored_rows = final[final["test"].notna()].drop_duplicates(["problem", "optimizer", "budget"])
    arms = scored_rows["budget"].value_counts()
    far = [b for b in ordered("budget", scored_rows["budget"]) if 2 * arms[b] >= arms.max()]
    return final[final["budget"] == far[-1]]


def complete(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the rows of optimizers that have a score on each problem, and who is left out.

    A problem counts if at least half of the optimizers have a score on it.
    """
    there = frame[frame["test"].notna()]
    cover = there.groupby("problem")["optimizer"].nunique()
    total = there["optimizer"].nunique()
    problems = cover.index[2 * cover >= total]
    kept = there[there["problem"].isin(problems)]
    count = kept.groupby("optimizer")["problem"].nunique()
    optimizers = count.index[count == len(problems)]
    kept = frame[frame["problem"].isin(problems) & frame["optimizer"].isin(optimizers)]
    out = sorted(set(frame["optimizer"]) - set(optimizers))
    out += sorted(set(frame["problem"]) - set(problems))
    return kept, f"Left out, without runs everywhere: {', '.join(out)}." if out else ""


def lost_note(frame: pd.DataFrame, diverged: Convention = "untrained") -> str:
    """Return how many of the runs diverged and failed, and what they count for."""
    counts = frame["status"].value_counts()
    lost = len(frame) - sum(int(counts.get(status, 0)) for status in ENDED)
    gone = int(counts.get("diverged", 0))
    said = []
    if gone:
        worth = "their value before the first step" if diverged == "untrained" else "infinity"
        said.append(f"{gone} of {len(frame)} runs diverged and count with {worth}.")
    if lost - gone:
        said.append(f"{lost - gone} of {len(frame)} runs failed or were skipped and do not count.")
    return " ".join(said) or f"All {len(frame)} runs finished."
