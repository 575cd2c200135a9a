"""Rows in files that all processes of a machine map, so that they are made and held once.

    CACHE/data/NAME-KEY.rows    a check sum and a head, one page; then numbers as they lie in memory
    CACHE/data/NAME-KEY.lock    held by the process that makes them

A file is written whole, by rename, and holds nothing that could run. It is mapped copy-on-write:
a page that a process writes to becomes its own, and neither the file nor another process sees it.
A folder that cannot be used costs the sharing only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from raybench import cache
from raybench.data.base import Pool
from raybench.spec import Json, digest

_FORMAT: Final = 1  # of the files; a part of their names
_HEAD: Final = 4096  # bytes, so that the numbers begin with a page
_CHECK: Final = 8  # bytes at the very beginning: the check sum of all that follow, in hex
_ALIGNED: Final = 64  # bytes, as PyTorch's own memory is: some sums depend on where numbers lie
_KINDS: Final[dict[str, np.dtype[Any]]] = {"x": np.dtype("<f4"), "y": np.dtype("<i8")}
_FACTS: Final = tuple(field for field in Pool._fields if field not in _KINDS)

_log = logging.getLogger(__name__)


def shared(name: str, key: Json, make: Callable[[], Pool]) -> Pool:
    """Return the pool of a key, which the first process of this machine that asks for it makes.

    Args:
        name: to tell the files by.
        key: all that the pool depends on.
        make: makes the pool, `x` float32 and `y` int64. Other processes wait meanwhile.
    """
    path = cache.folder() / "data" / f"{name}-{digest([_FORMAT, key])}.rows"
    pool = _mapped(path)
    if pool is not None:
        return pool
    with _alone(path.with_suffix(".lock")) as alone:
        pool = _mapped(path) if alone else None  # made meanwhile, by the process waited for
        if pool is None:
            pool = make()
            if alone and _written(path, pool):
                pool = _mapped(path) or pool
    return pool


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[bool]:
    """Keep other processes out during the body, which is told whether that is possible here."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("ab")
    except OSError as error:
        _tell(lock.parent, error)
        yield False
        return
    with file:  # the lock goes with it, and with the process
        alone = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            _tell(lock.parent, error)
            alone = False
        yield alone


def _written(path: Path, pool: Pool) -> bool:
    """Write a pool, and return whether that was possible. For one process at a time."""
    arrays = {field: getattr(pool, field).contiguous().numpy() for field in _KINDS}
    assert {field: array.dtype for field, array in arrays.items()} == _KINDS
    facts = {field: getattr(pool, field) for field in _FACTS}
    head = json.dumps({**facts, "shapes": {f: a.shape for f, a in arrays.items()}}).encode()
    pieces: list[Any] = [head.ljust(_HEAD - _CHECK)]
    for array in arrays.values():
        pieces += [array.reshape(-1).view(np.uint8).data, bytes(-array.nbytes % _ALIGNED)]
    check = 0
    for piece in pieces:
        check = zlib.crc32(piece, check)
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(b"%08x" % check)
            file.writelines(pieces)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _tell(path.parent, error)
        return False
    return True


def _mapped(path: Path) -> Pool | None:
    """Return the pool of a file; None if there is none, or not as it was written."""
    try:
        whole: NDArray[np.uint8] = np.memmap(path, np.uint8, mode="c")
        if int(whole[:_CHECK].tobytes(), 16) != zlib.crc32(whole[_CHECK:].data):
            return None
    except (OSError, ValueError):  # an empty file, or no number at its beginning
        return None
    facts = json.loads(whole[_CHECK:_HEAD].tobytes())
    values, start = {field: facts[field] for field in _FACTS}, _HEAD
    for field, kind in _KINDS.items():
        shape = facts["shapes"][field]
        end = start + math.prod(shape) * kind.itemsize
        values[field] = torch.from_numpy(whole[start:end].view(kind).reshape(shape))
        start = end + -end % _ALIGNED
    return Pool(**values)


def _tell(folder: Path, error: OSError) -> None:
    _warn(folder, error.strerror or str(error))


@lru_cache(maxsize=8)  # once a process
def _warn(folder: Path, why: str) -> None:
    _log.warning(
        f"{folder} cannot be used ({why}): this process keeps the rows of data sets for itself; "
        f"let {cache.CACHE} name a folder on this machine with room in it"
    )
