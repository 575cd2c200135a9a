"""Probes. The table is the list of all that exist; each concept has a file of its own."""

from raybench.probes.base import Probe, View
from raybench.probes.loss import Error, Loss
from raybench.probes.weights import GradNorm, WeightNorm
from raybench.tables import Table

PROBES: Table[Probe] = Table(
    "probe",
    "raybench.probes",
    {"loss": Loss, "error": Error, "grad_norm": GradNorm, "weight_norm": WeightNorm},
)

__all__ = ["PROBES", "Probe", "View"]
