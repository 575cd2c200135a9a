"""A store at a URL, through the file systems of pyarrow."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from pyarrow import fs

from raybench import cache
from raybench.errors import UnavailableError
from raybench.storage.folder import Storage, passing, said

_REFUSED: Final = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_", "SIGNATURE_", "UNRECOGNIZED_CL")
"""Answers of a server that stay as they are: rights, names and keys."""
_FETCHES: Final = 16  # files at a time
_UNSETTLED: Final = 3.0  # seconds after a file's time of writing in which it may be written again

T = TypeVar("T")


class Bucket(Storage):
    """A store at a URL, and the folder on this machine that mirrors what was read of it.

    Args:
        url: such as `s3://bucket/prefix` or `gs://bucket/prefix`, with options after a `?`.
            Credentials are what the environment or the machine's role gives.
    """

    remote = True

    def __init__(self, url: str) -> None:
        name = hashlib.sha256(url.encode()).hexdigest()[:16]
        super().__init__(cache.folder() / "stores" / name)
        self.label = self.root = url
        self._opened: tuple[Any, str] | None = None

    def pull(self, *folders: Path) -> None:
        """Copy what is new or was written again; delete copies of what is gone."""
        for folder in folders:
            while not self._pulled(folder):
                pass  # something was removed meanwhile: what stands for it has to be seen

    def bring(self, *paths: Path) -> None:
        """Copy some files, if they are new or were written again."""
        while not self._fetch(zip(paths, self._infos(paths), strict=True)):
            pass  # as in `pull`

    def names(self, folder: Path) -> set[str]:
        """Return the names of objects."""
        return set(self.sizes(folder))

    def sizes(self, folder: Path) -> dict[str, int]:
        """Return the bytes of each object."""
        return {i.base_name: i.size for i in self._listed(folder) if i.type == fs.FileType.File}

    def size(self, *paths: Path) -> int:
        """Return the bytes of some objects."""
        return sum(info.size or 0 for info in self._infos(paths))

    def folders(self, folder: Path) -> list[str]:
        """Return the names of folders, which exist as long as something is in them."""
        found = (i.base_name for i in self._listed(folder) if i.type == fs.FileType.Directory)
        return sorted(found)

    def written(self, path: Path) -> int:
        """Return when an object was written, by the store's clock; 0 if it is gone."""
        (info,) = self._infos([path])
        return int(info.mtime_ns) if info.type == fs.FileType.File else 0

    def write(self, path: Path, make: Callable[[Path], object]) -> None:
        """Write a file on this machine, then send it."""
        with tempfile.TemporaryDirectory(prefix="raybench-") as folder:
            made = Path(folder) / path.name
            self.patiently(lambda: make(made), f"{path.name} cannot be made here", passing)
            self._send(made, path)

    def push(self, *paths: Path) -> None:
        """Send copies that were made here."""
        for path in paths:
            self._send(path, path)

    def remove(self, path: Path) -> None:
        """Remove an object and its copy."""
        system, _ = self._system()
        key = self._key(path)
        # Asked first: pyarrow takes a missing object for an error.
        if self.written(path):
            self._ask(lambda: _unless_gone(system.delete_file, key))
        path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise UnavailableError if nothing can be written; nothing is left."""
        path = self.folder / f".{secrets.token_hex(4)}"
        self.write(path, lambda file: file.write_text("raybench doctor", encoding="utf-8"))
        self.remove(path)

    def remove_folder(self, folder: Path) -> None:
        """Remove all objects below a folder, and their copies."""
        system, _ = self._system()
        if self._listed(folder):
            self._ask(lambda: _unless_gone(system.delete_dir, self._key(folder)))
        shutil.rmtree(folder, ignore_errors=True)

    def _pulled(self, folder: Path) -> bool:
        found = self._listed(folder)
        folder.mkdir(parents=True, exist_ok=True)
        there = {info.base_name: info for info in found if info.type == fs.FileType.File}
        for info in found:
            if info.type == fs.FileType.Directory:
                (folder / info.base_name).mkdir(exist_ok=True)
        gone = [p for p in folder.iterdir() if p.is_file() and p.name not in there]
        for path in gone:
            if not path.name.startswith("."):
                path.unlink(missing_ok=True)
        return self._fetch((folder / name, info) for name, info in there.items())

    def _fetch(self, wanted: Iterable[tuple[Path, Any]]) -> bool:
        """Copy what has no equal copy here; return whether all of it was still there."""
        late = []
        for path, info in wanted:
            if info.type != fs.FileType.File:
                path.unlink(missing_ok=True)
            elif not _same(path, info):
                late.append((path, info))
        if len(late) < 2:
            return all(self._copy(*each) for each in late)
        with ThreadPoolExecutor(_FETCHES) as threads:
            return all(list(threads.map(lambda each: self._copy(*each), late)))

    def _copy(self, path: Path, info: Any) -> bool:
        system, _ = self._system()

        def read() -> bytes | None:
            try:
                # At one request, which a stream is not: pieces could be of two writings.
                with system.open_input_file(info.path) as file:
                    return bytes(file.read())
            except FileNotFoundError:
                return None

        data = self._ask(read)
        (now,) = self._infos([path])
        # Removed, or written again, since it was listed. Nor is the length of what was read enough:
        # pyarrow asks for the size, then for so many bytes, and in between it may have grown.
        if data is None or len(data) != info.size or _writing(now) != _writing(info):
            return False

        def keep(temporary: Path) -> None:
            temporary.write_bytes(data)
            os.utime(temporary, ns=(info.mtime_ns, info.mtime_ns))

        path.parent.mkdir(parents=True, exist_ok=True)
        Storage.write(self, path, keep)
        return True

    def _send(self, file: Path, path: Path) -> None:
        system, _ = self._system()
        key, data = self._key(path), file.read_bytes()

        def attempt() -> None:
            # In one piece: closing a stream that was cut off would store what it has got.
            with system.open_output_stream(key) as stream:
                stream.write(data)

        self._ask(attempt, f"{self._named(path)} cannot be written")

    def _named(self, path: Path) -> str:
        return f"{path.relative_to(self.folder).as_posix()} in {self.label}"

    def _infos(self, paths: Sequence[Path]) -> list[Any]:
        system, _ = self._system()
        keys = [self._key(path) for path in paths]
        return list(self._ask(lambda: system.get_file_info(keys)))

    def _listed(self, folder: Path) -> list[Any]:
        system, _ = self._system()
        key = self._key(folder)
        # Of a folder of gs:// pyarrow tells the objects only; what is in folders tells their names.
        flat = system.type_name == "gcs"
        where = fs.FileSelector(key, allow_not_found=True, recursive=flat)
        found = list(self._ask(lambda: system.get_file_info(where)))
        return _folded(found, key) if flat else found

    def _key(self, path: Path) -> str:
        _, prefix = self._system()
        inner = path.relative_to(self.folder).as_posix()
        return prefix if inner == "." else f"{prefix}/{inner}"

    def _system(self) -> tuple[Any, str]:
        if self._opened is None:
            try:
                system, prefix = fs.FileSystem.from_uri(self.root)
            except (OSError, ValueError, NotImplementedError) as error:
                raise UnavailableError(f"store {self.root}: {said(error)}") from error
            self._opened = system, prefix.rstrip("/")
        return self._opened

    def _ask(self, attempt: Callable[[], T], what: str | None = None) -> T:
        what = what or f"store {self.root} does not answer"
        return self.patiently(attempt, what, _may_recover)


def _may_recover(error: OSError) -> bool:
    text = str(error).upper()
    return not isinstance(error, PermissionError) and not any(each in text for each in _REFUSED)


def _folded(found: Iterable[Any], key: str) -> list[Any]:
    """Return what lies directly in a folder, of all that lies below it."""
    listed: dict[str, Any] = {}
    for info in found:
        name, below, _ = info.path.removeprefix(f"{key}/").partition("/")
        folder = fs.FileInfo(f"{key}/{name}", fs.FileType.Directory)
        if name:
            listed.setdefault(name, folder if below else info)
    return list(listed.values())


def _unless_gone(remove: Callable[[str], None], key: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        remove(key)


def _writing(info: Any) -> tuple[Any, Any]:
    return info.size, info.mtime_ns


def _same(path: Path, info: Any) -> bool:
    try:
        own = path.stat()
    except FileNotFoundError:
        return False
    # Times of writing are whole seconds in some stores: a copy that was made within the same few
    # as its original may be of an earlier writing, and is fetched once more.
    settled = own.st_ctime - own.st_mtime > _UNSETTLED
    return settled and (own.st_size, own.st_mtime_ns) == _writing(info)
