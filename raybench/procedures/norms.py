"""Batch norm over ranks: a batch has the statistics of all its rows, wherever they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raybench.ranks import Ranks


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm with the mean and the variance of the rows of all ranks.

    So a run on R ranks is the run on one. Each rank's mean and sum of squares about it are put
    together (Chan, Golub and LeVeque 1983), which loses nothing to cancellation; gradients flow
    through them on all ranks. Lifts over lanes, of which each has statistics of its own.

    Args:
        layer: the one that it stands for.
        ranks: which share the batch.
    """

    def __init__(self, layer: nn.modules.batchnorm._BatchNorm, ranks: Ranks) -> None:
        with torch.device("meta"):
            super().__init__(
                layer.num_features,
                layer.eps,
                layer.momentum,
                layer.affine,
                layer.track_running_stats,
            )
        self._ranks = ranks

    def forward(self, x: Tensor) -> Tensor:
        """Return x [N, C, ...] with each channel normalized."""
        if not self.training and self.track_running_stats:
            mean, variance = self.running_mean, self.running_var
            return nn.functional.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)
        if x.dtype in (torch.bfloat16, torch.float16):
            return self.forward(x.float()).to(x.dtype)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = (1, -1, *(1 for _ in axes[1:]))
        mean, variance, count = self._statistics(x, axes, shape)
        if self.track_running_stats:
            self._note(mean.detach(), variance.detach() * (count / (count - 1)))
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        normal = (x - mean.view(shape)) * scale.view(shape)
        return normal + self.bias.view(shape) if self.affine else normal

    def _statistics(
        self, x: Tensor, axes: list[int], shape: tuple[int, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and variance of each channel over all ranks, [C], and the numbers in it."""
        channels, ranks = self.num_features, self._ranks
        own = x.numel() // channels
        mean = x.sum(axes) / max(own, 1)
        squares = (x - mean.view(shape)).square().sum(axes)
        told = torch.cat([mean, squares, mean.new_full((1,), own)])
        place = torch.arange(ranks.size, device=x.device)[:, None] == ranks.rank
        every = ranks.summed(torch.where(place, told, 0.0))
        means, all_squares = every[:, :channels], every[:, channels : 2 * channels]
        counts = every[:, -1:].detach()
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (all_squares + counts * (means - mean).square()).sum(0) / count
        return mean, variance, count

    def _note(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        new: Tensor | float | None = self.momentum
        if new is None:  # the mean over all batches
            new = 1 / self.num_batches_tracked
        self.running_mean.copy_((1 - new) * self.running_mean + new * mean)
        self.running_var.copy_((1 - new) * self.running_var + new * variance)


def share_statistics(module: nn.Module, ranks: Ranks) -> None:
    """Put layers whose statistics are those of all ranks in the place of a module's batch norms."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, BatchNorm(layer, ranks).train())
