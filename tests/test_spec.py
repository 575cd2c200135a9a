"""Identity, strictness, lengths and randomness: what every stored result depends on.

`tests/golden/ids.json` holds the identity of a dozen runs. An id that changes makes every stored
result of that kind run again, so regenerate the file only when that is meant (a `revision` was
raised), and say so in the change log:

    python tests/test_spec.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
import torch
from pydantic import ValidationError
from scipy import stats

from raybench import rng
from raybench.data import DATA
from raybench.errors import Problem
from raybench.models import MODELS
from raybench.optim import OPTIMIZERS, SCHEDULES
from raybench.probes import PROBES
from raybench.procedures import PROCEDURES, Procedure
from raybench.rng import Seed
from raybench.spec import Hyper, Run, Spec, Steps, digest, hyper_fields, plain_config
from raybench.tables import Table, build

GOLDEN = Path(__file__).parent / "golden" / "ids.json"

TRAIN: dict[str, Any] = {
    "name": "train",
    "data": "digits",
    "model": "mlp",
    "optimizer": {"name": "sgd", "lr": 0.1},
    "steps": "20it",
}
FIRST = Seed(0)
RUNS: dict[str, tuple[dict[str, Any], Seed]] = {
    "smallest": (TRAIN, Seed(0)),
    "seed 1": (TRAIN, Seed(1)),
    "fixed streams": (TRAIN, Seed(1, 0, ("data", "order"))),
    "learning rate": ({**TRAIN, "optimizer": {"name": "sgd", "lr": 1e-4}}, Seed(0)),
    "adam": ({**TRAIN, "optimizer": {"name": "adam", "beta1": 0.8, "eps": 1e-4}}, Seed(0)),
    "width": ({**TRAIN, "model": {"name": "mlp", "width": 128, "dropout": 0.5}}, Seed(0)),
    "cnn": (
        {
            **TRAIN,
            "data": {"name": "digits", "layout": "image", "augment": ["crop", "flip"]},
            "model": {"name": "cnn", "batch_norm": False},
        },
        Seed(0),
    ),
    "label noise": ({**TRAIN, "data": {"name": "digits", "label_noise": 0.2}}, Seed(0)),
    "teacher": (
        {**TRAIN, "data": {"name": "teacher_student", "dim": 8}, "model": "random_features"},
        Seed(7),
    ),
    "epochs and full batch": ({**TRAIN, "steps": "3ep", "batch_size": None}, Seed(0)),
    "schedule": ({**TRAIN, "schedule": {"name": "step", "at": [0.5], "warmup": "5it"}}, Seed(0)),
    "record": (
        {**TRAIN, "record": {"at": {"every": "1ep"}, "on": ["test"], "probes": ["grad_norm"]}},
        Seed(0),
    ),
    "float64": ({**TRAIN, "dtype": "float64", "loss": "mse", "drop_last": True}, Seed(0)),
}


def made(config: dict[str, Any]) -> Procedure:
    problems: list[Problem] = []
    spec = build(PROCEDURES, config, (), problems)
    assert isinstance(spec, Procedure), problems
    return spec


def run(seed: Seed = FIRST, **changes: Any) -> Run[Procedure]:
    return Run(made({**TRAIN, **changes}), seed)


def ids() -> dict[str, dict[str, str]]:
    runs = {name: Run(made(config), seed) for name, (config, seed) in RUNS.items()}
    return {name: {"run_id": r.run_id, "batch_key": r.batch_key} for name, r in runs.items()}


# Identity.


def test_ids_are_the_ones_that_stores_hold() -> None:
    assert ids() == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_ids_are_16_hex_digits_and_differ() -> None:
    found = [pair["run_id"] for pair in ids().values()]
    assert len(set(found)) == len(RUNS)
    assert all(len(run_id) == 16 and int(run_id, 16) >= 0 for run_id in found)


class Inner(Spec):
    size: int = 3


class Before(Spec):
    name: ClassVar[str] = "thing"
    rate: Hyper = 0.5
    inner: Inner = Inner()
    parts: tuple[Inner, ...] = ()


class After(Spec):
    """`Before` with three fields added, each with a default, and in another order."""

    name: ClassVar[str] = "thing"
    added: int = 9
    parts: tuple[Inner, ...] = ()
    inner: Inner = Inner()
    rate: Hyper = 0.5
    also: Steps = Steps(3, "ep")
    listed: tuple[int, ...] = (1, 2)


class InnerRevised(Inner):
    revision: ClassVar[int] = 2


class Revised(Before):
    revision: ClassVar[int] = 2


@pytest.mark.parametrize(
    "fields", [{}, {"rate": 0.1}, {"inner": Inner(size=4)}, {"parts": (Inner(), Inner(size=1))}]
)
def test_a_new_field_with_a_default_changes_no_id(fields: dict[str, Any]) -> None:
    old, new = Before(**fields), After(**fields)
    assert Run(old, Seed(1)).run_id == Run(new, Seed(1)).run_id
    assert Run(old, Seed(1)).batch_key == Run(new, Seed(1)).batch_key
    assert Run(new.replace(added=8), Seed(1)).run_id != Run(new, Seed(1)).run_id
    assert Run(new.replace(also=Steps(4, "ep")), Seed(1)).run_id != Run(new, Seed(1)).run_id


def test_a_default_written_out_is_the_default() -> None:
    assert run(batch_size=128, schedule="constant").run_id == run().run_id
    assert run(model={"name": "mlp", "width": 64, "depth": 1}).run_id == run(model="mlp").run_id
    assert run(optimizer={"name": "sgd", "lr": 1}).run_id == (
        run(optimizer={"name": "sgd", "lr": 1.0}).run_id
    )


def test_a_revision_changes_ids_wherever_it_stands() -> None:
    plain = Run(Before(parts=(Inner(),)), Seed(0))
    changed = [
        Run(Revised(parts=(Inner(),)), Seed(0)),
        Run(Before(inner=InnerRevised(), parts=(Inner(),)), Seed(0)),
        Run(Before(parts=(InnerRevised(),)), Seed(0)),
    ]
    assert len({plain.run_id, *(r.run_id for r in changed)}) == 4
    assert len({plain.batch_key, *(r.batch_key for r in changed)}) == 4


def test_a_revision_of_a_component_that_is_a_default_changes_ids(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = ids()["smallest"]
    monkeypatch.setattr(SCHEDULES["constant"], "revision", 2)
    # Another length: specs are built once, and hold the canonical form that they were asked for.
    config = {**TRAIN, "steps": "21it", "schedule": {"name": "constant", "warmup": "0it"}}
    fresh = SCHEDULES["constant"](warmup=Steps(0, "it"))
    revised = made(config).replace(schedule=fresh, steps=Steps(20, "it"))
    assert Run(revised, Seed(0)).run_id != before["run_id"]


def test_ids_do_not_depend_on_the_order_of_keys() -> None:
    def reversed_keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: reversed_keys(item) for key, item in reversed(value.items())}
        return value

    for config, seed in RUNS.values():
        assert Run(made(reversed_keys(config)), seed).run_id == Run(made(config), seed).run_id
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})


def test_batch_key_erases_hypers_and_seed_and_nothing_else() -> None:
    base = run()
    same = [
        run(Seed(5)),
        run(Seed(5, 2, ("data",))),
        run(optimizer={"name": "sgd", "lr": 3.0}),
        run(optimizer={"name": "sgd", "lr": 0.1, "weight_decay": 0.5}),
        run(data={"name": "digits", "label_noise": 0.3}),
    ]
    split = [
        run(data={"name": "digits", "train": 100}),
        run(data={"name": "teacher_student"}),
        run(model={"name": "mlp", "width": 65}),
        run(model={"name": "mlp", "dropout": 0.1}),
        run(optimizer={"name": "momentum", "lr": 0.1}),
        run(schedule={"name": "cosine"}),
        run(steps="21it"),
        run(steps="20ep"),
        run(batch_size=64),
        run(batch_size=None),
        run(loss="mse"),
        run(dtype="float64"),
        run(record={"at": {"log": 3}}),
        run(record={"probes": ["loss"]}),
    ]
    assert {r.batch_key for r in same} == {base.batch_key}
    assert len({r.run_id for r in [base, *same]}) == len(same) + 1
    assert len({r.batch_key for r in [base, *split]}) == len(split) + 1
    assert len({r.run_id for r in [base, *split]}) == len(split) + 1


def test_seeds_in_the_id() -> None:
    assert run(Seed(1, 9)).run_id == run(Seed(1)).run_id, "no stream is fixed: base is not used"
    fixed = [
        run(Seed(1)),
        run(Seed(1, 0, ("data",))),
        run(Seed(1, 2, ("data",))),
        run(Seed(1, 0, ("data", "init"))),
    ]
    assert len({r.run_id for r in fixed}) == 4


# Strictness.


def problems_of(**changes: Any) -> list[Problem]:
    problems: list[Problem] = []
    build(PROCEDURES, {**TRAIN, **changes}, (), problems)
    return problems


@pytest.mark.parametrize(
    ("changes", "path", "says"),
    [
        ({"optimizer": {"name": "sgd", "lr": "0.1"}}, ("optimizer", "lr"), "valid number"),
        ({"optimizer": {"name": "sgd", "lr": True}}, ("optimizer", "lr"), "valid number"),
        ({"optimizer": {"name": "sgd", "lr": float("nan")}}, ("optimizer", "lr"), "finite"),
        ({"optimizer": {"name": "sgd", "lr": float("inf")}}, ("optimizer", "lr"), "finite"),
        ({"optimizer": {"name": "sgd", "lr": -1.0}}, ("optimizer", "lr"), "greater than 0"),
        ({"batch_size": True}, ("batch_size",), "valid integer"),
        ({"batch_size": 64.0}, ("batch_size",), "valid integer"),
        ({"batch_size": "64"}, ("batch_size",), "valid integer"),
        ({"drop_last": 1}, ("drop_last",), "valid boolean"),
        ({"drop_last": "no"}, ("drop_last",), "valid boolean"),
        ({"loss": "MSE"}, ("loss",), "'auto', 'cross_entropy', 'mse', "),
        ({"steps": 500}, ("steps",), "write 500it or 500ep"),
        ({"record": {"on": "train"}}, ("record", "on"), "valid tuple"),
        ({"record": {"on": ["tests"]}}, ("record", "on", 0), "'train', 'valid' or 'test'"),
        ({"schedule": {"name": "step", "at": [0.5, 2]}}, ("schedule", "at", 1), "equal to 1"),
        ({"record": {"at": {"log": 0}}}, ("record", "at", "log"), "greater than or equal to 1"),
        ({"model": 3}, ("model",), "not the name of a model"),
        ({"model": {"width": 3}}, ("model",), "needs a name"),
        ({"model": {"name": ["mlp"]}}, ("model", "name"), "not the name of a model"),
        ({"model": {"name": "mlpp"}}, ("model", "name"), "did you mean 'mlp'"),
        ({"model": "mlpp"}, ("model",), "did you mean 'mlp'"),
        ({"record": {"probes": ["los", "error"]}}, ("record", "probes", 0), "did you mean 'loss'"),
    ],
)
def test_values_are_taken_as_they_are(
    changes: dict[str, Any], path: tuple[str | int, ...], says: str
) -> None:
    found = problems_of(**changes)
    assert [problem.path for problem in found] == [path], found
    assert says in found[0].message


@pytest.mark.parametrize(
    ("changes", "path", "says"),
    [
        ({"stepz": "1it"}, ("stepz",), "unknown key 'stepz' of train; did you mean 'steps'?"),
        ({"model": {"name": "mlp", "widht": 3}}, ("model", "widht"), "did you mean 'width'?"),
        ({"record": {"att": {}}}, ("record", "att"), "did you mean 'at'?"),
        ({"record": {"at": {"logg": 3}}}, ("record", "at", "logg"), "did you mean 'log'?"),
    ],
)
def test_an_unknown_key_is_shown_with_the_close_one(
    changes: dict[str, Any], path: tuple[str | int, ...], says: str
) -> None:
    (problem,) = problems_of(**changes)
    assert problem.path == path
    assert problem.on_key
    assert says in problem.message
    assert "(known: " in problem.message


def test_every_mistake_is_found_at_once() -> None:
    found = problems_of(
        optimizer={"name": "sgd", "lr": "a", "foo": 1}, model={"name": "nope"}, batch_size=0
    )
    assert sorted(problem.path for problem in found) == [
        ("batch_size",),
        ("model", "name"),
        ("optimizer", "foo"),
        ("optimizer", "lr"),
    ]


def test_a_missing_field_is_named() -> None:
    problems: list[Problem] = []
    assert build(PROCEDURES, {"name": "train"}, ("x",), problems) is None
    assert [p.path for p in problems] == [("x",)] * 4
    text = " ".join(p.message for p in problems)
    assert all(repr(name) in text for name in ("data", "model", "optimizer", "steps"))


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError):
        made(TRAIN).batch_size = 3


def test_hyper_fields_are_the_marked_ones() -> None:
    assert hyper_fields(OPTIMIZERS["adam"]) == ("lr", "beta1", "beta2", "eps", "weight_decay")
    assert hyper_fields(DATA["digits"]) == ("label_noise",)
    assert hyper_fields(MODELS["mlp"]) == ()
    assert hyper_fields(After) == ("rate",)


# Lengths.


@pytest.mark.parametrize(
    ("text", "steps"), [("160ep", Steps(160, "ep")), ("500it", Steps(500, "it")), ("0it", None)]
)
def test_steps_parse(text: str, steps: Steps | None) -> None:
    parsed = Steps.parse(text)
    assert parsed == (steps or Steps(0, "it"))
    assert str(parsed) == text
    assert Steps.parse(parsed) is parsed


@pytest.mark.parametrize(
    "wrong",
    ["500", 500, 500.0, True, None, "5 it", "-5it", "5.5ep", "it", "5it ", "5epochs", ["5it"]],
)
def test_steps_refuse(wrong: object) -> None:
    with pytest.raises(ValueError, match="is not a length: write 160ep or 500it"):
        Steps.parse(wrong)


def test_steps_resolve() -> None:
    assert Steps(3, "ep").resolve(20) == 60
    assert Steps(3, "it").resolve(20) == 3


# Plain values and back.

# What a component needs to be built at all.
NEEDS: dict[str, dict[str, Any]] = {
    "hub": {"path": "someone/some-set"},
    "train": {key: value for key, value in TRAIN.items() if key != "name"},
    "lazy": {key: value for key, value in TRAIN.items() if key != "name"},
    **{name: {"data": {"name": "digits"}} for name in ("solve", "kernel", "gaussian_process")},
}
# Tried in this order on each field; the first that is valid and not the default is used.
TRIES: list[Any] = [
    7, 0.25, "7it", "he", "torch", "tanh", "mse", "float64", "flat", "image", "data/part",
    False, True, ["flip"], [0.25], ["loss"], ["test"], {"at": {"log": 3}}, "cosine", "adam",
    "linear", {"name": "gaussian", "dim": 3}, "epoch", "fixed", "half_squares", "3ep", 16, 3, 19,
    10, "unit", "input", "zeros", [5], "beale",
    "bfloat16", "shuffled", "fourier", "published", "ntk", "float32", "sgd", "mup",
    {"kind": "relu", "width": 5}, [1.0, 2.0], {"at": "5it", "wall": "1.5h"},
]  # fmt: skip

ALL_TABLES: list[Table[Any]] = [DATA, MODELS, OPTIMIZERS, SCHEDULES, PROBES, PROCEDURES]


def variants(table: Table[Any], name: str) -> Iterator[Spec]:
    """The component with its defaults, then with each field changed on its own."""
    plain: dict[str, Any] = {"name": name, **NEEDS.get(name, {})}
    first = build(table, plain, (), [])
    assert first is not None
    yield first
    for field, info in table[name].model_fields.items():
        if len(get_args(info.annotation)) == 1:
            continue  # a field of one value cannot be changed
        for value in TRIES:
            spec = build(table, {**plain, field: value}, (), [])
            if spec is not None and spec.canonical != first.canonical:
                yield spec
                break
        else:
            raise AssertionError(f"no value tried is valid for {name}.{field}: add one to TRIES")


@pytest.mark.parametrize(
    ("table", "name"), [(table, name) for table in ALL_TABLES for name in table.bundled]
)
def test_plain_config_round_trip(table: Table[Any], name: str) -> None:
    count = 0
    for spec in variants(table, name):
        problems: list[Problem] = []
        # Through JSON, as it crosses to a worker.
        again = build(table, json.loads(json.dumps(plain_config(spec))), (), problems)
        assert again == spec, problems
        assert again is not None
        assert again.canonical == spec.canonical
        count += 1
    kinds = [get_args(info.annotation) for info in table[name].model_fields.values()]
    assert count == 1 + sum(len(kind) != 1 for kind in kinds)


def test_columns_hold_every_field() -> None:
    columns = made(TRAIN).columns("config.")
    assert columns["config.name"] == "train"
    assert columns["config.model.name"] == "mlp"
    assert columns["config.model.width"] == 64
    assert columns["config.optimizer.lr"] == 0.1
    assert columns["config.schedule.warmup"] == "0it"
    assert columns["config.record.at.log"] == 20
    assert columns["config.steps"] == "20it"
    json.dumps(columns)


# Streams.


def test_purposes_are_independent() -> None:
    purposes = [*rng.STREAMS, "init/weights", "data/split", "data/labels", "noise/1.", "noise/2."]
    seeds = [Seed(value).of(purpose) for value in range(50) for purpose in purposes]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    one = torch.randn(20_000, generator=rng.stream(Seed(0), "init"))
    other = torch.randn(20_000, generator=rng.stream(Seed(0), "order"))
    assert torch.corrcoef(torch.stack([one, other]))[0, 1].abs() < 0.03  # 4 / sqrt(20,000)


def test_a_stream_begins_anew_each_time() -> None:
    first, second = (torch.randn(5, generator=rng.stream(Seed(3), "data")) for _ in range(2))
    assert torch.equal(first, second)


def test_fixed_streams_follow_the_base() -> None:
    one, other = (Seed(value, 0, ("data", "init")) for value in (1, 2))
    for purpose in ("data/split", "init/weights"):
        assert one.of(purpose) == other.of(purpose) == Seed(0).of(purpose)
    for purpose in ("order/epochs", "noise/augment"):
        assert one.of(purpose) == Seed(1).of(purpose) != other.of(purpose)


@pytest.mark.parametrize("purpose", ["", "weights", "Init", "weights/init"])
def test_an_unknown_stream_is_an_error(purpose: str) -> None:
    with pytest.raises(ValueError, match="use one of init, order, data, noise"):
        Seed(0).of(purpose)


def test_streams_draw_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    torch.rand(3, generator=rng.stream(Seed(0), "init"))
    rng.normal(rng.key(Seed(0), "noise"), (4,))
    assert torch.equal(before, torch.get_rng_state())


# Numbers that are a function of a key.

KEY = rng.key(Seed(0), "noise")


def test_the_numbers_are_the_ones_that_results_were_made_with() -> None:
    assert int(KEY) == 3888514000605158967
    assert int(rng.fold(KEY, 0)) == 2686325489164201892
    assert [int(number * 2**24) for number in rng.uniform(KEY, (4,))] == [
        2443198,
        5541795,
        7290701,
        4536335,
    ]


def test_uniform_is_uniform() -> None:
    numbers = rng.uniform(KEY, (1000, 200))
    assert numbers.shape == (1000, 200)
    assert numbers.dtype == torch.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    flat = numbers.double().flatten()
    # Four standard errors.
    assert (flat.mean() - 1 / 2).abs() < 4 * (1 / 12 / flat.numel()) ** 0.5
    assert (flat.var() - 1 / 12).abs() < 4 * (1 / 180 / flat.numel()) ** 0.5
    counts = torch.histc(flat, bins=100, min=0, max=1)
    assert 1e-3 < stats.chisquare(counts.numpy()).pvalue < 1 - 1e-3
    # And neighbours know nothing of each other.
    assert torch.corrcoef(torch.stack([flat[:-1], flat[1:]]))[0, 1].abs() < 4 / 200_000**0.5


def test_uniform_over_keys_is_uniform() -> None:
    # The first number of each step's key: what a run sees over time.
    firsts = torch.tensor([float(rng.uniform(rng.fold(KEY, n), (1,))) for n in range(5000)])
    counts = torch.histc(firsts, bins=50, min=0, max=1)
    assert 1e-3 < stats.chisquare(counts.numpy()).pvalue < 1 - 1e-3


def test_normal_is_normal() -> None:
    numbers = rng.normal(KEY, (100_000,), torch.float64)
    assert numbers.isfinite().all()
    assert stats.kstest(numbers.numpy(), "norm").pvalue > 1e-3
    assert (numbers.var() - 1).abs() < 4 * (2 / 100_000) ** 0.5


def test_uniform_is_the_same_in_every_type_and_a_prefix_of_itself() -> None:
    single, double = rng.uniform(KEY, (9,)), rng.uniform(KEY, (9,), torch.float64)
    assert torch.equal(single.double(), double)
    assert torch.equal(rng.uniform(KEY, (3, 3)).flatten(), single)
    assert torch.equal(rng.uniform(KEY, (4,)), single[:4])
    assert rng.uniform(KEY, ()).shape == ()


def test_uniform_lifts() -> None:
    keys = torch.stack([rng.key(Seed(value), "noise") for value in range(5)])
    for draw in (rng.uniform, rng.normal):
        together = torch.func.vmap(lambda key, draw=draw: draw(key, (3, 4)))(keys)
        for key, row in zip(keys, together, strict=True):
            assert torch.equal(draw(key, (3, 4)), row)
    assert together.unique().numel() == together.numel()


def test_fold_gives_distinct_keys() -> None:
    folded = [int(rng.fold(KEY, number)) for number in range(10_000)]
    assert len({*folded, int(KEY)}) == 10_001
    twice = [int(rng.fold(rng.fold(KEY, a), b)) for a in range(50) for b in range(50)]
    assert len({*twice, *folded}) == 2_500 + 10_000


def test_fold_takes_a_tensor_as_well() -> None:
    numbers = torch.tensor([0, 1, 2, 1000, 2**40])
    assert torch.func.vmap(lambda number: rng.fold(KEY, number))(numbers).tolist() == [
        int(rng.fold(KEY, int(number))) for number in numbers
    ]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(ids(), indent=2) + "\n", encoding="utf-8")
