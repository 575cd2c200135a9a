"""Losses by name, of each row and of a batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from raybench.data import Task
from raybench.errors import RaybenchError

LossName = Literal["auto", "cross_entropy", "mse", "half_squares", "elbo", "output"]


class Losses:
    """A loss by name, of each row and of a whole batch.

    `mse` is the mean over outputs of squared differences, from one-hot targets for classes;
    `half_squares` is half their sum. `elbo` is that of a variational autoencoder whose outputs are
    [reconstruction D, mean L, log deviation s L] for targets [D]: the sum of squared differences,
    and -1/2 sum(1 + 2 s - mean^2 - exp(2 s))  (Kingma and Welling 2014, appendix B). `output`: the
    model's one output is the loss of the row.

    Args:
        name: `auto` is cross_entropy for classes, mse for regression.
        task: what the targets are.
        fused: whether it is lifted over lanes: then there is a faster way than PyTorch's own.
    """

    def __init__(self, name: LossName, task: Task, *, fused: bool = False) -> None:
        self._classes, self._fused = task.classes, fused
        if name == "auto":
            name = "cross_entropy" if task.classes else "mse"
        if name == "cross_entropy" and not task.classes:
            raise RaybenchError("loss cross_entropy needs classes; set loss: mse for regression")
        if name == "elbo" and task.classes:
            raise RaybenchError("loss elbo compares with the input; set data.target: input")
        self._name = name

    def rows(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the loss of each row, [N], from outputs [N, O] or [N, T, O]."""
        if self._name == "cross_entropy":
            if y.dim() == 1:
                return self._of_classes(outputs, y)
            each = nn.functional.cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none")
            return each.view(y.shape).mean(-1)
        if self._name == "mse":
            return (outputs - self._targets(outputs, y)).square().mean(-1)
        if self._name == "half_squares":
            return (outputs - self._targets(outputs, y)).square().sum(-1) / 2
        return _elbo(outputs, y) if self._name == "elbo" else outputs.squeeze(-1)

    def mean(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar; of no rows, 0."""
        if not len(y):  # a rank without rows, which still takes its part in collective calls
            return outputs.sum()
        if self._name == "cross_entropy" and y.dim() == 1 and not self._fused:
            return nn.functional.cross_entropy(outputs, y)
        if self._name == "mse":
            return (outputs - self._targets(outputs, y)).square().mean()
        return self.rows(outputs, y).mean()

    def _of_classes(self, outputs: Tensor, y: Tensor) -> Tensor:
        if not self._fused:
            return nn.functional.cross_entropy(outputs, y, reduction="none")
        # Over the first axis: PyTorch vectorizes a softmax over other axes than the last, which
        # makes it up to thirty times faster for few classes.
        return -outputs.T.contiguous().log_softmax(0).gather(0, y[None]).squeeze(0)

    def _targets(self, outputs: Tensor, y: Tensor) -> Tensor:
        if not self._classes:
            return y
        return (y[:, None] == torch.arange(self._classes, device=y.device)).to(outputs.dtype)


def _elbo(outputs: Tensor, y: Tensor) -> Tensor:
    width = y.shape[-1]
    if outputs.shape[-1] <= width or (outputs.shape[-1] - width) % 2:
        raise RaybenchError(
            f"loss elbo needs outputs [reconstruction, mean, log deviation] for {width} numbers, "
            f"and the model has {outputs.shape[-1]}; use model: vae"
        )
    mean, log_std = outputs[..., width:].chunk(2, dim=-1)
    divergence = -0.5 * (1 + 2 * log_std - mean.square() - (2 * log_std).exp()).sum(-1)
    return (outputs[..., :width] - y).square().sum(-1) + divergence
