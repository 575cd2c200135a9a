"""DeepOBS' test problems: published numbers, sizes, padding, memory, and the data they train on."""

from __future__ import annotations

import colorsys
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import conv2d

from raybench.data import DATA, Pool
from raybench.data import text as text_module
from raybench.data.augment import augment, contrasted, saturated, standardise
from raybench.data.base import FOLDER
from raybench.errors import RaybenchError, UnavailableError
from raybench.lanes import Lanes
from raybench.models import MODELS, same
from raybench.models.base import Memory, Noise
from raybench.models.char_rnn import LSTM
from raybench.models.initial import glorot_truncated, truncated
from raybench.quadratic import root
from raybench.rng import Seed, key, uniform

torch.set_num_threads(1)

Shape = tuple[tuple[int, ...], int]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def count(name: str, shape: Shape, **fields: Any) -> int:
    skeleton = MODELS[name](**fields).skeleton(*shape)
    return sum(weight.numel() for weight in skeleton.parameters())


def started(name: str, shape: Shape, **fields: Any) -> tuple[nn.Module, Any]:
    model = MODELS[name](**fields)
    skeleton = model.skeleton(*shape)
    return skeleton, model.state(skeleton, *shape, Seed(0))


# The bowl: numbers of DeepOBS' result files and of an independent simulation of them.


def bowl_loss(split: str, theta: float, instance: int = 0) -> float:
    """The published loss: 0.5 |A theta - A x|^2, over the rows that fill batches of 128."""
    drawn = DATA["quadratic_deep"](instance=instance).draw(Seed(5))
    skeleton, (params, buffers) = started("quadratic_deep", ((100,), 100), instance=instance)
    at = {"theta": params["theta"] * theta}
    outputs = functional_call(skeleton, (at, buffers), drawn.x[drawn.rows[split][:896]])
    loss = (outputs - drawn.y[split][:896]).square().sum(1).mean() / 2
    return loss.item()


def test_bowl_has_the_published_curvature() -> None:
    curvature = root(0).T @ root(0)
    values = torch.linalg.eigvalsh(curvature)
    assert values.sum().item() == pytest.approx(477.61227960, rel=1e-9)
    assert values[-1].item() == pytest.approx(53.129015, rel=1e-7)
    assert values[0].item() == pytest.approx(0.00552212, rel=1e-6)
    assert ((values < 1).sum(), (values > 30).sum()) == (90, 10)


def test_bowl_has_the_published_losses() -> None:
    assert bowl_loss("valid", 1.0) == pytest.approx(353.8127659388951, rel=2e-7)
    assert bowl_loss("test", 1.0) == pytest.approx(353.44676426478793, rel=2e-7)
    assert bowl_loss("test", 0.0) == pytest.approx(86.926, abs=6e-4)


@pytest.mark.parametrize(
    ("instance", "start", "floor"),
    [
        (0, 353.447, 86.93),
        (1, 347.3582328, 83.22),
        (2, 351.841, 97.34),
        (3, 387.710, 96.86),
        (11, 379.2991202, 95.04),
    ],
)
def test_bowls_made_later_in_a_process(instance: int, start: float, floor: float) -> None:
    assert bowl_loss("test", 1.0, instance) == pytest.approx(start, abs=6e-4)
    assert bowl_loss("test", 0.0, instance) == pytest.approx(floor, abs=6e-3)


def test_bowl_is_the_quadratic_form() -> None:
    drawn = DATA["quadratic_deep"]().draw(Seed(0))
    skeleton, (_, buffers) = started("quadratic_deep", ((100,), 100))
    curvature = root(0).T @ root(0)
    theta = torch.randn(100, generator=generator())
    x = drawn.x[drawn.rows["train"][:7]]
    outputs = functional_call(skeleton, ({"theta": theta}, buffers), x)
    losses = (outputs - drawn.y["train"][:7]).square().sum(1) / 2
    away = (theta - x).double()
    expected = ((away @ curvature) * away).sum(1) / 2
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=0)


def test_bowl_rows_are_the_published_ones_whatever_the_seed() -> None:
    data = DATA["quadratic_deep"]()
    one, other = data.draw(Seed(0)), data.draw(Seed(1))
    assert one.x is other.x
    expected = np.random.RandomState(43).normal(0, 0.6, (1000, 100)).astype(np.float32)
    assert torch.equal(one.x[one.rows["test"]], torch.from_numpy(expected))
    assert {split: len(rows) for split, rows in one.rows.items()} == dict.fromkeys(one.rows, 1000)
    assert set(one.rows["train"].tolist()) == set(range(1000))
    assert one.rows["valid"].tolist() == list(range(1000, 2000))


def test_bowl_needs_its_own_data() -> None:
    with pytest.raises(RaybenchError, match="data: quadratic_deep"):
        MODELS["quadratic_deep"]().skeleton((64,), 10)
    with pytest.raises(ValueError, match="published"):
        MODELS["quadratic_deep"](init="he")


# Functions of two parameters.


def surface(function: str, u: float, v: float, x: Tensor) -> Tensor:
    skeleton, _ = started("two_d", ((2,), 1), function=function)
    at = {"u": torch.tensor([u]), "v": torch.tensor([v])}
    outputs: Tensor = functional_call(skeleton, at, x)
    return outputs


@pytest.mark.parametrize(
    ("function", "u", "v", "value"),
    [
        ("rosenbrock", 1.0, 1.0, 0.0),
        ("rosenbrock", -0.5, 1.5, 158.5),
        ("beale", 3.0, 0.5, 0.0),
        ("beale", 0.0, 0.0, 1.5**2 + 2.25**2 + 2.625**2),
        ("branin", -math.pi, 12.275, 0.397887),
        ("branin", math.pi, 2.275, 0.397887),
        ("branin", 9.42478, 2.475, 0.397887),
        ("branin", 0.0, 0.0, 36 + 20 - 10 / (8 * math.pi)),
    ],
)
def test_value_of_a_surface(function: str, u: float, v: float, value: float) -> None:
    rows = torch.tensor([[0.0, 0.0], [2.0, -1.0]])
    plain, tilted = surface(function, u, v, rows)
    assert plain.item() == pytest.approx(value, abs=2e-5)
    assert tilted.item() == pytest.approx(value + 2 * u - v, abs=1e-4)


@pytest.mark.parametrize(
    ("function", "start"),
    [("rosenbrock", (-0.5, 1.5)), ("beale", (-4.5, 4.5)), ("branin", (2.5, 12.5))],
)
def test_start_on_a_surface(function: str, start: tuple[float, float]) -> None:
    _, (params, _) = started("two_d", ((2,), 1), function=function)
    assert (params["u"].item(), params["v"].item()) == start


def test_tilts_are_the_published_ones() -> None:
    drawn = DATA["two_d"]().draw(Seed(3))
    assert {split: len(rows) for split, rows in drawn.rows.items()} == dict.fromkeys(
        ("train", "valid", "test"), 10_000
    )
    draw = np.random.RandomState(44)
    first, second = draw.normal(size=10_000), draw.normal(size=10_000)
    expected = np.stack([first, second], axis=1).astype(np.float32)
    assert torch.equal(drawn.x[drawn.rows["valid"]], torch.from_numpy(expected))
    assert not drawn.x[drawn.rows["test"]].any()
    assert drawn.task == ((2,), 1, 0)


# Sizes: of the papers, or counted by hand.

WRN_164 = (
    3 * 16 * 9  # the first convolution
    + (2 * 16 + 16 * 64 + (16 + 64) * 64 * 9 + 2 * 64)  # first unit of group 1
    + (2 * 64 + 64 * 128 + (64 + 128) * 128 * 9 + 2 * 128)
    + (2 * 128 + 128 * 256 + (128 + 256) * 256 * 9 + 2 * 256)
    + sum(2 * 9 * c * c + 4 * c for c in (64, 128, 256))  # second units
    + 2 * 256
    + 257 * 10
)
VAE_SIZE = (
    (16 + 1) * 64 + 2 * (64 * 16 + 1) * 64  # convolutions
    + 2 * (7 * 7 * 64 + 1) * 8  # heads
    + (8 + 1) * 24 + (24 + 1) * 49  # dense layers of the decoder
    + (16 + 1) * 64 + 2 * (64 * 16 + 1) * 64  # transposed convolutions
    + (14 * 14 * 64 + 1) * 784
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "fields", "inputs", "outputs", "size"),
    [
        ("cnn_2c2d", {}, (1, 28, 28), 10, 3_274_634),
        ("cnn_3c3d", {}, (3, 32, 32), 10, 895_210),
        ("all_cnn_c", {}, (3, 32, 32), 10, 1_369_738),
        ("all_cnn_c", {}, (3, 32, 32), 100, 1_369_738 + 90 * 193),
        ("wide_resnet", {}, (3, 32, 32), 10, WRN_164),
        ("wide_resnet", {"depth": 40}, (3, 32, 32), 100, 8_972_340),
        ("vgg", {}, (3, 32, 32), 1000, 138_357_544),
        ("vgg", {"depth": 19}, (3, 32, 32), 1000, 143_667_240),
        ("vae", {}, (1, 28, 28), 784, VAE_SIZE),
        ("char_rnn", {}, (50,), 83, 83 * 128 + 2 * (256 + 1) * 512 + 129 * 83),
        ("mlp", {"widths": (1000, 500, 100)}, (1, 28, 28), 10, 1_336_610),
    ],
)
def test_published_size(
    name: str, fields: dict[str, Any], inputs: tuple[int, ...], outputs: int, size: int
) -> None:
    assert count(name, (inputs, outputs), **fields) == size


@pytest.mark.parametrize(
    ("name", "side"),
    [("cnn_2c2d", 8), ("cnn_3c3d", 16), ("all_cnn_c", 16), ("vae", 8), ("wide_resnet", 8)],
)
def test_small_images_fit(name: str, side: int) -> None:
    outputs = side * side if name == "vae" else 10
    fields = {} if name == "vae" else {"width": 2}
    skeleton, state = started(name, ((1, side, side), outputs), **fields)
    x = torch.rand(3, 1, side, side, generator=generator())
    assert len(functional_call(skeleton.eval(), state, x)) == 3


@pytest.mark.parametrize("name", ["cnn_3c3d", "all_cnn_c"])
def test_images_that_are_too_small_are_refused(name: str) -> None:
    with pytest.raises(RaybenchError, match=r"at least 9 x 9 pixels.*8 x 8.*data\.side: 16"):
        MODELS[name]().skeleton((1, 8, 8), 10)
    MODELS[name]().skeleton((1, 9, 9), 10)


@pytest.mark.parametrize("name", ["cnn_2c2d", "cnn_3c3d", "all_cnn_c", "vae", "wide_resnet", "vgg"])
def test_flat_rows_are_refused(name: str) -> None:
    with pytest.raises(RaybenchError, match="layout: image"):
        MODELS[name]().skeleton((64,), 10)


# Initial values.


def layers_of(name: str, shape: Shape, **fields: Any) -> dict[str, Tensor]:
    return started(name, shape, **fields)[1][0]


def test_truncated_is_cut_at_two_deviations() -> None:
    drawn = truncated(torch.Size((300, 300)), 0.05, generator())
    assert drawn.abs().max() <= 0.1
    assert drawn.abs().max() > 0.0999
    # Of a Gaussian cut at two deviations: 0.8796 of the deviation. 90,000 draws: 0.2 %.
    assert drawn.std().item() == pytest.approx(0.05 * 0.879626, rel=0.01)
    assert abs(drawn.mean().item()) < 1e-3


def test_truncated_glorot_has_glorots_variance() -> None:
    drawn = glorot_truncated(torch.Size((200, 100, 3, 3)), generator())
    assert drawn.var().item() == pytest.approx(2 / (9 * 300), rel=0.02)


def test_published_values_of_2c2d_and_mlp() -> None:
    for name, values in layers_of("cnn_2c2d", ((1, 28, 28), 10)).items():
        if name.endswith("bias"):
            assert torch.equal(values, torch.full(values.shape, 0.05))
        else:
            assert values.abs().max() <= 0.1
            assert values.std().item() == pytest.approx(0.044, rel=0.05)
    sizes = {"widths": (100, 50), "init": "published"}
    for name, values in layers_of("mlp", ((784,), 10), **sizes).items():
        assert values.abs().max() <= (0 if name.endswith("bias") else 0.06)


@pytest.mark.parametrize("name", ["cnn_3c3d", "vgg", "all_cnn_c", "wide_resnet", "vae"])
def test_published_values_are_glorots(name: str) -> None:
    side, outputs = (28, 784) if name == "vae" else (32, 10)
    shape = (1 if name == "vae" else 3, side, side), outputs
    fields = {"vgg": {"width": 4, "side": 32}, "wide_resnet": {"depth": 16}}.get(name, {})
    checked = 0
    for title, values in layers_of(name, shape, **fields).items():
        if values.dim() == 1:
            constant = {0.1} if name == "all_cnn_c" else {0.0, 1.0}
            assert set(np.round(values.unique().double().numpy(), 6)) <= constant, title
        elif values.numel() > 5000:
            window = math.prod(values.shape[2:])
            variance = 2 / ((values.shape[0] + values.shape[1]) * window)
            assert values.var().item() == pytest.approx(variance, rel=0.1), title
            dense_or_uniform = values.dim() == 2 or name in ("wide_resnet", "vae")
            # The largest of a uniform number is sqrt(3) deviations; of a cut Gaussian 2 / 0.8796.
            limit = math.sqrt(3) if dense_or_uniform else 2 / 0.879626
            largest = values.abs().max().item() / math.sqrt(variance)
            assert largest == pytest.approx(limit, rel=0.02), title
            checked += 1
    assert checked >= 2


def test_zeros_are_zeros() -> None:
    for name, shape in {"linear": ((9,), 3), "two_d": ((2,), 1)}.items():
        assert not any(values.any() for values in layers_of(name, shape, init="zeros").values())


def test_published_needs_a_publication() -> None:
    with pytest.raises(ValueError, match="model cnn was not published with initial values"):
        MODELS["cnn"](init="published")


def test_l2_covers_weights() -> None:
    def covered(name: str, shape: Shape, **fields: Any) -> set[str]:
        model = MODELS[name](**fields)
        named = model.skeleton(*shape).named_parameters()
        return {title for title, values in named if model.decays(title, values.shape)}

    image = (3, 32, 32), 10
    assert all(name.endswith("weight") for name in covered("wide_resnet", image))
    small = {"width": 1, "side": 32}
    convolutions, every = covered("vgg", image, **small), covered("cnn_3c3d", image)
    assert len(convolutions) == 13
    assert len(every) == 6


# TensorFlow's padding.


@pytest.mark.parametrize(
    ("side", "window", "stride", "expected"),
    [
        (32, 3, 2, (0, 1)),
        (33, 3, 2, (1, 1)),
        (28, 4, 2, (1, 1)),
        (7, 4, 1, (1, 2)),
        (7, 4, 2, (1, 2)),
        (28, 5, 1, (2, 2)),
        (8, 2, 2, (0, 0)),
        (9, 2, 2, (0, 1)),
        (5, 1, 2, (0, 0)),
    ],
)
def test_same_padding(side: int, window: int, stride: int, expected: tuple[int, int]) -> None:
    assert same.padding(side, window, stride) == expected


def test_same_convolution_by_hand() -> None:
    layer = same.Conv(1, 1, 3, 2, bias=False)
    x = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    outputs = functional_call(layer, {"weight": torch.ones(1, 1, 3, 3)}, x)
    # Windows start at pixels 0 and 2: the second one sees rows 2, 3 and one of zeros.
    assert outputs.flatten().tolist() == [
        54,
        3 + 4 + 7 + 8 + 11 + 12,
        9 + 10 + 11 + 13 + 14 + 15,
        54,
    ]


def test_same_pool_by_hand() -> None:
    x = -torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    assert same.MaxPool(3, 2)(x).flatten().tolist() == [-1, -3, -9, -11]  # padding never wins
    assert same.MaxPool(2, 2)(x[..., :3, :3]).flatten().tolist() == [-1, -3, -9, -11]


@pytest.mark.parametrize(("side", "stride"), [(7, 2), (7, 1), (4, 2), (3, 1)])
def test_same_transposed_convolution_is_the_gradient(side: int, stride: int) -> None:
    weight = torch.randn(2, 3, 4, 4, generator=generator())
    x = torch.randn(1, 2, side, side, generator=generator(1))
    bias = torch.zeros(3)
    layer = same.ConvTranspose(2, 3, 4, stride)
    outputs = functional_call(layer, {"weight": weight, "bias": bias}, x)
    large = torch.zeros(1, 3, side * stride, side * stride, requires_grad=True)
    before, after = same.padding(side * stride, 4, stride)
    padded = nn.functional.pad(large, (before, after, before, after))
    (expected,) = torch.autograd.grad(conv2d(padded, weight, stride=stride), large, x)
    torch.testing.assert_close(outputs, expected)


# The autoencoder.


def test_autoencoder_gives_reconstruction_mean_and_deviation() -> None:
    shape = (1, 8, 8), 64
    skeleton, (params, buffers) = started("vae", shape, width=4, latent=3)
    x = torch.rand(5, 1, 8, 8, generator=generator())
    quiet = {**params, "mean.weight": torch.zeros_like(params["mean.weight"])}
    quiet["mean.bias"] = torch.tensor([1.0, 2.0, 3.0])
    quiet["log_variance.weight"] = torch.zeros_like(params["log_variance.weight"])
    quiet["log_variance.bias"] = torch.tensor([-60.0, -80.0, -100.0])
    outputs = functional_call(skeleton.eval(), (quiet, buffers), x)
    assert outputs.shape == (5, 64 + 3 + 3)
    assert outputs[0, 64:].tolist() == [1, 2, 3, -30, -40, -50]
    # With hardly a deviation left, all rows are what the decoder makes of the mean.
    decoder = {k.removeprefix("decoder."): v for k, v in quiet.items() if k.startswith("decoder.")}
    modules = dict(skeleton.named_modules())
    image = functional_call(modules["decoder"], decoder, quiet["mean.bias"][None])
    torch.testing.assert_close(outputs[:, :64], image.expand(5, 64))
    assert image.min() > 0
    assert image.max() < 1


def test_autoencoder_is_noisy_in_training_and_fixed_in_evaluation() -> None:
    shape = (1, 8, 8), 64
    skeleton, state = started("vae", shape, width=4, dropout=0.0)
    x = torch.rand(5, 1, 8, 8, generator=generator())

    def outputs(training: bool) -> Tensor:
        result: Tensor = functional_call(skeleton.train(training), state, x)
        return result

    assert torch.equal(outputs(False), outputs(False))
    few = functional_call(skeleton.eval(), state, x[:2])
    torch.testing.assert_close(few, outputs(False)[:2])
    assert not torch.equal(outputs(True), outputs(True))
    assert state[1]["noise.calls"] == 2


def test_autoencoder_needs_its_input_as_target() -> None:
    with pytest.raises(RaybenchError, match=r"data\.target: input"):
        MODELS["vae"]().skeleton((1, 28, 28), 10)


def test_noise_is_normal_and_the_runs_own() -> None:
    layer = Noise()
    shown = torch.empty(20_000)

    def drawn(seed: int, calls: int, training: bool = True) -> Tensor:
        state = {"key": key(Seed(seed), "noise/z"), "calls": torch.tensor(calls)}
        result: Tensor = functional_call(layer.train(training), state, shown)
        return result

    first = drawn(0, 0)
    assert first.mean().item() == pytest.approx(0, abs=0.04)
    assert first.std().item() == pytest.approx(1, rel=0.03)
    assert torch.equal(first, drawn(0, 0))
    others = (drawn(1, 0), drawn(0, 1), drawn(0, 0, training=False), drawn(1, 0, training=False))
    for other in others:
        assert abs(torch.corrcoef(torch.stack([first, other]))[0, 1]) < 0.04
    assert torch.equal(others[2], drawn(0, 7, training=False))


# The recurrent network.


def test_lstm_equals_pytorchs() -> None:
    inputs, units = 5, 7
    ours = LSTM(inputs, units)
    weight = torch.randn(4 * units, inputs + units, generator=generator()) / 3
    bias = torch.randn(4 * units, generator=generator(1))
    x = torch.randn(3, 6, inputs, generator=generator(2))
    state = torch.randn(2, 3, units, generator=generator(3))
    h, last = functional_call(ours, {"weight": weight, "bias": bias}, (x, state))
    # PyTorch orders the gates i, f, g, o, and adds nothing to the forget gate.
    i, f, o, g = range(4)
    order = torch.cat([torch.arange(units) + gate * units for gate in (i, f, g, o)])
    shifted = bias.clone()
    shifted[f * units : (f + 1) * units] += 1
    theirs = nn.LSTM(inputs, units, batch_first=True)
    parameters = {
        "weight_ih_l0": weight[order, :inputs],
        "weight_hh_l0": weight[order, inputs:],
        "bias_ih_l0": shifted[order],
        "bias_hh_l0": torch.zeros(4 * units),
    }
    expected, (h_last, c_last) = functional_call(theirs, parameters, (x, tuple(state[:, None])))
    torch.testing.assert_close(h, expected)
    torch.testing.assert_close(last, torch.cat([h_last, c_last]))


def reader(**fields: Any) -> tuple[nn.Module, Any]:
    return started("char_rnn", ((4,), 9), width=6, streams=3, **fields)


def test_two_batches_are_one_longer_one() -> None:
    skeleton, (params, buffers) = reader()
    skeleton.eval()
    x = torch.randint(9, (3, 8), generator=generator())
    whole = functional_call(skeleton, (params, {**buffers, **fresh(buffers)}), x)
    carried = fresh(buffers)
    parts = [functional_call(skeleton, (params, carried), part) for part in x.split(4, dim=1)]
    assert whole.shape == (3, 8, 9)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    cold = functional_call(skeleton, (params, fresh(buffers)), x[:, 4:])
    assert not torch.allclose(cold, parts[1])


def fresh(buffers: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in buffers.items()}


def test_gradients_stop_at_the_batch() -> None:
    skeleton, (params, buffers) = reader(dropout=0.0)
    params = {name: values.requires_grad_() for name, values in params.items()}
    x = torch.randint(9, (3, 4), generator=generator())
    carried = fresh(buffers)
    for _ in range(2):
        outputs = functional_call(skeleton.train(), (params, carried), x)
        outputs.square().mean().backward()
        assert not carried["memory.state"].requires_grad
        assert carried["memory.state"].abs().max() > 0


def test_memory_lifts() -> None:
    shape = (4,), 9
    model = MODELS["char_rnn"](width=6, streams=3)
    skeleton = model.skeleton(*shape).train()
    lanes = Lanes(2)
    states = [model.state(skeleton, *shape, Seed(seed)) for seed in range(2)]
    x = [torch.randint(9, (3, 4), generator=generator(seed)) for seed in range(2)]

    def twice(params: Any, buffers: Any, x: Tensor) -> tuple[Tensor, Any]:
        buffers = fresh(buffers)
        functional_call(skeleton, (params, buffers), x)
        return functional_call(skeleton, (params, buffers), x), buffers

    fused, carried = lanes.map(twice)(*lanes.stack(states), lanes.stack(x))
    for lane in range(2):
        alone, left = twice(*states[lane], x[lane])
        torch.testing.assert_close(fused[lane], alone)
        torch.testing.assert_close(carried["memory.state"][lane], left["memory.state"])


def test_memory_keeps_and_recalls() -> None:
    memory = Memory(2, 3)
    assert not memory.recall().any()
    before = memory.recall()
    memory.keep(torch.ones(2, 3, requires_grad=True))
    assert torch.equal(memory.recall(), torch.ones(2, 3))
    assert not memory.state.requires_grad
    assert not before.any()


def test_recurrent_network_needs_its_streams() -> None:
    skeleton, state = reader()
    with pytest.raises(RaybenchError, match=r"3 streams, and a batch has 2 rows"):
        functional_call(skeleton, state, torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(RaybenchError, match="data: text"):
        MODELS["char_rnn"]().skeleton((1, 8, 8), 10)


def test_last_bias_and_forget_gate_start_as_tensorflows() -> None:
    params = layers_of("char_rnn", ((50,), 83))
    assert not params["lstm.0.bias"].any()
    assert params["output.bias"].abs().max() <= math.sqrt(3 / 83)
    assert params["output.bias"].std() > 0
    limit = math.sqrt(6 / (256 + 512))
    assert params["lstm.1.weight"].abs().max().item() == pytest.approx(limit, rel=1e-3)


# Texts.


def stretches(pool: Pool, streams: int) -> list[Tensor]:
    """What each stream of the training part says from first batch to last."""
    rows = pool.x[: pool.valid_from]
    return [rows[stream::streams].flatten() for stream in range(streams)]


def test_text_goes_on_from_batch_to_batch() -> None:
    data = DATA["text"](length=5, streams=4, characters=1000)
    pool = data.pool(Seed(0))
    assert (pool.classes, pool.task) == (83, ((5,), 83, 83))
    ids = text_module._documentation()[:1000]
    # 800 characters: 39 batches of 4 x 5, the last character is only a target.
    assert (pool.valid_from, len(pool.x)) == (39 * 4, 39 * 4 + 2 * 4 * 4)
    for stream, said in enumerate(stretches(pool, 4)):
        start = stream * 39 * 5
        assert said.tolist() == ids[start : start + 39 * 5].tolist()
    assert torch.equal(pool.x[:156].flatten(0)[1:5], pool.y[:156].flatten(0)[:4])
    assert torch.equal(pool.x[4, 0], pool.y[0, 4])
    assert pool.x[pool.valid_from, :5].tolist() == ids[800:805].tolist()
    assert pool.x[pool.test_from, :5].tolist() == ids[900:905].tolist()


def test_text_is_documentation_in_83_characters() -> None:
    ids = text_module._documentation()
    assert len(ids) > 100_000
    assert (ids.min() >= 0, ids.max() < 83) == (True, True)
    letters = text_module._LETTERS
    assert len(set(letters)) == len(letters) == 83
    assert "statement" in "".join(letters[number] for number in ids[:5000])


def test_text_is_never_shuffled() -> None:
    drawn = [DATA["text"](train=100, valid=50, test=50).draw(Seed(seed)) for seed in (0, 1)]
    assert DATA["text"].sequential
    assert drawn[0].x is drawn[1].x
    for split in ("train", "valid", "test"):
        rows = drawn[0].rows[split]
        assert torch.equal(rows, drawn[1].rows[split])
        assert torch.equal(rows, torch.arange(len(rows)) + rows[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"characters": 10_000}, r"1000 validation characters do not fill a batch of 50 x 50"),
        ({"characters": 10**8}, r"the text has \d+ characters"),
    ],
)
def test_text_that_is_too_short(fields: dict[str, int], message: str) -> None:
    with pytest.raises(RaybenchError, match=message):
        DATA["text"](**fields).pool(Seed(0))


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    (tmp_path / "tolstoi").mkdir()
    text_module._novel.cache_clear()
    text_module._pool.cache_clear()
    return tmp_path / "tolstoi" / "war-and-peace.txt"


def novel() -> str:
    """As many characters as the novel has, in 70,000 lines: 82 kinds and line feeds."""
    size, lines = text_module._NOVEL, 70_000
    letters = np.array([chr(33 + n) for n in range(82)])
    body = letters[np.random.RandomState(0).randint(0, 82, size - lines)]
    width = (size - lines) // lines
    rows = ["".join(body[n * width : (n + 1) * width]) for n in range(lines - 1)]
    return "\n".join([*rows, "".join(body[(lines - 1) * width :]), ""])


def test_tolstoi_is_split_as_published(library: Path) -> None:
    text = novel()
    library.write_text(text)
    drawn = DATA["tolstoi"]().draw(Seed(0))
    # 783 steps an epoch, as the published runs log.
    assert {split: len(rows) / 50 for split, rows in drawn.rows.items()} == {
        "train": 783,
        "valid": 261,
        "test": 261,
    }
    assert drawn.task == ((50,), 83, 83)

    def said(split: str) -> str:
        row = drawn.x[drawn.rows[split][0]]
        return "".join(kinds[number] for number in row.tolist())

    counted = {kind: text.count(kind) for kind in set(text)}
    kinds = sorted(counted, key=lambda kind: (-counted[kind], text.index(kind)))
    assert said("valid") == text[:50]
    assert said("train") == text[653_237 : 653_237 + 50]
    assert said("test") == text[-653_237 : -653_237 + 50]


def test_tolstoi_leaves_out_what_is_not_the_novel(library: Path) -> None:
    lines = novel().split("\n")
    licence = ["The Project Gutenberg EBook", *["x"] * 28]
    raw = [*licence, *lines[:4], *["contents"] * 771, *lines[4:63_849], *["end"] * 358]
    library.write_text("\n".join([*raw, *lines[63_849:]]))
    ids = text_module._novel(str(library.parent.parent))
    library.write_text("\n".join(lines))
    text_module._novel.cache_clear()
    assert np.array_equal(ids, text_module._novel(str(library.parent.parent)))


def test_tolstoi_tells_what_is_missing(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match=r"no file .*war-and-peace\.txt"):
        DATA["tolstoi"]().draw(Seed(0))
    assert "not on this machine" in str(DATA["tolstoi"]().missing())
    library.write_text("Well, Prince")
    assert DATA["tolstoi"]().missing() is None
    with pytest.raises(RaybenchError, match=r"12 characters, 10 different.*3,266,185 and 83"):
        DATA["tolstoi"]().draw(Seed(0))
    monkeypatch.delenv(FOLDER)
    with pytest.raises(UnavailableError, match=f"{FOLDER} is not set"):
        DATA["tolstoi"]().draw(Seed(0))


# Digits in other sizes.


def test_digits_in_other_sizes() -> None:
    plain = DATA["digits"](layout="image", pixels="unit").pool(Seed(0))
    assert (plain.x.min(), plain.x.max()) == (0, 1)
    for side in (16, 32):
        large = DATA["digits"](layout="image", pixels="unit", side=side).pool(Seed(0))
        assert large.task.inputs == (1, side, side)
        assert torch.equal(large.y, plain.y)
        expected = nn.functional.interpolate(plain.x, scale_factor=side / 8, mode="bilinear")
        torch.testing.assert_close(large.x, expected)
    standard = DATA["digits"](side=16).pool(Seed(0))
    assert standard.task.inputs == (256,)
    assert standard.x.mean().item() == pytest.approx(0, abs=1e-5)
    assert standard.x.std().item() == pytest.approx(1, abs=1e-3)


def test_digits_in_three_channels() -> None:
    grey = DATA["digits"](layout="image", side=16).pool(Seed(0)).x
    colour = DATA["digits"](layout="image", side=16, channels=3).pool(Seed(0)).x
    assert torch.equal(colour, grey.expand(-1, 3, -1, -1))
    assert DATA["digits"](channels=3).pool(Seed(0)).task.inputs == (192,)


def test_new_fields_leave_the_identity_alone() -> None:
    assert DATA["digits"]().canonical == {"name": "digits"}
    assert MODELS["mlp"]().canonical == {"name": "mlp"}
    assert MODELS["linear"](bias=False).canonical == {"name": "linear", "bias": False}


# Augmentation of DeepOBS.

IMAGES = torch.rand(12, 3, 16, 16, generator=generator())
KEY = key(Seed(0), "noise/augment")


def each(value: float, num: int = 12) -> Tensor:
    return torch.full((num, 1, 1, 1), value)


def test_jitter_at_neutral_factors_changes_nothing() -> None:
    torch.testing.assert_close(saturated(IMAGES, each(1.0)), IMAGES)
    torch.testing.assert_close(contrasted(IMAGES, each(1.0)), IMAGES)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.5, 4.0])
def test_saturation_is_that_of_hsv(factor: float) -> None:
    result = saturated(IMAGES[:2], each(factor, 2))
    for image, changed in zip(IMAGES[:2], result, strict=True):
        for pixel, got in zip(image.flatten(1).T.tolist(), changed.flatten(1).T, strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            expected = colorsys.hsv_to_rgb(hue, min(saturation * factor, 1.0), value)
            torch.testing.assert_close(got, torch.tensor(expected), atol=1e-5, rtol=0)


def test_saturation_of_grey_and_black_is_defined() -> None:
    grey = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    assert torch.equal(saturated(grey, each(1.5, 1)), grey)


def test_contrast_is_about_the_mean_of_each_channel() -> None:
    result = contrasted(IMAGES, each(0.2))
    torch.testing.assert_close(result.mean((2, 3)), IMAGES.mean((2, 3)))
    torch.testing.assert_close(result.std((2, 3)), 0.2 * IMAGES.std((2, 3)))


def test_jitter_draws_a_factor_for_each_image() -> None:
    grey = torch.rand(1, 1, 8, 8, generator=generator()).expand(2000, 1, 8, 8)
    contrast = augment(grey, ["jitter"], KEY).std((1, 2, 3)) / grey.std((1, 2, 3))
    assert contrast.min().item() == pytest.approx(0.2, abs=0.01)
    assert contrast.max().item() == pytest.approx(1.8, abs=0.01)
    assert contrast.mean().item() == pytest.approx(1.0, abs=0.05)
    brighter = (augment(grey, ["jitter"], KEY).mean((1, 2, 3)) - grey.mean()).abs().max()
    assert brighter.item() == pytest.approx(63 / 255**2, rel=0.05)
    colour = augment(IMAGES, ["jitter"], KEY)
    assert colour.isfinite().all()
    spread = (colour.amax(1) - colour.amin(1)).mean((1, 2)) / (
        IMAGES.amax(1) - IMAGES.amin(1)
    ).mean((1, 2))
    assert spread.std() > 0.1


def test_crop_by_a_sixteenth() -> None:
    x = torch.zeros(400, 1, 32, 32)
    x[:, :, 16, 16] = 1
    where = augment(x, ["crop_sixteenth"], KEY).nonzero()
    assert len(where) == 400
    for axis in (2, 3):
        assert set((where[:, axis] - 16).tolist()) == set(range(-2, 3))


@pytest.mark.parametrize("kind", ["crop_sixteenth", "jitter"])
def test_deepobs_augmentation_lifts(kind: Any) -> None:
    lanes = Lanes(3)
    batches = [IMAGES, IMAGES.flip(0), IMAGES / 2]
    keys = [key(Seed(seed), "noise/augment") for seed in range(3)]
    fused = lanes.map(lambda x, noise: augment(x, [kind], noise))(
        lanes.stack(batches), lanes.stack(keys)
    )
    for k in range(3):
        alone = augment(batches[k], [kind], keys[k])
        torch.testing.assert_close(fused[k], alone)
        assert torch.equal(alone, augment(batches[k], [kind], keys[k]))
        assert not torch.allclose(alone, batches[k])


def test_each_image_is_standardised_by_itself() -> None:
    x = IMAGES * uniform(KEY, (12, 1, 1, 1)) * 5 + 3
    result = standardise(x)
    rows = x.flatten(1).double()
    expected = (rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True, correction=0)
    torch.testing.assert_close(result.flatten(1).double(), expected, atol=1e-4, rtol=1e-4)
    # An image of (nearly) one colour is divided by 1 / sqrt(pixels).
    flat = torch.full((1, 1, 4, 4), 0.5)
    flat[..., 0, 0] += 1e-3
    faint = standardise(flat).flatten()
    assert faint[0].item() == pytest.approx(4 * 1e-3 * 15 / 16, rel=1e-3)
    assert not standardise(torch.full((1, 3, 4, 4), 0.25)).any()
