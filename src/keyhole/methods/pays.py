"""The context length from which a method pays, by the cost constants in use."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache

import torch

from keyhole.core.break_even import ALWAYS, NEVER, BreakEven, first_paying
from keyhole.core.costs import DENSE, CostTable, Heads, cost_table
from keyhole.kernels.backend import library
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.recipe import Recipe
from keyhole.methods.work import dense_work, form_of, selecting_work

_BATCHES = (2, 4, 8, 16, 32, 64, 128)
_MARGIN = 1.05  # selecting pays where a step is that much faster than dense

_log = logging.getLogger(__name__)


def machine_of(device: torch.device) -> str:
    """The class of machine that constants are kept for: `cuda`, or the level of the native kernels."""
    return "cuda" if device.type == "cuda" else library.level()


def break_evens(recipe: Recipe, heads: Heads, device: torch.device) -> BreakEven:
    """From which lengths on the selecting stage of a recipe pays, for one sequence and for several.

    Nothing is measured: the lengths follow from the method, the sizes, the number of threads and the cost
    constants of the class of machine.

    Raises:
        ValueError: the user's constants are damaged.
    """
    method = recipe.retrieval
    table = None if method is None else cost_table(machine_of(device))
    if method is None or table is None:
        return ALWAYS
    return solve(method, table, heads, torch.get_num_threads(), _kept(recipe))


@lru_cache(maxsize=256)
def solve(
    method: RetrievalMethod, table: CostTable, heads: Heads, threads: int, kept: float = 1.0
) -> BreakEven:
    """As `break_evens`, by these constants, where the share `kept` of the context is stored at all.

    Decisions are logged, once each.
    """
    if method.pays_from is not None:
        found = BreakEven(method.pays_from, source="its own statement")
    else:
        lengths = [_length(method, table, replace(heads, batch=b), threads, kept) for b in (1, *_BATCHES)]
        batched = tuple(zip(_BATCHES, lengths[1:], strict=True))
        found = BreakEven(lengths[0], batched, f"{table.source} constants for {table.machine}")
    text = "%s: selecting pays from %s, by %s; shorter contexts are read whole, dense_below sets a length"
    _log.info(text, method, said(found.tokens), found.source)
    return found


def said(tokens: int) -> str:
    """A length as messages name it."""
    return "no length" if tokens == NEVER else f"{tokens:,} tokens"


def _length(method: RetrievalMethod, table: CostTable, heads: Heads, threads: int, kept: float) -> int:
    form = form_of(method, heads.dtype)
    selecting, dense = table.of(form, method.name), table.of(form, DENSE)

    def loss(tokens: int) -> float:
        own = selecting.microseconds(selecting_work(method, heads, tokens, tokens / kept), threads)
        return _MARGIN * own - dense.microseconds(dense_work(heads, form, tokens), threads)

    return first_paying(loss)


def _kept(recipe: Recipe) -> float:
    """The share of the context that is stored, where another part of the recipe drops the rest."""
    shares = [getattr(stage, "keep", None) for stage in recipe.stages]
    if recipe.eviction is not None:
        shares.append(recipe.eviction.budget)
    fractions = [share.fraction for share in shares if share is not None and share.fraction]
    return min(fractions, default=1.0)
