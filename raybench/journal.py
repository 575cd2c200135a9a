"""Which runs were in flight when a process died: one small file a batch, while it lasts.

    STORE/SUITE/journal/SESSION/lock           held by the driver as long as it lives
    STORE/SUITE/journal/SESSION/BATCH-*.jsonl  a line before each group and one after it
    STORE/SUITE/journal/SESSION/waiting        what batches wait for, while they do

A worker writes its batch's file and removes it when the batch has ended, whatever became of the
runs. A file that is still there is of a process that died, and its last line says under which
runs. What Python has to say about a crash (the traceback of a segmentation fault, or of what hung
past the wall limit) is written to the same file.

Of a store at a URL the files lie in its mirror on the worker's machine, and are sent before each
group; those of dead processes once more, with their tracebacks (`send`). There is no lock there: a
session lives as long as its driver renews its object `lock` (see `pulse`) or, on the same machine,
holds the file.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import json
import os
import secrets
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from raybench.errors import UnavailableError
from raybench.pulse import Pulse
from raybench.storage import Storage

IN_PROCESS: Final = "in-process"
"""The engine whose process is the driver's own."""
_WAITING: Final = "waiting"
_FRESH_SECONDS: Final = 120.0  # a message is repeated much sooner, as long as its driver lives
_CRASH: Final = "Fatal Python error: "
_TIMEOUT: Final = "Timeout ("
_STDERR: Final = 2
_LOCK: Final = "lock"
_LOG: Final = 8000  # characters of a traceback that are kept


class Journal:
    """What a worker notes of its batch.

    Args:
        folder: the session's folder; None notes nothing.
        batch_id: the batch.
        run_ids: of the runs that are to be carried out, in their order.
        engine: what executes it. Unless it is the driver's own process, a crash is told here too.
        wall_s: the wall limit in seconds, for the reader.
        storage: of the store; None for a folder.

    Attributes:
        dump: the file descriptor that tracebacks of a dying process go to, None if the process
            is the driver's own and not to be ended.
    """

    def __init__(
        self,
        folder: Path | None,
        batch_id: str,
        run_ids: Sequence[str],
        engine: str,
        wall_s: float | None = None,
        storage: Storage | None = None,
    ) -> None:
        self.dump: int | None = None
        self._file: int | None = None
        if folder is None:
            return
        self._sent = storage if storage is not None and storage.remote else None
        self._last: tuple[int, int] | None = None
        if self._sent:
            folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{batch_id}-{secrets.token_hex(4)}.jsonl"
        try:
            self._file = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        except OSError as error:
            raise UnavailableError(
                f"{self._path} cannot be written ({error.strerror}); every node needs the store at "
                "this path"
            ) from error
        self._place = {run_id: place for place, run_id in enumerate(run_ids)}
        facts = {"batch": batch_id, "engine": engine, "wall_s": wall_s, "runs": list(run_ids)}
        self._write(facts)
        if engine != IN_PROCESS:
            self.dump = self._file
            faulthandler.enable(self._file, all_threads=False)

    def begin(self, run_ids: Sequence[str]) -> None:
        """Note that this piece of the batch, and no other run, is carried out from now on."""
        if self._file is None:
            return
        begun = self._place[run_ids[0]], len(run_ids)
        self._write({"begin": begun[0], "count": begun[1]})
        # What was sent last stands until the next group: a death between two groups is held
        # against the first, which costs it another try at most.
        if self._sent and begun != self._last:
            self._sent.push(self._path)
            self._last = begun

    def end(self) -> None:
        """Note that no run is being carried out."""
        if self._file is not None:
            self._write({"count": 0})

    def late(self) -> None:
        """Leave a traceback as of a process past the wall limit, also in a store at a URL, and die.

        For a thread beside the one that is late.
        """
        if self.dump is None:
            return
        faulthandler.cancel_dump_traceback_later()
        os.write(self.dump, f"{_TIMEOUT}limits.wall_s)!\n".encode())
        faulthandler.dump_traceback(self.dump)
        if self._sent:
            with contextlib.suppress(UnavailableError):
                self._sent.push(self._path)
        os._exit(1)

    def leave(self) -> None:
        """Let the file stay, as if this process had died with the runs in flight."""
        if self._file is None:
            return
        if self.dump is not None:
            faulthandler.enable(_STDERR, all_threads=False)  # before the descriptor is another's
        os.close(self._file)
        self._file = self.dump = None

    def close(self) -> None:
        """Remove the file: the batch has ended without a death."""
        if self._file is None:
            return
        self.leave()
        self._path.unlink(missing_ok=True)
        if self._sent:
            with contextlib.suppress(UnavailableError):  # it goes with its session at the latest
                self._sent.remove(self._path)

    def _write(self, line: dict[str, Any]) -> None:
        assert self._file is not None
        # Appended in one call, so that a line is there whole; the kernel keeps it if we die.
        os.write(self._file, json.dumps(line).encode() + b"\n")


@dataclass(frozen=True)
class Death:
    """A process died while these runs, and no others, were being carried out in it.

    Attributes:
        name: of the file that tells it.
        batch_id: the batch that died with the process.
        run_ids: the runs in flight.
        engine: what executed the batch.
        reason: of the death, as far as the process could tell; else empty.
        log: the traceback that it left.
        slow: whether it was ended because it ran past the wall limit.
    """

    name: str
    batch_id: str
    run_ids: tuple[str, ...]
    engine: str
    reason: str = ""
    log: str = ""
    slow: bool = False


class Journals:
    """The journals of a session, for its driver. What sessions left that died is taken over.

    Args:
        folder: where sessions have their folders.
        storage: of the store; None for a folder.

    Attributes:
        session: the name of this session's folder, for the workers.
    """

    def __init__(self, folder: Path, storage: Storage | None = None) -> None:
        self.session = secrets.token_hex(8)
        self._waited = False
        self._folder = folder / self.session
        self._storage = storage or Storage(folder)
        begun = folder / f".{self.session}"
        try:
            begun.mkdir(parents=True)
            self._lock = _locked(begun)  # before it has its name, so that nobody takes it over
            begun.replace(self._folder)
        except OSError as error:
            raise UnavailableError(f"{folder} cannot be written: {error.strerror}") from error
        self._pulse = Pulse(self._storage, self._folder / _LOCK) if self._storage.remote else None
        others = {*self._storage.folders(folder), *(each.name for each in folder.iterdir())}
        for name in sorted(others - {self.session}):
            if not name.startswith("."):
                self._take_over(folder / name)

    def deaths(self) -> list[Death]:
        """Return the deaths so far, in order. To be asked while no batch is being carried out."""
        self._fetch(self._folder)
        paths = sorted(self._folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
        found = [_read(path) for path in paths]
        return [death for death in found if death is not None]

    def forgive(self, batch_ids: Collection[str], known: Collection[str]) -> None:
        """Forget the deaths of batches that died with their node, but for those in `known`."""
        if not batch_ids:
            return
        here = {path.name for path in self._folder.glob("*.jsonl")}
        names = here | self._storage.names(self._folder)
        for path in _of(self._folder, names - set(known), batch_ids):
            self._storage.remove(path)

    def tell(self, waiting: str) -> None:
        """Leave a message for `status` while batches wait for a node; empty: they do not."""
        if waiting:
            (self._folder / _WAITING).write_text(waiting, encoding="utf-8")
        elif self._waited:
            (self._folder / _WAITING).unlink(missing_ok=True)
        self._waited = bool(waiting)

    def close(self) -> None:
        """Remove the session's folder: its driver has seen everything in it."""
        if self._pulse is not None:
            self._pulse.close()
        with contextlib.suppress(UnavailableError):
            self._storage.remove_folder(self._folder)
        if self._lock is not None:
            self._lock.close()

    def _fetch(self, folder: Path) -> None:
        """Bring the journals of workers on other machines; one's own hold more than was sent."""
        if self._storage.remote:
            names = (n for n in self._storage.names(folder) if n.endswith(".jsonl"))
            self._storage.bring(*(p for n in names if not (p := folder / n).exists()))

    def _take_over(self, other: Path) -> None:
        here = not self._storage.remote or (other / _LOCK).exists()
        lock = _locked(other) if here else None
        if lock is None and (here or self._pulse is None or self._pulse.beats(other / _LOCK)):
            return  # its driver lives
        with lock or contextlib.nullcontext():
            self._fetch(other)
            for path in other.glob("*.jsonl"):
                death = _read(path)
                # Workers die with their driver, through no fault of a run: what they had in
                # flight is worth a closer look, but is not held against a run that was alone.
                if death and (death.engine == IN_PROCESS or len(death.run_ids) > 1):
                    path.replace(self._folder / path.name)
            self._storage.remove_folder(other)


def folder_of(suite_folder: Path, session: str) -> Path | None:
    """Return where the journals of a session are; None for no session."""
    return suite_folder / "journal" / session if session else None


def send(suite_folder: Path, session: str, batch_ids: Collection[str], storage: Storage) -> None:
    """Send what batches left on this machine whose processes died here.

    Raises:
        UnavailableError: the store takes nothing.
    """
    folder = suite_folder / "journal" / session
    storage.push(*_of(folder, [path.name for path in folder.glob("*.jsonl")], batch_ids))


def waiting(suite_folder: Path) -> list[str]:
    """Return what the sessions of a suite wait for at this moment."""
    found = []
    for path in sorted((suite_folder / "journal").glob(f"*/{_WAITING}")):
        with contextlib.suppress(OSError):  # it has gone on meanwhile
            if time.time() - path.stat().st_mtime < _FRESH_SECONDS:
                found.append(path.read_text(encoding="utf-8"))
    return found


def _of(folder: Path, names: Iterable[str], batch_ids: Collection[str]) -> list[Path]:
    """Return the journals of batches among the files of a folder."""
    return [folder / name for name in names if name.rpartition("-")[0] in batch_ids]


def _locked(folder: Path) -> IO[str] | None:
    """Return the open lock of a session's folder, or None if a living driver holds it."""
    try:
        file = (folder / _LOCK).open("a", encoding="ascii")
    except OSError:
        return None  # removed meanwhile, by its own driver
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        pass  # a file system without locks: sessions cannot be told apart from dead ones there
    return file


def _read(path: Path) -> Death | None:
    """Return the death that a journal tells; None if no run was in flight."""
    facts: dict[str, Any] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    log = ""
    for place, line in enumerate(lines):
        try:
            facts |= json.loads(line)
        except ValueError:
            log = "\n".join(lines[place:])
            break
    if not facts.get("count"):
        return None
    run_ids = facts["runs"][facts["begin"] : facts["begin"] + facts["count"]]
    slow = log.startswith(_TIMEOUT)
    reason = past_wall(facts["wall_s"]) if slow else ""
    if log.startswith(_CRASH):
        reason = f"the process crashed: {log.splitlines()[0].removeprefix(_CRASH)}"
    kept = log[-_LOG:]  # it may tell of many threads
    return Death(path.name, facts["batch"], tuple(run_ids), facts["engine"], reason, kept, slow)


def past_wall(seconds: float) -> str:
    """Return the reason of a run that did not end in time."""
    return f"wall limit: still going after {seconds:g} s (limits.wall_s)"
