"""Everything that imports ray; importing this package does not import it yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raybench.cluster.environment import prepare

if TYPE_CHECKING:
    from raybench.cluster.executor import RayExecutor
    from raybench.suite import Resources


def connect(
    address: str | None = None, cpus: int | None = None, resources: Resources | None = None
) -> RayExecutor:
    """Return an executor on the cluster at `address`, or on one started here; see RayExecutor."""
    prepare(address)
    from raybench.cluster.executor import RayExecutor

    return RayExecutor(address, cpus, resources)


__all__ = ["connect"]
