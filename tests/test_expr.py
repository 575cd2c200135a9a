"""Expressions of `derive` and `skip`: right values, and nothing else than bounded arithmetic."""

from __future__ import annotations

import math
from typing import Any

import pytest

from raybench.procedures import PROCEDURES
from raybench.suite.config import look_up
from raybench.suite.expr import (
    FUNCTIONS,
    MAX_EXPONENT,
    MAX_LENGTH,
    MAX_NODES,
    MAX_NUMBER,
    Expression,
    ExpressionError,
)

VALUES: dict[str, Any] = {
    "model.width": 48,
    "optimizer.name": "adam",
    "optimizer.lr": 0.125,
    "data.augment": ["flip"],
    "flag": True,
    "nothing": None,
}


def value(text: str) -> Any:
    return Expression(text).evaluate(VALUES.__getitem__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Precedence, as in Python.
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("-2 ** 2", -4),
        ("2 ** 3 ** 2", 512),
        ("2 ** -1", 0.5),
        ("10 - 4 - 3", 3),
        ("7 // 2 * 2", 6),
        ("-7 // 2", -4),
        ("-7 % 3", 2),
        ("7 / 2", 3.5),
        ("+3", 3),
        ("1 + 1 == 2 and 3 > 2", True),
        ("not 1 == 2", True),
        ("not False and False", False),
        ("True or False and False", True),
        ("1 if 0 else 2 if 0 else 3", 3),
        # Comparison, chained too.
        ("1 < 2 < 3", True),
        ("1 < 3 < 2", False),
        ("1 <= 1 >= 2", False),
        ("1 != 2 != 1", True),
        ("'a' < 'b'", True),
        ("2 in [1, 2]", True),
        ("2 not in (1, 3)", True),
        ("'flip' in data.augment", True),
        ("'ada' in optimizer.name", True),
        # Names of a run's values.
        ("model.width // 32", 1),
        ("  model.width  ", 48),
        ("optimizer.name == 'adam' and optimizer.lr >= 0.1", True),
        ("optimizer.name in ['sgd', 'nag']", False),
        ("nothing == None", True),
        ("flag and 5", 5),
        ("nothing or 5", 5),
        ("[1, model.width]", [1, 48]),
        # Functions.
        ("min(3, model.width, 5)", 3),
        ("max([1, 4, 2])", 4),
        ("abs(-3)", 3),
        ("round(2.6)", 3),
        ("round(1 / 3, 2)", 0.33),
        ("int(3.9)", 3),
        ("int('12')", 12),
        ("float(3)", 3.0),
        ("sqrt(16)", 4.0),
        ("log(1)", 0.0),
        ("log2(8)", 3.0),
        ("exp(0)", 1.0),
        ("ceil(1.2)", 2),
        ("floor(-1.2)", -2),
        ("len(data.augment)", 1),
        ("2 ** 62 * 2", 2**63),
        ("1e-3 * 1e3", 1.0),
    ],
)
def test_values(text: str, expected: object) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_every_function_has_a_value_here() -> None:
    given = test_values.pytestmark[0].args[1]
    assert all(any(f"{name}(" in text for text, _ in given) for name in FUNCTIONS)


def test_logic_stops_where_the_answer_is_known() -> None:
    assert value("flag or unknown.name") is True
    assert value("nothing and unknown.name") is None
    assert value("1 if flag else unknown.name") == 1
    assert value("1 > 2 > unknown.name") is False


def test_names_are_known_before_a_run_is() -> None:
    assert Expression("a.b + min(c, 2) if not d else e.f.g").names == {"a.b", "c", "d", "e.f.g"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("__import__('os')", "only these can be called"),
        ("open('/etc/passwd')", "only these can be called"),
        ("eval('1')", "only these can be called"),
        ("model.width.bit_length()", "only these can be called"),
        ("(lambda: 1)()", "only these can be called"),
        ("min(1, 2, key=abs)", "no keywords"),
        ("min(*[1, 2])", "Starred is not allowed"),
        ("max(**{})", "no keywords"),
        ("[*data.augment]", "Starred is not allowed"),
        ("lambda: 1", "Lambda is not allowed"),
        ("[x for x in data.augment]", "ListComp is not allowed"),
        ("{x for x in data.augment}", "SetComp is not allowed"),
        ("{x: 1 for x in data.augment}", "DictComp is not allowed"),
        ("min(x for x in data.augment)", "GeneratorExp is not allowed"),
        ("f'{model.width}'", "JoinedStr is not allowed"),
        ("(x := 1)", "NamedExpr is not allowed"),
        ("{1: 2}", "Dict is not allowed"),
        ("{1, 2}", "Set is not allowed"),
        ("data.augment[0]", "Subscript is not allowed"),
        ("'abc'[0:1]", "Subscript is not allowed"),
        ("(1).real", "only dotted names"),
        ("'a'.upper", "only dotted names"),
        ("min(1, 2).real", "only dotted names"),
        ("[1].append", "only dotted names"),
        ("model.__class__", "'model.__class__' is not the name"),
        ("__builtins__", "'__builtins__' is not the name"),
        ("model.__init__.__globals__", "is not the name"),
        ("yield", "not an expression"),
        ("await x", "Await is not allowed|not an expression"),
        ("1 is 1", "."),
        ("5 & 3", "is not allowed"),
        ("5 | 3", "is not allowed"),
        ("1 << 60", "is not allowed"),
        ("~5", "Invert is not allowed"),
        ("a @ b", "is not allowed"),
        ("b'bytes'", "is not a number or a text"),
        ("...", "is not a number or a text"),
        ("2j", "is not a number or a text"),
        ("import os", "not an expression"),
        ("x = 1", "not an expression"),
        ("1; 2", "not an expression"),
        ("1\n2", "not an expression"),
        ("", "not an expression"),
        ("model.width //", "not an expression"),
        ("'unclosed", "not an expression"),
        ("\0", "not an expression"),
    ],
)
def test_refused_when_read(text: str, says: str) -> None:
    with pytest.raises(ExpressionError, match=says):
        Expression(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("unknown", "unknown name 'unknown'"),
        ("model.depth", "unknown name 'model.depth'"),
        ("1 / 0", "division by zero"),
        ("1 % 0", "modulo by zero"),
        ("0 ** -1", "."),
        ("1 + 'a'", "arithmetic is for numbers"),
        ("'a' + 'b'", "arithmetic is for numbers"),
        ("'%d' % 3", "arithmetic is for numbers"),
        ("[1] * 3", "arithmetic is for numbers"),
        ("data.augment + data.augment", "arithmetic is for numbers"),
        ("nothing + 1", "."),
        ("nothing ** nothing", "."),
        ("-'a'", "."),
        ("1 < 'a'", "not supported"),
        ("1 in 2", "."),
        ("(0 - 1) ** 0.5", "not a real number"),
        ("sqrt(-1)", "math domain error|nonnegative"),
        ("log(0)", "math domain error|positive"),
        ("min()", "."),
        ("min([])", "."),
        ("len(3)", "."),
        ("int('x')", "."),
        ("round(1, 'a')", "."),
        ("exp(1000)", "range|Overflow"),
        ("1e300 ** 2", "."),
        ("ceil(1e308 * 10)", "."),
        ("int(float('nan'))", "."),
        ("sqrt(1, 2)", "."),
    ],
)
def test_refused_when_evaluated(text: str, says: str) -> None:
    expression = Expression(text)
    with pytest.raises(ExpressionError, match=says):
        expression.evaluate(VALUES.__getitem__)


# What would take all time or memory if it were carried out.


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "9**9**9**9",
        "(-9)**9**9",
        "2 ** 64",
        "10 ** 19",
        f"2.0 ** {MAX_EXPONENT + 1}",
        f"2.0 ** -{MAX_EXPONENT + 1}",
        "'a' * 9999999",
        "9999999 * 'a'",
        "[0] * 9999999",
        "[[0] * 9999] * 9999",
        f"{MAX_NUMBER} * 2",
        f"-{MAX_NUMBER} - 1",
        f"{MAX_NUMBER} * {MAX_NUMBER} * {MAX_NUMBER}",
        "9" * 400,
        "0x" + "f" * 400,
        "int('" + "9" * 400 + "')",
        "int(1e300)",
        "round(1e300)",
        "ceil(1e300)",
        "(" * 240 + "1" + ")" * 240,
        "[" * 240 + "]" * 240,
        "-" * 450 + "1",
        "not " * 120 + "1",
        "+".join("1" * 200),
        "1" + " " * MAX_LENGTH,
        "a" * (MAX_LENGTH + 1),
        "1 if 1 else " * 41 + "1",
        ".".join("a" * 230),
    ],
)
def test_bounds(text: str) -> None:
    with pytest.raises(ExpressionError):
        value(text)


def test_bounds_do_not_refuse_what_is_just_inside() -> None:
    assert value(f"2.0 ** {MAX_EXPONENT}") == 2.0**MAX_EXPONENT
    assert value(str(MAX_NUMBER)) == MAX_NUMBER
    assert value("1" + " " * (MAX_LENGTH - 1)) == 1
    assert value("+".join("1" * 40)) == 40
    assert MAX_NODES == 120


def test_an_expression_error_says_what_and_not_where_in_python() -> None:
    with pytest.raises(ExpressionError) as caught:
        value("1 / (model.width - 48)")
    assert str(caught.value) == "division by zero"
    assert math.isfinite(value("1 / model.width"))


# Looking up a run's values.

CONFIG: dict[str, Any] = {
    "procedure": "train",
    "data": {"name": "digits", "train": 100},
    "model": "mlp",
    "optimizer": {"name": "sgd", "lr": 0.1},
    "steps": "20it",
    "vars": {"scale": 3},
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("procedure", "train"),
        ("data", "digits"),
        ("data.name", "digits"),
        ("data.train", 100),
        ("data.valid", 0),
        ("data.layout", "flat"),
        ("model", "mlp"),
        ("model.name", "mlp"),
        ("model.width", 64),
        ("optimizer.lr", 0.1),
        ("optimizer.weight_decay", 0.0),
        ("schedule.name", "constant"),
        ("batch_size", 128),
        ("dtype", "float32"),
        ("loss", "auto"),
        ("steps", "20it"),
        ("record.at.log", 20),
        ("record.at.linear", None),
        ("record.on", ("train", "valid", "test")),
        ("vars.scale", 3),
    ],
)
def test_a_name_is_looked_up_with_defaults(name: str, expected: object) -> None:
    assert look_up(CONFIG, PROCEDURES, name) == expected


@pytest.mark.parametrize(
    "name",
    [
        "nothing", "model.nothing", "model.beta1", "optimizer.lr.more", "data.train.more",
        "vars.other", "schedule.factor", "record.model_dump", "record.at.steps",
        "model.module", "record.on.count", "batch_size.real",
    ],
)  # fmt: skip
def test_only_fields_can_be_looked_up(name: str) -> None:
    with pytest.raises(KeyError):
        look_up(CONFIG, PROCEDURES, name)
