"""How the prompt of a request is read, up to where its answer begins."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from keyhole.core.closing import Closing
from keyhole.core.errors import StoreError
from keyhole.documents.answering import TOGETHER, begin_answer
from keyhole.documents.layers import seal
from keyhole.documents.store import BLOCK
from keyhole.engines.transformers import KeyholeCache, served_layers
from keyhole.generation.decoding import prefill
from keyhole.generation.loading import Loaded
from keyhole.generation.reader import chunk_of
from keyhole.methods import Recipe
from keyhole.serving.measuring import Counts
from keyhole.serving.requests import Request
from keyhole.serving.shelf import UNUSABLE, Keeping, Shelf, reads_in_blocks

_log = logging.getLogger(__name__)


class Reading(Closing):
    """A prompt that is read.

    Attributes:
        cache: what it is read into.
        cached: tokens that came from the store.
        last: what the first step of the answer reads, as `keyhole.generation.decoding.decode` takes it.
    """

    cache: KeyholeCache
    cached: int
    last: int | Tensor

    @abstractmethod
    def pieces(self) -> Iterator[int]:
        """Read piece by piece; gives how many tokens of the prompt are read."""

    def index(self) -> Iterator[None]:
        """Build what the first step would build, layer by layer."""
        yield from ()

    def end(self, then: Callable[[int], object]) -> None:
        """Nothing more is read; `then` is called with the tokens that were written to the store."""
        then(0)

    def close(self) -> None:
        """Let go of what is held."""


class PromptReading(Reading):
    """A prompt of its own: all but the last token is read exactly.

    Where a recipe allows that, it is computed by blocks of the store, whether it is kept there or not, so
    that the answer does not depend on that; else in the pieces of `keyhole.generate`.
    """

    def __init__(self, loaded: Loaded, recipe: Recipe, ids: np.ndarray, shelf: Shelf | None, counts: Counts):
        self._model, self._ids, self._counts = loaded.model, ids[:-1], counts
        self.cache, self.cached, self.last = KeyholeCache(loaded.model, recipe), 0, int(ids[-1])
        self._chunk = chunk_of(loaded.model, recipe)
        self._blocks = reads_in_blocks(self.cache)
        self._keeping: Keeping | None = None
        if self._blocks and shelf is not None:
            self.cached = self._take(shelf, recipe)
            self._keeping = shelf.keep(recipe, self._ids, self.cached)
        if self._blocks:
            self.cache.prompt_length = len(self._ids)

    def _take(self, shelf: Shelf, recipe: Recipe) -> int:
        try:
            return shelf.take(self.cache, self._ids)
        except UNUSABLE as error:
            _log.warning("what is stored of a prompt is not used: %s", error)
            self.cache = KeyholeCache(self._model, recipe)
            return 0

    def pieces(self) -> Iterator[int]:
        start = self.cached
        for stop in self._stops():
            tokens = torch.from_numpy(self._ids[start:stop])[None].to(self._model.device)
            seconds = prefill(self._model, tokens, self.cache, chunk=stop - start)
            if self._blocks and stop % BLOCK == 0:
                self._whole_block(start, stop, seconds)
            start = stop
            yield stop

    def _stops(self) -> list[int]:
        total = len(self._ids)
        if self._blocks:
            return [*range(self.cached + BLOCK, total, BLOCK), *([total] if total > self.cached else [])]
        parts = np.array_split(self._ids, max(1, -(-total // self._chunk)))
        return np.cumsum([len(part) for part in parts]).tolist() if total else []

    def _whole_block(self, start: int, stop: int, seconds: float) -> None:
        seal(self.cache)
        if stop - start == BLOCK:
            self._counts.add_chunk(seconds)
        if self._keeping is not None:
            self._keeping.put(self.cache, seconds)

    def index(self) -> Iterator[None]:
        for layer in served_layers(self.cache):
            layer.prepare()
            if len(self._ids) > BLOCK:
                yield

    def end(self, then: Callable[[int], object]) -> None:
        keeping, self._keeping = self._keeping, None
        if keeping is None:
            then(0)
        else:
            keeping.end(then)

    def close(self) -> None:
        self.end(lambda _: None)


class DocumentReading(Reading):
    """What follows the stored document of a name, read as `keyhole.Library.ask` reads questions.

    Raises:
        StoreError: the document is gone, cannot be used, or is another one by now.
    """

    def __init__(self, request: Request, name: str, recipe: Recipe, shelf: Shelf) -> None:
        self._opened = shelf.open(name)
        self.cache, ids = self._opened.cache, np.asarray(request.prompt, np.int64)
        self.cached, self._read = len(self._opened.ids), len(self._opened.ids)
        try:
            self._check(ids, recipe)
        except BaseException:
            self.close()
            raise
        shares = begin_answer(self.cache, recipe, len(ids), exact=request.exact)
        behind = torch.from_numpy(ids[self.cached :])[None]
        chunk = TOGETHER if shares else chunk_of(self._opened.model, recipe)
        last = behind.tensor_split(-(-behind.shape[1] // chunk), dim=1)[-1]
        self.last = last if shares else int(behind[0, -1])
        self._before = behind[:, : -last.shape[1] if shares else -1]
        self._chunk = chunk

    def _check(self, ids: np.ndarray, recipe: Recipe) -> None:
        document, drift = self._opened.document, self._opened.drift()
        if drift is not None and drift.again:
            raise StoreError(f"{document.name!r} must be added again: {drift.said}")
        if str(recipe) != document.method or not np.array_equal(ids[: self.cached], self._opened.ids):
            raise StoreError(f"{document.name!r} was replaced while the request waited; try again")

    def pieces(self) -> Iterator[int]:
        if not self._before.shape[1]:
            return
        for part in self._before.tensor_split(-(-self._before.shape[1] // self._chunk), dim=1):
            prefill(self._opened.model, part.to(self._opened.model.device), self.cache, chunk=part.shape[1])
            self._read += part.shape[1]
            yield self._read

    def close(self) -> None:
        self._opened.close()
