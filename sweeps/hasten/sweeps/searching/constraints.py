"""Conditions on settings that a study's author writes: expressions that can compute, and nothing else.

A constraint names keys of the resolved recipe, swept or not: ``optimizer.lr * optimizer.batch <= 1``. It is
parsed once, reduced to the few kinds of syntax below, and evaluated by simpleeval on plain values. All
arithmetic is in floats, so that no expression can take more than a moment or a few bytes.
"""

from __future__ import annotations

import ast
import difflib
import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import simpleeval

from hasten.trainers.errors import ConfigError

_LONGEST: Final = 500  # characters
_LARGEST: Final = 100  # nodes of the syntax tree


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _numeric(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *values: function(*map(_number, values))


_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "min": _numeric(min),
    "max": _numeric(max),
    "abs": _numeric(abs),
    "log": _numeric(math.log),
    "exp": _numeric(math.exp),
    "sqrt": _numeric(math.sqrt),
}
_OPERATORS: Final[dict[type[ast.AST], Callable[..., Any]]] = {
    ast.Add: _numeric(operator.add),
    ast.Sub: _numeric(operator.sub),
    ast.Mult: _numeric(operator.mul),
    ast.Div: _numeric(operator.truediv),
    ast.FloorDiv: _numeric(operator.floordiv),
    ast.Mod: _numeric(operator.mod),
    ast.Pow: _numeric(math.pow),
    ast.USub: _numeric(operator.neg),
    ast.UAdd: _numeric(operator.pos),
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, options: value in options,
    ast.NotIn: lambda value, options: value not in options,
}
_SYNTAX: Final = (
    *(ast.Expression, ast.Load, ast.Name, ast.Constant, ast.Call, ast.Tuple, ast.List),
    *(ast.BoolOp, ast.And, ast.Or, ast.BinOp, ast.UnaryOp, ast.Compare, ast.IfExp),
    *_OPERATORS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A parsed condition; ``key`` is its place in the study, ``names`` the settings that it looks at."""

    key: str
    text: str
    tree: ast.expr
    names: frozenset[str]

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Whether it holds for the resolved ``settings`` by dotted key.

        One that looks at a key which is absent, or null, does not apply, and so holds. One that has no value
        there, as a division by zero or a logarithm of less than nothing, does not hold.

        Raises:
            ConfigError: it computes with something other than numbers, or is no condition.
        """
        if any(settings.get(name) is None for name in self.names):
            return True
        evaluator = simpleeval.EvalWithCompoundTypes(
            operators=dict(_OPERATORS),
            functions=dict(_FUNCTIONS),  # it adds some of its own to what it is given
            names={name: settings[name] for name in self.names},
        )
        try:
            value = evaluator.eval(self.text, previously_parsed=self.tree)
        except OverflowError:
            raise ConfigError(self.key, f"{self.text}: a number in it grows too large") from None
        except (ZeroDivisionError, ValueError):
            return False
        except TypeError as error:
            raise ConfigError(self.key, f"{self.text}: {error}") from None
        if not isinstance(value, bool):
            problem = f"{self.text}: gives {value!r}, not a condition"
            raise ConfigError(self.key, problem, "Compare it, for example: ... <= 1")
        return value


def parse(text: str, *, key: str, known: Collection[str]) -> Constraint:
    """The constraint that ``text`` means; ``known`` are the keys that it may look at.

    Raises:
        ConfigError: it is not an expression, uses more than arithmetic, or looks at an unknown key.
    """
    if len(text) > _LONGEST:
        raise ConfigError(key, f"has {len(text)} characters, at most {_LONGEST} are read")
    try:
        parsed = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ConfigError(key, f"{text}: is not an expression") from None
    if sum(1 for _ in ast.walk(parsed)) > _LARGEST:
        raise ConfigError(key, f"{text}: is too large, write it as several constraints")
    tree = _Dotted().visit(parsed)
    functions = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if problem := _refused(node):
            raise ConfigError(key, f"{text}: {problem}")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and node not in functions}
    for name in sorted(names - set(known)):
        close = difflib.get_close_matches(name, known, n=3)
        remedy = f"Do you mean {' or '.join(close)}?" if close else "Write keys in full: optimizer.lr"
        raise ConfigError(key, f"{text}: there is no setting {name}", remedy)
    return Constraint(key=key, text=text, tree=tree.body, names=frozenset(names))


class _Dotted(ast.NodeTransformer):
    """Turns ``optimizer.lr`` into one name, so that nothing is left that looks into objects."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        value = self.visit(node.value)
        return ast.Name(f"{value.id}.{node.attr}", ast.Load()) if isinstance(value, ast.Name) else node


def _refused(node: ast.AST) -> str | None:
    """Why a piece of syntax is not evaluated; None when it is harmless."""
    match node:
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
            return None
        case ast.Call():
            return f"the functions are {', '.join(_FUNCTIONS)}"
        case ast.Constant(value=value) if not isinstance(value, (bool, int, float, str)):
            return f"{value!r} is neither a number nor a text"
        case _ if not isinstance(node, _SYNTAX):
            return f"{type(node).__name__.lower()} is not arithmetic"
    return None
