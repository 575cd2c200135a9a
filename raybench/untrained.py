"""A reader's convention for diverged runs: they count as if they had not been trained.

DeepOBS fills all later entries of a diverged run with the value before the first step, so that it
counts as untrained, never as missing (Schneider et al. 2019; Schmidt et al. 2021). raybench stores
what was measured; whoever wants the published convention asks for it when reading.
"""

from __future__ import annotations

import pandas as pd

_LENGTH = ("label.problem", "config.data.name", "config.steps", "config.batch_size")
"""Runs that agree in these were measured at the same steps."""


def fill_runs(runs: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with the final metrics of diverged ones replaced by those at step 0.

    The best value over time stays what it was.
    """
    first = metrics[metrics["step"] == 0].copy()
    first["column"] = "summary." + first["split"].astype(str) + "." + first["metric"].astype(str)
    initial = first.pivot_table(index="run_id", columns="column", values="value", observed=True)
    filled = runs.copy()
    lost = filled["status"] == "diverged"
    for column in initial.columns.intersection(filled.columns):
        filled.loc[lost, column] = filled.loc[lost, "run_id"].map(initial[column])
    return filled


def fill_metrics(runs: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the metrics with each diverged run's values at step 0 repeated up to the end.

    They are repeated at the steps at which finished runs of the same length were measured; where
    there is none, nothing is added.
    """
    keys = [column for column in _LENGTH if column in runs.columns]
    once = runs.drop_duplicates("run_id").set_index("run_id")
    length = once[keys].astype(str).agg("|".join, axis=1)
    done = metrics[metrics["run_id"].map(once["status"] == "done").fillna(False).astype(bool)]
    times = done.assign(length=done["run_id"].map(length))
    times = times[["length", "step", "epoch"]].drop_duplicates()
    lost = once.index[once["status"] == "diverged"]
    own = metrics[metrics["run_id"].isin(lost)]
    last = own.groupby("run_id", observed=True)["step"].max()
    initial = own[own["step"] == 0].drop(columns=["step", "epoch"])
    initial = initial.assign(length=initial["run_id"].map(length))
    repeated = initial.merge(times, on="length").drop(columns="length")
    repeated = repeated[repeated["step"] > repeated["run_id"].map(last).astype(int)]
    return pd.concat([metrics, repeated[metrics.columns]], ignore_index=True)
