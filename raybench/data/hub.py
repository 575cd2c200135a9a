"""Image and tabular classification sets through Hugging Face `datasets`, online or from a folder.

`_parts` finds the rows, and only it knows where a set may come from; `decoding` makes numbers of
them, once a machine (`mapped`).
"""

from __future__ import annotations

import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from raybench.data.base import FOLDER, Data, Pool, Shape
from raybench.data.decoding import Source, decoded, identity
from raybench.data.mapped import shared
from raybench.errors import MissingError, RaybenchError, UnavailableError
from raybench.rng import Seed

# Descriptions and bounds stand with the types, so that an entry below overrides a default only.
# A suite may come from a stranger: neither a path, a configuration nor a split may leave its place.
_WORD: Final = r"[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*"
HubId = Annotated[
    str,
    Field(
        pattern=rf"^{_WORD}(/{_WORD})?$",
        description="Name on the hub, such as ylecun/mnist; not a folder.",
    ),
]
Config = Annotated[
    str | None,
    Field(pattern=rf"^{_WORD}$", description="Configuration of the set; null for its default."),
]
Split = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+]+(\[[0-9%:-]+\])?$")]
Input = Annotated[
    str | None,
    Field(
        description="Column that holds the image; null for a table: every column of numbers "
        "except the label."
    ),
]
Label = Annotated[str, Field(description="Column that holds the class: its number or its name.")]
Mean = Annotated[
    tuple[float, ...] | None,
    Field(
        min_length=1,
        description="Subtracted, after pixels are scaled to [0, 1]: a number for each channel (or "
        "column of a table), or one for all. Null: the mean of the training part.",
    ),
]
Std = Annotated[
    tuple[Annotated[float, Field(gt=0)], ...] | None,
    Field(
        min_length=1,
        description="Divided by after that, likewise. Null: the deviation of the training part.",
    ),
]


class Hub(Data):
    """An image or tabular classification set from the Hugging Face hub (extra `data`).

    A folder `$RAYBENCH_DATA/<path>` with the hub's files (or CSV, Parquet, or images in one folder
    a class) is read in place of the network. Images of 8 bits a channel; their transparency is
    dropped, and if one of them has colour all become RGB. Decoded once a machine: its processes
    share the rows (docs/data.md).
    """

    published: ClassVar[Shape | None] = None
    """What is known of the images of the set that an entry names."""

    path: HubId
    config: Config = None
    train_split: Split = "train"
    """Part that training and validation rows come from."""
    test_split: Split | None = "test"
    """Part that test rows come from; null: they are drawn from the training part."""
    input: Input = None
    label: Label = "label"
    mean: Mean = None
    std: Std = None
    layout: Literal["image", "flat"] = "image"
    """`image`: channels x height x width; `flat`: rows of numbers. A table is always flat."""

    def pool(self, seed: Seed) -> Pool:
        """Return the training part, then the test part."""
        # Equal for all entries and splits that read the same rows, so they share one pool.
        source = Source(**{field: getattr(self, field) for field in Source._fields})
        return _loaded_once(source, self.layout, os.environ.get(FOLDER))

    def shape(self) -> Shape | None:
        """Return the published numbers, if it is the published set."""
        known, entry = self.published, type(self)
        same = all(
            getattr(self, field) == entry.model_fields[field].default
            for field in ("path", "config", "train_split", "test_split")
        )
        if known is None or not same:
            return None
        return known._replace(row=(math.prod(known.row),)) if self.layout == "flat" else known

    def require(self) -> None:
        """Ask for the libraries of the extra `data`."""
        _library(self.path)

    def missing(self) -> str | None:
        """Look for the set under $RAYBENCH_DATA and in the Hugging Face caches."""
        home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
        folder = self.path.replace("/", "--")
        places = [
            Path(os.environ.get(FOLDER) or os.devnull, self.path),
            Path(os.environ.get("HF_HUB_CACHE") or home / "hub", f"datasets--{folder}"),
            Path(
                os.environ.get("HF_DATASETS_CACHE") or home / "datasets",
                self.path.replace("/", "___"),
            ),
        ]
        if any(place.is_dir() for place in places):
            return None
        return f"data set {self.path} is not on this machine yet"


class Mnist(Hub):
    """70,000 handwritten digits, 1 x 28 x 28, 10 classes (LeCun et al. 1998)."""

    published = Shape((1, 28, 28), 10, 60_000, 10_000)
    path: HubId = "ylecun/mnist"
    input: Input = "image"
    mean: Mean = (0.1307,)
    std: Std = (0.3081,)


class FashionMnist(Hub):
    """70,000 pictures of clothes, 1 x 28 x 28, 10 classes (Xiao et al. 2017)."""

    published = Shape((1, 28, 28), 10, 60_000, 10_000)
    path: HubId = "zalando-datasets/fashion_mnist"
    input: Input = "image"
    mean: Mean = (0.2860,)
    std: Std = (0.3530,)


class Cifar10(Hub):
    """60,000 photographs, 3 x 32 x 32, 10 classes (Krizhevsky 2009)."""

    published = Shape((3, 32, 32), 10, 50_000, 10_000)
    path: HubId = "uoft-cs/cifar10"
    input: Input = "img"
    mean: Mean = (0.4914, 0.4822, 0.4465)
    std: Std = (0.2470, 0.2435, 0.2616)


class Cifar100(Hub):
    """60,000 photographs, 3 x 32 x 32, 100 classes (Krizhevsky 2009)."""

    published = Shape((3, 32, 32), 100, 50_000, 10_000)
    path: HubId = "uoft-cs/cifar100"
    input: Input = "img"
    label: Label = "fine_label"
    mean: Mean = (0.5071, 0.4865, 0.4409)
    std: Std = (0.2673, 0.2564, 0.2762)


class SVHN(Hub):
    """99,289 photographs of house numbers, 3 x 32 x 32, 10 classes (Netzer et al. 2011)."""

    published = Shape((3, 32, 32), 10, 73_257, 26_032)
    path: HubId = "ufldl-stanford/svhn"
    config: Config = "cropped_digits"
    input: Input = "image"
    mean: Mean = (0.4377, 0.4438, 0.4728)
    std: Std = (0.1980, 0.2010, 0.1970)


_unavailable: dict[tuple[Source, str | None], str] = {}


def _loaded_once(source: Source, layout: str, root: str | None) -> Pool:
    # Also a failure is kept: without a network each attempt takes the hub's client half a minute.
    if (source, root) in _unavailable:
        raise UnavailableError(_unavailable[source, root])
    try:
        return _load(source, layout, root)
    except UnavailableError as error:
        _unavailable[source, root] = str(error)
        raise


@lru_cache(maxsize=4)
def _load(source: Source, layout: str, root: str | None) -> Pool:
    parts = _parts(source, root)
    name = source.path.replace("/", "--")
    pool = shared(name, identity(source, parts), lambda: decoded(source, parts))
    return pool._replace(x=pool.x.flatten(1)) if layout == "flat" else pool


def _library(path: str) -> Any:
    """Return the module `datasets`, if it and what it decodes images with are installed."""
    try:
        import datasets
        import PIL  # noqa: F401  (decodes the images)
    except ImportError as error:
        raise MissingError(
            f"data set {path!r} needs {error.name}: "
            'pip install "raybench[data]", on every machine of the cluster'
        ) from error
    return datasets


def _parts(source: Source, root: str | None) -> list[Any]:
    """Return the training part, and the test part if the set has one, as `datasets.Dataset`s."""
    datasets = _library(source.path)
    splits = [s for s in (source.train_split, source.test_split) if s is not None]
    folder = Path(root or "", source.path)
    local = bool(root) and folder.is_dir()
    place, config = (
        _local(folder, source.config) if local else (_hub_id(source.path), source.config)
    )
    try:
        return list(datasets.load_dataset(place, config, split=splits))
    except (ValueError, RuntimeError) as error:  # an unknown configuration or split; a script
        raise RaybenchError(f"data set {source.path!r} in {place}: {_line(error)}") from error
    except Exception as error:  # of the network library's kinds too, which change by release
        looked = f"no folder {folder}" if root else f"{FOLDER} is not set"
        tried = f"in {place}" if local else f"on the hub ({looked})"
        raise UnavailableError(
            f"data set {source.path!r} cannot be loaded {tried}: {_line(error)}\n"
            f"Without network: put its files into {root or '$' + FOLDER}/{source.path} and set "
            f"{FOLDER} on every machine, or copy a filled Hugging Face cache (HF_HOME) there"
        ) from error


def _local(folder: Path, config: str | None) -> tuple[str, str | None]:
    # Without a card (README.md), only folders tell the configurations of a set apart.
    if config is None or (folder / "README.md").exists():
        return str(folder.resolve()), config
    inner = folder / config
    return str((inner if inner.is_dir() else folder).resolve()), None


def _hub_id(path: str) -> str:
    # `datasets` prefers a folder of that name, and takes `csv` for "the CSV files that lie here".
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as FORMATS

    if path in FORMATS or Path(path).exists():
        what = "a file format" if path in FORMATS else "also a folder in the working directory"
        raise RaybenchError(
            f"data set {path!r} is {what}, which is not read; "
            f"name a set of the hub as owner/name, or put the folder under {FOLDER}"
        )
    return path


def _line(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return text if len(text) <= 300 else text[:300] + "..."
