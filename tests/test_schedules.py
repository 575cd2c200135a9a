"""Schedules that change once an epoch, against the factors in the published files (2007.01547)."""

from __future__ import annotations

import math

import pytest

from raybench.optim import SCHEDULES, Schedule
from raybench.spec import Steps

EPOCH = 7


def factors(schedule: Schedule, epochs: int) -> list[float]:
    """The factor in each epoch, which must be the same at each of its steps."""
    steps = epochs * EPOCH
    found = [schedule.factor(step, steps, EPOCH) for step in range(steps)]
    for start in range(0, steps, EPOCH):
        assert len(set(found[start : start + EPOCH])) == 1
    return found[::EPOCH]


def test_cosine_by_epoch() -> None:
    found = factors(SCHEDULES["cosine"](by="epoch"), 100)
    assert found[0] == 1.0
    assert found[1] == pytest.approx(0.9997532801828658, rel=1e-14)
    assert found[50] == pytest.approx(0.5)
    assert found[99] == pytest.approx(2.467e-4, rel=1e-3)


@pytest.mark.parametrize(("epochs", "last"), [(100, 0.7093), (50, 0.5392)])
def test_restarts_by_epoch(epochs: int, last: float) -> None:
    found = factors(SCHEDULES["cosine_restarts"](by="epoch"), epochs)
    assert found[1] == pytest.approx(0.9755282581475768, rel=1e-14)
    assert [epoch for epoch, factor in enumerate(found) if factor == 1.0] == [
        start for start in (0, 10, 30, 70) if start < epochs
    ]
    assert found[-1] == pytest.approx(last, abs=5e-5)


@pytest.mark.parametrize("epochs", [100, 350])
def test_the_published_trapezoid(epochs: int) -> None:
    found = factors(SCHEDULES["trapezoidal_published"](), epochs)
    width = epochs // 10
    assert found[0] == 1.0  # before the rise: the published list began with epoch 1
    assert found[1] == pytest.approx(1 / width)
    assert found[width] == found[epochs - width] == 1.0
    assert found[-1] == pytest.approx(2 / (width + 1))
    if epochs == 100:
        assert found[95] == pytest.approx(1 - 5 / 11)


def test_the_ordinary_forms_move_at_each_step() -> None:
    total = 200
    trapezoid = SCHEDULES["trapezoidal"](rise=0.1, fall=0.2)
    found = [trapezoid.factor(step, total, EPOCH) for step in range(total)]
    assert found[0] == pytest.approx(1 / 20)
    assert found[19:160] == [1.0] * 141
    assert found[-1] == pytest.approx(1 / 40)
    assert all(0 < factor <= 1 for factor in found)
    restarts = SCHEDULES["cosine_restarts"](first=Steps(50, "it"), growth=1)
    assert [restarts.factor(step, total, EPOCH) for step in (0, 25, 50, 75)] == pytest.approx(
        [1.0, 0.5, 1.0, 0.5]
    )
    assert restarts.factor(49, total, EPOCH) == pytest.approx(
        0.5 * (1 + math.cos(math.pi * 49 / 50))
    )


@pytest.mark.parametrize("name", SCHEDULES.bundled)
@pytest.mark.parametrize(("steps", "epoch"), [(1, 1), (3, 7), (700, 7), (50, 49)])
def test_every_schedule_stays_between_0_and_1(name: str, steps: int, epoch: int) -> None:
    schedule = SCHEDULES[name]()
    for step in range(steps):
        factor = schedule.factor(step, steps, epoch)
        assert 0 <= factor <= 1
        assert math.isfinite(factor)
