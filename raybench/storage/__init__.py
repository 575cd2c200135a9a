"""Where a store lies: a folder, or a URL (s3://, gs://) with a folder here that mirrors it.

Readers and writers work on paths below `Storage.folder`. A folder is the store itself. Of a URL the
folder holds copies: `pull` and `bring` fetch what is new, `write`, `push` and `remove` act on the
store, and only whole files are seen there, since an object exists once it has been sent. Copies
carry the size and the time of writing that the store tells; a copy that differs is fetched again.
What a store refuses for a while (a full disk, a server that is overloaded) is tried again with
growing, random pauses.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from raybench.errors import UsageError
from raybench.storage.bucket import Bucket
from raybench.storage.folder import Storage

Root: TypeAlias = Path | str
"""A store as users give it: a folder or a URL."""
_OPTIONS: Final = frozenset({"region", "scheme", "endpoint_override"})


@lru_cache(maxsize=64)
def at(root: Root) -> Storage:
    """Return the storage at a folder or a URL; nothing is asked of it yet.

    Raises:
        UsageError: the URL is of no kind that is known, or holds a key or a password.
    """
    text = str(root)
    if "://" not in text:
        return Storage(Path(root))
    parts = urlsplit(text)
    if parts.scheme == "file":
        return Storage(Path(parts.path))
    return Bucket(_checked(text))


def below(root: Root, name: str) -> str:
    """Return how to call a suite in a store: its folder or URL."""
    text = str(root)
    if "://" not in text:
        return str(Path(root) / name)
    address, question, options = text.partition("?")
    return f"{address.rstrip('/')}/{name}{question}{options}"


def _checked(url: str) -> str:
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.hostname or ''}{parts.path}"
    if parts.scheme not in ("s3", "gs"):
        raise UsageError(f"store {shown}: give a folder, or a URL that begins with s3:// or gs://")
    if parts.username is not None or "@" in parts.query:
        raise UsageError(
            f"store {shown}: a URL is shown and kept, so it must not hold a key or a password; "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use the machine's role"
        )
    if not parts.hostname:
        raise UsageError(f"store {shown}: no bucket is named; give {parts.scheme}://BUCKET/PREFIX")
    unknown = sorted({key for key, _ in parse_qsl(parts.query)} - _OPTIONS)
    if unknown:
        raise UsageError(
            f"store {shown}: unknown option {unknown[0]!r} (known: {', '.join(sorted(_OPTIONS))}); "
            "keys and passwords belong into the environment"
        )
    return url


__all__ = ["Bucket", "Root", "Storage", "at", "below"]
