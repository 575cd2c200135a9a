"""Asynchronous halving as work: each trial with its rungs, and what is known of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from raybench.plan import Batch, Climb
from raybench.spec import digest
from raybench.suite import Suite
from raybench.suite.later import Later


def climbs(suite: Suite, later: Later, values: Mapping[str, float]) -> list[Climb]:
    """Return the trials of asynchronous brackets that are not over.

    Args:
        suite: what they belong to.
        later: of the suite.
        values: the selection metric by run_id, of runs that have ended.
    """
    return [
        Climb(
            bracket=f"{trial.arm.name} {trial.arm.study}",
            eta=trial.eta,
            column=trial.arm.tune.select.column,
            sign=trial.arm.tune.select.sign,
            rungs=tuple(
                Batch(
                    digest([planned.run.run_id for planned in runs]),
                    suite.name,
                    suite.scale,
                    tuple(runs),
                    runs[0].resources or suite.resources,
                    checkpoint=suite.checkpoint,
                )
                for runs in trial.rungs
            ),
            scores=tuple(None if math.isnan(score) else score for score in trial.scores),
        )
        for trial in later.climbing(values)
    ]
