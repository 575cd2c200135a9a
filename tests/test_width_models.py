"""Models whose width is a knob: sizes by hand, what they compute, lanes, and randomised inputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import functional_call

from raybench.data import DATA
from raybench.data.base import Dataset, randomised
from raybench.errors import Problem, RaybenchError
from raybench.lanes import Lanes
from raybench.models import MODELS, Model
from raybench.models.transformer import sinusoids
from raybench.procedures import PROCEDURES
from raybench.record import Recorder
from raybench.rng import Seed
from raybench.spec import Run, plain_config
from raybench.tables import build

torch.set_num_threads(1)

COLOUR, TEXT, VOCABULARY = (3, 32, 32), (12,), 83
Values = dict[str, Tensor]


def state(model: Model, inputs: tuple[int, ...], outputs: int, seed: int = 0) -> Any:
    skeleton = model.skeleton(inputs, outputs).eval()
    return skeleton, model.state(skeleton, inputs, outputs, Seed(seed))


def count(model: Model, inputs: tuple[int, ...], outputs: int) -> int:
    _, (params, _) = state(model, inputs, outputs)
    return sum(weight.numel() for weight in params.values())


# Sizes: the numbers that the docstrings state, and the same counted layer by layer.


def unit(before: int, after: int, project: bool) -> int:
    norms, convolutions = 2 * before + 2 * after, 9 * before * after + 9 * after * after
    return norms + convolutions + project * before * after


@pytest.mark.parametrize(
    ("width", "published"),
    [(1, 2_947), (2, 11_332), (4, 44_446), (8, 176_050), (10, 274_540), (64, 11_171_146)],
)
def test_size_of_resnet18k(width: int, published: int) -> None:
    layers, before = 9 * 3 * width, width
    for stage in range(4):
        wide = width * 2**stage
        layers += unit(before, wide, stage > 0) + unit(wide, wide, False)
        before = wide
    by_hand = layers + (before + 1) * 10
    model = MODELS["resnet18k"](width=width)
    assert count(model, COLOUR, 10) == by_hand == published
    assert 2724 * width**2 + (106 + 9 * 3 + 8 * 10) * width + 10 == published


@pytest.mark.parametrize(("width", "stated"), [(1, 540), (8, 25_418), (64, 1_558_026)])
def test_size_of_cnn5(width: int, stated: int) -> None:
    layers, before = 0, 3
    for wide in (width, 2 * width, 4 * width, 8 * width):
        layers += 9 * before * wide + wide + 2 * wide  # convolution, its bias, batch norm
        before = wide
    assert count(MODELS["cnn5"](width=width), COLOUR, 10) == layers + (before + 1) * 10 == stated


@pytest.mark.parametrize(("width", "stated"), [(1, 301), (8, 3_171), (64, 110_803)])
def test_size_of_transformer(width: int, stated: int) -> None:
    attention, dense = 4 * (width + 1) * width, (width + 1) * 4 * width + (4 * width + 1) * width
    block = attention + dense + 2 * 2 * width  # two layer norms
    by_hand = VOCABULARY * width + 2 * block + 2 * width + (width + 1) * VOCABULARY
    model = MODELS["transformer"](width=width, heads=math.gcd(width, 8))
    assert count(model, TEXT, VOCABULARY) == by_hand == stated


@pytest.mark.parametrize("width", [1, 8, 64])
@pytest.mark.parametrize("features", ["layer", "fourier"])
def test_size_of_random_features(width: int, features: str) -> None:
    assert count(MODELS["random_features"](width=width, features=features), (12,), 3) == 3 * width


@pytest.mark.parametrize("width", [1, 8, 64])
def test_size_of_mlp(width: int) -> None:
    assert count(MODELS["mlp"](width=width), COLOUR, 10) == 3073 * width + (width + 1) * 10


# What they compute.


def kinds(model: Model, inputs: tuple[int, ...]) -> list[nn.Module]:
    return [m for m in model.skeleton(inputs, 10).modules() if not [*m.children()]]


def test_resnet18k_ends_without_batch_norm_and_has_no_biases() -> None:
    layers = kinds(MODELS["resnet18k"](width=2), COLOUR)
    assert all(layer.bias is None for layer in layers if isinstance(layer, nn.Conv2d))
    assert [type(layer) for layer in layers[-3:]] == [nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear]
    assert isinstance(layers[-4], nn.Conv2d)
    strides = [m.stride[0] for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert strides == [1] + [1] * 4 + [2, 1, 1, 1] * 3
    assert sum(m.kernel_size == (1, 1) for m in layers if isinstance(m, nn.Conv2d)) == 3


def test_a_unit_is_what_it_says() -> None:
    model = MODELS["resnet18k"](width=2)
    skeleton, (params, buffers) = state(model, COLOUR, 10)
    first = skeleton[3]  # the unit that begins the second stage
    own = {k.removeprefix("3."): v for k, v in (params | buffers).items() if k.startswith("3.")}
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    norm = (x / math.sqrt(1 + 1e-5)).relu()  # fresh batch norm in evaluation
    conv = nn.functional.conv2d
    inner = conv(norm, own["residual.0.weight"], stride=2, padding=1) / math.sqrt(1 + 1e-5)
    expected = conv(inner.relu(), own["residual.3.weight"], padding=1)
    expected = expected + conv(norm, own["shortcut.weight"], stride=2)
    torch.testing.assert_close(functional_call(first, own, x), expected)


def test_cnn5_pools_by_1_2_2_and_8() -> None:
    layers = kinds(MODELS["cnn5"](width=2), COLOUR)
    order = [type(layer) for layer in layers]
    block = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    pool = [nn.MaxPool2d]
    assert order == [*block, *block, *pool, *block, *pool, *block, *pool, nn.Flatten, nn.Linear]
    assert [m.kernel_size for m in layers if isinstance(m, nn.MaxPool2d)] == [2, 2, (8, 8)]
    assert layers[-1].in_features == 16


@pytest.mark.parametrize("side", [8, 28, 32])
@pytest.mark.parametrize("name", ["cnn5", "resnet18k"])
def test_image_models_take_other_sizes(name: str, side: int) -> None:
    skeleton, held = state(MODELS[name](width=2), (1, side, side), 10)
    x = torch.randn(3, 1, side, side, generator=torch.Generator().manual_seed(0))
    assert functional_call(skeleton, held, x).shape == (3, 10)


@pytest.mark.parametrize("name", ["cnn5", "resnet18k", "transformer"])
def test_rows_of_another_kind_are_refused(name: str) -> None:
    inputs = (3, 4) if name == "transformer" else (64,)
    with pytest.raises(RaybenchError, match=name):
        MODELS[name]().skeleton(inputs, 10)


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="multiple of heads"):
        MODELS["transformer"](width=12)


def letters(seed: int, num: int = 5) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (num, *TEXT), generator=draw)


def test_transformer_does_not_see_what_comes() -> None:
    model = MODELS["transformer"](width=16, heads=4)
    skeleton, held = state(model, TEXT, VOCABULARY)
    x = letters(0)
    changed = x.clone()
    changed[:, 7] = (x[:, 7] + 1) % VOCABULARY
    one, other = (functional_call(skeleton, held, rows) for rows in (x, changed))
    assert torch.equal(one[:, :7], other[:, :7])
    assert all((one[:, place] != other[:, place]).any() for place in range(7, 12))


def test_transformer_knows_places() -> None:
    skeleton, held = state(MODELS["transformer"](width=16, heads=4), TEXT, VOCABULARY)
    outputs = functional_call(skeleton, held, torch.full((1, 12), 3))
    assert (outputs[0, 1:] - outputs[0, :1]).abs().amax(1).min() > 1e-3


def test_transformers_attention_is_pytorchs() -> None:
    skeleton, (params, _) = state(MODELS["transformer"](width=16, heads=4), TEXT, VOCABULARY)
    attention = skeleton.blocks[0].attention[1]
    start = "blocks.0.attention.1."
    own = {k.removeprefix(start): v for k, v in params.items() if k.startswith(start)}
    stock = nn.MultiheadAttention(16, 4, batch_first=True)
    joined = [torch.cat([own[f"{p}.{kind}"] for p in ("query", "key", "value")])
              for kind in ("weight", "bias")]  # fmt: skip
    given = {
        "in_proj_weight": joined[0],
        "in_proj_bias": joined[1],
        "out_proj.weight": own["output.weight"],
        "out_proj.bias": own["output.bias"],
    }
    x = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(12, 12, dtype=torch.bool).triu(1)
    expected, _ = functional_call(stock, given, (x, x, x), {"attn_mask": mask})
    torch.testing.assert_close(functional_call(attention, own, x), expected)


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoids(7, 6, torch.zeros((), dtype=torch.float64))
    for i in range(3):
        for place in range(7):
            angle = place / 10_000 ** (2 * i / 6)
            assert table[place, i].item() == pytest.approx(math.sin(angle))
            assert table[place, 3 + i].item() == pytest.approx(math.cos(angle))
    assert sinusoids(3, 1, torch.zeros(())).shape == (3, 1)


def test_transformers_first_values() -> None:
    _, (params, _) = state(MODELS["transformer"](width=64, layers=1), TEXT, VOCABULARY)
    assert params["embedding.weight"].std().item() == pytest.approx(1 / 8, rel=0.03)
    read = params["blocks.0.attention.1.query.weight"]
    assert read.abs().max().item() == pytest.approx(math.sqrt(6 / 128 / 2), rel=0.01)
    assert torch.equal(params["norm.weight"], torch.ones(64))
    assert not any(params[name].any() for name in params if name.endswith("bias"))


def test_fourier_features_have_the_gaussian_kernel() -> None:
    model = MODELS["random_features"](width=40_000, features="fourier", frequency=1.5)
    skeleton, (_, buffers) = state(model, (6,), 1)
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    layer = {"weight": buffers["1.weight"], "bias": buffers["1.bias"]}
    features = functional_call(skeleton[1], layer, x)
    kernel = features @ features.T / 40_000
    expected = torch.exp(-(1.5**2) * torch.cdist(x, x).square() / 12)
    # Products of two features have deviation below 1.3: five deviations of the mean are 0.03.
    torch.testing.assert_close(kernel, expected, atol=0.03, rtol=0)
    assert buffers["1.bias"].max() > 6
    assert not torch.equal(state(model, (6,), 1, 1)[1][1]["1.bias"], buffers["1.bias"])


def test_fields_at_their_default_leave_ids_alone() -> None:
    assert plain_config(MODELS["random_features"](width=5)) == {
        "name": "random_features",
        "width": 5,
    }
    assert plain_config(DATA["digits"]()) == {"name": "digits"}


def test_erf_is_an_activation() -> None:
    skeleton, (params, _) = state(MODELS["mlp"](width=3, activation="erf"), (4,), 2)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    hidden = torch.erf(x @ params["1.weight"].T + params["1.bias"])
    expected = hidden @ params["3.weight"].T + params["3.bias"]
    torch.testing.assert_close(functional_call(skeleton, params, x), expected)


# Lanes.

TRAINED: dict[str, dict[str, Any]] = {
    "resnet18k": {"width": 2},
    "cnn5": {"width": 2},
    "transformer": {"width": 8, "heads": 2, "dropout": 0.1},
    "random_features": {"width": 9, "features": "fourier"},
}


def trained(name: str, seeds: list[int], dtype: torch.dtype) -> list[Any]:
    text = name == "transformer"
    data = {"name": "digits", "layout": "image", "train": 32, "test": 16, "inputs": "shuffled"}
    if text:
        data = {"name": "text", "characters": 2000, "length": 6, "streams": 8}
    config = {
        "name": "train",
        "data": data,
        "model": {"name": name, **TRAINED[name]},
        "optimizer": {"name": "momentum", "lr": 1e-2},
        "batch_size": 8,
        "drop_last": text,
        "steps": "3it",
    }
    problems: list[Problem] = []
    procedure = build(PROCEDURES, config, (), problems)
    assert not problems
    lanes = Lanes(len(seeds), dtype=dtype)
    recorder = Recorder(lanes)
    procedure.execute(lanes, [Run(procedure, Seed(s)) for s in seeds], recorder)  # type: ignore[union-attr]
    return [account.metrics for account in recorder.accounts()]


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_packing_changes_nothing_in_float64(name: str) -> None:
    packed = trained(name, [0, 1, 2], torch.float64)
    assert packed == [trained(name, [seed], torch.float64)[0] for seed in range(3)]
    losses = [m.value for m in packed[0] if (m.split, m.name) == ("train", "loss")]
    assert losses[-1] != losses[0]


@pytest.mark.parametrize("name", sorted(TRAINED))
def test_packing_changes_little_in_float32(name: str) -> None:
    packed = trained(name, [0, 1], torch.float32)
    for seed in (0, 1):
        for one, other in zip(packed[seed], trained(name, [seed], torch.float32)[0], strict=True):
            if one.name == "loss":
                assert one.value == pytest.approx(other.value, rel=1e-3)


# Randomised inputs.


def drawn(inputs: str, seed: int = 0, **fields: Any) -> Dataset:
    return DATA["digits"](inputs=inputs, **fields).draw(Seed(seed))


@pytest.mark.parametrize("layout", ["flat", "image"])
def test_shuffled_pixels_are_one_permutation_in_every_split(layout: str) -> None:
    true, moved = drawn("true", layout=layout), drawn("shuffled", layout=layout)
    assert moved.x.shape == true.x.shape
    assert moved.task == true.task
    before, after = true.x.flatten(1), moved.x.flatten(1)
    # Where each pixel went, told from the columns alone.
    same = (before[:, :, None] == after[:, None, :]).all(0)
    assert (same.sum(0) >= 1).all()
    assert not torch.equal(before, after)
    for split, rows in true.rows.items():
        assert torch.equal(rows, moved.rows[split])
        assert torch.equal(true.y[split], moved.y[split])
    assert not torch.equal(moved.x, drawn("shuffled", 1, layout=layout).x)
    assert torch.equal(moved.x, drawn("shuffled", layout=layout).x)


def test_random_pixels_are_a_permutation_for_each_row() -> None:
    true, moved = drawn("true").x, drawn("random_pixels").x
    assert torch.equal(true.sort(1).values, moved.sort(1).values)
    assert (true != moved).any(1).all()
    # One permutation for all would leave each column's numbers as they are.
    assert not torch.equal(true.sum(0).sort().values, moved.sum(0).sort().values)


def test_gaussian_rows_have_the_mean_and_deviation_of_the_training_rows() -> None:
    true, noise = drawn("true", pixels="unit"), drawn("gaussian", pixels="unit")
    known = true.x[true.rows["train"]]
    num = noise.x.numel()
    assert noise.x.mean().item() == pytest.approx(known.mean().item(), abs=5 / math.sqrt(num))
    assert noise.x.std().item() == pytest.approx(known.std().item(), rel=5 / math.sqrt(num))
    assert not torch.equal(noise.x[0], noise.x[1])


@pytest.mark.parametrize("inputs", ["shuffled", "random_pixels"])
def test_colours_of_a_pixel_stay_together(inputs: Any) -> None:
    place = torch.arange(16.0).reshape(1, 1, 4, 4)
    x = torch.cat([place, place + 100, place + 200], dim=1).repeat(5, 1, 1, 1)
    moved = randomised(x, inputs, torch.arange(3), Seed(0))
    assert torch.equal(moved[:, 1], moved[:, 0] + 100)
    assert torch.equal(moved[:, 2], moved[:, 0] + 200)
    assert (moved[0] == moved[1]).all() == (inputs == "shuffled")


def test_an_autoencoder_reconstructs_the_randomised_row() -> None:
    found = drawn("shuffled", target="input")
    assert torch.equal(found.y["test"], found.x[found.rows["test"]])


def test_tokens_cannot_be_randomised() -> None:
    text = DATA["text"](characters=2000, length=6, streams=8, inputs="gaussian")
    with pytest.raises(RaybenchError, match="tokens"):
        text.draw(Seed(0))


def test_label_noise_of_nine_tenths_is_random_labels() -> None:
    """With ten classes, 0.9 p over the wrong classes is p over all (Zhang et al. 2017)."""
    found = DATA["digits"](label_noise=0.9, test=1).draw(Seed(0))
    clean = DATA["digits"](test=1).draw(Seed(0))
    train = clean.y["train"]
    # 1796 labels: the share that stays true has deviation 0.7 %.
    assert (found.y["train"] == train).float().mean().item() == pytest.approx(0.1, abs=0.03)
    counts = torch.bincount(found.y["train"], minlength=10) / len(train)
    torch.testing.assert_close(counts, torch.full((10,), 0.1), atol=0.035, rtol=0)
    assert torch.equal(found.y["test"], clean.y["test"])
