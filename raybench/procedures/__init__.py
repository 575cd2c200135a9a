"""Procedures. The table is the list of all that exist; each has a file of its own."""

from raybench.procedures.base import Procedure
from raybench.procedures.correlators import Correlators
from raybench.procedures.kernel import GaussianProcess, Kernel
from raybench.procedures.lazy import Lazy
from raybench.procedures.solve import Solve
from raybench.procedures.train import Train
from raybench.tables import Table

PROCEDURES: Table[Procedure] = Table(
    "procedure",
    "raybench.procedures",
    {
        "train": Train,
        "solve": Solve,
        "lazy": Lazy,
        "kernel": Kernel,
        "gaussian_process": GaussianProcess,
        "correlators": Correlators,
    },
)

__all__ = ["PROCEDURES", "Procedure"]
