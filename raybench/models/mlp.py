"""Networks of fully connected layers, and the linear models that are their limits."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from raybench.models.base import Dropout, FrozenLinear, Model
from raybench.models.initial import truncated

Activation = Literal["relu", "tanh", "gelu"]


def activation(name: Activation) -> nn.Module:
    """Return the activation's module."""
    kinds: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
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

    Rahimi and Recht 2007; Belkin et al. 2018 (arXiv:1812.11118). Weights of the fixed layer are
    N(0, 1 / inputs), drawn from the stream `init`; they are buffers and are never trained.
    """

    width: int = Field(default=64, ge=1)
    """Number of random features: also the number of trained weights per output."""
    activation: Activation = "relu"
    """Of the random layer."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the fixed layer, then the trained one."""
        return nn.Sequential(
            nn.Flatten(),
            FrozenLinear(math.prod(inputs), self.width),
            activation(self.activation),
            nn.Linear(self.width, outputs, bias=False),
        )
