"""How large weights and gradients are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from raybench.probes.base import Probe, View


def norm(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the Euclidean norm of all numbers in `tensors`."""
    return torch.stack([t.square().sum() for t in tensors.values()]).sum().sqrt()


class WeightNorm(Probe):
    """Euclidean norm of all trained weights."""

    on = "model"

    def measure(self, view: View) -> dict[str, Tensor]:
        """Return `weight_norm`."""
        return {"weight_norm": norm(view.params)}


class GradNorm(Probe):
    """Euclidean norm of the gradient of the mean loss over all training rows."""

    on = "train"
    needs_gradient = True

    def measure(self, view: View) -> dict[str, Tensor]:
        """Return `grad_norm`."""
        return {"grad_norm": norm(view.grads)}
