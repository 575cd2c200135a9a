"""Numbers of a step: Python's where the lanes agree, 0-d tensors where they differ.

An update rule is written once for both. What these functions hide is which of the two it has: on
Python's numbers they cost no operation on tensors, on tensors they do not branch.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

Rate: TypeAlias = float | Tensor
"""A learning rate or another number of this step: a number, or a 0-d tensor in lifted code."""


def as_for(number: Rate, weights: Tensor) -> Rate:
    """Return a number in the type of the weights it is about to meet in one operation."""
    return number.to(weights.dtype) if isinstance(number, Tensor) else number


def larger(one: Rate, other: Rate) -> Rate:
    """Return the larger of two numbers."""
    if isinstance(one, Tensor):
        return one.clamp(min=other)
    return other.clamp(min=one) if isinstance(other, Tensor) else max(one, other)


def smaller(one: Rate, other: Rate) -> Rate:
    """Return the smaller of two numbers."""
    if isinstance(one, Tensor):
        return one.clamp(max=other)
    return other.clamp(max=one) if isinstance(other, Tensor) else min(one, other)


def choose(condition: bool | Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Return `yes` where the condition, one for all weights, holds, and `no` elsewhere."""
    if isinstance(condition, Tensor):
        return torch.where(condition, yes, no)
    return yes if condition else no
