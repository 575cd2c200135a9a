"""End what takes too long: softly where Python is reached, else with the process."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final

from raybench.journal import past_wall

GRACE_SECONDS: Final = 5.0
"""For Python to answer past a limit, before its process is ended."""


class WallLimit(Exception):  # noqa: N818  (reads as the reason it is)
    """The runs of a group did not end within `limits.wall_s`."""


@contextlib.contextmanager
def deadline(seconds: float | None, dump: int | None) -> Iterator[None]:
    """Raise WallLimit in the body once it has taken `seconds`; None lets it take its time.

    Code that does not come back to Python never notices. A process that may be ended is, a few
    seconds later, by a thread that needs no interpreter; it leaves a traceback of what hung.

    Args:
        seconds: for the body.
        dump: the file descriptor for the traceback; None if the process is not to be ended.
    """
    if seconds is None:
        yield
        return

    def late(signum: int, frame: FrameType | None) -> None:
        raise WallLimit(past_wall(seconds))

    listening = threading.current_thread() is threading.main_thread()  # others hear no signals
    before = signal.signal(signal.SIGALRM, late) if listening else None
    if dump is not None:
        faulthandler.dump_traceback_later(
            seconds + min(seconds, GRACE_SECONDS), exit=True, file=dump
        )
    try:
        try:
            if listening:
                signal.setitimer(signal.ITIMER_REAL, seconds)
            yield
        finally:
            if listening:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # also if the alarm rang inside of the one above
        if listening:
            signal.signal(signal.SIGALRM, before)
        if dump is not None:
            faulthandler.cancel_dump_traceback_later()
