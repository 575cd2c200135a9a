"""Optimizers and schedules. The tables list all that exist; each family has a file of its own."""

from raybench.optim.adam import Adam, AdamW, RMSProp
from raybench.optim.adapter import ForeignOptimizer, adapt
from raybench.optim.base import Optimizer
from raybench.optim.schedules import SCHEDULES, Schedule
from raybench.optim.sgd import NAG, SGD, Momentum
from raybench.tables import Table

OPTIMIZERS: Table[Optimizer] = Table(
    "optimizer",
    "raybench.optim",
    {
        "sgd": SGD,
        "momentum": Momentum,
        "nag": NAG,
        "adam": Adam,
        "adamw": AdamW,
        "rmsprop": RMSProp,
    },
    adapt,
)

__all__ = ["OPTIMIZERS", "SCHEDULES", "ForeignOptimizer", "Optimizer", "Schedule"]
