"""How much memory this process, and all that it starts, take at most."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_INTERVAL: Final = 2.0  # seconds; a look at ten processes takes some 30 ms of one core


class Watch:
    """Peaks while a `with` block lasts. Nothing is known on systems without /proc.

    Attributes:
        driver: most memory of this process, in bytes (its peak resident set); None if not known.
        workers: most memory of its descendants together, in bytes: the largest sum seen of their
            proportional sets, in which a page that n processes share counts for 1/n in each.
            Looked at every two seconds, so what lives shorter may be missed; None if not known.
    """

    def __init__(self) -> None:
        self.driver: int | None = None
        self.workers: int | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> Watch:
        # Where it may not be written, the peak is that of the process's whole life.
        with contextlib.suppress(OSError):
            (_PROC / "self/clear_refs").write_text("5", encoding="ascii")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()
        self.driver = _kilobytes(_PROC / "self/status", "VmHWM:")

    def _look_on(self) -> None:
        while not self._done.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        sizes = [_kilobytes(_PROC / pid / "smaps_rollup", "Pss:") for pid in _descendants()]
        if _PROC.is_dir():
            self.workers = max(self.workers or 0, sum(size or 0 for size in sizes))


def _kilobytes(file: Path, field: str) -> int | None:
    """Return a field of a file of /proc in bytes; None if the process has ended."""
    with contextlib.suppress(OSError):
        for line in file.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return None


def _descendants() -> Iterator[str]:
    children: dict[str, list[str]] = {}
    for folder in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # `pid (name) state parent ...`, and a name may hold anything.
            rest = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
            children.setdefault(rest[2].split()[1], []).append(folder.name)
    waiting = [*children.get(str(os.getpid()), ())]
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, ())
        yield pid
