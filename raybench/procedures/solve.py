"""Least squares on fixed features, solved directly instead of trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from raybench.data import DATA, Data, Dataset, Task
from raybench.data.base import SPLITS
from raybench.data.generated import Gaussian
from raybench.errors import RaybenchError
from raybench.lanes import Lanes
from raybench.probes import View
from raybench.probes.loss import Error, Loss
from raybench.procedures.base import Procedure
from raybench.procedures.least_squares import LeastSquares
from raybench.procedures.losses import Losses
from raybench.record import Recorder
from raybench.rng import Seed, stream
from raybench.spec import Hyper, Run, Spec
from raybench.tables import Part

_CHUNK: Final = 2048  # rows whose features are held at a time; fixed, as it may change rounding
_TIMED: Final = 8  # so many problems are timed whole; of more, the clock sees the first ones


class Features(Spec):
    """What a row x of D numbers becomes before the linear fit.

    `linear`: its first `width` numbers. `relu`: relu([x, 1] W) / sqrt(width), W of independent
    N(0, scale^2). `fourier`: sqrt(2 / width) cos(x W + b), W of N(0, scale^2), b uniform on
    [0, 2 pi) (Rahimi and Recht 2007; Belkin et al. 2018, arXiv:1812.11118). W and b come from the
    run's stream `init`.
    """

    kind: Literal["linear", "relu", "fourier"] = "linear"
    """Which features."""
    width: int | None = Field(default=None, ge=1)
    """Number of features, and so of parameters for each output; null for all of a row (linear)."""
    scale: float = Field(default=1.0, gt=0)
    """Standard deviation of the random weights; without effect on `linear`."""

    @model_validator(mode="after")
    def _has_width(self) -> Self:
        if self.kind != "linear" and self.width is None:
            raise ValueError(f"features {self.kind} need a width: how many are drawn")
        return self

    def of(self, inputs: int, seed: Seed, like: Tensor) -> Map:
        """Return the run's own map from rows of `inputs` numbers.

        Args:
            inputs: D.
            seed: of the run.
            like: its device and type are those of the features.

        Raises:
            RaybenchError: linear features are more than the row has numbers.
        """
        if self.kind == "linear":
            if (self.width or 0) > inputs:
                raise RaybenchError(
                    f"features.width: {self.width} linear features of {inputs} inputs; lower it, "
                    "or choose kind: relu or fourier"
                )
            return Map(self, None, None)
        draw = stream(seed, "init/features")
        rows = inputs + (self.kind == "relu")
        w = torch.randn(rows, self.width or 0, generator=draw) * self.scale
        b = torch.rand(self.width or 0, generator=draw) * (2 * math.pi)
        return Map(self, w.to(like), b.to(like))


class Map:
    """Features with their random weights drawn.

    Args:
        spec: which they are.
        w: [D, width], for relu [D + 1, width]; None for linear features.
        b: [width]; None for linear features.
    """

    def __init__(self, spec: Features, w: Tensor | None, b: Tensor | None) -> None:
        self._spec, self._w, self._b = spec, w, b

    def __call__(self, x: Tensor) -> Tensor:
        """Return the features [n, width] of rows [n, D]."""
        if self._w is None or self._b is None:
            return x[:, : self._spec.width].contiguous()
        width = self._w.shape[1]
        if self._spec.kind == "relu":
            return (x @ self._w[:-1] + self._w[-1]).relu() / math.sqrt(width)
        return (x @ self._w + self._b).cos() * math.sqrt(2 / width)


class Solve(Procedure):
    """Least squares on fixed features in closed form: ridge regression, or least norm at ridge 0.

    Minimizes |y - F b|^2 / n + ridge |b|^2, with one-hot targets for classes and no intercept; at
    ridge 0 the solution of least norm, which is where gradient descent from 0 ends (Hastie et al.
    2019, arXiv:1903.08560, section 2). Records `loss` (mean squared error over rows and outputs)
    and, for classes, `error` on each split; `weight_norm` |b|; and on data `gaussian` with linear
    features `excess_risk`, the exact mean over new rows of (x . b - E[y])^2 for each output, and
    `parameter_error`, its part |b - beta|^2.

    Each run is solved by itself, so its numbers are bit for bit the same in any group. Runs of a
    group that share seed and rows also share the factorization.
    """

    dtype: Literal["float32", "float64"] = "float64"
    """Of features and arithmetic; float32 loses the peak's height."""
    data: Annotated[Data, Part(DATA)]
    """Data set."""
    features: Features = Features()
    """What the fit is linear in."""
    ridge: Hyper = Field(default=0.0, ge=0)
    """Weight of |b|^2 beside the mean loss; 0 for the minimum-norm solution."""

    def require(self) -> None:
        """Ask the data set."""
        self.data.require()

    def missing(self) -> str | None:
        """Ask the data set."""
        return self.data.missing()

    def operations(self) -> float | None:
        """Count the features of all rows and the factorization of those trained on."""
        expected = self.data.expected()
        if expected is None:
            return None
        task, rows = expected
        inputs = math.prod(task.inputs)
        width, n = self.features.width or inputs, rows["train"]
        drawn = 0 if self.features.kind == "linear" else 2 * inputs * width * sum(rows.values())
        # QR of the tall side, then the inverse of its triangle.
        low, high = sorted((n, width))
        return float(drawn + 2 * high * low**2 + low**3)

    def rough_operations(self) -> float:
        """Return those of a factorization of the features, [rows, width]."""
        rows, width = self.data.train or 1000, self.features.width or 100
        return 1e6 + 2.0 * rows * width * min(rows, width)

    def execute(self, lanes: Lanes, runs: Sequence[Run[Any]], recorder: Recorder) -> None:
        """Solve the runs, those of one seed after one another."""
        seeds: dict[Seed, list[int]] = {}
        for k, run in enumerate(runs):
            seeds.setdefault(run.seed, []).append(k)
        if len(seeds) > _TIMED:
            lanes.clock.expect(len(seeds), 0)
        found: dict[int, Measured] = {}
        task: Task | None = None
        for seed, members in seeds.items():
            if len(seeds) > _TIMED:
                lanes.clock.tick(lanes.device)
            drawn = {k: runs[k].procedure.data.draw(seed) for k in members}
            for alike in _alike(drawn):
                problem = Problem(lanes, self.features, drawn[alike[0]], seed)
                task = problem.task
                found |= problem.measure({k: (runs[k].procedure, drawn[k]) for k in alike})
        _record(lanes, recorder, [found[k] for k in range(len(runs))])
        if task is not None:
            recorder.fact("num_params", found[0].width * task.outputs)


class Measured:
    """What one run comes to.

    Attributes:
        width: number of features.
        values: scalars by split (`model` for those of no split) and metric.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.values: dict[tuple[str, str], Tensor] = {}


class Problem:
    """The features of a seed's rows, factorized, for all runs that share them.

    Args:
        lanes: for device and type.
        features: what the fit is linear in.
        dataset: of one of the runs; the others have the same rows.
        seed: of the runs.
    """

    def __init__(self, lanes: Lanes, features: Features, dataset: Dataset, seed: Seed) -> None:
        self.task = dataset.task
        self._lanes, self._seed = lanes, seed
        self._linear = features.kind == "linear"
        self._rows = dataset.rows
        self._pool = dataset.x.flatten(1)
        like = torch.empty(0, dtype=lanes.dtype, device=lanes.device)
        self._map = features.of(self._pool.shape[1], seed, like)
        self._losses = Losses("mse", dataset.task)
        chunks = list(self._chunks("train"))
        self._system = LeastSquares(chunks[0] if len(chunks) == 1 else torch.cat(chunks))

    def measure(self, members: dict[int, tuple[Solve, Dataset]]) -> dict[int, Measured]:
        """Solve for each run's targets and ridge; return what each measures, by lane."""
        width = self._system.features.shape[1]
        found = {k: Measured(width) for k in members}
        fits: dict[int, Tensor] = {}
        for k, (spec, dataset) in members.items():
            targets = self._targets(dataset.y["train"])
            fits[k] = self._system.solve(targets, spec.ridge)
            found[k].values["model", "weight_norm"] = fits[k].norm()
            if isinstance(spec.data, Gaussian) and self._linear:
                risk, error = self._excess(spec.data, fits[k])
                found[k].values["model", "excess_risk"] = risk
                found[k].values["model", "parameter_error"] = error
        for split in (split for split in SPLITS if len(self._rows[split])):
            for k, outputs in self._outputs(split, fits).items():
                y = self._place(members[k][1].y[split])
                view = View(outputs, y, self._losses.rows(outputs, y), {"b": fits[k]}, {})
                for name, value in {**Loss().measure(view), **Error().measure(view)}.items():
                    found[k].values[split, name] = value
        return found

    def _chunks(self, split: str) -> Iterator[Tensor]:
        """Yield the features of a split's rows, so many rows at a time."""
        rows = self._rows[split]
        for start in range(0, len(rows), _CHUNK):
            yield self._map(self._place(self._pool[rows[start : start + _CHUNK]]))

    def _outputs(self, split: str, fits: dict[int, Tensor]) -> dict[int, Tensor]:
        if split == "train":
            return {k: self._system.features @ b for k, b in fits.items()}
        parts: dict[int, list[Tensor]] = {k: [] for k in fits}
        for features in self._chunks(split):
            for k, b in fits.items():
                parts[k].append(features @ b)
        return {k: torch.cat(each) for k, each in parts.items()}

    def _excess(self, data: Gaussian, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return E (x . b - E[y])^2 and |b - beta|^2, means over outputs."""
        truth = data.truth(self._seed)
        gap = self._place(truth.beta).clone()
        gap[: len(b)] -= b
        error = gap.square().sum(0).mean()
        return error + truth.unseen, error

    def _targets(self, y: Tensor) -> Tensor:
        y = self._place(y)
        if not self.task.classes:
            return y
        return torch.nn.functional.one_hot(y, self.task.classes).to(self._lanes.dtype)

    def _place(self, value: Tensor) -> Tensor:
        dtype = self._lanes.dtype if value.is_floating_point() else value.dtype
        return value.to(device=self._lanes.device, dtype=dtype)


def _alike(drawn: dict[int, Dataset]) -> Iterator[list[int]]:
    """Yield lanes whose rows are the same tensor at the same places, together."""
    left = list(drawn)
    while left:
        first = drawn[left[0]]
        same = [
            k
            for k in left
            if drawn[k].x is first.x and torch.equal(drawn[k].rows["train"], first.rows["train"])
        ]
        yield same
        left = [k for k in left if k not in same]


def _record(lanes: Lanes, recorder: Recorder, found: Sequence[Measured]) -> None:
    splits: dict[str, dict[str, Tensor]] = {}
    for split, name in found[0].values:
        values = lanes.stack([each.values[split, name] for each in found])
        splits.setdefault(split, {})[name] = values
    for split, metrics in splits.items():
        recorder.write(0, 0.0, split, metrics)
    recorder.watch(0, splits["train"]["loss"])
