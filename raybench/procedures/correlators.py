"""Correlation functions of an ensemble of untrained networks: how they stray from Gaussian.

Halverson, Maiti and Stoner 2021, "Neural networks and quantum field theory" (arXiv:2008.08601).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from raybench.lanes import Lanes
from raybench.procedures.base import Procedure
from raybench.procedures.nngp import FUNCTIONS, Nonlinearity, averaged
from raybench.record import Recorder
from raybench.rng import stream
from raybench.spec import Run

Expected: TypeAlias = Callable[[Sequence[int]], Tensor]
"""E of the product of phi over chosen inputs, for one hidden unit."""


class Correlators(Procedure):
    """Two- and four-point functions of f(x) = sw sum_i v_i phi(sw w_i x) / sqrt(width).

    One hidden layer without biases, one input and one output, v and w standard normal. For each
    choice of four inputs, repeats allowed, the ratio is G4c / (K K + K K + K K): the connected
    four-point function G4 - (G2 G2 + G2 G2 + G2 G2), with G2 and G4 means over nets, over Wick's
    sum of the exact kernel K. At any width G2 = K exactly, and
    G4c = sw^4 (Cov(phi phi, phi phi) + 2 permutations) / width: at one point the ratio is
    (E phi^4 / (E phi^2)^2 - 1) / width, 5 / width for ReLU.

    The nets are drawn in `experiments` of equal size, as in the paper. Records under split `model`,
    over all of them: `four_point`, the ratio's mean over choices, and `four_point_exact`, what it
    is by quadrature; `two_point`, the mean of G2 / K - 1 over pairs of inputs, 0 when exact; each
    with `_se`, the standard error from the spread of the experiments; and `background`, the
    paper's floor: the deviation of the ratio between experiments.
    """

    inputs: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    """The points x, none of them 0."""
    width: int = Field(default=10, ge=1)
    """Units of the hidden layer."""
    activation: Nonlinearity = "relu"
    """phi."""
    weight_variance: float = Field(default=1.0, gt=0)
    """sw^2, of both layers, times fan_in."""
    nets: int = Field(default=40_000, ge=2)
    """Networks in an experiment."""
    experiments: int = Field(default=10, ge=2)
    """How many ensembles are drawn: their spread gives the errors."""

    def check(self) -> str | None:
        """Refuse points at which the outputs are always 0."""
        if any(x == 0.0 for x in self.inputs):
            return "inputs: at x = 0 a network without biases gives 0; leave it out"
        return None

    def execute(self, lanes: Lanes, runs: Sequence[Run[Any]], recorder: Recorder) -> None:
        """Draw the experiments one after the other, each for all runs at once."""
        x = torch.tensor(self.inputs, dtype=lanes.dtype, device=lanes.device)
        pairs, fours = (_choices(len(self.inputs), size) for size in (2, 4))
        draws = [stream(run.seed, "init/weights") for run in runs]

        def moments(hidden: Tensor, readout: Tensor) -> tuple[Tensor, Tensor]:
            outputs = self._outputs(x, hidden, readout)
            two = torch.stack([outputs[:, list(pair)].prod(-1).mean() for pair in pairs])
            four = torch.stack([outputs[:, list(four)].prod(-1).mean() for four in fours])
            return two.double(), four.double()

        measured = lanes.map(moments)
        lanes.clock.expect(self.experiments, 1)
        found = []
        for _ in range(self.experiments):
            lanes.clock.tick(lanes.device)
            found.append(measured(*lanes.stack([self._drawn(draw) for draw in draws])))
        axis = 1 if lanes.lifted else 0
        two, four = (torch.stack(each, axis).to(torch.float64) for each in zip(*found, strict=True))
        recorder.write(0, 0.0, "model", lanes.map(self._summary)(two, four))

    def _drawn(self, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return standard normal weights of the two layers, each [nets, width]."""
        shape = self.nets, self.width
        return torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)

    def _outputs(self, x: Tensor, hidden: Tensor, readout: Tensor) -> Tensor:
        """Return outputs [nets, inputs] of nets with weights [nets, width]."""
        phi, scale = FUNCTIONS[self.activation], self.weight_variance**0.5
        columns = [(phi(hidden * (point * scale)) * readout).sum(-1) for point in x]
        outputs: Tensor = torch.stack(columns, -1) * (scale / self.width**0.5)
        return outputs

    def _summary(self, two: Tensor, four: Tensor) -> dict[str, Tensor]:
        """Return the run's numbers from moments [experiments, pairs], [experiments, fours]."""
        two, four = two.double(), four.double()
        kernel, exact = self.exact()
        wick = self._wick(kernel.to(two.device))
        pairs = _choices(len(self.inputs), 2)
        gaussian = torch.stack([kernel[pair] for pair in pairs]).to(two.device)
        whole = self._ratio(two.mean(0), four.mean(0), wick)
        each = torch.stack([self._ratio(a, b, wick) for a, b in zip(two, four, strict=True)])
        spread = (two / gaussian).mean(-1)
        errors = self.experiments**0.5
        return {
            "four_point": whole.mean(),
            "four_point_se": each.mean(-1).std() / errors,
            "four_point_exact": exact.mean().to(two.device),
            "background": each.std(0).mean(),
            "two_point": spread.mean() - 1,
            "two_point_se": spread.std() / errors,
        }

    def _ratio(self, two: Tensor, four: Tensor, wick: Tensor) -> Tensor:
        """Return the connected four-point function over Wick's sum: [fours]."""
        places = {pair: place for place, pair in enumerate(_choices(len(self.inputs), 2))}
        pairings = [
            sum(two[places[a]] * two[places[b]] for a, b in _pairings(choice))
            for choice in _choices(len(self.inputs), 4)
        ]
        return (four - torch.stack([torch.as_tensor(p) for p in pairings])) / wick

    def _wick(self, kernel: Tensor) -> Tensor:
        sums = [
            torch.stack([kernel[a] * kernel[b] for a, b in _pairings(choice)]).sum()
            for choice in _choices(len(self.inputs), 4)
        ]
        return torch.stack(sums)

    def exact(self) -> tuple[Tensor, Tensor]:
        """Return the kernel [inputs, inputs] and the ratio of each choice of four, in float64."""
        x = torch.tensor(self.inputs, dtype=torch.float64)
        phi, sw = FUNCTIONS[self.activation], self.weight_variance
        if self.activation == "relu":  # phi bends at 0: quadrature is done on its sides
            return self._exact_relu(x)

        def expected(points: Sequence[int]) -> Tensor:
            return averaged(lambda u: phi(u[:, None] * x[list(points)] * sw**0.5).prod(-1))

        return self._assembled(x, expected)

    def _exact_relu(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sw = self.weight_variance

        def expected(points: Sequence[int]) -> Tensor:
            # E prod relu(u x sqrt(sw)): half of E u^k = 1 or 3 where all points share a sign.
            chosen = x[list(points)]
            same = bool((chosen > 0).all()) or bool((chosen < 0).all())
            moment = {2: 0.5, 4: 1.5}[len(points)] * same
            mean: Tensor = chosen.abs().prod() * sw ** (len(points) / 2) * moment
            return mean

        return self._assembled(x, expected)

    def _assembled(self, x: Tensor, expected: Expected) -> tuple[Tensor, Tensor]:
        sw, places = self.weight_variance, range(len(x))
        second = torch.stack([torch.stack([expected((i, j)) for j in places]) for i in places])
        ratios = []
        for choice in _choices(len(x), 4):
            wick = torch.stack([second[a] * second[b] for a, b in _pairings(choice)]).sum()
            connected = 3 * expected(choice) - wick
            ratios.append(connected / wick / self.width)
        return sw * second, torch.stack(ratios)


def _choices(count: int, size: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations_with_replacement(range(count), size))


def _pairings(choice: tuple[int, ...]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    i, j, k, l = choice  # noqa: E741  (the paper's indices)
    return [((i, j), (k, l)), ((i, k), (j, l)), ((i, l), (j, k))]
