"""Optimizers and schedules. The tables list all that exist; each family has a file of its own."""

from raybench.optim import library
from raybench.optim.adagrad import Adadelta, Adagrad, RMSProp
from raybench.optim.adam import Adam, Adamax, AdamW, AMSGrad, Nadam
from raybench.optim.adapter import ForeignOptimizer, adapt
from raybench.optim.base import Optimizer
from raybench.optim.bounded import AdaBound, AMSBound
from raybench.optim.layers import Adafactor, Lamb
from raybench.optim.lion import Lion
from raybench.optim.lookahead import LookaheadMomentum, LookaheadRAdam
from raybench.optim.muon import Muon
from raybench.optim.prodigy import Prodigy
from raybench.optim.rectified import AdaBelief, RAdam
from raybench.optim.schedule_free import ScheduleFreeAdamW
from raybench.optim.schedules import SCHEDULES, Schedule
from raybench.optim.sgd import NAG, SGD, Momentum
from raybench.optim.tensorflow import AdagradTF, AdamTF, AMSGradTF, NadamTF, RMSPropTF
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
        "amsgrad": AMSGrad,
        "amsbound": AMSBound,
        "adabound": AdaBound,
        "adabelief": AdaBelief,
        "adadelta": Adadelta,
        "adagrad": Adagrad,
        "adamax": Adamax,
        "nadam": Nadam,
        "radam": RAdam,
        "lookahead_momentum": LookaheadMomentum,
        "lookahead_radam": LookaheadRAdam,
        "lion": Lion,
        "lamb": Lamb,
        "adafactor": Adafactor,
        "muon": Muon,
        "schedule_free_adamw": ScheduleFreeAdamW,
        "prodigy": Prodigy,
        "adam_tf": AdamTF,
        "amsgrad_tf": AMSGradTF,
        "nadam_tf": NadamTF,
        "adagrad_tf": AdagradTF,
        "rmsprop_tf": RMSPropTF,
    },
    adapt,
    {library.PACKAGE: library},
)

__all__ = ["OPTIMIZERS", "SCHEDULES", "ForeignOptimizer", "Optimizer", "Schedule"]
