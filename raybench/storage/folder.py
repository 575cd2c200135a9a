"""A store in a folder, and the patience with what a store refuses for a while."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from raybench.errors import UnavailableError

PAUSES: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0)
"""Seconds between attempts, before chance shortens them: about a minute in all."""
_PASSING: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT}
)
"""What a folder may recover from; what it will not is told at once."""

T = TypeVar("T")


class Storage:
    """A store in a folder, which may be shared by machines.

    Args:
        folder: it need not be there.

    Attributes:
        folder: below which its files are read.
        label: how to call it in messages.
        root: what `at` makes the same storage of, on this and other machines. Nothing secret.
        remote: whether the files below `folder` are copies.
    """

    remote = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.label = str(folder)
        self.root = str(folder.absolute())
        self._given_up = False

    def pull(self, *folders: Path) -> None:
        """Bring the files that lie directly in folders; those that are gone go here too."""

    def bring(self, *paths: Path) -> None:
        """Bring some files; those that are gone go here too."""

    def names(self, folder: Path) -> set[str]:
        """Return the names of the files that lie directly in a folder."""
        try:
            with os.scandir(folder) as entries:
                return {entry.name for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return set()

    def sizes(self, folder: Path) -> dict[str, int]:
        """Return the bytes of each file that lies directly in a folder."""
        return {name: self.size(folder / name) for name in self.names(folder)}

    def size(self, *paths: Path) -> int:
        """Return the bytes of some files; one that is gone has none."""
        return sum(path.stat().st_size for path in paths if path.exists())

    def folders(self, folder: Path) -> list[str]:
        """Return the names of the folders that lie directly in a folder."""
        try:
            return sorted(path.name for path in folder.iterdir() if path.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def written(self, path: Path) -> int:
        """Return when a file was written, in nanoseconds by the store's clock; 0 if it is gone."""
        try:
            return path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def write(self, path: Path, make: Callable[[Path], object]) -> None:
        """Write a file, whole or not at all, replacing what was there.

        Args:
            path: below `folder`.
            make: writes a file; it is called again for each attempt.

        Raises:
            UnavailableError: the store refuses it, also after a while where it may recover.
        """
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{threading.get_native_id()}")

        def attempt() -> None:
            try:
                make(temporary)
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise

        self.patiently(attempt, f"{path} cannot be written", passing)

    def push(self, *paths: Path) -> None:
        """Send files that were made below `folder` to the store."""

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there."""
        path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise UnavailableError or OSError if nothing can be written; nothing is left."""
        made = next(
            path for path in (self.folder, *self.folder.absolute().parents) if path.exists()
        )
        with tempfile.NamedTemporaryFile(dir=made):
            pass

    def remove_folder(self, folder: Path) -> None:
        """Remove a folder and what is in it."""
        shutil.rmtree(folder, ignore_errors=True)

    def patiently(
        self, attempt: Callable[[], T], what: str, passes: Callable[[OSError], bool]
    ) -> T:
        """Return what `attempt` returns, once it succeeds.

        After it was given up once nothing is waited for until something succeeds.
        """
        for pause in (*(() if self._given_up else PAUSES), None):
            try:
                found = attempt()
            except OSError as error:
                if pause is None or not passes(error):
                    self._given_up = True
                    raise UnavailableError(f"{what}: {said(error)}; {_advice(error)}") from error
                time.sleep(pause * random.uniform(0.5, 1.0))
            else:
                self._given_up = False
                return found
        raise AssertionError("the last attempt returns or raises")


def passing(error: OSError) -> bool:
    """Return whether a folder may take later what it has refused now."""
    return error.errno in _PASSING


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room there, or give another store with -o"
    return "give another store with -o"


def said(error: Exception) -> str:
    """Return the first line of an error, without what must not be shown."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        if secret := os.environ.get(name):
            text = text.replace(secret, f"${name}")
    return text[:500]
