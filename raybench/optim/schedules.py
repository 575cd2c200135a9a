"""Learning-rate schedules: the factor that multiplies an optimizer's `lr` at a step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from raybench.spec import Spec, Steps
from raybench.tables import Table

Rise: TypeAlias = Annotated[
    Steps,
    Field(description="Length of the linear rise: step t (from 0) of W is at (t + 1) / W."),
]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class Schedule(Spec, ABC):
    """A factor in [0, 1] by step, after an optional linear warm-up."""

    warmup: Rise = Steps(0, "it")

    def factor(self, step: int, steps: int, epoch: int) -> float:
        """Return the factor at `step` (from 0) of `steps`, with `epoch` steps in an epoch."""
        rise = self.warmup.resolve(epoch)
        if step < rise:
            return (step + 1) / rise
        return self.shape(step - rise, max(steps - rise, 1), epoch)

    @abstractmethod
    def shape(self, step: int, steps: int, epoch: int) -> float:
        """Return the factor at `step` of `steps`, both counted from the end of the warm-up."""


class Constant(Schedule):
    """The full rate at every step."""

    def shape(self, step: int, steps: int, epoch: int) -> float:
        """Return 1."""
        return 1.0


class Warmup(Constant):
    """A linear rise over the first steps, then the full rate."""

    warmup: Rise = Steps(100, "it")


class _ByEpoch(Schedule):
    """A schedule that can also change once an epoch only, at the epoch's start."""

    by: Literal["step", "epoch"] = "step"
    """How often the factor changes; `epoch` is how Schmidt et al. 2021 did it."""

    def _time(self, step: int, epoch: int) -> int:
        return step if self.by == "step" else step // epoch * epoch


class Cosine(_ByEpoch):
    """Half a cosine, from the full rate to `final` of it (Loshchilov and Hutter 2017).

    With `by: epoch` the published form of Schmidt et al. 2021: (1 + cos(pi t / N)) / 2 in epoch t.
    """

    final: float = Field(default=0.0, ge=0, le=1)
    """Factor that the last step comes near to."""

    def shape(self, step: int, steps: int, epoch: int) -> float:
        """Return final + (1 - final) (1 + cos(pi t / T)) / 2."""
        share = self._time(step, epoch) / steps
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * share))


class CosineRestarts(_ByEpoch):
    """Half cosines one after another, each longer (SGDR, Loshchilov and Hutter 2017).

    With `by: epoch` the published form of Schmidt et al. 2021, in which the first period is 10
    epochs whatever the length of training: runs need not end at a minimum.
    """

    first: Steps = Steps(10, "ep")
    """Length of the first period."""
    growth: int = Field(default=2, ge=1)
    """How much longer each period is than the one before."""

    def shape(self, step: int, steps: int, epoch: int) -> float:
        """Return (1 + cos(pi t / T)) / 2, t counted from the last restart, T its period."""
        time, period = self._time(step, epoch), max(self.first.resolve(epoch), 1)
        while time >= period:
            time -= period
            period *= self.growth
        return 0.5 * (1 + math.cos(math.pi * time / period))


class Trapezoidal(Schedule):
    """A linear rise, the full rate, a linear fall to 0 (Xing et al. 2018, arXiv:1802.08770)."""

    rise: Fraction = 0.1
    """Share of the training in which the rate rises: step t of W is at (t + 1) / W."""
    fall: Fraction = 0.1
    """Share of the training in which it falls: the last step but k of W is at (k + 1) / W."""

    def shape(self, step: int, steps: int, epoch: int) -> float:
        """Return the factor."""
        rise, fall = self.rise * steps, self.fall * steps
        up = (step + 1) / rise if rise > 0 else 1.0
        down = (steps - step) / fall if fall > 0 else 1.0
        return min(up, down, 1.0)


class TrapezoidalPublished(Schedule):
    """The trapezoid of Schmidt et al. 2021 (arXiv:2007.01547) as their runs had it.

    In epoch t of N, with W = N / 10: t / W up to W, 1 up to 0.9 N, then 1 - (t - 0.9 N) / (W + 1).
    Epoch 0 runs at the full rate, because their list of factors began with epoch 1.
    """

    def shape(self, step: int, steps: int, epoch: int) -> float:
        """Return the factor."""
        time, total = step // epoch, steps / epoch
        width = total / 10
        if time == 0:
            return 1.0
        if time <= width:
            return time / width
        return min(1.0, 1 - (time - 0.9 * total) / (width + 1))


class Step(Schedule):
    """Multiply by `gamma` at each milestone, a share of the training's length."""

    at: tuple[Fraction, ...] = (0.5, 0.75)
    """Milestones, each between 0 and 1."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    """What the rate is multiplied by at a milestone."""

    def shape(self, step: int, steps: int, epoch: int) -> float:
        """Return gamma to the number of milestones passed."""
        return self.gamma ** sum(step >= share * steps for share in self.at)


class InverseSqrt(Schedule):
    """1 / sqrt(1 + floor(t / every)) (Nakkiran et al. 2019, arXiv:1912.02292: every 512 steps)."""

    every: Steps = Steps(512, "it")
    """How often the rate falls."""

    def shape(self, step: int, steps: int, epoch: int) -> float:
        """Return the factor."""
        return 1 / math.sqrt(1 + step // max(self.every.resolve(epoch), 1))


SCHEDULES: Table[Schedule] = Table(
    "schedule",
    "raybench.schedules",
    {
        "constant": Constant,
        "warmup": Warmup,
        "cosine": Cosine,
        "cosine_restarts": CosineRestarts,
        "trapezoidal": Trapezoidal,
        "trapezoidal_published": TrapezoidalPublished,
        "step": Step,
        "inverse_sqrt": InverseSqrt,
    },
)
