"""Texts as rows of characters, in an order in which consecutive batches go on where the last ended.

A part of n characters is cut into `streams` long pieces of equal length, and these into rows of
`length` characters. Row `step * streams + stream` is the next piece of a stream, so a batch of
`streams` rows holds one piece of each. Targets are the characters one further on. What does not
fill a batch is left out.
"""

from __future__ import annotations

import os
import string
from abc import abstractmethod
from collections import Counter
from functools import lru_cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import ClassVar, Final, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from raybench.data.base import FOLDER, Data, Pool
from raybench.errors import RaybenchError, UnavailableError
from raybench.rng import Seed

Ids: TypeAlias = NDArray[np.int64]


class Parts(NamedTuple):
    """The numbers of a text's characters, and how many different characters there are."""

    train: Ids
    valid: Ids
    test: Ids
    vocabulary: int


class Characters(Data):
    """A text, as sequences of characters whose next one is to be told. Rows are never shuffled."""

    sequential: ClassVar[bool] = True

    length: int = Field(default=50, ge=1)
    """Characters in a row: how far gradients go back."""
    streams: int = Field(default=50, ge=1)
    """Pieces that are read side by side; the same as the batch size."""

    @abstractmethod
    def _parts(self) -> Parts:
        """Return the text in three parts."""

    def pool(self, seed: Seed) -> Pool:
        """Return the rows of the training, validation and test part."""
        own = set(type(self).model_fields) - set(Data.model_fields)
        # Equal for all splits of the same text, so they share one pool.
        return _pool(
            type(self).model_construct(own, **{field: getattr(self, field) for field in own})
        )


@lru_cache(maxsize=4)
def _pool(source: Characters) -> Pool:
    parts = source._parts()
    x: list[Ids] = []
    y: list[Ids] = []
    for split, ids in zip(("training", "validation", "test"), parts[:3], strict=True):
        num_batches = (len(ids) - 1) // (source.streams * source.length)
        if num_batches < 1:
            raise RaybenchError(
                f"data {source.name}: {len(ids)} {split} characters do not fill a batch of "
                f"{source.streams} x {source.length}; lower data.streams or data.length"
            )
        shape = (source.streams, num_batches, source.length)
        used = num_batches * source.streams * source.length
        for rows, start in ((x, 0), (y, 1)):
            pieces = ids[start : start + used].reshape(shape).swapaxes(0, 1)
            rows.append(pieces.reshape(-1, source.length))
    valid_from = len(x[0])
    return Pool(
        torch.from_numpy(np.concatenate(x)),
        torch.from_numpy(np.concatenate(y)),
        classes=parts.vocabulary,
        valid_from=valid_from,
        test_from=valid_from + len(x[1]),
    )


_LETTERS: Final = "\n " + string.ascii_letters + string.digits + ".,;:!?'\"-()[]{}=*_/"


class Text(Characters):
    """Python's documentation of itself, which comes with it: needs no download.

    The topics of `pydoc_data`, in the order of their names, in 83 characters (those that are not
    letters, digits, white space or common marks are left out). Eight tenths are for training, one
    each for validation and test, in this order. The text changes with Python's version: compare
    results of one version only. 3.11 has about 460,000 characters.
    """

    characters: int = Field(default=100_000, ge=1)
    """How much is used of the text, from its beginning."""

    def _parts(self) -> Parts:
        ids = _documentation()
        if len(ids) < self.characters:
            raise RaybenchError(
                f"data {self.name}: the text has {len(ids)} characters, and data.characters asks "
                f"for {self.characters}"
            )
        first, second = self.characters * 8 // 10, self.characters * 9 // 10
        used = ids[: self.characters]
        return Parts(used[:first], used[first:second], used[second:], len(_LETTERS))


@lru_cache(maxsize=1)
def _documentation() -> Ids:
    number = {letter: place for place, letter in enumerate(_LETTERS)}
    text = "\n".join(topics[name] for name in sorted(topics))
    return np.array([number[letter] for letter in text if letter in number], dtype=np.int64)


class Tolstoi(Characters):
    """War and Peace as DeepOBS prepares it: 3,266,185 characters, 83 different ones.

    Read from `$RAYBENCH_DATA/tolstoi/war-and-peace.txt`: Project Gutenberg's edition of 2013 with
    its line ends, as in github.com/AllenDowney/fluent-python-notebooks (attic/sequences), or what
    DeepOBS' preparation script makes of it. The first 653,237 characters are for validation, the
    last 653,237 for test, those between for training. Characters are numbered from the most
    frequent to the least.
    """

    valid: int = Field(default=13_050, ge=0)
    """Validation rows: the first of the set's own, of which there are 13,050 with 50 streams of 50
    characters."""

    def _parts(self) -> Parts:
        ids = _novel(os.environ.get(FOLDER))
        return Parts(ids[_HELD_OUT:-_HELD_OUT], ids[:_HELD_OUT], ids[-_HELD_OUT:], _SYMBOLS)

    def missing(self) -> str | None:
        """Look for the file."""
        file = _file(os.environ.get(FOLDER))
        return None if file.is_file() else f"data set tolstoi is not on this machine: no {file}"

    def pool(self, seed: Seed) -> Pool:
        """Return the rows of the training, validation and test part."""
        _novel(os.environ.get(FOLDER))  # the folder may have changed since
        return super().pool(seed)


_NOVEL: Final = 3_266_185
_SYMBOLS: Final = 83
_HELD_OUT: Final = 653_237
_LINES: Final = ((0, 29), (4, 775), (63_849, 64_207))
"""What DeepOBS deletes: licence, contents, licence, each counted after the one before is gone."""


def _file(root: str | None) -> Path:
    return Path(root or f"${FOLDER}", "tolstoi", "war-and-peace.txt")


@lru_cache(maxsize=1)
def _novel(root: str | None) -> Ids:
    file = _file(root)
    if not root or not file.is_file():
        missing = f"there is no file {file}" if root else f"{FOLDER} is not set"
        raise UnavailableError(
            f"data tolstoi: {missing}; put attic/sequences/war-and-peace.txt of "
            f"github.com/AllenDowney/fluent-python-notebooks there, and set {FOLDER} on every "
            "machine; data text needs no file"
        )
    text = file.read_bytes().decode("utf-8", errors="replace")
    if "PROJECT GUTENBERG" in text[:2000].upper():
        lines = text.split("\n")
        for first, last in _LINES:
            del lines[first:last]
        text = "\n".join(lines)
    counts = Counter(text)
    if (len(text), len(counts)) != (_NOVEL, _SYMBOLS):
        raise RaybenchError(
            f"data tolstoi: {file} has {len(text):,} characters, {len(counts)} different ones, and "
            f"the published text has {_NOVEL:,} and {_SYMBOLS}; take the file with its original "
            "line ends (CR LF)"
        )
    number = {letter: place for place, (letter, _) in enumerate(counts.most_common())}
    return np.array([number[letter] for letter in text], dtype=np.int64)
