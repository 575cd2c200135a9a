"""Learning-rate schedules: the factor that multiplies an optimizer's `lr` at a step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, TypeAlias

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


class Cosine(Schedule):
    """Half a cosine, from the full rate to `final` of it (Loshchilov and Hutter 2017)."""

    final: float = Field(default=0.0, ge=0, le=1)
    """Factor that the last step comes near to."""

    def shape(self, step: int, steps: int, epoch: int) -> float:
        """Return final + (1 - final) (1 + cos(pi t / T)) / 2."""
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * step / steps))


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
        "step": Step,
        "inverse_sqrt": InverseSqrt,
    },
)
