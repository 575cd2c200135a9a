"""A recurrent network over characters whose state goes on from batch to batch."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from raybench.errors import RaybenchError
from raybench.models.base import Dropout, Memory, Published
from raybench.models.initial import glorot_uniform


class CharRNN(Published):
    """Embedding, LSTM layers, and a linear layer at every place: DeepOBS' tolstoi_char_rnn.

    A row is T characters of one stream of text. The state of a stream at the end of its row is the
    start of its row in the next batch; gradients stop there. Dropout is on inputs and outputs of
    each layer, not on the state. Published: Glorot's uniform weights, also for the last bias (as
    TensorFlow 1 draws it); other biases 0, and 1 is added to the forget gate.
    """

    width: int = Field(default=128, ge=1)
    """Numbers in an embedded character, and units of each LSTM layer."""
    layers: int = Field(default=2, ge=1)
    """LSTM layers."""
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    """Probability with which a number is zeroed in training."""
    streams: int = Field(default=50, ge=1)
    """Texts that are read side by side: the rows of a batch, and `streams` of the data."""

    def module(self, inputs: tuple[int, ...], outputs: int) -> nn.Module:
        """Return the network; needs rows of T characters, each below `outputs`."""
        if len(inputs) != 1:
            raise RaybenchError(
                f"model {self.name} needs rows of characters, and rows have shape {list(inputs)}; "
                "set data: text"
            )
        return _Reader(self, outputs)

    def published(
        self, layer: nn.Module, name: str, shape: torch.Size, draw: torch.Generator
    ) -> Tensor:
        """Return Glorot's uniform numbers, and zero biases of LSTM layers."""
        if name == "bias" and isinstance(layer, LSTM):
            return torch.zeros(shape)
        return glorot_uniform(shape, draw)


class _Reader(nn.Module):
    def __init__(self, spec: CharRNN, outputs: int) -> None:
        super().__init__()
        self.streams = spec.streams
        self.embedding = nn.Embedding(outputs, spec.width)
        layers = range(spec.layers)
        self.before = nn.ModuleList([Dropout(spec.dropout) for _ in layers])
        self.lstm = nn.ModuleList([LSTM(spec.width, spec.width) for _ in layers])
        self.after = nn.ModuleList([Dropout(spec.dropout) for _ in layers])
        self.memory = Memory(spec.layers, 2, spec.streams, spec.width)
        self.output = nn.Linear(spec.width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, T, outputs] for characters [N, T], N being `streams`."""
        if len(x) != self.streams:
            raise RaybenchError(
                f"model char_rnn reads {self.streams} streams, and a batch has {len(x)} rows; set "
                "batch_size, data.streams and model.streams to one number, and drop_last: true"
            )
        rows = self.embedding(x.long())
        states = self.memory.recall()
        left = []
        for place, (before, lstm, after) in enumerate(
            zip(self.before, self.lstm, self.after, strict=True)
        ):
            rows, state = lstm(before(rows), states[place])
            rows = after(rows)
            left.append(state)
        self.memory.keep(torch.stack(left))
        outputs: Tensor = self.output(rows)
        return outputs


class LSTM(nn.Module):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000).

    One weight [4 units, inputs + units] and one bias, for the input gate i, the forget gate f, the
    output gate o and the candidate g, in this order: c' = sigmoid(f + 1) c + sigmoid(i) tanh(g),
    h' = sigmoid(o) tanh(c').
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.weight = nn.Parameter(torch.zeros(4 * units, inputs + units))
        self.bias = nn.Parameter(torch.zeros(4 * units))

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return all h [N, T, units], and the last state.

        Args:
            x: [N, T, inputs].
            state: h and c, [2, N, units].
        """
        units = state.shape[-1]
        # All places' inputs in one product; only the state has to wait for the place before.
        ahead = x @ self.weight[:, : self.inputs].T + self.bias
        ahead = torch.cat(
            [ahead[..., :units], ahead[..., units : 2 * units] + 1, ahead[..., 2 * units :]], dim=-1
        )
        recurrent = self.weight[:, self.inputs :].T
        h, c = state[0], state[1]
        outputs = []
        for inflow in ahead.unbind(1):
            gates = inflow + h @ recurrent
            i, f, o = torch.sigmoid(gates[:, : 3 * units]).chunk(3, dim=1)
            c = f * c + i * torch.tanh(gates[:, 3 * units :])
            h = o * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs, dim=1), torch.stack([h, c])
