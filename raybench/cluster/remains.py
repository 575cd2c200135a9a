"""What dead workers left on their machines, sent to a store at a URL: there the driver reads it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any, Final

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybench.cluster import placement
from raybench.errors import UnavailableError
from raybench.journal import send
from raybench.store import SuiteStore

_SECONDS: Final = 60.0  # for a node to answer; what does not come is a traceback, and no result


def gather(store: SuiteStore, session: str, batch_ids: Collection[str]) -> None:
    """Have each node send the journals of batches whose processes died on it.

    Args:
        store: a store at a URL, of which each node has a mirror of its own.
        session: whose batches they are.
        batch_ids: batches that are not being carried out any more.
    """
    sent = [
        _SEND.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            store.root, store.suite, session, sorted(batch_ids)
        )
        for node in placement.nodes()
    ]
    ray.wait(sent, num_returns=len(sent), timeout=_SECONDS)


def _send(root: str, suite: str, session: str, batch_ids: Collection[str]) -> None:
    store = SuiteStore(root, suite)
    with contextlib.suppress(UnavailableError):  # the runs' own writes tell
        send(store.folder, session, batch_ids, store.storage)


_SEND: Final[Any] = ray.remote(num_cpus=0, max_retries=0)(_send)
