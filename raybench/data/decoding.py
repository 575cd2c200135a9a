"""What a hub set's rows are as numbers: images decoded, tables and labels read, on one scale.

`_pixels` and `_numbers` make arrays of the rows, `_standardised` puts them on one scale. What they
give depends on a `Source`, on its parts, and on this file (see `identity`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from raybench.data.base import FOLDER, Pool
from raybench.errors import RaybenchError, suggest
from raybench.spec import Json

_LIBRARIES: Final = ("datasets", "PIL", "numpy", "pandas", "torch")


class Source(NamedTuple):
    """Which rows a set has, and on which scale; the fields of `Hub` of these names."""

    path: str
    config: str | None
    train_split: str
    test_split: str | None
    input: str | None
    label: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def identity(source: Source, parts: Sequence[Any]) -> Json:
    """Return all that `decoded` depends on: its arguments, the libraries' versions, this file.

    A part's fingerprint holds the revision of a set of the hub, and path and time of writing of
    each file of a folder.
    """
    return {
        "source": source._asdict(),
        "parts": [part._fingerprint for part in parts],
        "libraries": [str(import_module(name).__version__) for name in _LIBRARIES],
        "code": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
    }


def decoded(source: Source, parts: Sequence[Any]) -> Pool:
    """Return the rows of the parts, images as channels x height x width.

    Args:
        source: what to make of them.
        parts: the training part, then the test part if the set has one, as `datasets.Dataset`s.

    Raises:
        RaybenchError: a column is not what the source says it is.
    """
    columns = parts[0].features
    for column in (source.input, source.label):
        if column is not None and column not in columns:
            hint = suggest(column, columns)
            raise RaybenchError(f"data set {source.path!r} has no column {column!r}{hint}")
    y, classes = _labels(source, parts)
    num_fit = len(parts[0])
    rows = _numbers(source, parts) if source.input is None else _pixels(source, parts)
    x = _standardised(source, torch.from_numpy(rows), num_fit)
    return Pool(x, y, classes, test_from=None if source.test_split is None else num_fit)


def _labels(source: Source, parts: Sequence[Any]) -> tuple[Tensor, int]:
    kind = parts[0].features[source.label]
    if type(kind).__name__ not in ("ClassLabel", "Value"):
        raise RaybenchError(f"data set {source.path!r}: {source.label!r} holds {kind}, not classes")
    column = _frame(parts, [source.label])[source.label]
    names = getattr(kind, "names", None)
    if column.isna().any() or (names and (column < 0).any()):
        raise RaybenchError(
            f"data set {source.path!r}: some rows have no {source.label!r}; "
            "choose a labelled part with data.train_split and data.test_split"
        )
    values = column.to_numpy()
    if values.dtype.kind == "f" and (values % 1 != 0).any():
        raise RaybenchError(
            f"data set {source.path!r}: {source.label!r} holds fractions, not classes; "
            "a regression set is added as a function (entry point raybench.data)"
        )
    distinct, numbers = np.unique(values, return_inverse=True)
    if names:
        distinct, numbers = np.array(names), values
    if len(distinct) < 2:
        raise RaybenchError(f"data set {source.path!r}: {source.label!r} has a single class")
    return torch.from_numpy(numbers.astype(np.int64)), len(distinct)


def _numbers(source: Source, parts: Sequence[Any]) -> NDArray[Any]:
    """Return every column of numbers but the label, float64 [N, columns]."""
    features = parts[0].features
    if images := [name for name, kind in features.items() if type(kind).__name__ == "Image"]:
        raise RaybenchError(
            f"data set {source.path!r} holds images: set data.input to {images[0]!r}"
        )
    columns = [
        name
        for name, kind in features.items()
        # Not a ClassLabel, whose numbers have no order.
        if name != source.label and type(kind).__name__ == "Value"
        if kind.dtype.startswith(("int", "uint", "float", "bool"))
    ]
    if not columns:
        raise RaybenchError(f"data set {source.path!r} has no column of numbers to learn from")
    table = _frame(parts, columns)
    rows = table.to_numpy(dtype=np.float64, na_value=np.nan)
    if not np.isfinite(rows).all():
        holes = [
            name for name, fine in zip(columns, np.isfinite(rows).all(0), strict=True) if not fine
        ]
        raise RaybenchError(
            f"data set {source.path!r}: missing or infinite values in {', '.join(holes)}; "
            f"put a cleaned copy under {FOLDER}"
        )
    return rows


def _frame(parts: Sequence[Any], columns: list[str]) -> pd.DataFrame:
    tables = [part.select_columns(columns).to_pandas() for part in parts]
    joined: pd.DataFrame = pd.concat(tables, ignore_index=True)
    return joined


def _pixels(source: Source, parts: Sequence[Any]) -> NDArray[Any]:
    """Return the images, float32 [N, channels, height, width] between 0 and 1."""
    column = source.input
    kind = parts[0].features[column]
    if type(kind).__name__ != "Image":
        raise RaybenchError(
            f"data set {source.path!r}: {column!r} holds {kind}, not images; "
            "for a table of numbers leave data.input out"
        )
    rows = [_decoded(source, image) for image in chain(*(part[column] for part in parts))]
    sizes = sorted({row.shape[:2] for row in rows})
    if len(sizes) > 1:
        raise RaybenchError(
            f"data set {source.path!r}: images of {len(sizes)} sizes, from "
            f"{' x '.join(map(str, sizes[0]))} to {' x '.join(map(str, sizes[-1]))} pixels; "
            f"put a copy with equal sizes under {FOLDER}"
        )
    if any(row.shape[2] == 3 for row in rows):
        rows = [np.broadcast_to(row, (*row.shape[:2], 3)) for row in rows]
    return np.stack(rows).transpose(0, 3, 1, 2).astype(np.float32, order="C") / np.float32(255)


_GRAY: Final = ("1", "L", "LA")
_COLOUR: Final = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV")


def _decoded(source: Source, image: Any) -> NDArray[np.uint8]:
    """Return an image as [height, width, 1 or 3]."""
    mode = getattr(image, "mode", None)
    if mode in _GRAY:
        return np.asarray(image.convert("L"))[:, :, None]
    if mode in _COLOUR:
        # By way of RGBA, because Pillow warns of a palette that has transparency.
        return np.asarray((image.convert("RGBA") if "P" in mode else image).convert("RGB"))
    what = "rows without an image" if image is None else f"images of mode {mode}, not of 8 bits"
    raise RaybenchError(f"data set {source.path!r}: {source.input!r} has {what}")


def _standardised(source: Source, x: Tensor, num_fit: int) -> Tensor:
    """Return (x - mean) / std by channel, with what is not given taken from the first rows."""
    mean, std = source.mean, source.std
    if mean is None:
        mean = tuple(float(channel.double().mean()) for channel in x[:num_fit].unbind(1))
    if std is None:
        found = (float(channel.double().std(correction=0)) for channel in x[:num_fit].unbind(1))
        std = tuple(value or 1.0 for value in found)  # a constant channel is only centred
    scale = []
    for name, numbers in (("mean", mean), ("std", std)):
        if len(numbers) not in (1, x.shape[1]):
            raise RaybenchError(
                f"data set {source.path!r}: data.{name} has {len(numbers)} numbers "
                f"for {x.shape[1]} channels"
            )
        scale.append(torch.tensor(numbers, dtype=x.dtype).view(-1, *[1] * (x.dim() - 2)))
    return ((x - scale[0]) / scale[1]).float()
