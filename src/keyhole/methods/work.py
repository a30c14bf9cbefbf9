"""What a decode step of a method moves and computes, by the formulas of its facts."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from keyhole.core.budget import Budget
from keyhole.core.costs import Heads, Work
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.facts import value

_BYTES = {"int8": 1.0, "int4": 0.5, "int3": 0.375, "int2": 0.25}
_LIKE = {"int3": "int4", "int2": "int4"}  # whose constants serve
_VARYING = (
    0.25  # of the context, that budgets of mass and error are taken to read where their cap allows more
)


def form_of(method: RetrievalMethod, dtype: torch.dtype) -> str:
    """The form keys and values are read in, as cost constants name it."""
    if method.kv_dtype in _BYTES:
        return _LIKE.get(method.kv_dtype, method.kv_dtype)
    return "bfloat16" if dtype.itemsize < 4 else "float32"


def dense_work(heads: Heads, form: str, tokens: float) -> Work:
    """A step that reads all of so many tokens."""
    row = (heads.head_dim + heads.value_dim) * _BYTES.get(form, heads.dtype.itemsize)
    rows = heads.batch * heads.kv_heads
    return Work(ranked=rows * tokens, read=rows * tokens * row)


def selecting_work(method: RetrievalMethod, heads: Heads, tokens: int, context: float) -> Work:
    """A step that selects among so many `tokens`, of a `context` that is longer where others were dropped."""
    _form, rows = form_of(method, heads.dtype), heads.batch * heads.kv_heads
    read = min(tokens, method.sinks + method.window + _budgeted(method.budget, round(context)))
    known = _letters(method, heads) | {"N": tokens, "R": read}
    facts = method.facts
    row = value(facts.row, known | {"e": _BYTES.get(method.kv_dtype, heads.dtype.itemsize)})
    return Work(scanned=rows * value(facts.scan, known), ranked=rows * tokens, read=rows * read * row)


def _budgeted(budget: Budget, context: int) -> int:
    if not budget.varies:
        return budget.limit(context)
    return max(budget.floor, round(min(budget.cap, _VARYING) * context))


def _letters(method: RetrievalMethod, heads: Heads) -> dict[str, Any]:
    options = {field.name: getattr(method, field.name) for field in fields(method)}
    general = {
        "D": heads.head_dim,
        "Dv": heads.value_dim,
        "e": heads.dtype.itemsize,
        "Hkv": heads.kv_heads,
        "G": heads.query_heads // heads.kv_heads,
    }
    return options | general | method.letters(heads.head_dim, heads.kv_heads)
