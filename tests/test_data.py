"""Data sets: what each holds, how a run draws from it, and sets of the hub from files made here."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from raybench.cache import CACHE
from raybench.data import DATA, Data
from raybench.data import hub as hub_module
from raybench.data.adapter import FunctionData, adapt
from raybench.data.augment import augment
from raybench.data.base import FOLDER
from raybench.data.hub import Hub
from raybench.errors import MissingError, Problem, RaybenchError, UnavailableError
from raybench.lanes import Lanes
from raybench.rng import Seed, key
from raybench.spec import hyper_fields
from raybench.tables import build

torch.set_num_threads(1)

SPLITS = ("train", "valid", "test")
SEED = Seed(0)


def rows_of(data: Data, seed: Seed = SEED) -> dict[str, set[int]]:
    return {split: set(rows.tolist()) for split, rows in data.draw(seed).rows.items()}


def sizes(data: Data) -> tuple[int, ...]:
    drawn = data.draw(Seed(0))
    assert all(len(drawn.y[split]) == len(drawn.rows[split]) for split in SPLITS)
    return tuple(len(drawn.rows[split]) for split in SPLITS)


# Digits.


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    rows, labels = load_digits(return_X_y=True)
    data = build(DATA, {"name": "digits", "pixels": "unit"}, (), [])
    assert isinstance(data, Data)
    pool = data.pool(Seed(0))
    assert torch.equal(pool.x, torch.from_numpy(rows / 16).float())
    assert pool.y.tolist() == labels.tolist()


def test_digits() -> None:
    pool = DATA["digits"]().pool(Seed(0))
    assert pool.x.shape == (1797, 64)
    assert pool.x.dtype == torch.float32
    assert pool.classes == 10
    assert pool.y.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert pool.x.mean().item() == pytest.approx(0, abs=1e-3)
    assert pool.x.std().item() == pytest.approx(1, abs=1e-3)
    assert pool.task == ((64,), 10, 10)


def test_digits_as_images_are_the_same_pixels() -> None:
    flat, image = (DATA["digits"](layout=layout).pool(Seed(0)) for layout in ("flat", "image"))
    assert image.task.inputs == (1, 8, 8)
    assert torch.equal(image.x.flatten(1), flat.x)


def test_digits_are_loaded_once_whatever_the_seed() -> None:
    one, other = (DATA["digits"](train=50).draw(Seed(seed)) for seed in (0, 1))
    assert one.x is other.x
    assert not torch.equal(one.rows["train"], other.rows["train"])


# Splits.


def test_splits_are_disjoint_and_complete() -> None:
    rows = rows_of(DATA["digits"](valid=100))
    assert {split: len(index) for split, index in rows.items()} == {
        "train": 1797 - 449 - 100,
        "valid": 100,
        "test": 449,  # a quarter
    }
    assert set.union(*rows.values()) == set(range(1797))


def test_subset_sizes() -> None:
    assert sizes(DATA["digits"](train=30, valid=20, test=10)) == (30, 20, 10)
    assert sizes(DATA["digits"](train=1, test=1)) == (1, 0, 1)
    assert sizes(DATA["teacher_student"](train=30, valid=20, test=10)) == (30, 20, 10)


def test_a_smaller_subset_is_part_of_a_larger_one() -> None:
    few, many = (rows_of(DATA["digits"](train=train, test=300)) for train in (50, 500))
    assert few["train"] < many["train"]
    assert few["test"] == many["test"]


def test_a_split_belongs_to_the_stream_data() -> None:
    data = DATA["digits"](train=50)
    assert rows_of(data, Seed(1)) == rows_of(data, Seed(1))
    assert rows_of(data, Seed(1))["test"] != rows_of(data, Seed(2))["test"]
    fixed = [Seed(value, base=5, fixed=("data",)) for value in (1, 2)]
    assert rows_of(data, fixed[0]) == rows_of(data, fixed[1])


@pytest.mark.parametrize(
    ("fields", "split"),
    [
        ({"train": 1400}, "1400 train"),
        ({"valid": 1400}, "1 train"),
        ({"train": 5, "valid": 1400}, "5 train"),
        ({"test": 2000}, "2000 test|1 train"),
        ({"test": 1797}, "1 train"),
    ],
)
def test_too_few_rows(fields: dict[str, int], split: str) -> None:
    with pytest.raises(RaybenchError, match=split):
        DATA["digits"](**fields).draw(Seed(0))


@pytest.mark.parametrize(
    "fields", [{"train": 0}, {"valid": -1}, {"label_noise": -0.1}, {"augment": ("spin",)}]
)
def test_wrong_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        DATA["digits"](**fields)


# Label noise.


def noisy(level: float, seed: int = 0, **fields: Any) -> Any:
    return DATA["digits"](label_noise=level, test=97, **fields).draw(Seed(seed))


def test_label_noise_has_its_rate_and_never_keeps_a_label() -> None:
    clean, half, all_wrong = (noisy(level).y["train"] for level in (0.0, 0.5, 1.0))
    # 1,700 labels: deviation 1.2 %.
    assert (clean != half).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert (clean != all_wrong).all()
    assert all_wrong.min() >= 0
    assert all_wrong.max() <= 9
    # Every wrong class is as likely as any other: 1,700 / 9 = 189 each, deviation 13.
    shifts = ((all_wrong - clean) % 10).bincount(minlength=10)
    assert shifts[0] == 0
    assert (shifts[1:] - 189).abs().max() < 65


def test_label_noise_is_nested() -> None:
    clean, few, many = (noisy(level).y["train"] for level in (0.0, 0.1, 0.3))
    flipped = few != clean
    assert flipped.any()
    assert torch.equal(many[flipped], few[flipped])
    assert (many != clean).sum() > flipped.sum()


def test_label_noise_is_on_training_rows_only() -> None:
    clean, full = noisy(0.0, valid=200), noisy(1.0, valid=200)
    for split in ("valid", "test"):
        assert torch.equal(clean.y[split], full.y[split])
    assert all(torch.equal(clean.rows[split], full.rows[split]) for split in SPLITS)
    pool = DATA["digits"]().pool(Seed(0))
    assert torch.equal(pool.y[clean.rows["train"]], clean.y["train"])


def test_label_noise_differs_by_seed() -> None:
    one, other = (noisy(0.3, seed).y["train"] != noisy(0.0, seed).y["train"] for seed in (0, 1))
    assert not torch.equal(one, other)


def test_regression_noise() -> None:
    def targets(level: float) -> Any:
        return DATA["gaussian"](train=4000, label_noise=level).draw(Seed(0)).y

    clean, noise_1, noise_2 = targets(0.0), targets(0.5), targets(1.0)
    added = noise_1["train"] - clean["train"]
    # 4,000 draws: the relative deviation of a standard deviation is 1.1 %.
    assert added.std().item() == pytest.approx(0.5, rel=0.05)
    assert abs(added.mean().item()) < 0.05
    torch.testing.assert_close(noise_2["train"] - clean["train"], 2 * added, atol=1e-5, rtol=1e-5)
    assert torch.equal(clean["test"], noise_1["test"])


# Generated sets.


GENERATED = ("teacher_student", "gaussian", "quadratic")


@pytest.mark.parametrize("name", GENERATED)
def test_generated_rows_belong_to_the_seed(name: str) -> None:
    data = DATA[name](dim=6, train=40, valid=10, test=20)
    one, again, other = (data.draw(Seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.x, again.x)
    assert torch.equal(one.y["train"], again.y["train"])
    assert not torch.equal(one.x, other.x)
    assert one.task == ((6,), 1, 0)
    assert one.x.shape == (70, 6)
    assert one.x.dtype == one.y["train"].dtype == torch.float32
    assert sum(len(rows) for rows in one.rows.values()) == 70


@pytest.mark.parametrize("name", GENERATED)
def test_generated_sets_draw_nothing_from_the_global_generator(name: str) -> None:
    before = torch.get_rng_state()
    DATA[name](train=64, label_noise=0.5).draw(Seed(0))
    assert torch.equal(before, torch.get_rng_state())


def test_teacher_of_one_unit_is_a_ramp() -> None:
    pool = DATA["teacher_student"](dim=3, width=1, train=400, test=1).pool(Seed(0))
    x, y = pool.x.double(), pool.y.double()
    active = y[:, 0] != 0
    assert active.float().mean().item() == pytest.approx(0.5, abs=0.15)
    slope = torch.linalg.lstsq(x[active], y[active]).solution
    expected = (x @ slope) * active[:, None]
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    # On the other side of its one edge the line has the other sign.
    assert ((x @ slope)[~active] * y[active][0] <= 0).all()


def test_teacher_is_a_network_of_its_width() -> None:
    pool = DATA["teacher_student"](dim=9, width=2, outputs=4, train=300, test=1).pool(Seed(0))
    assert pool.task == ((9,), 4, 0)
    assert torch.linalg.matrix_rank(pool.y, rtol=1e-4) == 2


def test_teacher_has_about_unit_variance() -> None:
    values = [
        DATA["teacher_student"](width=64, outputs=8).pool(Seed(seed)).y.square().mean().item()
        for seed in range(8)
    ]
    assert sum(values) / len(values) == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("signal", [0.0, 1.0, 9.0])
def test_gaussian_signal_is_recovered(signal: float) -> None:
    pool = DATA["gaussian"](dim=20, train=100, test=50, signal=signal).pool(Seed(3))
    beta = torch.linalg.lstsq(pool.x.double(), pool.y.double()).solution
    assert beta.square().sum().item() == pytest.approx(signal, rel=1e-5, abs=1e-9)
    assert (pool.x.double() @ beta - pool.y).abs().max() < 1e-5
    assert pool.x.std().item() == pytest.approx(1, abs=0.05)


def quadratic(condition: float = 100.0) -> tuple[Tensor, Tensor, Tensor]:
    dim, num = 8, 50
    drawn = DATA["quadratic"](dim=dim, train=num, condition=condition, test=20_000).draw(Seed(0))
    x = drawn.x[drawn.rows["train"]].double()
    spectrum = condition ** -torch.linspace(0, 1, dim, dtype=torch.float64)
    return x, drawn.y["train"].double(), spectrum


@pytest.mark.parametrize("condition", [1.0, 100.0, 1e4])
def test_quadratic_has_its_spectrum(condition: float) -> None:
    x, _, spectrum = quadratic(condition)
    torch.testing.assert_close(x.T @ x / len(x), spectrum.diag(), atol=1e-5, rtol=0)
    assert (spectrum[0] / spectrum[-1]).item() == pytest.approx(condition)


def test_quadratic_loss_is_the_bowl() -> None:
    x, y, spectrum = quadratic()
    theta_star = torch.linalg.lstsq(x, y).solution
    torch.testing.assert_close(theta_star.abs(), torch.ones_like(theta_star), atol=1e-4, rtol=0)
    draw = torch.Generator().manual_seed(0)
    for _ in range(5):
        theta = torch.randn(8, 1, generator=draw, dtype=torch.float64) * 3
        away = (theta - theta_star).squeeze(1)
        loss = (x @ theta - y).square().mean()
        assert loss.item() == pytest.approx((away.square() * spectrum).sum().item(), rel=1e-5)


def test_quadratic_test_rows_have_the_same_covariance() -> None:
    data = DATA["quadratic"](dim=4, train=50, test=20_000, condition=10.0)
    drawn = data.draw(Seed(0))
    x = drawn.x[drawn.rows["test"]].double()
    spectrum = 10.0 ** -torch.linspace(0, 1, 4, dtype=torch.float64)
    torch.testing.assert_close(x.T @ x / len(x), spectrum.diag(), atol=0.04, rtol=0)
    assert set(drawn.rows["train"].tolist()) == set(range(50))


def test_quadratic_needs_rows_for_every_direction() -> None:
    with pytest.raises(RaybenchError, match=r"at least 40"):
        DATA["quadratic"](dim=40, train=39).draw(Seed(0))


# A function as a data set.


calls = 0


def stripes(num: int = 12, slope: float = 2.0, odd: bool = False) -> tuple[Any, Any]:
    """Rows 0, 1, 2, ...; the class is the parity."""
    global calls
    calls += 1
    x = np.arange(num, dtype=np.float64)[:, None] * slope
    return x, (np.arange(num) + odd) % 2


def line(num: int = 8) -> tuple[Any, Any]:
    return [[float(i)] for i in range(num)], [0.5 * i for i in range(num)]


def test_function_becomes_a_data_set() -> None:
    cls = adapt("stripes", stripes)
    assert issubclass(cls, FunctionData)
    assert cls.__doc__ == stripes.__doc__
    data = cls(num=20, slope=0.5, test=4, valid=3)
    pool = data.pool(Seed(0))
    assert pool.x.dtype == torch.float32
    assert pool.x.flatten().tolist() == [0.5 * i for i in range(20)]
    assert pool.y.tolist() == [i % 2 for i in range(20)]
    assert pool.task == ((1,), 2, 2)
    assert sizes(data) == (13, 3, 4)
    with pytest.raises(ValueError, match="color"):
        cls(color="red")


def test_function_is_called_once_for_each_setting() -> None:
    before = calls
    cls = adapt("stripes", stripes)
    for seed in range(3):
        cls(num=31, train=seed + 1).draw(Seed(seed))
        cls(num=33).draw(Seed(seed))
    assert calls == before + 2


def test_function_of_numbers_is_regression() -> None:
    pool = adapt("line", line)().pool(Seed(0))
    assert pool.classes == 0
    assert pool.y.shape == (8, 1)
    assert pool.y.dtype == torch.float32


def test_function_that_does_not_fit_is_refused() -> None:
    with pytest.raises(TypeError, match="'size' needs a default"):
        adapt("needy", lambda size: (size, size))
    for found in (3, dict):
        with pytest.raises(TypeError, match="function"):
            adapt("wrong", found)
    ragged = adapt("ragged", lambda num=3: (np.zeros((num, 2)), np.zeros(num + 1)))
    with pytest.raises(ValueError, match="3 rows of x and 4 of y"):
        ragged().pool(Seed(0))


# Augmentation.


IMAGES = torch.rand(16, 3, 16, 24, generator=torch.Generator().manual_seed(0)) + 0.1
KINDS = ("crop", "flip", "cutout", "noise")
KEY = key(Seed(0), "noise/augment")


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS])
def test_augmentation_is_a_function_of_the_key(kinds: Any) -> None:
    before = torch.get_rng_state()
    one = augment(IMAGES, kinds, KEY)
    assert one.shape == IMAGES.shape
    assert one.dtype == IMAGES.dtype
    assert torch.equal(one, augment(IMAGES, kinds, KEY))
    assert not torch.equal(one, IMAGES)
    assert not torch.equal(one, augment(IMAGES, kinds, KEY + 1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS])
def test_augmentation_lifts(kinds: Any) -> None:
    lanes = Lanes(3)
    batches = [IMAGES, IMAGES.flip(0), IMAGES * 2]
    keys = [key(Seed(seed), "noise/augment") for seed in range(3)]
    fused = lanes.map(lambda x, noise: augment(x, kinds, noise))(
        lanes.stack(batches), lanes.stack(keys)
    )
    for k in range(3):
        assert torch.equal(fused[k], augment(batches[k], kinds, keys[k]))


def test_flip_mirrors_half_of_the_images() -> None:
    x = IMAGES.repeat(50, 1, 1, 1)
    result = augment(x, ["flip"], KEY)
    same = (result == x).flatten(1).all(1)
    mirrored = (result == x.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_crop_shifts_by_up_to_an_eighth_of_each_side() -> None:
    # One bright pixel in the middle tells by how much its image moved.
    x = torch.zeros(400, 1, 16, 24)
    x[:, :, 8, 12] = 1
    result = augment(x, ["crop"], KEY)
    assert (result.sum((1, 2, 3)) == 1).all()
    where = result.nonzero()
    assert set((where[:, 2] - 8).tolist()) == set(range(-2, 3))
    assert set((where[:, 3] - 12).tolist()) == set(range(-3, 4))
    # Zeros move in.
    assert set(augment(torch.ones(50, 1, 16, 24), ["crop"], KEY).unique().tolist()) == {0, 1}


def test_cutout_zeroes_a_square_of_half_the_side() -> None:
    gone = (augment(torch.ones(300, 2, 16, 16), ["cutout"], KEY) == 0)[:, 0]
    assert gone.any((1, 2)).all()
    heights, widths = gone.any(2).sum(1), gone.any(1).sum(1)
    assert torch.equal(gone.sum((1, 2)), heights * widths)  # a rectangle, cut by the border
    assert (heights.max(), widths.max()) == (8, 8)
    assert heights.min() >= 4


def test_noise_has_its_deviation() -> None:
    added = augment(IMAGES, ["noise"], KEY) - IMAGES
    assert added.std().item() == pytest.approx(0.1, rel=0.03)
    assert abs(added.mean().item()) < 0.005


def test_augmentation_needs_images() -> None:
    with pytest.raises(ValueError, match=r"\(16, 64\)"):
        augment(torch.zeros(16, 64), ["flip"], KEY)


# The hub, from files of its format.


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that RAYBENCH_DATA names; nothing is kept between tests, nothing is fetched."""
    folder = tmp_path / "sets"
    folder.mkdir()
    monkeypatch.setenv(FOLDER, str(folder))
    monkeypatch.setenv(CACHE, str(tmp_path / "rows"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    hub_module._load.cache_clear()
    yield folder
    hub_module._load.cache_clear()


Pixels = NDArray[np.uint8]


def pixels(num: int, side: int = 4, channels: int = 3, seed: int = 0) -> Pixels:
    shape = (num, side, side, channels) if channels > 1 else (num, side, side)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def pictures(rows: list[Any], labels: list[int], **names: Any) -> datasets.Dataset:
    """A part as the hub has it: PNGs inside a table, and a ClassLabel."""
    image, label = names.get("image", "image"), names.get("label", "label")
    classes = names.get("classes", [f"class {i}" for i in range(max(labels) + 1)])
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=classes)}
    columns: dict[str, list[Any]] = {image: rows, label: labels}
    for name in names.get("extra", ()):
        features[name], columns[name] = datasets.Value("int64"), list(range(len(rows)))
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def save(folder: Path, **parts: datasets.Dataset) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in parts.items():
        part.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def saved_images(root: Path, train: list[Any], test: list[Any], path: str = "me/set") -> None:
    parts = {"train": train, "test": test}
    save(
        root / path,
        **{
            split: pictures(rows, [i % 3 for i in range(len(rows))], classes=["a", "b", "c"])
            for split, rows in parts.items()
        },
    )


def image_set(**fields: Any) -> Hub:
    return Hub(path="me/set", input="image", **fields)


def test_images(root: Path) -> None:
    raw = pixels(9)
    saved_images(root, list(raw[:6]), list(raw[6:]))
    pool = image_set(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5)).pool(Seed(0))
    expected = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 255
    expected = (expected - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor(
        [0.2, 0.25, 0.5]
    )[:, None, None]
    torch.testing.assert_close(pool.x, expected)
    assert pool.x.dtype == torch.float32
    assert pool.x.is_contiguous()
    assert pool.y.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert pool.y.dtype == torch.int64
    assert (pool.classes, pool.test_from) == (3, 6)
    assert pool.task == ((3, 4, 4), 3, 3)


def test_flat_layout(root: Path) -> None:
    saved_images(root, list(pixels(6)), list(pixels(3)))
    flat = image_set(layout="flat").pool(Seed(0)).x
    assert torch.equal(flat, image_set().pool(Seed(0)).x.flatten(1))


def test_statistics_of_the_training_part_hold_for_both(root: Path) -> None:
    raw = pixels(9)
    raw[6:] //= 4  # a darker test part
    saved_images(root, list(raw[:6]), list(raw[6:]))
    pool = image_set().pool(Seed(0))
    fit = pool.x[:6].transpose(0, 1).flatten(1)
    torch.testing.assert_close(fit.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(fit.std(1, correction=0), torch.ones(3))
    scale = raw[:6].reshape(-1, 3) / 255
    expected = (raw[6:] / 255 - scale.mean(0)) / scale.std(0)
    dark = pool.x[6:].permute(0, 2, 3, 1).double().numpy()
    np.testing.assert_allclose(dark, expected, atol=1e-5)


def test_one_number_for_all_channels(root: Path) -> None:
    saved_images(root, list(pixels(6)), list(pixels(3)))
    one = image_set(mean=(0.5,), std=(0.25,)).pool(Seed(0)).x
    assert torch.equal(one, image_set(mean=(0.5,) * 3, std=(0.25,) * 3).pool(Seed(0)).x)
    with pytest.raises(RaybenchError, match=r"data\.std has 2 numbers for 3 channels"):
        image_set(std=(0.5, 0.5)).pool(Seed(0))


def test_a_constant_channel_is_only_centred(root: Path) -> None:
    raw = pixels(6)
    raw[..., 1] = 51
    saved_images(root, list(raw), list(raw[:3]))
    pool = image_set().pool(Seed(0))
    assert pool.x.isfinite().all()
    torch.testing.assert_close(pool.x[:, 1], torch.zeros(9, 4, 4), atol=1e-6, rtol=0)


def test_gray_images_have_one_channel(root: Path) -> None:
    raw = pixels(6, channels=1)
    bits = Image.fromarray(raw[5] > 127)
    alpha = Image.merge("LA", [Image.fromarray(raw[4]), Image.fromarray(raw[3])])
    saved_images(root, [*map(Image.fromarray, raw[:4]), alpha], [bits])
    pool = image_set(mean=(0.0,), std=(1.0,)).pool(Seed(0))
    assert pool.task.inputs == (1, 4, 4)
    torch.testing.assert_close(pool.x[:5, 0], torch.from_numpy(raw[:5]).float() / 255)
    assert torch.equal(pool.x[5, 0], torch.from_numpy(raw[5] > 127).float())


def test_images_of_several_modes_become_colour(root: Path) -> None:
    colour = pixels(1)[0]
    image = Image.fromarray(colour)
    file = io.BytesIO()
    image.quantize(16).save(file, "PNG", transparency=bytes([0, 128] + [255] * 14))
    palette = {"bytes": file.getvalue(), "path": None}
    see_through = image.copy()
    see_through.putalpha(100)
    gray = Image.fromarray(colour[..., 0])
    saved_images(root, [image, see_through, palette, gray], [image])
    x = image_set(mean=(0.0,), std=(1.0,)).pool(Seed(0)).x * 255
    expected = torch.from_numpy(colour).permute(2, 0, 1).float()
    torch.testing.assert_close(x[0], expected)
    torch.testing.assert_close(x[1], expected)  # transparency is dropped
    shown = torch.from_numpy(np.array(image.quantize(16).convert("RGB"))).permute(2, 0, 1)
    torch.testing.assert_close(x[2], shown.float())
    torch.testing.assert_close(x[3], expected[:1].expand(3, 4, 4))


def test_images_of_unequal_size_are_refused(root: Path) -> None:
    saved_images(root, [*pixels(3), *pixels(2, side=6)], list(pixels(2, side=5)))
    with pytest.raises(RaybenchError, match=r"3 sizes, from 4 x 4 to 6 x 6"):
        image_set().pool(Seed(0))


def test_images_of_16_bits_are_refused(root: Path) -> None:
    deep = Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000)
    saved_images(root, [deep, deep], [deep])
    with pytest.raises(RaybenchError, match="not of 8 bits"):
        image_set().pool(Seed(0))


def test_rows_without_an_image_are_refused(root: Path) -> None:
    saved_images(root, [*pixels(2), None], list(pixels(1)))
    with pytest.raises(RaybenchError, match="rows without an image"):
        image_set().pool(Seed(0))


def test_own_test_part_is_the_test_split(root: Path) -> None:
    saved_images(root, list(pixels(12)), list(pixels(4)))
    assert sizes(image_set(valid=2)) == (10, 2, 4)
    assert rows_of(image_set())["test"] == {12, 13, 14, 15}
    assert rows_of(image_set(test=2))["test"] == {12, 13}
    alone = image_set(test_split=None)
    assert alone.pool(Seed(0)).test_from is None
    assert sizes(alone) == (9, 0, 3)
    parts = image_set(train_split="train[:5]", test_split="train[5:]")
    assert sizes(parts) == (5, 0, 7)


def test_a_pool_is_loaded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_images(root, list(pixels(6)), list(pixels(3)))
    first = image_set().pool(Seed(0))
    assert image_set(train=2, label_noise=0.5, augment=("flip",)).pool(Seed(1)) is first
    assert image_set(mean=(0.0,)).pool(Seed(0)) is not first
    monkeypatch.setenv(FOLDER, str(root / "elsewhere"))
    with pytest.raises(UnavailableError):
        image_set().pool(Seed(0))


def test_folder_of_images(root: Path) -> None:
    raw = pixels(4)
    for i, (split, name) in enumerate([("train", "cat"), ("train", "dog"), ("test", "dog")]):
        folder = root / "me/set" / split / name
        folder.mkdir(parents=True)
        Image.fromarray(raw[i]).save(folder / "picture.png")
    pool = image_set(mean=(0.0,), std=(1.0,)).pool(Seed(0))
    assert pool.y.tolist() == [0, 1, 1]
    torch.testing.assert_close(
        pool.x * 255, torch.from_numpy(raw[:3]).permute(0, 3, 1, 2).float(), atol=1e-4, rtol=0
    )


ENTRIES: dict[str, tuple[str, str, str, int, int]] = {
    # path (and folder of the configuration), image, label, channels, classes
    "mnist": ("ylecun/mnist/mnist", "image", "label", 1, 10),
    "fashion_mnist": ("zalando-datasets/fashion_mnist/fashion_mnist", "image", "label", 1, 10),
    "cifar10": ("uoft-cs/cifar10/plain_text", "img", "label", 3, 10),
    "cifar100": ("uoft-cs/cifar100/cifar100", "img", "fine_label", 3, 100),
    "svhn": ("ufldl-stanford/svhn/cropped_digits", "image", "label", 3, 10),
}


def test_every_entry_of_the_hub_is_tried() -> None:
    assert {name for name in DATA.bundled if issubclass(DATA[name], Hub)} == {*ENTRIES, "hub"}


def hub_files(root: Path, name: str, seed: int = 0) -> Pixels:
    path, image, label, channels, classes = ENTRIES[name]
    side = 28 if channels == 1 else 32
    raw = pixels(8, side, channels, seed)
    labels = [*range(7), classes - 1]
    names = {"image": image, "label": label, "classes": [str(i) for i in range(classes)]}
    extra = ["coarse_label"] if name == "cifar100" else []
    parts = (slice(0, 6), slice(6, 8))
    train, test = (pictures(list(raw[p]), labels[p], extra=extra, **names) for p in parts)
    save(root / path, train=train, test=test)
    return raw


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_named_entry(root: Path, name: str) -> None:
    raw = hub_files(root, name)
    _, _, _, channels, classes = ENTRIES[name]
    data = DATA[name]()
    drawn = data.draw(Seed(0))
    assert drawn.task == ((channels, *raw.shape[1:3]), classes, classes)
    assert drawn.y["test"].tolist() == [6, classes - 1]
    assert sizes(data) == (6, 0, 2)
    pixel = raw[7, 3, 4] / 255
    expected = (pixel - np.array(data.mean)) / np.array(data.std)
    torch.testing.assert_close(drawn.x[7, :, 3, 4].double().numpy(), expected, atol=1e-5, rtol=0)


def test_named_entries_override_only_defaults() -> None:
    for name in ENTRIES:
        cls = DATA[name]
        assert set(cls.model_fields) == set(Hub.model_fields)
        for field, info in Hub.model_fields.items():
            own = cls.model_fields[field]
            assert (own.annotation, own.metadata) == (info.annotation, info.metadata)
        assert cls.pool is Hub.pool
        rebuilt = build(DATA, name, (), [])
        assert rebuilt is not None
        assert rebuilt.canonical == {"name": name}


def test_configurations_are_told_apart_by_folder_or_card(root: Path) -> None:
    raw = hub_files(root, "svhn")
    other = pictures(list(pixels(3, 5)), [0, 1, 2])
    save(root / "ufldl-stanford/svhn/full_numbers", train=other, test=other)
    svhn = DATA["svhn"]()
    assert len(svhn.pool(Seed(0)).x) == len(raw)
    # With a card, folders may have other names: here each has that of the other configuration.
    configs = ("full_numbers", "cropped_digits")
    entries = [
        f"- config_name: {config}\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: {folder}/{s}-*\n" for s in ("train", "test"))
        for config, folder in zip(configs, reversed(configs), strict=True)
    ]
    card = "---\nconfigs:\n" + "".join(entries) + "---\n"
    (root / "ufldl-stanford/svhn/README.md").write_text(card)
    hub_module._load.cache_clear()
    assert len(svhn.pool(Seed(0)).x) == 6
    assert len(DATA["svhn"](config="full_numbers").pool(Seed(0)).x) == len(raw)


# Tables.


def table(root: Path, train: str, test: str | None = None, path: str = "irises") -> None:
    folder = root / path
    folder.mkdir(parents=True)
    (folder / "train.csv").write_text(train)
    if test is not None:
        (folder / "test.csv").write_text(test)


IRISES = "sepal,petal,wild,species,note\n"


def test_table_of_numbers(root: Path) -> None:
    table(
        root,
        IRISES + "1.0,10,true,setosa,x\n2.0,20,false,virginica,y\n3.0,60,true,setosa,z\n",
        IRISES + "5.0,30,false,versicolor,w\n",
    )
    pool = Hub(path="irises", label="species").pool(Seed(0))
    fit = np.array([[1.0, 10, 1], [2, 20, 0], [3, 60, 1]])
    rows = np.vstack([fit, [[5.0, 30, 0]]])
    expected = torch.from_numpy((rows - fit.mean(0)) / fit.std(0)).float()
    torch.testing.assert_close(pool.x, expected)
    assert pool.y.tolist() == [0, 2, 0, 1]  # sorted names, of both parts
    assert (pool.classes, pool.test_from) == (3, 3)
    assert pool.task.inputs == (3,)


def test_table_with_numbered_classes(root: Path) -> None:
    table(root, "a,label\n" + "".join(f"{i},{[7, 3, 5][i % 3]}\n" for i in range(20)))
    data = Hub(path="irises", test_split=None, mean=(0.0,), std=(2.0,))
    pool = data.pool(Seed(0))
    assert pool.x.flatten().tolist() == [i / 2 for i in range(20)]
    assert pool.y[:3].tolist() == [2, 0, 1]
    assert sizes(data) == (15, 0, 5)


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ("a,label\n1,x\n,y\n", {}, "missing or infinite values in a"),
        ("a,label\n1,x\n2,\n", {}, "some rows have no 'label'"),
        ("a,label\n1,0.5\n2,1.5\n", {}, "fractions, not classes"),
        ("a,label\n1,x\n2,x\n", {}, "a single class"),
        ("a,label\nu,x\nv,y\n", {}, "no column of numbers"),
        ("a,label\n1,x\n2,y\n", {"label": "lable"}, "no column 'lable'; did you mean 'label'"),
        ("a,label\n1,x\n2,y\n", {"input": "img"}, "no column 'img'"),
        ("a,label\n1,x\n2,y\n", {"input": "a"}, "not images"),
        ("a,label\n1,x\n2,y\n", {"test_split": "test"}, 'Unknown split "test"'),
    ],
)
def test_tables_that_do_not_fit(
    root: Path, text: str, fields: dict[str, Any], message: str
) -> None:
    table(root, text)
    data = Hub(path="irises", **{"test_split": None, **fields})
    with pytest.raises(RaybenchError, match=message) as caught:
        data.pool(Seed(0))
    assert type(caught.value) is RaybenchError
    assert len(str(caught.value).splitlines()) == 1


def test_images_without_input_are_told_apart_from_tables(root: Path) -> None:
    saved_images(root, list(pixels(6)), list(pixels(3)))
    with pytest.raises(RaybenchError, match=r"holds images: set data.input to 'image'"):
        Hub(path="me/set").pool(Seed(0))


def test_label_that_is_no_class_is_refused(root: Path) -> None:
    saved_images(root, list(pixels(6)), list(pixels(3)))
    with pytest.raises(RaybenchError, match="not classes"):
        image_set(label="image").pool(Seed(0))


def test_unlabelled_rows_are_refused(root: Path) -> None:
    part = pictures(list(pixels(3)), [0, 1, -1], classes=["a", "b"])
    save(root / "me/set", train=part, test=part)
    with pytest.raises(RaybenchError, match="some rows have no 'label'"):
        image_set().pool(Seed(0))


# Names, and loads that fail.


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc", "../secret", "a/../b", "a/..", "..", ".", "./a", "a/b/c", "~/a", "a//b", "a/",
        "C:\\data", "hf://a/b", "a b", "a\n", "a/b\n", "https://x.org/a", "a..b", ".a/b", "-a",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["hub", "mnist"])
def test_a_path_is_a_name_on_the_hub(name: str, path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        DATA[name](path=path)


@pytest.mark.parametrize("path", ["mnist", "ylecun/mnist", "A-1/b_2.c", "imodels/v1.5-x"])
def test_names_on_the_hub(path: str) -> None:
    assert Hub(path=path).path == path


@pytest.mark.parametrize(
    "fields",
    [
        {"config": "../x"},
        {"config": "a/b"},
        {"config": ""},
        {"train_split": "../train"},
        {"train_split": ""},
        {"test_split": "train[:10](x)"},
        {"mean": ()},
        {"std": (0.0,)},
        {"std": (-1.0,)},
        {"mean": (float("nan"),)},
        {"layout": "round"},
    ],
)
@pytest.mark.parametrize("name", ["hub", "svhn"])
def test_wrong_hub_fields_are_refused(name: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        DATA[name](**{"path": "a/b", **fields})


def test_a_suite_gives_lists() -> None:
    problems: list[Problem] = []
    given = {"name": "hub", "path": "a/b", "mean": [0.5, 0.5, 0.5], "std": [0.1]}
    data = build(DATA, given, (), problems)
    assert problems == []
    assert isinstance(data, Hub)
    assert data.mean == (0.5, 0.5, 0.5)


def test_every_field_of_the_hub_is_documented() -> None:
    for name in ("hub", *ENTRIES):
        own = set(Hub.model_fields) - set(Data.model_fields)
        assert [f for f in sorted(own) if not DATA[name].model_fields[f].description] == []
    assert hyper_fields(Hub) == ("label_noise",)


@pytest.mark.parametrize("given", [True, False])
def test_no_network(root: Path, monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    if not given:
        monkeypatch.delenv(FOLDER)
    with pytest.raises(UnavailableError) as caught:
        DATA["mnist"]().draw(Seed(0))
    message = str(caught.value)
    assert caught.value.exit_code == 6
    assert "'ylecun/mnist' cannot be loaded on the hub" in message
    assert (f"no folder {root / 'ylecun/mnist'}" if given else f"{FOLDER} is not set") in message
    assert "HF_HOME" in message
    assert len(message.splitlines()) == 2
    assert len(message) < 700


def test_unforeseen_failures_of_the_network_library(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OddError(Exception):
        pass

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OddError("first line\n" + "more\n" * 50)

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UnavailableError, match="OddError: first line") as caught:
        DATA["mnist"]().draw(Seed(0))
    assert "more" not in str(caught.value)


def test_a_broken_file_is_one_message(root: Path) -> None:
    (root / "me/set").mkdir(parents=True)
    (root / "me/set/train.parquet").write_bytes(b"PAR1 this is not")
    with pytest.raises(RaybenchError, match=f"{root}/me/set: ArrowInvalid") as caught:
        image_set(test_split=None).pool(Seed(0))
    assert len(str(caught.value).splitlines()) == 1


def test_the_working_directory_is_never_read(root: Path) -> None:
    # `datasets` by itself would take both for local files.
    table(Path.cwd(), "a,label\n1,x\n2,y\n", path="mine")
    with pytest.raises(RaybenchError, match="a folder in the working directory"):
        Hub(path="mine", test_split=None).pool(Seed(0))
    with pytest.raises(RaybenchError, match="a file format"):
        Hub(path="csv", test_split=None).pool(Seed(0))
    table(root, "a,label\n1,x\n2,y\n", path="csv")
    assert len(Hub(path="csv", test_split=None).pool(Seed(0)).x) == 2


def test_missing_extra_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingError, match=r'pip install "raybench\[data\]"'):
        DATA["mnist"]().draw(Seed(0))


def test_datasets_is_imported_only_to_load() -> None:
    code = "import sys, raybench.data; sys.exit('datasets' in sys.modules or 'PIL' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False)
    assert result.returncode == 0


def test_load_draws_nothing_from_the_global_generator(root: Path) -> None:
    saved_images(root, list(pixels(6)), list(pixels(3)))
    before = torch.get_rng_state()
    image_set(train=3, label_noise=0.5).draw(Seed(0))
    assert torch.equal(before, torch.get_rng_state())
