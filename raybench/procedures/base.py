"""What a procedure is: what to do with K runs that differ only in Hypers and seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch

from raybench.lanes import Lanes
from raybench.record import Recorder
from raybench.spec import Json, Run, Spec

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Procedure(Spec, ABC):
    """What a run does. Written for one run; `lanes` lifts it to the K runs of a group."""

    dtype: Literal["float32", "float64"] = "float32"
    """Of weights, data and arithmetic; with float64 results do not depend on packing at all."""

    shared: ClassVar[bool] = False
    """Whether several ranks may carry out a run together, each on its share of the rows."""

    def check(self) -> str | None:
        """Return why this combination cannot be run, to be recorded as skipped; or None."""
        return None

    def require(self) -> None:
        """Raise MissingError if something that it needs is not installed."""

    def missing(self) -> str | None:
        """Return what would have to be fetched before it can run, or None."""
        return None

    def cost_form(self) -> Json:
        """Return what the time of a step depends on: lanes measured once serve all equal forms."""
        return self.batch_form

    def operations(self) -> float | None:
        """Return about how many floating-point operations a run takes; None if that is not known.

        From shapes alone: what tells the cost of runs whose data are not at hand.
        """
        return None

    def rough_operations(self) -> float:
        """Return a rough guess at the operations of a run, where shapes are not known.

        Runs are compared by it where none was measured. Procedures that do not know are all alike.
        """
        return 1e9

    @abstractmethod
    def execute(self, lanes: Lanes, runs: Sequence[Run[Any]], recorder: Recorder) -> None:
        """Carry out the runs, one in each lane, and record what they measure.

        Args:
            lanes: as many lanes as runs.
            runs: equal but for Hyper fields and seeds; `runs[0].procedure` holds what they share.
            recorder: takes metrics, arrays and facts.
        """
