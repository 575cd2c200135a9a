"""Each probe on a view small enough to work out by hand."""

from __future__ import annotations

import pytest
import torch

from raybench.lanes import Lanes
from raybench.probes import PROBES, View
from raybench.probes.weights import norm

VIEW = View(
    outputs=torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [0.5, 0.2, 0.1], [0.0, 0.0, 9.0]]),
    targets=torch.tensor([0, 2, 0, 1]),
    losses=torch.tensor([0.5, 1.5, 1.0, 3.0]),
    params={"w": torch.tensor([[1.0, 2.0], [2.0, 0.0]]), "b": torch.tensor([4.0])},
    grads={"w": torch.tensor([[0.0, 3.0], [0.0, 0.0]]), "b": torch.tensor([-4.0])},
)

EXPECTED = {
    "loss": {"loss": 1.5},  # (0.5 + 1.5 + 1 + 3) / 4
    "error": {"error": 0.5},  # rows 1 and 3 of 4
    "grad_norm": {"grad_norm": 5.0},  # sqrt(9 + 16)
    "weight_norm": {"weight_norm": 5.0},  # sqrt(1 + 4 + 4 + 16)
}


def test_every_probe_has_a_hand_computed_value() -> None:
    assert set(PROBES.bundled) == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_value(name: str) -> None:
    measured = PROBES[name]().measure(VIEW)
    assert {metric: value.item() for metric, value in measured.items()} == EXPECTED[name]
    assert all(value.dim() == 0 for value in measured.values())


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_lifts_over_lanes(name: str) -> None:
    probe, lanes = PROBES[name](), Lanes(2)
    other = View(
        outputs=VIEW.outputs.flip(0),
        targets=VIEW.targets,
        losses=VIEW.losses * 2,
        params={key: value * 3 for key, value in VIEW.params.items()},
        grads={key: value * 3 for key, value in VIEW.grads.items()},
    )
    fields = ("outputs", "targets", "losses", "params", "grads")
    stacked = lanes.stack([{f: getattr(view, f) for f in fields} for view in (VIEW, other)])
    fused = lanes.map(lambda view: probe.measure(View(**view)))(stacked)
    for k, view in enumerate((VIEW, other)):
        for metric, value in probe.measure(view).items():
            torch.testing.assert_close(fused[metric][k], value)


def test_error_is_silent_for_regression() -> None:
    view = View(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2), {}, {})
    assert PROBES["error"]().measure(view) == {}


def test_error_keeps_the_type_of_the_outputs() -> None:
    view = View(VIEW.outputs.double(), VIEW.targets, VIEW.losses, {}, {})
    assert PROBES["error"]().measure(view)["error"].dtype == torch.float64


def test_where_probes_apply() -> None:
    assert {name: PROBES[name].on for name in PROBES.bundled} == {
        "loss": "split",
        "error": "split",
        "grad_norm": "train",
        "weight_norm": "model",
    }
    assert [name for name in PROBES.bundled if PROBES[name].needs_gradient] == ["grad_norm"]


def test_norm_is_over_all_tensors_together() -> None:
    pieces = {"a": torch.tensor([3.0]), "b": torch.zeros(2, 2), "c": torch.tensor(-4.0)}
    assert norm(pieces).item() == 5.0
