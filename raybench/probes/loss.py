"""How well a run does on a split."""

from __future__ import annotations

from torch import Tensor

from raybench.probes.base import Probe, View


class Loss(Probe):
    """Mean loss over the rows of a split."""

    def measure(self, view: View) -> dict[str, Tensor]:
        """Return `loss`."""
        return {"loss": view.losses.mean()}


class Error(Probe):
    """Share of rows whose largest output is not the label; nothing for regression."""

    def measure(self, view: View) -> dict[str, Tensor]:
        """Return `error`, or nothing for regression."""
        if view.targets.is_floating_point():
            return {}
        wrong = view.outputs.argmax(-1) != view.targets
        return {"error": wrong.to(view.outputs.dtype).mean()}
