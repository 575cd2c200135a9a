"""MLflow: a run a run, in a tracking server or in a database in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from raybench.exports.runs import Exported, library

_METRICS: Final = 1000  # MLflow takes no more in one request
_PARAMS: Final = 100
_TAG: Final = "raybench.run_id"


class Tracking:
    """Writes to a tracking URI; a folder becomes `sqlite:///FOLDER/mlflow.db`."""

    def __init__(self, target: str) -> None:
        self._entities = library("mlflow.entities", "mlflow")
        if "://" not in target:
            folder = Path(target).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            target = f"sqlite:///{folder}/mlflow.db"
        self._client = library("mlflow", "mlflow").MlflowClient(tracking_uri=target)

    def write(self, run: Exported) -> None:
        """Write a run; its experiment is the suite."""
        at = round(run.began * 1000)
        experiment = self._experiment(run.suite)
        for old in self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run.run_id}'"):
            self._client.delete_run(old.info.run_id)
        made = self._client.create_run(
            experiment, at, tags={_TAG: run.run_id, "status": run.status}, run_name=run.run_id
        ).info.run_id
        metrics = [
            self._entities.Metric(tag, value, at, step)
            for step, epoch, values in run.history
            for tag, value in {"epoch": epoch, **values}.items()
        ]
        metrics += [
            self._entities.Metric(f"summary/{name}", value, at, 0)
            for name, value in run.summary.items()
        ]
        params = [self._entities.Param(key, str(value)) for key, value in run.hyper.items()]
        for first in range(0, len(metrics), _METRICS):
            self._client.log_batch(made, metrics=metrics[first : first + _METRICS])
        for first in range(0, len(params), _PARAMS):
            self._client.log_batch(made, params=params[first : first + _PARAMS])
        ended = "FAILED" if run.status == "failed" else "FINISHED"
        self._client.set_terminated(made, ended, at + round(run.took * 1000))

    def _experiment(self, suite: str) -> str:
        known = self._client.get_experiment_by_name(suite)
        return str(known.experiment_id if known else self._client.create_experiment(suite))
