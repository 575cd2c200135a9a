"""Procedures. The table is the list of all that exist; each has a file of its own."""

from raybench.procedures.base import Procedure
from raybench.procedures.train import Train
from raybench.tables import Table

PROCEDURES: Table[Procedure] = Table("procedure", "raybench.procedures", {"train": Train})

__all__ = ["PROCEDURES", "Procedure"]
