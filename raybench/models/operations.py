"""How many floating-point operations a network takes, counted without carrying any out."""

from __future__ import annotations

from functools import lru_cache

import torch

from raybench.models.base import Model


@lru_cache(maxsize=256)
def forward(model: Model, inputs: tuple[int, ...], outputs: int) -> float:
    """Return the operations of a forward pass of one row: matrix products and convolutions.

    Args:
        model: the network.
        inputs: shape of a row of numbers.
        outputs: number of outputs.
    """
    from torch.utils.flop_counter import FlopCounterMode  # takes a quarter of a second

    module = model.skeleton(inputs, outputs).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.empty(1, *inputs, device="meta"))
    return float(counter.get_total_flops())
