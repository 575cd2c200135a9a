"""What a probe is: a pure measurement of one run, lifted over lanes like everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from raybench.spec import Spec


@dataclass(frozen=True)
class View:
    """What a probe may look at: one run, one split.

    Attributes:
        outputs: the model's outputs on all rows of the split, [N, outputs].
        targets: [N] whole numbers, or [N, outputs] for regression.
        losses: the loss of each row, [N].
        params: weights by name; where ranks divide them, each is gathered when it is asked for.
        grads: gradient of the split's mean loss by parameter; empty unless the probe needs it.
    """

    outputs: Tensor
    targets: Tensor
    losses: Tensor
    params: Mapping[str, Tensor]
    grads: Mapping[str, Tensor]


class Probe(Spec, ABC):
    """A measurement.

    Attributes:
        on: `split`: measured on each split that is recorded; `train`: on the training rows only;
            `model`: once, whatever the data.
        needs_gradient: whether the view must hold `grads`.
    """

    on: ClassVar[Literal["split", "train", "model"]] = "split"
    needs_gradient: ClassVar[bool] = False

    @abstractmethod
    def measure(self, view: View) -> dict[str, Tensor]:
        """Return scalars by metric name."""
