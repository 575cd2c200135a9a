"""Models: sizes by formula, initial state from the seed alone, lanes, dropout, foreign modules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from raybench.errors import RaybenchError
from raybench.lanes import Lanes
from raybench.models import MODELS, Model
from raybench.models.adapter import adapt
from raybench.models.base import Dropout
from raybench.models.char_rnn import CharRNN
from raybench.models.transformer import Transformer
from raybench.rng import Seed, key

torch.set_num_threads(1)

IMAGE, ROW = (3, 8, 8), (12,)
Values = dict[str, Tensor]

NUM = 6  # rows of a batch, and streams of the recurrent network

# One small case for each entry: fields, shape of a row, outputs.
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], int]] = {
    "linear": ({}, IMAGE, 4),
    "mlp": ({"width": 7, "depth": 2}, IMAGE, 4),
    "random_features": ({"width": 9}, ROW, 1),
    "cnn": ({"width": 4, "depth": 2}, IMAGE, 4),
    "quadratic_deep": ({}, (100,), 100),
    "two_d": ({}, (2,), 1),
    "cnn_2c2d": ({"width": 3}, IMAGE, 4),
    "cnn_3c3d": ({"width": 2}, (3, 9, 10), 4),
    "all_cnn_c": ({"width": 4}, (3, 9, 10), 4),
    "vae": ({"width": 4, "latent": 2}, IMAGE, 192),
    "wide_resnet": ({"depth": 16, "widen": 1, "width": 4}, IMAGE, 4),
    "vgg": ({"width": 2, "side": 32}, IMAGE, 4),
    "char_rnn": ({"width": 5, "streams": NUM}, (7,), 11),
    "wide_mlp": ({"width": 6, "depth": 2}, ROW, 4),
    "resnet18k": ({"width": 2}, IMAGE, 4),
    "cnn5": ({"width": 2}, IMAGE, 4),
    "transformer": ({"width": 8, "heads": 2}, (7,), 11),
}
# Of a row, where not its `outputs`.
OUTPUTS = {"vae": (192 + 2 * 2,), "char_rnn": (7, 11), "transformer": (7, 11)}
CONSTANT = {"quadratic_deep", "two_d"}  # start from the same values whatever the seed


def count(model: Model, inputs: tuple[int, ...], outputs: int) -> int:
    params, _ = model.state(model.skeleton(inputs, outputs), inputs, outputs, Seed(0))
    return sum(weight.numel() for weight in params.values())


def case(name: str) -> tuple[Model, tuple[int, ...], int]:
    fields, inputs, outputs = CASES[name]
    return MODELS[name](**fields), inputs, outputs


def batch(model: Model, shape: tuple[tuple[int, ...], int], seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    if isinstance(model, CharRNN | Transformer):
        return torch.randint(shape[1], (NUM, *shape[0]), generator=draw)
    return torch.randn(NUM, *shape[0], generator=draw)


def equal(one: tuple[Values, Values], other: tuple[Values, Values]) -> bool:
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def test_every_model_has_a_case() -> None:
    assert set(MODELS.bundled) == set(CASES)


# Sizes.


@pytest.mark.parametrize("bias", [True, False])
def test_size_of_linear(bias: bool) -> None:
    assert count(MODELS["linear"](bias=bias), IMAGE, 10) == 192 * 10 + 10 * bias


@pytest.mark.parametrize("width", [1, 8, 64])
def test_size_of_mlp(width: int) -> None:
    assert count(MODELS["mlp"](width=width), ROW, 3) == (12 + 1) * width + (width + 1) * 3
    three = MODELS["mlp"](width=width, depth=3)
    assert count(three, ROW, 3) == 13 * width + 2 * (width + 1) * width + (width + 1) * 3


@pytest.mark.parametrize("width", [1, 8, 64])
def test_size_of_random_features_is_the_trained_layer(width: int) -> None:
    assert count(MODELS["random_features"](width=width), ROW, 3) == width * 3


@pytest.mark.parametrize("width", [1, 8])
@pytest.mark.parametrize("norm", [True, False])
def test_size_of_cnn(width: int, norm: bool) -> None:
    # A block has 9 in out weights, and 2 out numbers of batch norm or out biases.
    per_channel = 2 if norm else 1
    first = 9 * 3 * width + per_channel * width
    second = 9 * width * 2 * width + per_channel * 2 * width
    last = (2 * width + 1) * 5
    model = MODELS["cnn"](width=width, depth=2, batch_norm=norm)
    assert count(model, IMAGE, 5) == first + second + last


def test_cnn_takes_any_depth_and_size_of_image() -> None:
    model = MODELS["cnn"](width=1, depth=5)
    shape = ((1, 5, 9), 2)
    skeleton = model.skeleton(*shape).eval()
    outputs = functional_call(
        skeleton, model.state(skeleton, *shape, Seed(0)), torch.zeros(2, 1, 5, 9)
    )
    assert outputs.shape == (2, 2)


def test_cnn_refuses_flat_rows() -> None:
    with pytest.raises(RaybenchError, match=r"layout: image"):
        MODELS["cnn"]().skeleton((64,), 10)


# Building and drawing.


@pytest.mark.parametrize("name", sorted(CASES))
def test_skeleton_has_no_storage_and_draws_nothing(name: str) -> None:
    model, inputs, outputs = case(name)
    before = torch.get_rng_state()
    skeleton = model.skeleton(inputs, outputs)
    held = [*skeleton.parameters(), *skeleton.buffers()]
    assert held
    assert all(tensor.is_meta for tensor in held)
    model.state(skeleton, inputs, outputs, Seed(3))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", sorted(CASES))
def test_state_fills_the_skeleton(name: str) -> None:
    model, inputs, outputs = case(name)
    skeleton = model.skeleton(inputs, outputs)
    params, buffers = model.state(skeleton, inputs, outputs, Seed(0))
    shapes = {key: value.shape for key, value in skeleton.named_parameters()}
    assert {key: value.shape for key, value in params.items()} == shapes
    kinds = {key: (value.shape, value.dtype) for key, value in skeleton.named_buffers()}
    assert {key: (value.shape, value.dtype) for key, value in buffers.items()} == kinds
    assert not any(value.is_meta for value in [*params.values(), *buffers.values()])


@pytest.mark.parametrize("name", sorted(CASES))
def test_initial_state_depends_only_on_the_seed(name: str) -> None:
    model, inputs, outputs = case(name)
    skeleton = model.skeleton(inputs, outputs)
    first = model.state(skeleton, inputs, outputs, Seed(1))
    torch.rand(5)  # the global generator has no say
    assert equal(first, model.state(model.skeleton(inputs, outputs), inputs, outputs, Seed(1)))
    other = model.state(skeleton, inputs, outputs, Seed(2))
    assert equal(first, other) == (name in CONSTANT)
    fixed = [Seed(value, base=7, fixed=("init", "noise")) for value in (1, 2)]
    assert equal(*(model.state(skeleton, inputs, outputs, seed) for seed in fixed))


@pytest.mark.parametrize(
    ("scheme", "variance"),
    [
        ("he", 2 / 200),
        ("lecun", 1 / 200),
        ("glorot", 2 / (200 + 300)),
        ("glorot_uniform", 2 / (200 + 300)),
        ("zeros", 0.0),
        ("published", (0.03 * 0.879626) ** 2),  # of mlp: a Gaussian cut at two deviations
        ("torch", (1 / math.sqrt(200)) ** 2 / 3),  # uniform on +-1/sqrt(fan_in)
    ],
)
def test_variance_of_linear_weights(scheme: str, variance: float) -> None:
    model = MODELS["mlp"](width=300, init=scheme)
    params, _ = model.state(model.skeleton((200,), 2), (200,), 2, Seed(0))
    weight, bias = params["1.weight"], params["1.bias"]
    assert weight.shape == (300, 200)
    # 60,000 draws: the estimate's relative deviation is sqrt(2 / 60000) = 0.6 %.
    assert weight.var().item() == pytest.approx(variance, rel=0.03)
    assert abs(weight.mean().item()) <= 5 * math.sqrt(variance / 60_000)
    if scheme == "torch":
        assert bias.abs().max() <= 1 / math.sqrt(200)
        assert bias.std() > 0
    else:
        assert not bias.any()


@pytest.mark.parametrize(
    ("scheme", "variance"),
    [("he", 2 / 576), ("lecun", 1 / 576), ("glorot", 2 / (576 + 1152)), ("torch", 1 / 576 / 3)],
)
def test_variance_of_convolution_weights(scheme: str, variance: float) -> None:
    model = MODELS["cnn"](width=64, depth=2, init=scheme)
    params, buffers = model.state(model.skeleton(IMAGE, 2), IMAGE, 2, Seed(0))
    second = next(weight for weight in params.values() if weight.shape == (128, 64, 3, 3))
    assert second.var().item() == pytest.approx(variance, rel=0.03)
    scales = [value for name, value in params.items() if name == "1.weight"]
    assert scales
    assert all(torch.equal(value, torch.ones(64)) for value in scales)
    assert torch.equal(buffers["1.running_var"], torch.ones(64))
    assert not buffers["1.running_mean"].any()


def test_variance_of_random_features() -> None:
    model = MODELS["random_features"](width=400)
    _, buffers = model.state(model.skeleton((100,), 1), (100,), 1, Seed(0))
    assert buffers["1.weight"].var().item() == pytest.approx(1 / 100, rel=0.04)
    assert not buffers["1.bias"].any()


# Forward passes.


@pytest.mark.parametrize("name", sorted(CASES))
def test_forward_by_functional_call(name: str) -> None:
    model, inputs, outputs = case(name)
    skeleton = model.skeleton(inputs, outputs).eval()
    x = batch(model, (inputs, outputs), 0)
    result = functional_call(skeleton, model.state(skeleton, inputs, outputs, Seed(0)), x)
    assert result.shape == (NUM, *OUTPUTS.get(name, (outputs,)))
    assert result.dtype == torch.float32
    assert result.isfinite().all()
    assert result.std() > 0


def test_mlp_is_what_it_says() -> None:
    model = MODELS["mlp"](width=3, depth=2, activation="tanh", init="torch")
    skeleton = model.skeleton((4,), 2)
    params, _ = model.state(skeleton, (4,), 2, Seed(0))
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    hidden = x
    for layer in ("1", "3"):
        hidden = torch.tanh(hidden @ params[f"{layer}.weight"].T + params[f"{layer}.bias"])
    expected = hidden @ params["5.weight"].T + params["5.bias"]
    torch.testing.assert_close(functional_call(skeleton, params, x), expected)


def test_random_features_are_what_they_say() -> None:
    model = MODELS["random_features"](width=5)
    skeleton = model.skeleton((4,), 2)
    params, buffers = model.state(skeleton, (4,), 2, Seed(0))
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    expected = (x @ buffers["1.weight"].T).relu() @ params["3.weight"].T
    torch.testing.assert_close(functional_call(skeleton, (params, buffers), x), expected)
    assert list(params) == ["3.weight"]


def run(model: Model, shape: tuple[tuple[int, ...], int], seeds: list[Seed], training: bool) -> Any:
    """Forward and gradient of each seed's lane on its own rows: outputs, gradients, buffers."""
    lanes = Lanes(len(seeds))
    skeleton = model.skeleton(*shape).train(training)
    params, buffers = lanes.stack([model.state(skeleton, *shape, seed) for seed in seeds])
    x = lanes.stack([batch(model, shape, seed.value) for seed in seeds])

    def loss(params: Values, buffers: Values, x: Tensor) -> tuple[Tensor, Any]:
        buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        outputs = functional_call(skeleton, (params, buffers), x)
        return outputs.square().mean(), (outputs, buffers)

    grads, _, (outputs, buffers) = lanes.grad(loss)(params, buffers, x)
    return [lanes.lane((outputs, grads, buffers), k) for k in range(len(seeds))]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", sorted(CASES))
def test_lanes_equal_single(name: str, training: bool) -> None:
    model, *shape = case(name)
    seeds = [Seed(value) for value in range(3)]
    fused = run(model, tuple(shape), seeds, training)
    for k, seed in enumerate(seeds):
        torch.testing.assert_close(fused[k], run(model, tuple(shape), [seed], training)[0])


def test_batch_norm_keeps_each_lanes_statistics() -> None:
    model, *shape = case("cnn")
    lanes = run(model, tuple(shape), [Seed(0), Seed(1)], training=True)
    (_, _, one), (_, _, other) = lanes
    assert not torch.equal(one["1.running_mean"], other["1.running_mean"])
    assert one["1.num_batches_tracked"] == 1


# Dropout.


def dropped(noise: Tensor, calls: int, p: float = 0.25, size: int = 4000) -> Tensor:
    layer = Dropout(p)
    state = {"key": noise, "calls": torch.tensor(calls)}
    return functional_call(layer, state, torch.ones(size))


def test_dropout_keeps_the_mean_and_the_rate() -> None:
    result = dropped(key(Seed(0), "noise/a"), 0)
    torch.testing.assert_close(result.unique(), torch.tensor([0.0, 1 / 0.75]))
    # 4000 draws: deviation 0.7 %.
    assert (result == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_dropout_differs_by_run_call_and_layer_and_repeats() -> None:
    first = dropped(key(Seed(0), "noise/a"), 0)
    assert torch.equal(first, dropped(key(Seed(0), "noise/a"), 0))
    for other in (
        dropped(key(Seed(1), "noise/a"), 0),
        dropped(key(Seed(0), "noise/b"), 0),
        dropped(key(Seed(0), "noise/a"), 1),
    ):
        # Two independent masks of rate 1/4 differ in 2 * 1/4 * 3/4 = 37.5 % of places.
        assert (first != other).float().mean().item() == pytest.approx(0.375, abs=0.04)


def test_dropout_counts_its_calls_and_rests_in_evaluation() -> None:
    layer = Dropout(0.5)
    first, second = layer(torch.ones(50)), layer(torch.ones(50))
    assert not torch.equal(first, second)
    assert layer.calls == 2
    layer.eval()
    assert torch.equal(layer(torch.ones(50)), torch.ones(50))
    assert layer.calls == 2
    assert torch.equal(Dropout(0.0)(torch.ones(3)), torch.ones(3))


def test_dropout_lifts() -> None:
    shape = ((12,), 3)
    model = MODELS["mlp"](width=40, depth=2, dropout=0.5)
    seeds = [Seed(value) for value in range(3)]
    fused = run(model, shape, seeds, training=True)
    for k, seed in enumerate(seeds):
        torch.testing.assert_close(fused[k], run(model, shape, [seed], training=True)[0])
    assert all(buffers["3.calls"] == 1 for _, _, buffers in fused)
    assert fused[0][2]["3.key"] != fused[1][2]["3.key"] != fused[0][2]["6.key"]


def test_dropout_follows_the_stream_noise() -> None:
    model = MODELS["mlp"](dropout=0.5)
    skeleton = model.skeleton((4,), 2)
    seeds = [Seed(value, base=9, fixed=("noise",)) for value in (1, 2)]
    (one, keys), (other, same) = (model.state(skeleton, (4,), 2, seed) for seed in seeds)
    assert keys["3.key"] == same["3.key"]
    assert not torch.equal(one["1.weight"], other["1.weight"])


# Foreign modules.


class Foreign(nn.Module):
    """A stranger's network."""

    def __init__(
        self, in_features: int, num_classes: int, hidden: int = 6, rate: float = 0.5
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(in_features, hidden), nn.BatchNorm1d(hidden), nn.Dropout(rate)
        )
        self.body.add_module("nested", nn.Sequential(nn.Tanh(), nn.Dropout(rate)))
        self.head = nn.Linear(hidden, num_classes)
        self.scale = nn.Parameter(torch.rand(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) * self.scale


class Pictures(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], in_channels: int, outputs: int) -> None:
        super().__init__()
        self.shape = input_shape
        self.conv = nn.Conv2d(in_channels, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))


class Needy(nn.Module):
    def __init__(self, in_features: int, secret: int) -> None:
        super().__init__()


SHAPE = ((2, 3), 4)


def test_adapted_module_has_the_constructors_parameters() -> None:
    cls = adapt("foreign", Foreign)
    own = set(cls.model_fields) - set(Model.model_fields)
    assert own == {"hidden", "rate"}
    assert cls(hidden=3).hidden == 3
    assert count(cls(hidden=5), *SHAPE) == (6 + 1) * 5 + 2 * 5 + (5 + 1) * 4 + 1
    with pytest.raises(ValueError, match="num_classes"):
        cls(num_classes=3)


def test_adapted_module_is_told_its_shapes() -> None:
    model = adapt("pictures", Pictures)()
    module = model.skeleton((3, 8, 8), 7)
    assert module.shape == (3, 8, 8)
    assert module.conv.weight.shape == (7, 3, 1, 1)


def test_stock_dropout_is_replaced() -> None:
    skeleton = adapt("foreign", Foreign)(rate=0.3).skeleton(*SHAPE)
    kinds = [type(layer) for layer in skeleton.modules()]
    assert nn.Dropout not in kinds
    assert kinds.count(Dropout) == 2
    assert all(layer.p == 0.3 for layer in skeleton.modules() if isinstance(layer, Dropout))


def test_adapted_module_leaves_the_global_generator_alone() -> None:
    model = adapt("foreign", Foreign)()
    before = torch.get_rng_state()
    skeleton = model.skeleton(*SHAPE).train()
    state = model.state(skeleton, *SHAPE, Seed(0))
    functional_call(skeleton, state, torch.ones(5, 2, 3))
    assert torch.equal(before, torch.get_rng_state())


def test_adapted_state_depends_only_on_the_seed() -> None:
    model = adapt("foreign", Foreign)()
    skeleton = model.skeleton(*SHAPE)
    first = model.state(skeleton, *SHAPE, Seed(0))
    torch.rand(3)
    assert equal(first, model.state(skeleton, *SHAPE, Seed(0)))
    other = model.state(skeleton, *SHAPE, Seed(1))
    assert not torch.equal(first[0]["scale"], other[0]["scale"])
    assert first[1]["body.3.key"] != other[1]["body.3.key"]
    assert first[1]["body.3.key"] != first[1]["body.nested.1.key"]
    assert not any(value.requires_grad for part in first for value in part.values())


def test_adapted_lanes_equal_single() -> None:
    model = adapt("foreign", Foreign)(hidden=20)
    seeds = [Seed(value) for value in range(3)]
    fused = run(model, SHAPE, seeds, training=True)
    for k, seed in enumerate(seeds):
        torch.testing.assert_close(fused[k], run(model, SHAPE, [seed], training=True)[0])
    assert (fused[0][0] != fused[1][0]).any()


@pytest.mark.parametrize("found", [Needy, torch.relu, dict, 3])
def test_adapting_anything_else_is_refused(found: object) -> None:
    with pytest.raises(TypeError, match=r"secret|nn\.Module class"):
        adapt("wrong", found)
