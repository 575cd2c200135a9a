"""Trials chosen by the results of earlier ones: Optuna's sampler through Ray Tune's searcher."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from raybench.cluster.environment import prepare
from raybench.errors import MissingError
from raybench.suite.protocol import Trial
from raybench.suite.sampling import Distribution


class OptunaSearcher:
    """The tree-structured Parzen estimator (Bergstra et al. 2011), seeded, on one space.

    It searches the unit cube, of which `Distribution.quantile` makes values: whatever kind a
    distribution is, the estimator sees a uniform one. Trials depend on the seed, on the scores and
    on the order in which they are told, and on nothing else.

    Args:
        space: what is searched.
        seed: of the draws.

    Raises:
        MissingError: Optuna is not installed.
    """

    def __init__(self, space: Mapping[str, Distribution], seed: int) -> None:
        require()
        if "ray" not in sys.modules:
            prepare(None)  # no cluster was asked for; Ray must not be imported without it
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        axes = {
            name: optuna.distributions.CategoricalDistribution(range(len(own.choices)))
            if own.choices
            else optuna.distributions.FloatDistribution(0.0, 1.0)
            for name, own in space.items()
        }
        self._search = OptunaSearch(axes, metric=_SCORE, mode="min", seed=seed)
        self._asked = 0
        self._told = 0

    def ask(self, count: int) -> list[Trial]:
        """Return the next trials; they are chosen without the results of one another."""
        first, self._asked = self._asked, self._asked + count
        return [self._trial(self._search.suggest(str(k))) for k in range(first, self._asked)]

    def tell(self, scores: Sequence[float]) -> None:
        """Take the scores of all trials asked for last: lower is better, infinite where lost."""
        for score in scores:
            self._search.on_trial_complete(str(self._told), {_SCORE: score})
            self._told += 1

    def _trial(self, point: Mapping[str, Any]) -> Trial:
        return {
            name: own.choices[point[name]]
            if own.choices
            else own.quantile(min(float(point[name]), _BELOW_ONE))
            for name, own in self._space.items()
        }


_SCORE = "score"
_BELOW_ONE = math.nextafter(1.0, 0.0)


def require() -> None:
    """Raise MissingError if Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise MissingError(
            "tune.method tpe needs Optuna, which is not installed: pip install 'raybench[tune]'"
        )
