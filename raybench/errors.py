"""Every error that a user can cause, with the exit code it ends in.

    RaybenchError (1)
        UsageError (2)       SuiteError (3)        RefusedError (4)
        NothingMatched (5)   UnavailableError (6)  MissingError (7)

A message says what was given, why it is wrong and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Path: TypeAlias = tuple[str | int, ...]


class RaybenchError(Exception):
    """A failure that is the user's to act on; shown as one message, never as a traceback."""

    exit_code = 1


class UsageError(RaybenchError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = 2


class RefusedError(RaybenchError):
    """Done only with more permission: a suite is past its `limits`."""

    exit_code = 4


class NothingMatched(RaybenchError):  # noqa: N818  (reads as the outcome it is)
    """A filter, a name or a run id matches nothing."""

    exit_code = 5


class UnavailableError(RaybenchError):
    """No cluster can be reached, or the store cannot be read or written."""

    exit_code = 6


class MissingError(RaybenchError):
    """An optional component is not installed; the message names the extra to install."""

    exit_code = 7


@dataclass(frozen=True)
class Problem:
    """One mistake in a suite: where (a path of keys and indices) and what."""

    path: Path
    message: str
    on_key: bool = False
    """Whether the key itself is wrong (an unknown key) rather than the value under it."""


class SuiteError(RaybenchError):
    """A suite that cannot be used; `problems` holds every mistake found, not only the first."""

    exit_code = 3

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = tuple(lines)
        count = len(self.lines)
        super().__init__("\n".join((*self.lines, f"{count} error{'s' if count > 1 else ''}")))


def suggest(given: str, choices: Iterable[str]) -> str:
    """Return `did you mean ...? (choices)`, to be appended to a message about `given`."""
    known = sorted(choices)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    listing = ", ".join(known) if len(known) <= 24 else ", ".join(known[:24]) + ", ..."
    return (f"; did you mean {close[0]!r}?" if close else "") + f" (known: {listing or 'none'})"
