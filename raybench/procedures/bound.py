"""A module that is called with given weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from raybench.lanes import Params


class Bound:
    """A module that is called with given weights: `functional_call` without its bookkeeping.

    The weights of the last call stay in the module, which nothing else uses.

    Args:
        module: to be called.
        weights: whether weights are given at a call; otherwise buffers are, and the module has
            weights of its own.

    Attributes:
        module: that is called.
        precision: of products in the pass; None for that of the weights.
    """

    def __init__(self, module: nn.Module, *, weights: bool = True) -> None:
        self.module = module
        self.precision: torch.dtype | None = None
        self._slots: list[tuple[dict[str, Any], str, str]] = []
        for prefix, layer in module.named_modules():
            dot = f"{prefix}." if prefix else ""
            for held in (layer._parameters, layer._buffers) if weights else (layer._buffers,):
                self._slots += [(held, name, dot + name) for name in held if held[name] is not None]

    def __call__(self, params: Params, buffers: Params, x: Tensor) -> Tensor:
        """Return the module's outputs; buffers are changed in place by layers that do so."""
        for held, name, full in self._slots:
            held[name] = params[full] if full in params else buffers[full]
        if self.precision is None:
            outputs: Tensor = self.module(x)
            return outputs
        with torch.autocast(x.device.type, self.precision):
            outputs = self.module(x)
        return outputs.to(x.dtype)
