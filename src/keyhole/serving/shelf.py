"""Prompts and the store: beginnings that are there are taken, new ones are kept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

import numpy as np
from torch import Tensor

from keyhole.cache.prompted import SHOWN
from keyhole.core.errors import StoreError
from keyhole.documents.layers import block_tensors, load_blocks, wants_every_query, whole_because
from keyhole.documents.library import Library
from keyhole.documents.models import Models
from keyhole.documents.opening import Opened, open_document
from keyhole.documents.recipes import fingerprint_of, stored_recipe
from keyhole.documents.store import BLOCK, Store, Writer, block_keys
from keyhole.engines.transformers import KeyholeCache
from keyhole.engines.transformers.devices import input_device
from keyhole.generation.loading import Loaded
from keyhole.methods import Recipe
from keyhole.methods.recipe import answers
from keyhole.serving.requests import PROMPT

_TTL = 86_400.0  # seconds for which the beginning of a prompt is kept after its last use
_MOST = 1 << 28  # bytes of blocks that wait to be written
UNUSABLE = (OSError, ValueError)  # what a store raises; answers do without it then

_log = logging.getLogger(__name__)


def reads_in_blocks(cache: KeyholeCache) -> bool:
    """Whether prompts of a cache's recipe are computed block by block, each independent of what follows."""
    computed = any(answers(stage, "prefill") for stage in cache.recipe.stages)
    return not computed and whole_because(cache) is None and not wants_every_query(cache)


class Shelf:
    """The store of one model's prompts and documents. What is kept is written by a thread of its own.

    Args:
        model: the name by which `models` has the model.
        keeping: whether new prompts are kept.
    """

    def __init__(self, store: Store, models: Models, model: str, *, keeping: bool) -> None:
        self.store, self.models, self.model, self.keeping = store, models, model, keeping
        self._identity = models.identity(model)
        self._tasks: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock, self.waiting = Lock(), 0
        self._thread = Thread(target=self._run, name="keyhole-keeping", daemon=True)
        self._thread.start()

    def open(self, name: str) -> Opened:
        """See `keyhole.Library.open`."""
        return open_document(self.store, self.models, name)

    def fingerprint(self, recipe: Recipe) -> str:
        """Of the blocks of a recipe."""
        return fingerprint_of(stored_recipe(recipe), self._identity, whole=False)

    def take(self, cache: KeyholeCache, ids: np.ndarray) -> int:
        """Let a fresh cache hold the blocks of the beginning of `ids` that are stored; returns their tokens.

        The newest tokens are never among them: an index is shown their queries, which are not stored.
        """
        most = max(len(ids) - SHOWN, 0) // BLOCK * BLOCK
        if not most:
            return 0
        with self.store.match(ids[:most], self.fingerprint(cache.recipe)) as found:
            blocks = tuple(block for block in found.blocks if len(block.tokens) == BLOCK)
            load_blocks(cache, blocks, input_device(cache.model))
            # Whoever wonders why a prompt is read again looks at the first token that differs.
            _log.info("of a prompt of %d tokens, the first %d are stored", len(ids) + 1, found.length)
        return len(blocks) * BLOCK

    def keep(self, recipe: Recipe, ids: np.ndarray, held: int) -> Keeping | None:
        """What takes the blocks of `ids` behind the first `held` tokens; None where there are none."""
        whole = ids[: len(ids) // BLOCK * BLOCK]
        if not self.keeping or len(whole) <= held:
            return None
        return Keeping(self, stored_recipe(recipe), whole, held, self.fingerprint(recipe))

    def begin(self, recipe: Recipe, ids: np.ndarray, fingerprint: str) -> Writer:
        """A writer of a prompt's beginning."""
        name = f"prompt {block_keys(ids, fingerprint)[-1][:16]}"
        said: dict[str, Any] = {"method": str(recipe), "model": self.model, "source": PROMPT, "ttl": _TTL}
        return self.store.begin(name, ids, fingerprint, waiting=_busy, **said)

    def later(self, task: Callable[[], object], nbytes: int = 0) -> bool:
        """Do something in the thread, after all that is to be done there; False where too much waits."""
        with self._lock:
            if nbytes and self.waiting + nbytes > _MOST:
                return False
            self.waiting += nbytes
        self._tasks.put(lambda: self._done(task, nbytes))
        return True

    def close(self) -> None:
        """Do what waits, and no more."""
        self._tasks.put(None)
        self._thread.join()

    def _done(self, task: Callable[[], object], nbytes: int) -> None:
        try:
            task()
        finally:
            with self._lock:
                self.waiting -= nbytes

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except Exception:
                _log.exception("keeping a prompt failed")


class Keeping:
    """Blocks of one prompt on their way into the store; if one cannot be written, those behind it are not."""

    def __init__(self, shelf: Shelf, recipe: Recipe, ids: np.ndarray, held: int, fingerprint: str) -> None:
        self._shelf, self._recipe, self._ids, self._fingerprint = shelf, recipe, ids, fingerprint
        self._next = held
        self._writer: Writer | None = None
        self._written = 0
        self._open = True

    def put(self, cache: KeyholeCache, seconds: float) -> None:
        """A block of the prompt was read in so many seconds: the newest tokens of the cache."""
        if not self._open or self._next >= len(self._ids):
            return
        start, self._next = self._next, self._next + BLOCK
        tensors, facts = block_tensors(cache, start)
        size = sum(tensor.nbytes for tensor in tensors.values())
        self._open = self._shelf.later(lambda: self._write(start, tensors, facts, seconds), size)

    def end(self, then: Callable[[int], object]) -> None:
        """No more blocks come; `then` is called with the tokens that were written, when they are."""
        self._shelf.later(lambda: self._end(then))

    def _write(self, start: int, tensors: dict[str, Tensor], facts: dict[str, Any], seconds: float) -> None:
        try:
            if self._writer is None:
                self._writer = self._shelf.begin(self._recipe, self._ids, self._fingerprint)
            if self._writer.next == (start, start + BLOCK):
                self._writer.append(tensors, seconds=seconds, facts=facts)
                self._written += BLOCK
        except UNUSABLE as error:
            self._open = False
            _log.warning("a prompt is not kept: %s", error)

    def _end(self, then: Callable[[int], object]) -> None:
        try:
            if self._writer is not None:
                with self._writer as writer:
                    if writer.position == writer.total:
                        writer.finish()
        except UNUSABLE as error:
            _log.warning("a prompt is not kept: %s", error)
        finally:
            then(self._written)


def shelf_of(library: Library, model: str, loaded: Loaded, own: Loaded, keeping: bool) -> Shelf:
    """The shelf of a library, whose model is `loaded`, for a thread that reads with `own`."""
    if not library.models.holds(model, loaded):
        library.models.put(model, loaded)
    return Shelf(library.store, library.models.beside(model, own), model, keeping=keeping)


def _busy(_done: int, _total: int) -> None:
    raise StoreError("it is being stored already")
