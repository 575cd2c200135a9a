"""Figures of the suite `crowded-valley`: Schmidt et al. 2021 (arXiv:2007.01547), and more.

Each topic is a module of its own; this one lists them in the order of the report.
"""

from raybench.analysis import (
    curves,
    final_table,
    gains,
    parallel,
    published,
    quadratic_deep,
    ranking,
    scoring,
    separation,
    trials,
    untuned,
)
from raybench.analysis.figure import Figure

FIGURES: dict[str, Figure] = {
    **ranking.FIGURES,
    **gains.FIGURES,
    **untuned.FIGURES,
    **parallel.FIGURES,
    **curves.FIGURES,
    **scoring.FIGURES,
    **trials.FIGURES,
    **separation.FIGURES,
    **final_table.FIGURES,
    **quadratic_deep.FIGURES,
    **published.FIGURES,
}
