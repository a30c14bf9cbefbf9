"""Documentation of a method that its code does not show; the page of each method is made from it.

Formulas are Python expressions for one KV head of one layer, in

    N    tokens indexed, all before the window     R    tokens read, including sinks and window
    D    size of a key                             Dv   size of a value
    e    bytes per element                         Hkv  KV heads
    G    query heads per KV head

and the method's options by name. Tests compare the byte counts with what is held and read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import ceil
from types import CodeType
from typing import NamedTuple

_FULL = "(D + Dv) * e"
# Key and value of a kept token, its row, and its position.
EVICTED = f"{_FULL} + 8"

# Why shared options differ from the published defaults.
ALIKE = "the same for all methods, for comparison"
FOLLOWS = "excludes sinks and window, and follows the current length"
ON_DEVICE = "a slower tier is useful only where memory is short; give place=host then"


class Differs(NamedTuple):
    """An option whose default is not the published one."""

    option: str
    published: str
    why: str


class Facts(NamedTuple):
    """The description of a method.

    Attributes:
        stored: what is stored where.
        select: what a step does to select.
        best_for: when to use it.
        weak_at: its weaknesses.
        letters: the meaning of letters in the formulas that are neither general ones nor options.
        kept: bytes of keys and values held per token.
        index: bytes of the index held per token.
        scan: bytes read to select.
        row: bytes read per attended token.
        products: multiplications to select.
        differs: options whose defaults are not the published ones.
    """

    stored: str
    select: str
    best_for: str
    weak_at: str
    letters: str = ""
    kept: str = _FULL
    index: str = "0"
    scan: str = "0"
    row: str = _FULL
    products: str = "0"
    differs: tuple[Differs, ...] = ()


def value(formula: str, letters: Mapping[str, object]) -> float:
    """The value of a formula; formulas are part of a method's class, never of its options.

    Raises:
        NameError: a letter is not given.
    """
    return eval(_compiled(formula), {"__builtins__": {}, "ceil": ceil}, letters)


@lru_cache(maxsize=256)
def _compiled(formula: str) -> CodeType:
    return compile(formula, "<formula>", "eval")
