"""A sign of life where files cannot be locked: an object that is written again and again."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Final

from raybench.errors import UnavailableError
from raybench.storage import Storage

BEAT_SECONDS: Final = 30.0
"""How often a living driver writes its object."""
SILENT_SECONDS: Final = 180.0
"""How much older than one's own an object is whose driver is taken for dead."""


class Pulse:
    """Writes a file of a store until it is closed, from a thread.

    Times of writing are the store's, so the clocks of the machines do not matter.

    Args:
        storage: of the store.
        path: of the file.
        seconds: between two beats.
    """

    def __init__(self, storage: Storage, path: Path, seconds: float = BEAT_SECONDS) -> None:
        self._storage = storage
        self._path = path
        self._seconds = seconds
        self._ended = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._work, name="pulse", daemon=True)
        self._thread.start()

    def beats(self, other: Path) -> bool:
        """Return whether another's file is about as new as one's own."""
        behind = self._storage.written(self._path) - self._storage.written(other)
        return behind < SILENT_SECONDS * 1e9

    def close(self) -> None:
        """Stop."""
        self._ended.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._ended.wait(self._seconds):
            with contextlib.suppress(UnavailableError):  # the runs' own writes will tell
                self._beat()

    def _beat(self) -> None:
        self._storage.write(self._path, lambda file: file.write_text("alive"))
