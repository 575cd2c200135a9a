"""A decoder-only transformer over characters, whose width is a knob."""

from __future__ import annotations

import math
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from raybench.errors import RaybenchError
from raybench.models.base import Dropout, Published
from raybench.models.initial import glorot_uniform


class Transformer(Published):
    """Characters embedded, `layers` blocks of causal attention, a linear layer at every place.

    Vaswani et al. 2017 (arXiv:1706.03762) with the decoder alone, which reads what is left of a
    place and tells the next character: d = `width` numbers at a place, sinusoids for places, and
    in each block attention of `heads` heads and a ReLU layer of 4 d units. Each half of a block
    has layer norm before it and is added to what went in; a last layer norm precedes the linear
    layer. Nakkiran et al. 2019 (arXiv:1912.02292, appendix B.1) sweep d in an encoder and decoder
    of 6 layers each, for translation.

    For V characters it has L (12 d^2 + 13 d) + (2 V + 2) d + V parameters; V = 83 and L = 2 give
    301 at d = 1, 3,171 at d = 8, 110,803 at d = 64.

    Published, as in fairseq: embeddings N(0, 1 / d), times sqrt(d) where they are used; Glorot's
    uniform weights, those of queries, keys and values divided by sqrt(2); biases 0.
    """

    width: int = Field(default=64, ge=1)
    """Numbers at each place: d. A multiple of `heads`."""
    layers: int = Field(default=2, ge=1)
    """Blocks: L."""
    heads: int = Field(default=8, ge=1)
    """Heads of each attention."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability with which a number that a half of a block adds is zeroed in training."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width: {self.width} is no multiple of heads: {self.heads}")
        return self

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the network; needs rows of T characters, each below `outputs`."""
        if len(inputs) != 1:
            raise RaybenchError(
                f"model {self.name} needs rows of characters, and rows have shape {list(inputs)}; "
                "set data: text"
            )
        return _Decoder(self, outputs)

    def published(
        self, layer: nn.Module, name: str, shape: torch.Size, draw: torch.Generator
    ) -> Tensor:
        """Return fairseq's first values."""
        if isinstance(layer, nn.LayerNorm):
            return torch.ones(shape) if name == "weight" else torch.zeros(shape)
        if name == "bias":
            return torch.zeros(shape)
        if isinstance(layer, nn.Embedding):
            return torch.randn(shape, generator=draw) / math.sqrt(shape[1])
        if isinstance(layer, _Read):
            return glorot_uniform(shape, draw) / math.sqrt(2)
        return glorot_uniform(shape, draw)


class _Read(nn.Linear):
    """What makes queries, keys or values: named for its first values."""


class _Decoder(nn.Module):
    def __init__(self, spec: Transformer, outputs: int) -> None:
        super().__init__()
        self.scale = math.sqrt(spec.width)
        self.embedding = nn.Embedding(outputs, spec.width)
        self.blocks = nn.Sequential(*(_Block(spec) for _ in range(spec.layers)))
        self.norm = nn.LayerNorm(spec.width)
        self.output = nn.Linear(spec.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, T, outputs] for characters [N, T]."""
        rows = self.embedding(x.long()) * self.scale
        rows = self.blocks(rows + sinusoids(rows.shape[-2], rows.shape[-1], rows))
        outputs: Tensor = self.output(self.norm(rows))
        return outputs


def sinusoids(places: int, width: int, like: Tensor) -> Tensor:
    """Return [places, width]: sines of all frequencies, then their cosines.

    sin(t / 10000^(2 i / d)) in column i and the cosine in column i + d / 2 for place t, the order
    of fairseq; Vaswani et al. 2017 let sines and cosines take turns.

    Args:
        places: number of places.
        width: d; where it is odd there is one cosine less.
        like: device and type of the result.
    """
    half = (width + 1) // 2
    place = torch.arange(places, device=like.device, dtype=torch.float64)
    power = torch.arange(half, device=like.device, dtype=torch.float64) * (2 / width)
    angle = place[:, None] / 10_000**power
    return torch.cat([angle.sin(), angle.cos()], dim=1)[:, :width].to(like.dtype)


class _Block(nn.Module):
    """Attention, then two layers at each place; each after a layer norm and beside a shortcut."""

    def __init__(self, spec: Transformer) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.LayerNorm(spec.width), _Attention(spec.width, spec.heads), Dropout(spec.dropout)
        )
        self.dense = nn.Sequential(
            nn.LayerNorm(spec.width),
            *(nn.Linear(spec.width, 4 * spec.width), nn.ReLU()),
            *(nn.Linear(4 * spec.width, spec.width), Dropout(spec.dropout)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, T, d] for [N, T, d]."""
        x = x + self.attention(x)
        total: Tensor = x + self.dense(x)
        return total


class _Attention(nn.Module):
    """softmax(Q K^T / sqrt(d / heads)) V of each head over the places up to its own, then linear.

    Written out, not PyTorch's `scaled_dot_product_attention`: one lane and many must sum alike.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (_Read(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, T, d] for [N, T, d]."""
        num, places, width = x.shape
        split = (num, places, self.heads, width // self.heads)
        query, key, value = (
            layer(x).view(split).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(split[-1])
        later = torch.ones(places, places, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
        joined = (weights @ value).transpose(1, 2).reshape(num, places, width)
        total: Tensor = self.output(joined)
        return total
