"""Reading a document into the store, block by block, from where an earlier reading stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from keyhole.cache.prompted import SHOWN
from keyhole.cache.usage import Usage
from keyhole.documents.index import INDEX_VERSION, index_state, restore_whole, whole_state
from keyhole.documents.layers import block_tensors, load_blocks, seal, wants_every_query
from keyhole.documents.store import BLOCK, Entry, OpenDocument, Store, Writer
from keyhole.engines.transformers import KeyholeCache, attach, served_layers
from keyhole.engines.transformers.cache import request_of
from keyhole.engines.transformers.devices import input_device
from keyhole.generation.decoding import CHUNK, build_index, decode, prefill
from keyhole.generation.loading import Loaded
from keyhole.methods.recipe import Recipe

Progress = Callable[[str, int, int], None]  # what is being done, tokens done, tokens in all
_SNAPSHOT = 60.0  # seconds of reading after which a state that is one whole is stored


FORM, FORM_VERSION = "form", "1"  # under which it is stored how a document is put to a model


class Source(NamedTuple):
    """What is read: token ids, and what says how the document is put to a model."""

    ids: np.ndarray
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def read_blocks(
    loaded: Loaded, recipe: Recipe, source: Source, writer: Writer, progress: Progress | None = None
) -> KeyholeCache:
    """Read a document that is stored in blocks, and finish `writer`; returns the cache it was read into.

    A block is computed by one call of the model, whatever comes behind it, so that documents that begin alike
    share it and a reading that was interrupted ends as one that was not.
    """
    model, total = loaded.model, writer.total
    with attach(model, recipe):
        cache = KeyholeCache(model, recipe)
        cache.prompt_length = total
        start = _start(cache, writer.blocks, total)
        load_blocks(cache, writer.blocks[: start // BLOCK], input_device(model))
        _read_from(loaded, cache, source, start, writer, progress)
        _tell(progress, "indexing", total, total)
        seconds = build_index(model, cache) + learn_masses(loaded, recipe, cache)
        tensors, facts = index_state(cache)
        writer.put_index(FORM, FORM_VERSION, source.tensors, seconds=None, facts=source.facts)
        writer.put_index(str(recipe), INDEX_VERSION, tensors, seconds=seconds, facts=facts)
    writer.finish()
    return cache


def rebuild_index(loaded: Loaded, recipe: Recipe, source: Source, store: Store, lease: OpenDocument) -> Entry:
    """Make the index of an open document again from its blocks, and store it.

    The end of the text is read again for its newest queries; all of it, where the index is made of all.
    """
    model, total = loaded.model, len(source.ids)
    with attach(model, recipe):
        cache = KeyholeCache(model, recipe)
        cache.prompt_length = total
        start = _start(cache, lease.blocks, total)
        load_blocks(cache, lease.blocks[: start // BLOCK], input_device(model))
        started = time.perf_counter()
        _read_from(loaded, cache, source, start, None, None)
        build_index(model, cache)
        learn_masses(loaded, recipe, cache)
        tensors, facts = index_state(cache)
    seconds = time.perf_counter() - started
    return store.put_index(lease, str(recipe), INDEX_VERSION, tensors, seconds=seconds, facts=facts)


def _read_from(
    loaded: Loaded,
    cache: KeyholeCache,
    source: Source,
    start: int,
    writer: Writer | None,
    progress: Progress | None,
) -> None:
    """Read from a block's beginning to the end, and store what `writer` lacks."""
    tokens, total = _tokens(source.ids, loaded.model.device), len(source.ids)
    while start < total:
        stop = min((start // BLOCK + 1) * BLOCK, total)
        _tell(progress, "reading", start, total)
        seconds = prefill(loaded.model, tokens[:, start:stop], cache, chunk=BLOCK)
        if stop % BLOCK == 0:
            seal(cache)
        if writer is not None and writer.next == (start, stop):
            tensors, facts = block_tensors(cache, start)
            writer.append(tensors, seconds=seconds, facts=facts)
        start = stop


def read_whole(
    loaded: Loaded, recipe: Recipe, source: Source, writer: Writer, progress: Progress | None = None
) -> KeyholeCache:
    """As `read_blocks`, for methods whose state is one whole; it goes on at the last state there is."""
    model, total = loaded.model, writer.total
    with attach(model, recipe):
        cache = KeyholeCache(model, recipe)
        start = writer.position if writer.state is not None else 0
        if writer.state is not None:
            restore_whole(cache, writer.state, input_device(model))
        cache.prompt_length = total
        tokens = _tokens(source.ids, model.device)
        piece, unsaved = CHUNK if recipe.drops else 4 * BLOCK, 0.0
        while start < total:
            stop = min((start // piece + 1) * piece, total)
            _tell(progress, "reading", start, total)
            unsaved += prefill(model, tokens[:, start:stop], cache, chunk=piece)
            start = stop
            if start < total and unsaved > _SNAPSHOT:
                _put(writer, cache, source, start, unsaved)
                unsaved = 0.0
        _tell(progress, "indexing", total, total)
        unsaved += build_index(model, cache) + learn_masses(loaded, recipe, cache)
        _put(writer, cache, source, total, unsaved)
    writer.finish()
    return cache


def _put(writer: Writer, cache: KeyholeCache, source: Source, position: int, seconds: float) -> None:
    tensors, facts = whole_state(cache)
    writer.put_state(position, tensors | source.tensors, seconds=seconds, facts=facts | source.facts)


def _start(cache: KeyholeCache, blocks: tuple[Entry, ...], total: int) -> int:
    """The block to begin with: an index is shown the newest queries, which are not stored with the blocks."""
    if wants_every_query(cache):
        return 0
    whole = sum(1 for block in blocks if len(block.tokens) == BLOCK)
    return min(whole, max(total - SHOWN, 0) // BLOCK) * BLOCK


def learn_masses(loaded: Loaded, recipe: Recipe, cache: KeyholeCache) -> float:
    """Let indexes learn how far to read for a mass, which reads all keys, now and not for the first question.

    A step is made for that, and taken back.
    """
    stage = recipe.retrieval
    if (
        stage is None
        or stage.budget.mass in (None, 1)
        or not any(one.selects for one in served_layers(cache))
    ):
        return 0.0
    request = request_of(cache)
    assert request is not None
    before, started = request.state(), time.perf_counter()
    list(decode(loaded.model, _any_token(loaded), cache, limit=1))
    cache.crop(-1)
    for layer in served_layers(cache):
        layer.usage = Usage()
    request.restore(before)
    return time.perf_counter() - started


def _any_token(loaded: Loaded) -> int:
    named = loaded.tokenizer.eos_token_id
    return named if isinstance(named, int) else 0


def _tokens(ids: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(ids.astype(np.int64))[None].to(device)


def _tell(progress: Progress | None, doing: str, done: int, total: int) -> None:
    if progress is not None:
        progress(doing, done, total)
