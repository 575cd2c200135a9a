"""Everything that imports ray; importing this package does not import it yet."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from raybench.cluster.environment import prepare
from raybench.errors import MissingError

if TYPE_CHECKING:
    from raybench.cluster.executor import RayExecutor
    from raybench.cluster.jobs import Jobs
    from raybench.suite import Resources


def connect(
    address: str | None = None, cpus: int | None = None, resources: Resources | None = None
) -> RayExecutor:
    """Return an executor on the cluster at `address`, or on one started here; see RayExecutor."""
    prepare(address)
    from raybench.cluster.executor import RayExecutor

    return RayExecutor(address, cpus, resources)


def dashboard(url: str) -> Jobs:
    """Return the jobs of the cluster whose dashboard is at `url`; see Jobs.

    Raises:
        MissingError: what Ray's Jobs API needs is not installed.
    """
    if importlib.util.find_spec("aiohttp") is None:
        raise MissingError(
            "jobs on a cluster need Ray's dashboard and job client, which are not installed: "
            "pip install 'raybench[cluster]'"
        )
    prepare(url)
    from raybench.cluster.jobs import Jobs

    return Jobs(url)


__all__ = ["connect", "dashboard"]
