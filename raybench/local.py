"""Execute batches in this process, one after the other: no Ray, and a debugger can step in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raybench.plan import Batch
from raybench.store import SuiteStore
from raybench.work import Progress, run_batch


class LocalExecutor:
    """The executor of `--in-process`; the other one is `raybench.cluster.RayExecutor`."""

    slots = 1

    def run(
        self,
        batches: Sequence[Batch],
        store: SuiteStore,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Carry out the batches and report as their runs are stored."""
        for batch in batches:
            for progress in run_batch(batch, store, "in-process"):
                on_progress(progress)

    def close(self) -> None:
        """Do nothing: this executor holds nothing."""
