"""Methods as text: `pqcache(subspaces=4, budget=0.1)`, and pipelines such as `sale + pqcache`."""

from __future__ import annotations

import ast
import difflib
from typing import Any

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.methods.base import Method
from keyhole.methods.registry import METHODS

_BUDGET_OPTIONS = ("mass", "floor", "cap")
_LONGEST = 1000
_SHOWN = 100

# What Python's parser raises for text that is no expression, too long a number or nested too deeply.
_NOT_PYTHON = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


def parse_stages(spec: str) -> tuple[Method, ...]:
    """Read the stages of a pipeline.

    Raises:
        SpecError: not of that form, an unknown method or option, or a value out of range.
    """
    if len(spec) > _LONGEST:
        raise _unreadable(spec)
    try:
        terms = _terms(ast.parse(spec.strip(), mode="eval").body)
    except _NOT_PYTHON as error:
        raise _unreadable(spec) from error
    return tuple(_stage(node, spec) for node in terms)


def _terms(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_terms(node.left), *_terms(node.right)]
    return [node]


def _stage(node: ast.expr, spec: str) -> Method:
    keywords: list[ast.keyword] = []
    if isinstance(node, ast.Call) and not node.args:
        node, keywords = node.func, node.keywords
    if not isinstance(node, ast.Name):
        raise _unreadable(spec)
    kind = METHODS.get(node.id)
    if kind is None:
        raise SpecError(f"unknown method {node.id!r}{_nearest(node.id, METHODS)}")
    options: dict[str, Any] = {}
    for keyword in keywords:
        if keyword.arg is None:
            raise _unreadable(spec)
        if keyword.arg in options:
            raise SpecError(f"{kind.name}: option {keyword.arg!r} is given twice; keep one of them")
        options[keyword.arg] = _value(keyword.value, spec)
    return make_method(kind, options)


def make_method(kind: type[Method], options: dict[str, Any]) -> Method:
    """Build a method from options as users write them; `mass`, `floor` and `cap` belong to its budget."""
    options = dict(options)
    known = list(kind.options())
    allowed = known + (list(_BUDGET_OPTIONS) if "budget" in known else [])
    for option, value in options.items():
        if option in kind.renamed:
            raise kind.renaming(option, value)
        if option not in allowed:
            raise SpecError(f"{kind.name} has no option {option!r}{_nearest(option, allowed)}")
    mass = {name: options.pop(name) for name in _BUDGET_OPTIONS if name in options}
    if mass:
        if "mass" not in mass or "budget" in options:
            raise SpecError(
                f"{kind.name}: mass stands in place of budget, floor and cap go with mass; give only those"
            )
        options["budget"] = Budget(**mass)
    return kind(**options)


def _value(node: ast.expr, spec: str) -> Any:
    if isinstance(node, ast.Name):
        return {"true": True, "false": False}.get(node.id, node.id)
    try:
        return ast.literal_eval(node)
    except _NOT_PYTHON as error:
        raise _unreadable(spec) from error


def _unreadable(spec: str) -> SpecError:
    shown = spec if len(spec) <= _SHOWN else spec[:_SHOWN] + "..."
    return SpecError(
        f"cannot read the method {shown!r}; write it like pqcache(budget=0.1), stages joined by +"
    )


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}"
