"""Bounded arithmetic over a run's values, for `derive` and `skip`: never Python.

An expression is parsed to Python's syntax tree and walked; what is not listed here is refused.
Its length, its nodes, its exponents and the size of its numbers are bounded, so that a suite from
a stranger can neither run code nor hang.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

Scalar: TypeAlias = bool | int | float | str | None

MAX_LENGTH: Final = 500
MAX_NODES: Final = 120
MAX_EXPONENT: Final = 64
MAX_NUMBER: Final = 2**63

FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "min": min, "max": max, "abs": abs, "round": round, "int": int, "float": float,
    "sqrt": math.sqrt, "log": math.log, "log2": math.log2, "exp": math.exp,
    "ceil": math.ceil, "floor": math.floor, "len": len,
}  # fmt: skip

_BINARY: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARE: Final[Mapping[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


class ExpressionError(ValueError):
    """An expression that cannot be read or evaluated; the message says why."""


class Expression:
    """A checked expression; `evaluate` gives its value for a run.

    Args:
        text: such as `model.width // 32` or `optimizer.name == 'sgd' and model.width > 3`.

    Raises:
        ExpressionError: it is too long, cannot be parsed, or uses what is not allowed.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > MAX_LENGTH:
            raise ExpressionError(f"longer than {MAX_LENGTH} characters")
        try:
            self._body = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            why = error.msg if isinstance(error, SyntaxError) else "too deeply nested"
            raise ExpressionError(f"not an expression ({why})") from None
        if sum(1 for _ in ast.walk(self._body)) > MAX_NODES:
            raise ExpressionError(f"more than {MAX_NODES} terms")
        self.names: set[str] = set()
        self._check(self._body)

    def evaluate(self, lookup: Callable[[str], Scalar]) -> Any:
        """Return the value, with each dotted name given by `lookup` (KeyError if unknown)."""
        try:
            return self._value(self._body, lookup)
        except KeyError as error:
            raise ExpressionError(f"unknown name {error.args[0]!r}") from None
        except (ArithmeticError, TypeError, ValueError) as error:
            if isinstance(error, ExpressionError):
                raise
            raise ExpressionError(str(error)) from None

    def _check(self, node: ast.AST) -> None:
        if isinstance(node, ast.Name | ast.Attribute):
            self.names.add(_dotted(node))
            return
        if isinstance(node, ast.Call):
            if not (isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS):
                raise ExpressionError(f"only these can be called: {', '.join(FUNCTIONS)}")
            if node.keywords:
                raise ExpressionError("calls take no keywords")
            children: list[ast.AST] = list(node.args)
        elif isinstance(node, ast.Constant):
            if not isinstance(node.value, bool | int | float | str | None):
                raise ExpressionError(f"{node.value!r} is not a number or a text")
            _bounded(node.value)
            return
        elif isinstance(node, _ALLOWED):
            children = [c for c in ast.iter_child_nodes(node) if not isinstance(c, _SIGNS)]
        else:
            raise ExpressionError(f"{type(node).__name__} is not allowed")
        for child in children:
            self._check(child)

    def _value(  # noqa: C901  (one flat case for each kind of node)
        self, node: ast.AST, lookup: Callable[[str], Scalar]
    ) -> Any:
        def value(child: ast.AST) -> Any:
            return self._value(child, lookup)

        match node:
            case ast.Constant():
                return node.value
            case ast.Name() | ast.Attribute():
                return lookup(_dotted(node))
            case ast.List() | ast.Tuple():
                return [value(item) for item in node.elts]
            case ast.BinOp():
                return _binary(node.op, value(node.left), value(node.right))
            case ast.UnaryOp(op=ast.Not()):
                return not value(node.operand)
            case ast.UnaryOp():
                return (
                    -value(node.operand) if isinstance(node.op, ast.USub) else +value(node.operand)
                )
            case ast.BoolOp():
                ends = isinstance(node.op, ast.Or)
                result: Any = not ends
                for part in node.values:
                    result = value(part)
                    if bool(result) == ends:
                        break
                return result
            case ast.Compare():
                left = value(node.left)
                for op, right_node in zip(node.ops, node.comparators, strict=True):
                    right = value(right_node)
                    if not _COMPARE[type(op)](left, right):
                        return False
                    left = right
                return True
            case ast.IfExp():
                return value(node.body) if value(node.test) else value(node.orelse)
            case ast.Call(func=ast.Name(id=name)):
                return _bounded(FUNCTIONS[name](*(value(argument) for argument in node.args)))
        raise ExpressionError(f"{type(node).__name__} is not allowed")


_ALLOWED = (ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.List, ast.Tuple)
_SIGNS = (*_BINARY, *_COMPARE, ast.UAdd, ast.USub, ast.Not, ast.And, ast.Or, ast.Load)


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        name = node.id
    elif isinstance(node, ast.Attribute):
        name = f"{_dotted(node.value)}.{node.attr}"
    else:
        raise ExpressionError("only dotted names of a run's values can be looked up")
    if "__" in name:
        raise ExpressionError(f"{name!r} is not the name of a value")
    return name


def _binary(op: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(left, str | list) or isinstance(right, str | list):
        raise ExpressionError("arithmetic is for numbers, not for texts or lists")
    if isinstance(op, ast.Pow) and abs(right) > MAX_EXPONENT:
        raise ExpressionError(f"an exponent is at most {MAX_EXPONENT}, not {right}")
    return _bounded(_BINARY[type(op)](left, right))


def _bounded(value: Any) -> Any:
    if isinstance(value, complex):
        raise ExpressionError("the result is not a real number")
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise ExpressionError("a whole number is at most 2**63")
    return value
