"""What a model is: how to build its module, and how to draw its weights from a run's streams."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from raybench.rng import Seed, fold, key, stream, uniform
from raybench.spec import Spec

State: TypeAlias = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Parameters and buffers by name."""

Init = Literal["he", "glorot", "lecun", "torch"]


class Model(Spec, ABC):
    """A network: the module says what it computes, `init` what it starts from."""

    init: Init = "he"
    """Weights: `he` N(0, 2 / fan_in), `lecun` N(0, 1 / fan_in), `glorot` N(0, 2 / (fan_in +
    fan_out)), each with zero biases; `torch` what PyTorch's layers draw by default."""

    @abstractmethod
    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the module for rows of shape `inputs`; its weights are never used."""

    def skeleton(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the module without storage: weights are passed to it at each call."""
        with torch.device("meta"):
            return self.module(inputs, outputs)

    def state(
        self, skeleton: nn.Module, inputs: tuple[int, ...], outputs: int, seed: Seed
    ) -> State:
        """Return the initial parameters and buffers of the run with `seed`.

        Args:
            skeleton: what `skeleton(inputs, outputs)` returned.
            inputs: shape of one row.
            outputs: number of outputs.
            seed: of the run; its streams `init` and `noise` are drawn from.
        """
        draw = stream(seed, "init/weights")
        params: dict[str, Tensor] = {}
        buffers: dict[str, Tensor] = {}
        for prefix, layer in skeleton.named_modules():
            dot = f"{prefix}." if prefix else ""
            for name, weight in layer.named_parameters(recurse=False):
                params[dot + name] = initial(layer, name, weight.shape, self.init, draw)
            for name, buffer in layer.named_buffers(recurse=False):
                buffers[dot + name] = _initial_buffer(layer, name, buffer, dot, seed, draw)
        return params, buffers


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


def initial(
    layer: nn.Module, name: str, shape: torch.Size, scheme: Init, draw: torch.Generator
) -> Tensor:
    """Return the first value of a layer's parameter, drawn in float32 whatever the run's type."""
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
        return torch.ones(shape) if name == "weight" else torch.zeros(shape)
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(layer).__name__} has no weight: give the model its own `state`")
    receptive = math.prod(weight.shape[2:])
    fan_in, fan_out = weight.shape[1] * receptive, weight.shape[0] * receptive
    if scheme == "torch":
        bound = 1 / math.sqrt(fan_in)  # kaiming_uniform with a = sqrt(5) has this bound as well
        return torch.rand(shape, generator=draw) * (2 * bound) - bound
    if name == "bias":
        return torch.zeros(shape)
    variance = {"he": 2 / fan_in, "lecun": 1 / fan_in, "glorot": 2 / (fan_in + fan_out)}[scheme]
    return torch.randn(shape, generator=draw) * math.sqrt(variance)


def _initial_buffer(
    layer: nn.Module, name: str, buffer: Tensor, dot: str, seed: Seed, draw: torch.Generator
) -> Tensor:
    if isinstance(layer, Dropout) and name == "key":
        return key(seed, f"noise/{dot}")
    if isinstance(layer, FrozenLinear):
        if name == "bias":
            return torch.zeros(buffer.shape)
        return torch.randn(buffer.shape, generator=draw) / math.sqrt(buffer.shape[1])
    filled = torch.ones if name == "running_var" else torch.zeros
    return filled(buffer.shape, dtype=buffer.dtype)
