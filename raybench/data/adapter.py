"""A plain function that returns arrays becomes a data set, without a class of its own."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch

from raybench.data.base import Data, Pool
from raybench.rng import Seed
from raybench.tables import from_signature


class FunctionData(Data):
    """A data set from a function `load(**fields) -> (x [N, ...], y)`.

    `y` is [N] whole numbers (classes 0, 1, ...) or [N, outputs] numbers (regression).
    """

    load: ClassVar[Callable[..., tuple[Any, Any]]]

    def pool(self, seed: Seed) -> Pool:
        """Return what the function returns, loaded once per process."""
        own = set(type(self).model_fields) - set(FunctionData.model_fields)
        fields = json.dumps({field: getattr(self, field) for field in sorted(own)})
        return _load(type(self).load, fields)


@lru_cache(maxsize=8)
def _load(load: Callable[..., tuple[Any, Any]], fields: str) -> Pool:
    x_rows, y_rows = load(**json.loads(fields))
    x, y = torch.as_tensor(np.asarray(x_rows)).float(), torch.as_tensor(np.asarray(y_rows))
    if len(x) != len(y):
        raise ValueError(f"{load.__name__} returned {len(x)} rows of x and {len(y)} of y")
    if y.is_floating_point():
        return Pool(x, y.float().reshape(len(y), -1), classes=0)
    return Pool(x, y.long(), classes=int(y.max()) + 1)


def adapt(name: str, found: Any) -> type[Data]:
    """Return a data set class for the function `found`; TypeError if it is none."""
    if not callable(found) or isinstance(found, type):
        raise TypeError("name a Data class, or a function that returns (x, y)")
    fields: dict[str, tuple[Any, Any]] = {}
    for parameter in inspect.signature(found).parameters.values():
        if parameter.default is inspect.Parameter.empty:
            raise TypeError(f"parameter {parameter.name!r} needs a default")
        fields[parameter.name] = (type(parameter.default), parameter.default)
    return from_signature(name, FunctionData, fields, found.__doc__, load=staticmethod(found))
