"""Networks of fully connected layers, and the linear models that are their limits."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raybench.models.base import Dropout, FrozenLinear, Keep, Model, State, whole
from raybench.models.initial import truncated
from raybench.rng import Seed, stream

Activation = Literal["relu", "tanh", "gelu", "erf"]


class Erf(nn.Module):
    """The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Return erf(x), number by number."""
        return torch.erf(x)


def activation(name: Activation) -> nn.Module:
    """Return the activation's module."""
    kinds: dict[str, type[nn.Module]] = {
        "relu": nn.ReLU,
        "tanh": nn.Tanh,
        "gelu": nn.GELU,
        "erf": Erf,
    }
    return kinds[name]()


class Linear(Model):
    """One linear layer on the flattened row."""

    bias: bool = True
    """Whether there is an intercept."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return flatten, then linear."""
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(inputs), outputs, bias=self.bias))


class MLP(Model):
    """`depth` hidden layers of `width` units, then a linear layer.

    DeepOBS' mnist_mlp and fmnist_mlp have `widths: [1000, 500, 100]` and `init: published`: weights
    N(0, 0.03^2) cut at two deviations, biases 0.
    """

    width: int = Field(default=64, ge=1)
    """Units in each hidden layer."""
    depth: int = Field(default=1, ge=1)
    """Number of hidden layers."""
    widths: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(default=None, min_length=1)
    """Units of each hidden layer in turn, in place of `width` and `depth`."""
    activation: Activation = "relu"
    """After each hidden layer."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability with which a hidden unit is zeroed in training."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the layers in order."""
        layers: list[nn.Module] = [nn.Flatten()]
        fan_in = math.prod(inputs)
        for width in self.widths or (self.width,) * self.depth:
            layers += [nn.Linear(fan_in, width), activation(self.activation)]
            if self.dropout:
                layers.append(Dropout(self.dropout))
            fan_in = width
        return nn.Sequential(*layers, nn.Linear(fan_in, outputs))

    def published(
        self, layer: nn.Module, name: str, shape: torch.Size, draw: torch.Generator
    ) -> Tensor:
        """Return cut Gaussian weights and zero biases."""
        return torch.zeros(shape) if name == "bias" else truncated(shape, 0.03, draw)


class RandomFeatures(Model):
    """A fixed random layer of `width` features, then a trained linear layer without bias.

    Rahimi and Recht 2007; Belkin et al. 2018 (arXiv:1812.11118). Weights w of the fixed layer are
    N(0, 1 / inputs), drawn from the stream `init`; they are buffers and are never trained. A
    feature is phi(w . x), or with `features: fourier` sqrt(2) cos(s w . x + b) with s = `frequency`
    and b uniform on [0, 2 pi), drawn likewise: the mean product of two rows' features is then the
    Gaussian kernel exp(-s^2 |x - x'|^2 / (2 inputs)). Fourier features are those of Nakkiran et
    al. 2019 (arXiv:1912.02292), figures 14 and 15. There are width * outputs parameters.
    """

    width: int = Field(default=64, ge=1)
    """Number of random features: also the number of trained weights per output."""
    activation: Activation = "relu"
    """Of the random layer: phi. Not used by Fourier features."""
    features: Literal["layer", "fourier"] = "layer"
    """A layer with `activation`, or cosines of random frequencies."""
    frequency: float = Field(default=1.0, gt=0)
    """Of Fourier features: the deviation of frequencies is this over sqrt(inputs)."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the fixed layer, then the trained one."""
        size = math.prod(inputs)
        fixed: tuple[nn.Module, nn.Module] = (
            FrozenLinear(size, self.width),
            activation(self.activation),
        )
        if self.features == "fourier":
            fixed = (_Waves(size, self.width, self.frequency), nn.Identity())
        return nn.Sequential(nn.Flatten(), *fixed, nn.Linear(self.width, outputs, bias=False))

    def state(
        self,
        skeleton: nn.Module,
        inputs: tuple[int, ...],
        outputs: int,
        seed: Seed,
        keep: Keep = whole,
    ) -> State:
        """Return the initial parameters, and the fixed layer as buffers.

        Args:
            skeleton: what `skeleton(inputs, outputs)` returned.
            inputs: shape of one row.
            outputs: number of outputs.
            seed: of the run; its stream `init` is drawn from.
            keep: what is returned of each parameter.
        """
        params, buffers = super().state(skeleton, inputs, outputs, seed, keep)
        if self.features == "fourier":
            draw = stream(seed, "init/phases")
            buffers["1.bias"] = torch.rand(self.width, generator=draw) * (2 * math.pi)
        return params, buffers


class _Waves(FrozenLinear):
    """sqrt(2) cos(s x W^T + b) with frozen W and b."""

    def __init__(self, inputs: int, outputs: int, frequency: float) -> None:
        super().__init__(inputs, outputs)
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, [N, outputs] for rows [N, inputs]."""
        angle = nn.functional.linear(x, self.weight * self.frequency, self.bias)
        return math.sqrt(2) * torch.cos(angle)
