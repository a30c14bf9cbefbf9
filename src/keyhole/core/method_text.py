"""The syntax of methods as text: `pqcache(subspaces=4, budget=0.1)`, stages joined by `+`.

Says nothing of which methods and options there are, so that it can be read before anything is imported.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from keyhole.core.errors import SpecError

_LONGEST = 1000
_SHOWN = 100
# What Python's parser raises for text that is no expression, too long a number or nested too deeply.
_NOT_PYTHON = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


class Term(NamedTuple):
    """One stage: the name of a method, and its options as Python values."""

    name: str
    options: dict[str, Any]


def read_terms(spec: str) -> list[Term]:
    """The stages of a pipeline.

    Raises:
        SpecError: not of that form, or an option is given twice.
    """
    if len(spec) > _LONGEST:
        raise _unreadable(spec)
    try:
        nodes = _summands(ast.parse(spec.strip(), mode="eval").body)
    except _NOT_PYTHON as error:
        raise _unreadable(spec) from error
    return [_term(node, spec) for node in nodes]


def split_specs(text: str) -> list[str]:
    """The parts of a comma-separated list; commas within parentheses do not separate."""
    return [part.strip() for part in re.split(r",(?![^(]*\))", text) if part.strip()]


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown word: the known one that is meant, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names)}"


def _summands(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_summands(node.left), *_summands(node.right)]
    return [node]


def _term(node: ast.expr, spec: str) -> Term:
    keywords: list[ast.keyword] = []
    if isinstance(node, ast.Call) and not node.args:
        node, keywords = node.func, node.keywords
    if not isinstance(node, ast.Name):
        raise _unreadable(spec)
    options: dict[str, Any] = {}
    for keyword in keywords:
        if keyword.arg is None:
            raise _unreadable(spec)
        if keyword.arg in options:
            raise SpecError(f"{node.id}: option {keyword.arg!r} is given twice; keep one of them")
        options[keyword.arg] = _value(keyword.value, spec)
    return Term(node.id, options)


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
