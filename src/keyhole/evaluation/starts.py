"""One index for all budgets of a method: built once, continued in copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from keyhole.cache.layer import LayerCache
from keyhole.core.budget import Budget
from keyhole.engines.transformers import KeyholeCache, served_layers
from keyhole.evaluation.candidates import Candidate
from keyhole.evaluation.prompts import Prompt, Start
from keyhole.generation.forking import fork, rewind


class Starts:
    """Caches of prompts for candidates that come one after the other.

    The index of the latest method is held: a candidate that differs from the one before in its budget only
    continues a copy of it, where what is held does not depend on the budget.
    """

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._index: tuple[str, bool] | None = None
        self._held: Start | None = None

    @contextmanager
    def begin(self, candidate: Candidate) -> Iterator[Start]:
        """A cache as `Prompt.start` makes it, with the seconds of an index of its own.

        It is the candidate's until the end of the with-block.
        """
        # Indexes for budgets of error hold more.
        index = candidate.method, candidate.error is not None
        if self._held is None or self._index != index:
            self._held = None  # before the next one takes memory
            self._index, self._held = index, self._prompt.start(candidate.recipe)
        held = self._held
        budget = _shared_index(candidate, held.cache)
        if budget is None:
            self._held = None
            yield held
            return
        copy = fork(held.cache)
        for layer in served_layers(copy):
            if layer.selector is not None:
                layer.use_budget(budget)
        try:
            yield Start(copy, held.seconds)
        finally:
            rewind(copy, self._prompt.tokens.shape[1] - 1)


def _shared_index(candidate: Candidate, cache: KeyholeCache) -> Budget | None:
    """The budget a copy is to read by; None where what is held depends on the budget, or there is none."""
    retrieval = candidate.recipe.retrieval
    if retrieval is None or candidate.recipe.drops or not served_layers(cache):
        return None
    return None if any(map(_knows_budget, served_layers(cache))) else retrieval.budget


def _knows_budget(layer: LayerCache) -> bool:
    """Whether a part of the layer was made for a budget, as storages that renumber are."""
    parts = (layer.prefill, layer.storage, layer.selector)
    return any(
        isinstance(value, Budget) for part in parts if part is not None for value in vars(part).values()
    )
