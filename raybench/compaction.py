"""Parts are merged in the background while a suite runs, so that a store stays quick to read.

Only parts of batches that have ended are merged, since the others are written anew. Every `FAN_IN`
parts become one, and every `FAN_IN` of these one again: a row is written a few times in all,
however many batches there are.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import duckdb
import pyarrow as pa

from raybench.errors import UnavailableError
from raybench.parts import MERGED, merge, remove_leftovers, remove_sources
from raybench.store import SuiteStore

FAN_IN: Final = 32
"""How many parts become one."""
GRACE_SECONDS: Final = 30.0
"""How long what has been merged stays for those who have listed it already."""
_LAST_GRACE: Final = 1.0  # at the end, when nobody comes back to remove it later
_LARGEST: Final = 256 * 2**20  # bytes; larger parts are left as they are

_log = logging.getLogger(__name__)


class Compactor:
    """Merges the parts of a suite's store in a thread of its own, until it is closed.

    What goes wrong here costs nothing but speed: it is logged, and merging ends.
    """

    def __init__(self, store: SuiteStore, grace: float = GRACE_SECONDS) -> None:
        self._store = store
        self._grace = grace
        self._added: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._levels: dict[int, list[Path]] = defaultdict(list)
        self._taken: set[Path] = set()
        self._merged: list[tuple[float, Path]] = []  # with the time, oldest first
        self._hurried = False
        self._before: list[Path] = []
        self._thread = threading.Thread(target=self._work, name="compaction", daemon=True)

    def __enter__(self) -> Self:
        # Listed before any batch begins: from here on there are parts of unfinished ones.
        self._before = self._store.parts()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hurried = kind is not None  # Ctrl-C waits for no more than the merge under way
        self._added.put(None)
        self._thread.join()

    def add(self, part: str) -> None:
        """Say that a batch has ended and its part will not be written again."""
        self._added.put(part)

    def _work(self) -> None:
        try:
            remove_leftovers(self._store.storage, self._store.folder)
            for path in self._before:
                self._take(path)
            while (part := self._added.get()) is not None:
                path = self._store.folder / "runs" / f"part-{part}.parquet"
                if self._store.storage.written(path):
                    self._take(path)
                self._remove(self._grace)
            self._remove(_LAST_GRACE, wait=True)
        except (UnavailableError, OSError, duckdb.Error, pa.ArrowException) as error:
            _log.warning("parts of %s are merged no longer: %s", self._store.folder, error)

    def _take(self, path: Path) -> None:
        """Note a part, and merge those of its level if they are enough."""
        if path in self._taken:
            return
        self._taken.add(path)
        storage = self._store.storage
        if storage.size(path, self._store.folder / "metrics" / path.name) > _LARGEST:
            return
        level = self._levels[_level(path)]
        level.append(path)
        if len(level) >= FAN_IN and not self._hurried:
            sources, level[:] = list(level), []
            merged = merge(storage, self._store.folder, sources, _level(path) + 1)
            self._merged.append((time.monotonic(), merged))
            self._take(merged)

    def _remove(self, grace: float, *, wait: bool = False) -> None:
        """Remove the sources of what was merged more than `grace` seconds ago."""
        while self._merged:
            left = self._merged[0][0] + grace - time.monotonic()
            if left > 0 and not wait:
                return
            time.sleep(max(left, 0.0))
            remove_sources(self._store.storage, self._store.folder, self._merged.pop(0)[1])


def _level(path: Path) -> int:
    """Return how often the rows of a part have been merged, which its name tells."""
    if not path.name.startswith(MERGED):
        return 0
    number = path.name.removeprefix(MERGED).partition("-")[0]
    return int(number) if number.isdigit() else 1
