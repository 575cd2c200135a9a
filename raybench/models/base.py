"""What a model is: how to build its module, and how to draw its weights from a run's streams."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Self, TypeAlias

import torch
from pydantic import model_validator
from torch import Tensor, nn

from raybench.errors import RaybenchError
from raybench.models.initial import Init, initial
from raybench.rng import Seed, fold, key, normal, stream, uniform
from raybench.spec import Spec, digest

State: TypeAlias = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Parameters and buffers by name."""

Keep: TypeAlias = Callable[[Tensor], Tensor]
"""From a parameter to the part of it that this process holds."""


def whole(parameter: Tensor) -> Tensor:
    """Return all of a parameter."""
    return parameter


class Model(Spec, ABC):
    """A network: the module says what it computes, `init` what it starts from."""

    init: Init = "he"
    """Weights: `he` N(0, 2 / fan_in), `lecun` N(0, 1 / fan_in), `glorot` N(0, 2 / (fan_in +
    fan_out)), `glorot_uniform` uniform of that variance, `zeros`, each with zero biases; `torch`
    what PyTorch's layers draw by default; `published` what the problem's authors used, where the
    model comes from one."""

    @model_validator(mode="after")
    def _has_published(self) -> Self:
        if self.init == "published" and type(self).published is Model.published:
            raise ValueError(
                f"init: model {self.name} was not published with initial values; choose he, "
                "glorot, lecun, torch, glorot_uniform or zeros"
            )
        return self

    @abstractmethod
    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the module for rows of shape `inputs`; its weights are never used."""

    def skeleton(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the module without storage: weights are passed to it at each call."""
        with torch.device("meta"):
            return self.module(inputs, outputs)

    def state(
        self,
        skeleton: nn.Module,
        inputs: tuple[int, ...],
        outputs: int,
        seed: Seed,
        keep: Keep = whole,
    ) -> State:
        """Return the initial parameters and buffers of the run with `seed`.

        Args:
            skeleton: what `skeleton(inputs, outputs)` returned.
            inputs: shape of one row.
            outputs: number of outputs.
            seed: of the run; its streams `init` and `noise` are drawn from.
            keep: what is returned of each parameter, applied as soon as it is drawn.
        """
        draw = stream(seed, "init/weights")
        params: dict[str, Tensor] = {}
        buffers: dict[str, Tensor] = {}
        for prefix, layer in skeleton.named_modules():
            dot = f"{prefix}." if prefix else ""
            for name, weight in layer.named_parameters(recurse=False):
                params[dot + name] = keep(self._initial(layer, name, weight.shape, draw))
            for name, buffer in layer.named_buffers(recurse=False):
                buffers[dot + name] = _initial_buffer(layer, name, buffer, dot, seed, draw)
        return params, buffers

    def published(
        self, layer: nn.Module, name: str, shape: torch.Size, draw: torch.Generator
    ) -> Tensor:
        """Return the published first value of a layer's parameter; models of a problem have one.

        Args:
            layer: that holds the parameter.
            name: of the parameter in the layer.
            shape: of the parameter.
            draw: the stream that weights are drawn from.

        Raises:
            RaybenchError: the model is of no published problem.
        """
        raise RaybenchError(f"model {self.name} has no published start; choose another init")

    def decays(self, name: str, shape: torch.Size) -> bool:
        """Return whether an L2 penalty covers a parameter: all but vectors, unless overridden.

        Args:
            name: of the parameter in the module, as in `state`.
            shape: of the parameter.
        """
        return len(shape) >= 2

    def _initial(
        self, layer: nn.Module, name: str, shape: torch.Size, draw: torch.Generator
    ) -> Tensor:
        if self.init == "published":
            return self.published(layer, name, shape, draw)
        return initial(layer, name, shape, self.init, draw)


_USUAL_SHAPES: Final = (((64,), 10), ((3, 32, 32), 10), ((1, 28, 28), 10))
_sizes: dict[str, int] = {}


def size(model: Model) -> int:
    """Return how many weights a model would have on usual rows; 0 where it takes none of them.

    Only for comparing models: the rows that a model will really get are not known before loading.
    """
    form = digest({model.name: model.batch_form})
    for shape, outputs in _USUAL_SHAPES:
        if form not in _sizes:
            with contextlib.suppress(Exception):  # a model may refuse a shape as it likes
                skeleton = model.skeleton(shape, outputs)
                _sizes[form] = sum(weight.numel() for weight in skeleton.parameters())
    return _sizes.setdefault(form, 0)


class Published(Model):
    """A model whose initial values were published with it: its default."""

    init: Init = "published"
    """Weights: `published` as the problem's authors drew them, or a scheme of other models."""


class Dropout(nn.Module):
    """Dropout from the run's own stream: the noise is a function of a key held in a buffer."""

    key: Tensor
    calls: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.register_buffer("key", torch.zeros((), dtype=torch.int64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Zero each number with probability p and scale the others, in training mode only."""
        if not self.training or self.p == 0:
            return x
        noise = uniform(fold(self.key, self.calls), x.shape, torch.float32)
        self.calls += 1
        return x * (noise >= self.p).to(x.dtype) / (1 - self.p)


class Noise(nn.Module):
    """Standard normal numbers from the run's own stream, which a model adds where it says.

    Each pass in training mode has noise of its own. In evaluation it is a fixed function of the
    key, row by row, so that a measurement repeats and does not move the training.
    """

    key: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("key", torch.zeros((), dtype=torch.int64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, like: Tensor) -> Tensor:
        """Return noise of the shape and type of `like`."""
        if not self.training:
            return normal(fold(self.key, -1), like.shape, like.dtype)
        noise = normal(fold(self.key, self.calls), like.shape, like.dtype)
        self.calls += 1
        return noise


class Memory(nn.Module):
    """State that one batch leaves for the next: zero at the start of an epoch or a measurement.

    Who trains the model feeds it batches in order, and zeroes `state` where a pass begins.

    Args:
        shape: of the state, rows of a batch included.
    """

    state: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(shape))

    def recall(self) -> Tensor:
        """Return what the last batch left, as a copy that `keep` does not change."""
        return self.state.clone()

    def keep(self, state: Tensor) -> None:
        """Leave `state` for the next batch; gradients do not flow through it."""
        self.state.copy_(state.detach())


class FrozenLinear(nn.Module):
    """A linear layer whose weights are drawn once and never trained: buffers, not parameters."""

    weight: Tensor
    bias: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(outputs, inputs))
        self.register_buffer("bias", torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b."""
        return nn.functional.linear(x, self.weight, self.bias)


def _initial_buffer(
    layer: nn.Module, name: str, buffer: Tensor, dot: str, seed: Seed, draw: torch.Generator
) -> Tensor:
    if isinstance(layer, Dropout | Noise) and name == "key":
        return key(seed, f"noise/{dot}")
    if isinstance(layer, FrozenLinear):
        if name == "bias":
            return torch.zeros(buffer.shape)
        return torch.randn(buffer.shape, generator=draw) / math.sqrt(buffer.shape[1])
    filled = torch.ones if name == "running_var" else torch.zeros
    return filled(buffer.shape, dtype=buffer.dtype)
