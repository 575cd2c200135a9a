"""Operations that are counted from shapes, for runs whose data are not at hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from raybench.cli.suites import bundled
from raybench.data import DATA
from raybench.errors import Problem
from raybench.estimate import estimate
from raybench.models import MODELS, operations
from raybench.procedures import PROCEDURES
from raybench.procedures.base import Procedure
from raybench.rng import Seed
from raybench.spec import Run
from raybench.suite import Planned, load, read
from raybench.suite.sections import Resources
from raybench.tables import Table, build


def made(table: Table[Any], **config: Any) -> Any:
    problems: list[Problem] = []
    spec = build(table, config, (), problems)
    assert not problems
    return spec


def procedure(**config: Any) -> Procedure:
    found = made(PROCEDURES, **config)
    assert isinstance(found, Procedure)
    return found


CIFAR = {"name": "cifar10"}


def test_a_dense_network_takes_two_operations_a_weight() -> None:
    model = made(MODELS, name="mlp", width=16)
    assert operations.forward(model, (64,), 10) == 2 * (64 * 16 + 16 * 10)


def test_a_convolution_takes_its_products_at_each_pixel() -> None:
    counted = operations.forward(made(MODELS, name="cnn5", width=4), (3, 32, 32), 10)
    first = 2 * 9 * 3 * 4 * 32 * 32
    assert counted > first
    module = made(MODELS, name="cnn5", width=4).module((3, 32, 32), 10)
    whole, shape = 0, {"pixels": 0}

    def note(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal whole
        weight = getattr(layer, "weight", None)
        if isinstance(layer, nn.Conv2d | nn.Linear) and weight is not None:
            shape["pixels"] = output[0, 0].numel() if output.dim() == 4 else 1
            whole += 2 * weight.numel() * shape["pixels"]

    for layer in module.modules():
        layer.register_forward_hook(note)
    module(torch.zeros(1, 3, 32, 32))
    assert counted == whole


def test_training_counts_steps_and_recordings() -> None:
    found = procedure(
        name="train",
        data={"name": "mnist", "layout": "flat", "train": 1000, "test": 500, "valid": 100},
        model={"name": "mlp", "width": 16},
        optimizer={"name": "sgd", "lr": 0.1},
        steps="2ep",
        batch_size=100,
        record={"at": {"linear": 1}, "on": ["train", "test"], "train_rows": 200},
    )
    forward = 2 * (784 * 16 + 16 * 10)
    assert found.operations() == forward * (3 * 20 * 100 + 2 * (200 + 500))


def test_solving_counts_features_and_factorization() -> None:
    data = {"name": "mnist", "layout": "flat", "train": 300, "test": 100}
    found = procedure(name="solve", data=data, features={"kind": "fourier", "width": 200})
    assert found.operations() == 2 * 784 * 200 * 400 + 2 * 300 * 200**2 + 200**3


@pytest.mark.parametrize("name", ["kernel", "gaussian_process"])
def test_kernels_grow_with_rows(name: str) -> None:
    counts = [
        procedure(
            name=name, data={"name": "mnist", "layout": "flat", "train": n, "test": 100}
        ).operations()
        for n in (100, 1000)
    ]
    assert counts[0] is not None and counts[1] is not None
    assert 5 < counts[1] / counts[0] < 1000


def test_what_is_not_known_is_none() -> None:
    for data in ({"name": "digits"}, {"name": "cifar10", "path": "someone/else"}):
        found = procedure(
            name="train",
            data=data,
            model={"name": "mlp"},
            optimizer={"name": "sgd", "lr": 0.1},
            steps="1ep",
        )
        assert found.operations() is None


@pytest.mark.parametrize(
    ("config", "row", "outputs", "rows"),
    [
        (CIFAR, (3, 32, 32), 10, {"train": 50_000, "valid": 0, "test": 10_000}),
        (CIFAR | {"layout": "flat"}, (3072,), 10, {"train": 50_000, "valid": 0, "test": 10_000}),
        (
            CIFAR | {"valid": 5000},
            (3, 32, 32),
            10,
            {"train": 45_000, "valid": 5000, "test": 10_000},
        ),
        (CIFAR | {"target": "input"}, (3, 32, 32), 3072, None),
        (CIFAR | {"train": 9, "test": 7}, (3, 32, 32), 10, {"train": 9, "valid": 0, "test": 7}),
    ],
)
def test_splits_are_known_before_loading(
    config: dict[str, Any], row: tuple[int, ...], outputs: int, rows: dict[str, int] | None
) -> None:
    found = made(DATA, **config).expected()
    assert found is not None
    task, counts = found
    assert (task.inputs, task.outputs) == (row, outputs)
    assert rows is None or counts == rows


def test_a_plan_has_times_without_the_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for variable in ("HF_HOME", "RAYBENCH_DATA", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path / "nothing"))

    def cost(width: int) -> float:
        found = procedure(
            name="train",
            data=CIFAR,
            model={"name": "cnn5", "width": width},
            optimizer={"name": "sgd", "lr": 0.1},
            steps="1ep",
        )
        runs = [Planned(Run(found, Seed(seed)), {}) for seed in range(3)]
        expected = estimate(runs, finished_seconds={}, resources=Resources(gpu=1), slots=1)
        assert (expected.counted, expected.unknown, expected.measured) == (3, 0, 0)
        assert "cifar10" in expected.problem
        assert expected.gpu_hours == pytest.approx(expected.seconds / 3600)
        return expected.seconds

    assert 0 < cost(8) < cost(64)


@pytest.mark.parametrize("name", ["double_descent", "ridgeless", "wide_limits", "random_labels"])
def test_paper_scales_have_times_for_all_missing_runs(name: str) -> None:
    suite = load(read(bundled()[name], name), "paper")
    for planned in {p.run.batch_key: p for p in suite.runs}.values():
        if planned.run.procedure.missing():
            count = planned.run.procedure.operations()
            assert count is not None and count > 1e6
