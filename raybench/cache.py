"""The folder of a machine for what can be made again: copies of stores, rows of data sets."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

CACHE: Final = "RAYBENCH_CACHE"
"""The environment variable that names the folder."""


def folder() -> Path:
    """Return the folder; it need not be there."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE) or Path(home) / "raybench").absolute()


def size() -> int:
    """Return the bytes of the files in the folder; 0 if it is not there."""
    total = 0
    for inner, _, names in os.walk(folder()):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                total += Path(inner, name).lstat().st_size
    return total
