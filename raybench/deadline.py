"""End what takes too long: softly where Python is reached, else with the process."""

from __future__ import annotations

import contextlib
import faulthandler
import inspect
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final

from raybench.journal import Journal, past_wall

GRACE_SECONDS: Final = 5.0
"""For Python to answer past a limit, before its process is ended."""


_IMPORT: Final = "<frozen importlib._bootstrap"  # the file of an import's own frames begins so
_AGAIN_SECONDS: Final = 0.1  # after an alarm that rang amid an import


class WallLimit(BaseException):
    """The runs of a group did not end within `limits.wall_s`.

    No `Exception`, because it may be raised anywhere: a library that takes whatever happens for a
    failure of its own must not take this.
    """


@contextlib.contextmanager
def deadline(seconds: float | None, journal: Journal) -> Iterator[None]:
    """Raise WallLimit in the body once it has taken `seconds`; None lets it take its time.

    Only the main thread hears the alarm, and an import is left to end first: half a module would
    stay in the process for later groups. Of a body in another thread (a rank's) the process is
    ended, if it may be, and the journal tells why. Code that does not come back to Python never
    notices either. A process that may be ended is then, a few seconds later, by a thread that needs
    no interpreter; it leaves a traceback of what hung.

    Args:
        seconds: for the body.
        journal: of the batch; where it has no file for tracebacks, the process is not ended.
    """
    if seconds is None:
        yield
        return

    around = _imports(inspect.currentframe())

    def late(signum: int, frame: FrameType | None) -> None:
        if _imports(frame) > around:
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        else:
            raise WallLimit(past_wall(seconds))

    dump = journal.dump
    listening = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, late) if listening else None
    timer = threading.Timer(seconds, journal.late)
    timer.daemon = True
    if dump is not None:
        faulthandler.dump_traceback_later(
            seconds + min(seconds, GRACE_SECONDS), exit=True, file=dump
        )
        if not listening:
            timer.start()
    try:
        try:
            if listening:
                signal.setitimer(signal.ITIMER_REAL, seconds)
            yield
        finally:
            if listening:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:  # also if the alarm rang inside of the one above
        timer.cancel()
        if listening:
            signal.signal(signal.SIGALRM, before)
        if dump is not None:
            faulthandler.cancel_dump_traceback_later()


def _imports(frame: FrameType | None) -> int:
    """Return how many of a frame and its callers belong to imports under way."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename.startswith(_IMPORT)
        frame = frame.f_back
    return count
