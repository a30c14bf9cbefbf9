"""What a method's code does not show, stated beside it: the page of a method shows it.

Formulas are Python expressions for one KV head of one layer, in

    N    tokens indexed, all before the window     R    tokens read, sinks and window among them
    D    size of a key                             Dv   size of a value
    e    bytes of one of their numbers             Hkv  KV heads
    G    query heads of a KV head

and the method's options by name. Tests compare those that count bytes with what is held and read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import ceil
from types import CodeType
from typing import NamedTuple

_FULL = "(D + Dv) * e"
# A kept token's keys and values, the row they lie in, and its position.
EVICTED = f"{_FULL} + 8"

# Why options that methods have in common differ from the published ones.
ALIKE = "the same for all methods, so that they compare"
FOLLOWS = "what is read beside sinks and window, and it follows the current length"
ON_DEVICE = "a slower tier pays where memory is short; give place=host then"


class Differs(NamedTuple):
    """An option whose default is not the published one."""

    option: str
    published: str
    why: str


class Facts(NamedTuple):
    """How a method is to be described.

    Attributes:
        stored: what is kept where.
        select: what a step does to select.
        best_for: when to use it.
        weak_at: what it is bad at.
        letters: what letters of the formulas stand for that are neither general ones nor options.
        kept: bytes of keys and values held for each token.
        index: bytes of the index held for each token.
        scan: bytes read to select.
        row: bytes read to attend to one token.
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
    """What a formula comes to; formulas are part of a method's class, never of its options.

    Raises:
        NameError: it has a letter that is not given.
    """
    return eval(_compiled(formula), {"__builtins__": {}, "ceil": ceil}, letters)


@lru_cache(maxsize=256)
def _compiled(formula: str) -> CodeType:
    return compile(formula, "<formula>", "eval")
