"""The suite grammar: what each construct expands to, and what each mistake is told."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raybench.errors import RaybenchError, SuiteError, UsageError
from raybench.plan import distinct
from raybench.suite import Planned, Suite, load, parse, parse_value, read

HEAD = """\
version: 1
name: tiny
base:
  procedure: train
  data: {name: digits, train: 50, valid: 20}
  model: {name: mlp, width: 8}
  optimizer: {name: sgd, lr: 0.1}
  steps: 20it
"""


def suite(body: str = "", scale: str | None = None, head: str = HEAD, **overrides: Any) -> Suite:
    changes = {key.replace("__", "."): value for key, value in overrides.items()}
    return load(parse(head + body, "suite.yaml"), scale, changes)


def column(made: Suite, name: str) -> list[Any]:
    return [planned.run.procedure.columns()[name] for planned in made.runs]


def labels(made: Suite, name: str = "case") -> list[Any]:
    return [planned.labels.get(name) for planned in made.runs]


def told(body: str, head: str = HEAD, scale: str | None = None) -> list[str]:
    """The first line of each mistake."""
    with pytest.raises(SuiteError) as caught:
        _ = suite(body, scale, head).runs
    return [line.splitlines()[0] for line in caught.value.lines]


# Axes.


def test_no_sweep_is_one_run() -> None:
    assert len(suite().runs) == 1


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("[1, 2, 4]", [1, 2, 4]),
        ("[5]", [5]),
        ("{range: [1, 4]}", [1, 2, 3, 4]),
        ("{range: [1, 9, 4]}", [1, 5, 9]),
        ("{range: [1, 8, 4]}", [1, 5]),
        ("{range: [4, 1, -1]}", [4, 3, 2, 1]),
        ("{pow2: [0, 4]}", [1, 2, 4, 8, 16]),
        ("{linspace: [1, 9], num: 3, round: true}", [1, 5, 9]),
        ("{logspace: [0, 2], num: 3, round: true}", [1, 10, 100]),
        ("{geomspace: [2, 200], num: 3, round: true}", [2, 20, 200]),
        ("{linspace: [1, 2], num: 9, round: true}", [1, 2]),
    ],
)
def test_axes_of_whole_numbers(axis: str, values: list[int]) -> None:
    assert column(suite(f"sweep: [{{model.width: {axis}}}]"), "model.width") == values


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("{linspace: [0.5, 1.5], num: 3}", [0.5, 1.0, 1.5]),
        ("{logspace: [-2, 0], num: 3}", [0.01, 0.1, 1.0]),
        ("{geomspace: [0.001, 10], num: 5}", [0.001, 0.01, 0.1, 1.0, 10.0]),
        ("{pow2: [-2, 1]}", [0.25, 0.5, 1.0, 2.0]),
    ],
)
def test_axes_of_numbers(axis: str, values: list[float]) -> None:
    found = column(suite(f"sweep: [{{optimizer.lr: {axis}}}]"), "optimizer.lr")
    assert found == pytest.approx(values)
    assert (found[0], found[-1]) == (values[0], values[-1]), "the ends are exact"


def test_axes_multiply_with_the_last_fastest() -> None:
    made = suite("sweep:\n  - model.width: [1, 2]\n  - optimizer.lr: [0.1, 0.2, 0.3]\nseeds: 2")
    found = list(zip(column(made, "model.width"), column(made, "optimizer.lr"), strict=True))
    assert found == [pair for pair in itertools.product([1, 2], [0.1, 0.2, 0.3]) for _ in "ab"]
    assert [planned.run.seed.value for planned in made.runs] == [0, 1] * 6


def test_a_list_in_an_axis_is_a_value() -> None:
    made = suite("sweep: [{data.augment: [[], [crop], [crop, flip]]}]")
    assert column(made, "data.augment") == [[], ["crop"], ["crop", "flip"]]


def test_zip_moves_together() -> None:
    made = suite("sweep: [{zip: {model.width: {pow2: [0, 2]}, optimizer.lr: [0.1, 0.2, 0.3]}}]")
    found = list(zip(column(made, "model.width"), column(made, "optimizer.lr"), strict=True))
    assert found == [(1, 0.1), (2, 0.2), (4, 0.3)]


def test_cases_have_labels() -> None:
    made = suite(
        "sweep:\n"
        "  - cases: {sgd: {optimizer: {name: sgd, lr: 0.1}}, 1: {optimizer: adam}}\n"
        "  - cases: {small: {model.width: 2}, large: {model: {width: 9}}, none: {}}\n"
        "    as: size\n"
    )
    assert labels(made) == ["sgd"] * 3 + ["1"] * 3
    assert labels(made, "size") == ["small", "large", "none"] * 2
    assert column(made, "optimizer.name") == ["sgd"] * 3 + ["adam"] * 3
    assert column(made, "model.width") == [2, 9, 8] * 2


def test_a_case_may_sweep() -> None:
    made = suite(
        "sweep:\n"
        "  - cases:\n"
        "      sgd: {optimizer: sgd, sweep: [{optimizer.lr: [0.1, 0.2]}, {model.width: [1, 2]}]}\n"
        "      adam: {optimizer: adam, sweep: [{cases: {a: {}, b: {}}, as: inner}]}\n"
    )
    assert labels(made) == ["sgd"] * 4 + ["adam"] * 2
    assert labels(made, "inner") == [None] * 4 + ["a", "b"]
    assert column(made, "optimizer.lr")[:4] == [0.1, 0.1, 0.2, 0.2]


def test_a_case_in_a_case_keeps_both_names() -> None:
    body = "sweep: [{cases: {a: {sweep: [{cases: {x: {}, y: {}}}]}, b: {}}}]"
    (line,) = told(body)
    assert "both called 'case'" in line


# What sets and what replaces.


def test_a_mapping_with_a_name_replaces_and_one_without_merges() -> None:
    merged = suite("sweep: [{cases: {a: {data: {valid: 5}}}}]")
    assert column(merged, "data.train") == [50]
    assert column(merged, "data.valid") == [5]
    replaced = suite("sweep: [{cases: {a: {data: {name: digits, valid: 5}}}}]")
    assert column(replaced, "data.train") == [None]


def test_a_name_alone_is_the_component() -> None:
    made = suite("sweep: [{optimizer: [adam, {name: adam, lr: 0.5}, sgd]}]")
    assert column(made, "optimizer.name") == ["adam", "adam", "sgd"]
    assert column(made, "optimizer.lr") == [0.001, 0.5, 0.01], "nothing of the base is left"


def test_a_field_of_a_component_that_was_given_by_name() -> None:
    head = HEAD.replace("{name: mlp, width: 8}", "mlp")
    assert column(suite("sweep: [{model.width: [3]}]", head=head), "model.width") == [3]
    assert column(suite(head=head, model__width=4), "model.width") == [4]


def test_dotted_keys_and_mappings_are_the_same() -> None:
    head = HEAD.replace("  steps: 20it", "  steps: 20it\n  record.at.log: 3\n  model.depth: 2")
    nested = HEAD.replace("  steps: 20it", "  steps: 20it\n  record: {at: {log: 3}}").replace(
        "width: 8", "width: 8, depth: 2"
    )
    assert suite(head=head).runs[0].run.run_id == suite(head=nested).runs[0].run.run_id


# Derive, vars, skip.


def test_derive_follows_the_axes() -> None:
    made = suite(
        "vars: {each: 4}\nsweep: [{model.width: [4, 8]}]\n"
        "derive: {model.depth: model.width // vars.each, batch_size: 'model.depth * 16'}"
    )
    assert column(made, "model.depth") == [1, 2]
    assert column(made, "batch_size") == [16, 32]


def test_vars_are_no_part_of_a_run() -> None:
    made = suite("vars: {unused: 1}")
    assert made.runs[0].run.run_id == suite().runs[0].run.run_id
    swept = suite("sweep: [{vars.k: [1, 2]}]\nderive: {model.width: vars.k * 3}")
    assert column(swept, "model.width") == [3, 6]


def test_derive_sees_defaults() -> None:
    assert column(suite("derive: {batch_size: batch_size // 2}"), "batch_size") == [64]


def test_skip_keeps_the_run_with_its_reason() -> None:
    made = suite(
        "sweep: [{optimizer: [sgd, adam]}, {model.width: [1, 2]}]\n"
        "skip:\n"
        "  - {if: optimizer.name == 'sgd' and model.width == 2, because: not in the paper}\n"
        "  - {if: model.width > 1, because: too wide}\n"
    )
    assert [planned.skipped for planned in made.runs] == ["", "not in the paper", "", "too wide"]
    assert len(distinct(made.runs)) == 2


def test_skip_of_what_could_not_be_built() -> None:
    body = "sweep: [{model: [mlp, linear]}, {model.width: [1, 2]}]\n"
    with pytest.raises(SuiteError, match="unknown key 'width' of linear"):
        _ = suite(body).runs
    made = suite(body + "skip: [{if: model.name == 'linear', because: has no width}]")
    assert column(made, "model.name")[:2] == ["mlp", "mlp"]
    assert all(planned.skipped == "has no width" for planned in made.runs[2:])
    assert len(distinct(made.runs)) == 2


# Seeds.


@pytest.mark.parametrize(
    ("seeds", "values", "fixed"),
    [
        ("3", [0, 1, 2], ()),
        ("{count: 2, base: 10}", [10, 11], ()),
        ("{count: 2, fix: [order, data]}", [0, 1], ("data", "order")),
        ("{count: 2, vary: [init]}", [0, 1], ("data", "noise", "order")),
        ("{count: 1, vary: []}", [0], ("data", "init", "noise", "order")),
        ("{fix: []}", [0], ()),
    ],
)
def test_seeds(seeds: str, values: list[int], fixed: tuple[str, ...]) -> None:
    made = suite(f"seeds: {seeds}")
    assert [planned.run.seed.value for planned in made.runs] == values
    assert {planned.run.seed.fixed for planned in made.runs} == {fixed}


def test_more_seeds_keep_the_first_runs() -> None:
    few, more = (suite(f"seeds: {count}").runs for count in (2, 5))
    assert [p.run.run_id for p in more][:2] == [p.run.run_id for p in few]


# Scales and overrides.

SCALES = """\
sweep: [{model.width: [1, 2, 3]}]
seeds: 2
limits: {runs: 50, hours: 2}
scales:
  paper: {seeds: 9}
  laptop:
    base: {data: {train: 20}, steps: 5it}
    limits: {runs: 7}
    sweep: [{optimizer.lr: [0.5]}]
"""


def test_a_scale_merges_its_base_and_replaces_the_rest() -> None:
    made = suite(SCALES)
    assert made.scale == "laptop", "the default"
    assert column(made, "data.train") == [20, 20]
    assert column(made, "steps") == ["5it", "5it"]
    assert column(made, "model.width") == [8, 8], "the sweep is another one"
    assert (made.limits.runs, made.limits.hours) == (7, 2)
    paper = suite(SCALES, "paper")
    assert len(paper.runs) == 27
    assert column(paper, "data.train") == [50] * 27
    assert paper.scale == "paper"


def test_the_scale_that_is_chosen() -> None:
    assert suite().scale == ""
    assert suite("scales: {paper: {}, other: {}}").scale == "paper"
    with pytest.raises(UsageError, match="no scale 'papr'; did you mean 'paper'"):
        suite(SCALES, "papr")


def test_overrides() -> None:
    assert len(suite(SCALES, "paper", seeds=3).runs) == 9
    assert suite(SCALES, resources__lanes=1).resources.lanes == 1
    assert suite(SCALES, seeds__count=4).seeds.count == 4
    assert suite(SCALES, seeds__base=4).seeds.count == 2
    assert column(suite(SCALES, "paper", model__width=[5, 6], seeds=1), "model.width") == [5, 6]
    assert column(suite(SCALES, "paper", model__width=7, seeds=1), "model.width") == [7]
    assert column(suite(SCALES, optimizer__weight_decay=0.5), "optimizer.weight_decay") == [0.5] * 2
    assert column(suite(SCALES, base__loss="mse"), "loss") == ["mse"] * 2
    assert column(suite(SCALES, optimizer="adam"), "optimizer.name") == ["adam"] * 2
    assert suite(SCALES, limits__runs=3).limits.runs == 3


def test_an_override_wins_over_the_base_and_over_cases() -> None:
    assert column(suite(optimizer__lr=0.7), "optimizer.lr") == [0.7]
    body = "sweep: [{cases: {a: {optimizer.lr: 0.2}, b: {}}}]"
    assert column(suite(body, optimizer__lr=0.7), "optimizer.lr") == [0.7, 0.7]


def test_a_wrong_override_is_told_as_one() -> None:
    with pytest.raises(SuiteError) as caught:
        _ = suite(model__widht=3).runs
    (line,) = caught.value.lines
    assert "unknown key 'widht' of mlp; did you mean 'width'?" in line
    assert "the command line" in line
    assert "version: 1" not in line, "line 1 of the file has nothing to do with it"


def test_the_file_is_not_changed_by_loading_it() -> None:
    source = parse(HEAD + SCALES, "suite.yaml")
    before = repr(source.values)
    ids = [p.run.run_id for p in load(source).runs]
    load(source, "paper", {"seeds.count": 3, "model.width": [1], "optimizer.lr": 0.3})
    assert repr(source.values) == before
    assert [p.run.run_id for p in load(source).runs] == ids


# How many there are.


@pytest.mark.parametrize("case", range(30))
def test_counts_multiply_and_no_id_is_twice(case: int) -> None:
    draw = random.Random(case)
    keys = ["model.width", "optimizer.lr", "batch_size", "data.train", "model.depth"]
    axes, expected = [], 1
    for key in draw.sample(keys, draw.randint(1, 3)):
        length = draw.randint(1, 4)
        values = [(i + 1) / 4 if key == "optimizer.lr" else i + 1 for i in range(length)]
        axes.append(f"  - {key}: {values}")
        expected *= length
    inner = draw.randint(1, 3)
    sums = draw.randint(0, 3)
    if sums:
        cases = [f"c{i}: {{steps: {i + 1}it}}" for i in range(sums)]
        cases.append(
            f"n: {{sweep: [{{optimizer.weight_decay: {[0.1 * i for i in range(inner)]}}}]}}"
        )
        axes.append(f"  - cases: {{{', '.join(cases)}}}")
        expected *= sums + inner
    seeds = draw.randint(1, 4)
    made = suite("sweep:\n" + "\n".join(axes) + f"\nseeds: {seeds}")
    assert len(made.runs) == expected * seeds
    assert len({planned.run.run_id for planned in made.runs}) == expected * seeds
    assert len(distinct(made.runs)) == len(made.runs)


def test_bundled_suites_expand() -> None:
    files = sorted((Path(__file__).parent.parent / "raybench" / "suites").glob("*.yaml"))
    assert files
    for file in files:
        made = load(read(file))
        assert made.runs
        assert made.name.replace("-", "_") == file.stem


# YAML 1.2, strictly.


def test_yaml_values() -> None:
    source = parse(
        "a: 1e-3\nb: on\nc: no\nd: 12:30\ne: 0o17\nf: 010\ng: true\nh: null\ni: ~\nj: 1_000\n"
        "k: '1'\nl: -.inf\nm: 2024-01-01x\nn: yes\no: |\n  two\n  lines\n",
        "suite.yaml",
    )
    found = source.values
    assert found["a"] == 0.001
    assert [found[key] for key in "bcdn"] == ["on", "no", "12:30", "yes"]
    assert (found["e"], found["f"]) == (15, 10)
    assert found["g"] is True
    assert found["h"] is found["i"] is None
    assert (found["k"], found["l"], found["o"]) == ("1", -math.inf, "two\nlines\n")
    assert all(type(found[key]) in (int, float, str, bool, type(None)) for key in found)


def test_overrides_are_yaml_too() -> None:
    given = ["1e-3", "on", "[1, 2]", "{name: adam}", "text", "12:30"]
    assert [parse_value(text) for text in given] == [
        0.001, "on", [1, 2], {"name": "adam"}, "text", "12:30",
    ]  # fmt: skip


def refused(text: str) -> str:
    with pytest.raises(SuiteError) as caught:
        parse(text, "suite.yaml")
    return caught.value.lines[0]


@pytest.mark.parametrize(
    ("text", "begins", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "suite.yaml:3:1: ", 'duplicate key "a"'),
        ("a: {b: 1, b: 2}\n", "suite.yaml:1:11: ", 'duplicate key "b"'),
        ("a: !!python/object/apply:os.system [ls]\n", "suite.yaml:1:", "not a plain value"),
        ("a: !custom 3\n", "suite.yaml:1:", "not a plain value"),
        ("a: !!set {x, y}\n", "suite.yaml:1:", "not a plain value"),
        ("a: !!binary aGVsbG8=\n", "suite.yaml:1:", "not a plain value"),
        ("a: 2024-01-01\n", "suite.yaml:1:4: ", "not a plain value"),
        ("- a\n", "suite.yaml:1:1: ", "a suite is a mapping"),
        ("", "suite.yaml:1:1: ", "a suite is a mapping"),
        ("a: [1, 2\nb: 3\n", "suite.yaml:2:", ""),
        ("a:\n\t- 1\n", "suite.yaml:2:1: ", ""),
        ("a: *nowhere\n", "suite.yaml:1:4: ", "undefined alias"),
        ("a: 1\n--- \nb: 2\n", "suite.yaml:2:1: ", ""),
        ("? [1, 2]\n: 3\n? {a: b}\n: c\nd: @x\n", "suite.yaml:5:4: ", ""),
        ("a: " + "[" * 1000 + "\n", "suite.yaml: ", "not YAML"),
    ],
)
def test_yaml_refused(text: str, begins: str, says: str) -> None:
    line = refused(text)
    assert line.startswith(begins), line
    assert says in line, line


def test_alias_bombs_are_refused() -> None:
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 12)]
    bomb = "l0: &l0 [1]\n" + "\n".join(levels)
    assert "more than 200,000 values" in refused(bomb)


def test_aliases_are_values(tmp_path: Path) -> None:
    made = suite("x-widths: &w [1, 2]\nsweep: [{model.width: *w}, {model.depth: *w}]")
    assert len(made.runs) == 4


def test_files_are_bounded_and_text(tmp_path: Path) -> None:
    large, binary = tmp_path / "large.yaml", tmp_path / "binary.yaml"
    large.write_text("x" * 1_000_001)
    binary.write_bytes(b"a: \xff\xfe")
    with pytest.raises(SuiteError, match=r"1,000,001 bytes; a suite has at most 1,000,000"):
        read(large)
    with pytest.raises(SuiteError, match="not UTF-8"):
        read(binary)


# Mistakes.


def test_three_mistakes_are_told_together() -> None:
    with pytest.raises(SuiteError) as caught:
        suite("seedz: 3\nsweep:\n  - model.width: 5\nlimits: {runs: many}\n")
    assert str(caught.value) == (
        "suite.yaml:9:1: seedz: unknown key 'seedz'; did you mean 'seeds'? (known: base, "
        "checkpoint, derive, description, figures, limits, name, paper, resources, scales, search, "
        "seeds, skip, sweep, tune, vars, version)\n"
        "    9 | seedz: 3\n"
        "      | ^^^^^\n"
        "suite.yaml:11:18: sweep[0].model.width: 5 is not an axis: write a list, or "
        "{KIND: [first, last]} (range, linspace, logspace, geomspace, pow2)\n"
        "   11 |   - model.width: 5\n"
        "      |                  ^\n"
        "suite.yaml:12:16: limits.runs: 'many': input should be a valid integer\n"
        "   12 | limits: {runs: many}\n"
        "      |                ^^^^\n"
        "3 errors"
    )


def test_three_mistakes_in_the_runs_are_told_together_and_once() -> None:
    body = (
        "sweep:\n"
        "  - cases:\n"
        "      a: {optimizer: {name: sgd, lr: -1}}\n"
        "      b: {model.widht: 3}\n"
        "  - data.label_noise: [0.0, 0.1]\n"
        "seeds: 3\n"
    )
    head = HEAD.replace("steps: 20it", "steps: 20")
    assert told(body, head) == [
        "suite.yaml:8:10: base.steps: 20 is not a length: write 160ep or 500it "
        "(write 20it or 20ep)",
        "suite.yaml:11:38: sweep[0].cases.a.optimizer.lr: -1: input should be greater than 0",
        "suite.yaml:12:11: sweep[0].cases.b.model.widht: unknown key 'widht' of mlp; "
        "did you mean 'width'? (known: activation, depth, dropout, init, width, widths)",
    ]


@pytest.mark.parametrize(
    ("body", "line"),
    [
        # Unknown keys at each level.
        ("seedz: 3", "9:1: seedz: unknown key 'seedz'; did you mean 'seeds'?"),
        ("limits: {run: 3}", "9:10: limits.run: unknown key 'run'; did you mean 'runs'?"),
        ("tune: {select: {mod: max}}", "9:17: tune.select.mod: unknown key 'mod'; did you mean"),
        ("scales: {s: {bases: {}}}", "9:14: scales.s.bases: unknown key 'bases'; did you mean"),
        ("scales: {s: {version: 1}}", "9:14: scales.s.version: unknown key 'version'"),
        (
            "sweep: [{modle.width: [1]}]",
            "9:10: sweep[0].modle.width: unknown key 'modle' of train; did",
        ),
        (
            "sweep: [{model.widht: [1]}]",
            "9:10: sweep[0].model.widht: unknown key 'widht' of mlp;",
        ),
        (
            "sweep: [{cases: {a: {}}, az: b}]",
            "9:26: sweep[0].az: unknown key 'az' of cases (known: as,",
        ),
        (
            "sweep: [{model.width: {pow2: [0, 1], num: 2}}]",
            "9:38: sweep[0].model.width.num: unknown key 'num' of pow2",
        ),
        (
            "sweep: [{model: [mlpp]}]",
            "9:18: sweep[0].model[0].name: unknown model 'mlpp'; did you mean",
        ),
        ("sweep: [{procedure: [trane]}]", "9:22: sweep[0].procedure[0]: unknown procedure 'trane'"),
        # Wrong types and values.
        ("seeds: many", "9:8: seeds: seeds is a mapping of count, base, vary, fix, not 'many'"),
        ("seeds: true", "9:8: seeds: seeds is a mapping of"),
        ("seeds: 0", "9:8: seeds.count: 0: input should be greater than or equal to 1"),
        ("seeds: {vary: [init], fix: [data]}", "9:8: seeds: seeds take `vary` or `fix`, not both"),
        ("seeds: {fix: [weights]}", "9:15: seeds.fix[0]: 'weights': input should be 'init'"),
        ("limits: {runs: -1}", "9:16: limits.runs: -1: input should be greater than or equal to 1"),
        (
            "limits: 5",
            "9:9: limits: limits is a mapping of runs, hours, gpu_hours, disk_gb, "
            "failures, wall_s, not 5",
        ),
        ("resources: {lanes: lots}", "9:20: resources.lanes"),
        (
            "resources: {ranks: 0}",
            "9:20: resources.ranks: 0: input should be greater than or equal to 1",
        ),
        ("resources: {custom: {gadget: 0}}", "9:30: resources.custom.gadget: 0: input should be"),
        (
            "resources: {custom: {gpu: 1}}",
            "9:12: resources: custom: GPU has a field of its own, gpu",
        ),
        ("resources: {gpu: 1.5}", "9:12: resources: gpu 1.5: a share is below 1, more is a whole"),
        ("resources: {placement: heap}", "9:24: resources.placement: 'heap': input should be"),
        ("scales: [1]", "9:9: scales: scales is a mapping: {laptop: {...}, paper: {...}}"),
        ("scales: {a: 1}", "9:9: scales: scales is a mapping: {laptop: {...}, paper: {...}}"),
        ("vars: 3", "9:7: vars: vars is a mapping, not 3"),
        # Axes.
        ("sweep: {model.width: [1]}", "9:8: sweep: a sweep is a list of axes, such as"),
        ("sweep: [3]", "9:9: sweep[0]: an axis is `key: values`, `zip: {...}` or `cases: {...}`"),
        ("sweep: [{}]", "9:9: sweep[0]: an axis is `key: values`"),
        ("sweep: [{a: [1], b: [2]}]", "9:18: sweep[0].b: an axis has one key; use `zip` for keys"),
        ("sweep: [{model.width: []}]", "9:23: sweep[0].model.width: an axis needs at least one"),
        ("sweep: [{model.width: 3}]", "9:23: sweep[0].model.width: 3 is not an axis: write a list"),
        (
            "sweep: [{model.width: {range: [1]}}]",
            "9:31: sweep[0].model.width.range: range needs [first, last] or [first, last, step]",
        ),
        ("sweep: [{model.width: {range: [1, 9, 0]}}]", "9:31: sweep[0].model.width.range: range"),
        ("sweep: [{model.width: {range: [1, 9999999]}}]", "9:31: sweep[0].model.width.range: ran"),
        ("sweep: [{model.width: {range: [0.5, 3]}}]", "9:31: sweep[0].model.width.range: range"),
        ("sweep: [{model.width: {range: [5, 1]}}]", "9:31: sweep[0].model.width.range: "),
        ("sweep: [{model.width: {pow2: [5, 2]}}]", "9:30: sweep[0].model.width.pow2: "),
        ("sweep: [{model.width: {pow2: [0, 16000]}}]", "9:30: sweep[0].model.width.pow2: "),
        ("sweep: [{model.width: {linspace: [1, 2]}}]", "9:23: sweep[0].model.width: linspace ne"),
        ("sweep: [{optimizer.lr: {geomspace: [0, 1], num: 3}}]", "9:36: sweep[0].optimizer.lr.ge"),
        ("sweep: [{optimizer.lr: {logspace: [0, 999], num: 3}}]", "9:35: sweep[0].optimizer.lr.l"),
        (
            "sweep: [{model.width: {linspace: [1, .inf], num: 3, round: true}}]",
            "9:34: sweep[0].model.width.linspace: ",
        ),
        (
            "sweep: [{zip: {model.width: [1, 2], model.depth: [1]}}]",
            "9:15: sweep[0].zip: zipped lists differ in length: model.width has 2, model.depth has",
        ),
        ("sweep: [{zip: 3}]", "9:15: sweep[0].zip: zip needs keys with lists"),
        ("sweep: [{cases: [a, b]}]", "9:17: sweep[0].cases: cases are named"),
        ("sweep: [{cases: {}}]", "9:17: sweep[0].cases: cases are named"),
        ("sweep: [{cases: {a: 3}}]", "9:21: sweep[0].cases.a: case 'a' is a mapping of what it se"),
        (
            "sweep:\n  - cases: {a: {}}\n  - cases: {b: {}}",
            "11:5: sweep[1]: two axes of cases are both called 'case'; give one `as: OTHER`",
        ),
        # Search and tune.
        (
            "tune: {select: {metric: test/loss}}",
            "9:25: tune.select.metric: 'test/loss': string should match pattern",
        ),
        (
            "tune: {method: bayes}",
            "9:16: tune.method: 'bayes': input should be 'random', 'random_state'",
        ),
        ("tune: {trials: 0}", "9:16: tune.trials: 0: input should be greater than or equal to 1"),
        (
            "search: {optimizer.lr: {log_uniform: [1, 0.1]}}\ntune: {}",
            "9:38: search.optimizer.lr.log_uniform: log_uniform needs [low, high] with low < high",
        ),
        (
            "search: {optimizer.lr: {log_uniform: [0, 1]}}\ntune: {}",
            "9:38: search.optimizer.lr.log_uniform: log_uniform needs two positive numbers",
        ),
        (
            "search: {optimizer.lr: {loguniform: [0.1, 1]}}\ntune: {}",
            "9:25: search.optimizer.lr.loguniform: unknown distribution 'loguniform'; did you mean",
        ),
        (
            "search: {model.width: {int: [1.5, 3]}}\ntune: {}",
            "9:29: search.model.width.int: int needs two whole numbers",
        ),
        (
            "search: {model.width: {int: [1, .inf]}}\ntune: {}",
            "9:29: search.model.width.int: ",
        ),
        (
            "search: {model.width: {uniform: [true, 3]}}\ntune: {}",
            "9:33: search.model.width.uniform: uniform needs [low, high]",
        ),
        (
            "search: {optimizer.lr: 0.1}\ntune: {}",
            "9:24: search.optimizer.lr: a search space is one",
        ),
        ("search: 3\ntune: {}", "9:9: search: search is a mapping"),
        ("search: {optimizer.lr: {uniform: [0.1, 1]}}", "9:1: search: a `search` needs a `tune`"),
        (
            "search: {optimizer.lr: {uniform: [0.1, 1]}}\ntune: {method: grid}",
            "10:7: tune: a grid needs `choice` for every key, and optimizer.lr has none",
        ),
        (
            "search: {optimizer.lrr: {uniform: [0.1, 1]}}\ntune: {trials: 2}",
            "9:10: search.optimizer.lrr: unknown key 'lrr' of sgd; did you mean 'lr'?",
        ),
        # Expressions.
        (
            "skip: [{if: 'a +', because: x}]",
            "9:13: skip[0].if: expression 'a +': not an expression",
        ),
        (
            "skip: [{if: 'open(1)', because: x}]",
            "9:13: skip[0].if: expression 'open(1)': only thes",
        ),
        ("skip: [{if: 'a.b > 1', because: x}]", "9:13: skip[0].if: 'a.b > 1': unknown name 'a.b'"),
        ("skip: [{if: 'True'}]", "9:8: skip[0]: a skip has two keys: `if` and `because`"),
        ("skip: {if: 'True', because: x}", "9:7: skip: skip is a list of {if: CONDITION, because:"),
        ("derive: {model.width: b * 2}", "9:23: derive.model.width: 'b * 2': unknown name 'b'"),
        ("derive: {model.width: 1 / 0}", "9:23: derive.model.width: '1 / 0': division by zero"),
        (
            "derive: {model.widht: 3}",
            "9:10: derive.model.widht: unknown key 'widht' of mlp; did you",
        ),
        (
            "derive: {model.width: 3 / 2}",
            "9:23: derive.model.width: 1.5: input should be a valid in",
        ),
        ("derive: [1]", "9:9: derive: derive is a mapping"),
    ],
)
def test_each_kind_of_mistake(body: str, line: str) -> None:
    lines = told(body + "\n")
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"suite.yaml:{line}"), lines[0]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("version: 1", "version: 2", "1:10: version: version: 1 is the grammar"),
        ("version: 1", "version: true", "1:10: version: version: 1 is the grammar"),
        ("version: 1\n", "", "1:1: version: version: 1 is the grammar"),
        ("name: tiny", "name: ../escape", "2:7: name: name: letters, digits, - and _ only"),
        ("name: tiny", "name: 3", "2:7: name: name: letters, digits, - and _ only"),
        ("  procedure: train\n", "", "procedure; set base.procedure: train"),
        ("{name: mlp, width: 8}", "{width: 8}", "6:10: base.model: a model needs a name"),
        ("{name: mlp, width: 8}", "3", "6:10: base.model: 3 is not the name of a model"),
        ("{name: mlp, width: 8}", "{name: mlp, width: a}", "6:29: base.model.width: 'a': input"),
        ("  steps: 20it\n", "", "train needs a value for 'steps'"),
        ("20it", "20", "8:10: base.steps: 20 is not a length: write 160ep or 500it"),
        ("lr: 0.1", "lr: '0.1'", "7:30: base.optimizer.lr: '0.1': input should be a valid number"),
        ("lr: 0.1", "lr: .nan", "7:30: base.optimizer.lr: nan: input should be a finite number"),
    ],
)
def test_each_kind_of_mistake_at_the_top(old: str, new: str, line: str) -> None:
    assert old in HEAD
    lines = told("", HEAD.replace(old, new))
    assert len(lines) == 1, lines
    assert line in lines[0], lines[0]


def test_a_suite_needs_a_base() -> None:
    assert told("", "version: 1\nname: x\n") == [
        "suite.yaml:1:1: : a suite needs `base`: what all its runs share"
    ]


def test_a_scale_is_held_to_the_same_names() -> None:
    for name in ("../../escape", "a/b", "3.5", "''"):
        (line,) = told(f"scales: {{laptop: {{name: {name}}}}}")
        assert "letters, digits, - and _ only" in line


@pytest.mark.parametrize("scale", ["../up", "a/b", "''", "."])
def test_a_scale_names_a_file(scale: str) -> None:
    (line,) = told(f"scales: {{{scale}: {{seeds: 2}}}}")
    assert line.startswith("suite.yaml:9:")


def test_a_mistake_under_a_scale_is_shown_where_it_is() -> None:
    body = "limits: {runz: 3}\nscales:\n  laptop:\n    limits: {hours: 1}\n"
    (line,) = told(body)
    assert line.startswith("suite.yaml:9:10: limits.runz: unknown key 'runz'")
    (line,) = told("limits: {runs: 3}\nscales:\n  laptop:\n    limits: {hourz: 1}\n")
    assert line.startswith("suite.yaml:12:14: scales.laptop.limits.hourz: unknown key 'hourz'")
    (line,) = told("scales:\n  laptop:\n    base: {model: {widht: 1}}\n")
    assert line.startswith("suite.yaml:11:20: scales.laptop.base.model.widht: unknown key 'widht'")


@pytest.mark.parametrize("section", ["tune", "limits", "resources"])
def test_a_section_of_the_wrong_kind_under_a_scale(section: str) -> None:
    (line,) = told(f"{section}: [1]\nscales: {{laptop: {{{section}: {{}}}}}}\n")
    assert line.startswith(("suite.yaml:9:", "suite.yaml:10:"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seeds.count", "x"), ("limits", 3), ("limits.runs", "x"), ("sweep", 3), ("tune", "x"),
        ("skip", 1), ("name", "../up"), ("version", 2), ("seeds.count.x", 1), ("sweep.x", 1),
        ("model", 3), ("", 3), ("a..b", 3), (".", 3), ("scales", 3),
    ],
)  # fmt: skip
def test_an_override_of_the_wrong_kind_is_told(key: str, value: object) -> None:
    with pytest.raises(RaybenchError):
        _ = suite(**{key: value}).runs


def test_an_override_inside_what_is_no_mapping_is_told() -> None:
    for text, key in (("seeds: abc\n", "seeds.count"), ("limits: [1]\n", "limits.runs")):
        with pytest.raises(RaybenchError):
            suite(text, **{key: 3})


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "9" * 5000, "1e999"])
def test_numbers_without_bound_are_told(number: str) -> None:
    with pytest.raises(SuiteError):
        _ = suite(f"sweep: [{{model.width: [{number}]}}]").runs


# Whatever is written, a suite or a message comes of it.

LARGE = (
    HEAD
    + """\
vars: {factor: 2}
x-note: anything
sweep:
  - model.width: {pow2: [0, 3]}
  - zip: {data.label_noise: [0.0, 0.1], model.depth: [1, 2]}
  - cases:
      sgd: {optimizer: {name: sgd}, search: {optimizer.lr: {log_uniform: [1e-3, 1]}}}
      adam:
        optimizer: adam
        search: {optimizer.lr: {log_uniform: [1e-4, 0.1]}, optimizer.beta1: {choice: [0.8, 0.9]}}
    as: method
skip: [{if: "optimizer.name == 'sgd' and model.width == 1", because: not in the paper}]
derive: {batch_size: "model.width * vars.factor"}
tune: {method: random, trials: 2, select: {metric: valid/loss, mode: min}, confirm: {seeds: 2}}
seeds: {count: 2, fix: [data]}
limits: {runs: 5000}
resources: {lanes: auto}
scales:
  laptop: {base: {data: {valid: 10}}, limits: {hours: 1}}
  paper: {tune: {trials: 3}}
"""
)

PIECES = [
    ":", "-", "{", "}", "[", "]", ",", "'", '"', "\n", "  ", "\t", "#", "&a ", "*a", "!!set ", "? ",
    "1", "-1", "0", "1e999", ".nan", ".inf", "null", "true", "{}", "[]", "''", "name: x", "|", ">",
    "%", "@", "\x00", "é", "9" * 30, "0.5", "model", "cases", "sweep", "zip", "<<: ", "---",
]  # fmt: skip


def mutated(text: str, draw: random.Random) -> str:
    for _ in range(draw.randint(1, 3)):
        lines = text.split("\n")
        at, line = draw.randrange(len(text)), draw.randrange(len(lines))
        kind = draw.randrange(7)
        if kind == 0:
            text = text[:at] + text[at + draw.randint(1, 4) :]
        elif kind == 1:
            text = text[:at] + draw.choice(PIECES) + text[at:]
        elif kind == 2:
            text = text[:at] + draw.choice(PIECES) + text[at + 1 :]
        elif kind == 3:
            text = "\n".join(lines[:line] + lines[line + 1 :])
        elif kind == 4:
            text = "\n".join([*lines[:line], lines[line], *lines[line:]])
        elif kind == 5:
            other = draw.randrange(len(lines))
            lines[line], lines[other] = lines[other], lines[line]
            text = "\n".join(lines)
        else:
            key, colon, _ = lines[line].partition(": ")
            if colon:
                lines[line] = key + colon + draw.choice(PIECES)
                text = "\n".join(lines)
    return text


def outcome(text: str) -> str:
    try:
        made = load(parse(text, "suite.yaml"))
        return "runs" if made.runs else "no runs"
    except SuiteError as error:
        assert error.lines
        assert str(error).endswith(("error", "errors"))
        return "refused"
    except Exception as error:  # noqa: BLE001  (the very thing that must not happen)
        return f"{type(error).__name__}: {error}\n{text}"


def test_the_suite_that_is_mutated_is_valid() -> None:
    made = suite(LARGE.removeprefix(HEAD))
    # 4 widths x 2 levels x 2 methods x 2 trials
    assert len(made.runs) == 32
    assert sum(1 for planned in made.runs if planned.skipped) == 4
    assert made.num_confirmations == (16 - 2) * 2


def test_mutated_suites_expand_or_are_refused() -> None:
    draw = random.Random(0)
    found = Counter(outcome(mutated(LARGE, draw)) for _ in range(300))
    told = {"runs", "no runs", "refused"}
    assert not found.keys() - told, "\n\n".join(found.keys() - told)
    assert found["runs"] > 10, found
    assert found["refused"] > 100, found


# Tuning.

TUNE = """\
sweep:
  - cases:
      sgd: {optimizer: {name: sgd}}
      adam: {optimizer: {name: adam}}
search: {optimizer.lr: {log_uniform: [1e-4, 1]}, optimizer.weight_decay: {uniform: [0, 0.1]}}
"""


def tuned(tune: str = "", body: str = TUNE) -> Suite:
    return suite(f"{body}tune: {{trials: 6, confirm: {{seeds: 3}}{tune}}}\nseeds: {{base: 5}}\n")


def drawn(made: Suite, arm: str) -> list[tuple[float, float]]:
    return [
        (c["optimizer.lr"], c["optimizer.weight_decay"])  # type: ignore[misc]
        for planned in made.runs
        if planned.labels["arm"] == arm
        for c in [planned.run.procedure.columns()]
    ]


@pytest.mark.parametrize("method", ["random", "halton", "sobol"])
def test_points_are_paired_and_in_bounds(method: str) -> None:
    made = tuned(f", method: {method}")
    assert [arm.name for arm in made.arms] == ["sgd", "adam"]
    assert drawn(made, "sgd") == drawn(made, "adam")
    points = drawn(made, "sgd")
    assert len(set(points)) == 6
    assert all(1e-4 <= lr <= 1 and 0 <= decay <= 0.1 for lr, decay in points)
    assert {p.labels["phase"] for p in made.runs} == {"search"}
    assert [p.labels["trial"] for p in made.runs] == [*range(6)] * 2


@pytest.mark.parametrize("method", ["random", "halton", "sobol"])
def test_more_trials_extend_the_search(method: str) -> None:
    few = tuned(f", method: {method}").runs
    more = suite(f"{TUNE}tune: {{trials: 11, method: {method}}}\nseeds: {{base: 5}}\n").runs
    assert {p.run.run_id for p in few} < {p.run.run_id for p in more}


def test_other_seeds_and_methods_draw_other_points() -> None:
    kinds = ["", ", seed: 1", ", method: halton", ", method: sobol"]
    assert len({tuple(drawn(tuned(kind), "sgd")) for kind in kinds}) == 4


def test_random_points_fill_the_space() -> None:
    made = suite(f"{TUNE}tune: {{trials: 400}}\n")
    logs = sorted(math.log10(lr) / 4 + 1 for lr, _ in drawn(made, "sgd"))
    largest = max(abs(u - (i + 0.5) / 400) for i, u in enumerate(logs))
    assert largest < 1.63 / 400**0.5  # Kolmogorov-Smirnov at 1 %


def test_a_grid_goes_through_the_choices() -> None:
    made = suite(
        "search: {optimizer.lr: {choice: [0.1, 0.2]}, model.width: {choice: [1, 2, 3]}}\n"
        "tune: {method: grid}\n"
    )
    found = list(zip(column(made, "optimizer.lr"), column(made, "model.width"), strict=True))
    assert found == list(itertools.product([0.1, 0.2], [1, 2, 3]))


def test_whole_numbers_are_drawn_with_both_ends() -> None:
    made = suite("search: {model.width: {int: [1, 3]}}\ntune: {trials: 60}\n")
    assert set(column(made, "model.width")) == {1, 2, 3}


def test_arms_are_named_by_cases_and_axes() -> None:
    body = TUNE.replace("search:", "  - model.width: [1, 2]\nsearch:")
    names = ["sgd/model.width=1", "sgd/model.width=2", "adam/model.width=1", "adam/model.width=2"]
    assert [arm.name for arm in tuned("", body).arms] == names


def search(made: Suite, arm: str) -> list[Planned]:
    return [planned for planned in made.runs if planned.labels["arm"] == arm]


def values(made: Suite, mode: int = 1) -> dict[str, float]:
    """Trial 4 of sgd and trial 1 of adam are the best."""
    best = {"sgd": 4, "adam": 1}
    return {
        p.run.run_id: mode * (0.5 if p.labels["trial"] == best[str(p.labels["arm"])] else 2.0)
        for p in made.runs
    }


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_confirmations_take_the_best(mode: str, sign: int) -> None:
    made = tuned(f", select: {{mode: {mode}}}")
    runs, lost = made.confirmations(values(made, sign))
    assert lost == []
    assert len(runs) == made.num_confirmations == 6
    for arm, trial in (("sgd", 4), ("adam", 1)):
        own = [p for p in runs if p.labels["arm"] == arm]
        assert [p.labels["phase"] for p in own] == ["confirm"] * 3
        assert {p.labels["trial"] for p in own} == {trial}
        assert {p.labels["case"] for p in own} == {arm}
        assert {p.run.procedure for p in own} == {search(made, arm)[trial].run.procedure}


def test_confirmations_use_fresh_seeds() -> None:
    made = tuned(", seeds: 4")
    runs, _ = made.confirmations(values(made))
    used = {p.run.seed.value for p in made.runs}
    fresh = {p.run.seed.value for p in runs}
    assert used == {5, 6, 7, 8}
    assert len(fresh) == 3
    assert not used & fresh
    assert not {p.run.run_id for p in made.runs} & {p.run.run_id for p in runs}


def test_the_mean_over_seeds_is_what_counts() -> None:
    made = tuned(", seeds: 2")
    given = dict.fromkeys((p.run.run_id for p in made.runs), 1.0)
    own = search(made, "sgd")
    given[own[0].run.run_id] = 0.0  # trial 0: mean of 0 and 9
    given[own[1].run.run_id] = 9.0
    given[own[6].run.run_id] = given[own[7].run.run_id] = 0.9  # trial 3
    runs, _ = made.confirmations(given)
    assert {p.labels["trial"] for p in runs if p.labels["arm"] == "sgd"} == {3}


def test_a_search_that_is_not_complete_confirms_nothing() -> None:
    made = tuned()
    given = values(made)
    missing = search(made, "sgd")[2].run.run_id
    del given[missing]
    runs, lost = made.confirmations(given)
    assert {p.labels["arm"] for p in runs} == {"adam"}
    assert lost == []
    assert made.confirmations({}) == ([], [])


@pytest.mark.parametrize("mode", ["min", "max"])
def test_an_arm_in_which_all_diverged_is_lost(mode: str) -> None:
    made = tuned(f", select: {{mode: {mode}}}")
    given = values(made)
    for planned in search(made, "adam"):
        given[planned.run.run_id] = math.inf
    runs, lost = made.confirmations(given)
    assert lost == ["adam"]
    assert {p.labels["arm"] for p in runs} == {"sgd"}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_trial_that_diverged_is_never_the_best(mode: str) -> None:
    made = tuned(f", select: {{mode: {mode}}}")
    given = dict.fromkeys((p.run.run_id for p in made.runs), math.inf)
    for arm in ("sgd", "adam"):
        given[search(made, arm)[5].run.run_id] = 3.0
    runs, lost = made.confirmations(given)
    assert lost == []
    assert {p.labels["trial"] for p in runs} == {5}


def test_a_suite_without_tune_has_nothing_to_confirm() -> None:
    assert suite().confirmations({}) == ([], [])
    assert suite().num_confirmations == 0


def test_mistakes_of_sections_and_of_runs_are_told_together() -> None:
    text = HEAD.replace("name: sgd", "name: sgdd") + "limits: {runs: many}\n"
    text += "sweep: [{model.widht: [1, 2]}]\ntune: {trials: 0}\n"
    with pytest.raises(SuiteError) as caught:
        load(parse(text, "suite.yaml"))
    said = "\n".join(caught.value.lines)
    assert len(caught.value.lines) == 4
    for mistake in ("'sgdd'", "limits.runs", "sweep[0].model.widht: unknown key", "tune.trials"):
        assert mistake in said
