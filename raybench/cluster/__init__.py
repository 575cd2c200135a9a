"""Everything that imports ray."""

from raybench.cluster.executor import RayExecutor

__all__ = ["RayExecutor"]
