"""A stored document as a cache that goes on where its reading ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keyhole.core.closing import Closing
from keyhole.core.errors import DamagedStoreError, SpecError
from keyhole.documents.form import difference, form_of, identity_of
from keyhole.documents.index import INDEX_VERSION, restore_whole, resume
from keyhole.documents.layers import load_blocks, reads_from_disk, stored_storages
from keyhole.documents.models import Models
from keyhole.documents.reading import FORM, FORM_VERSION, Source, rebuild_index
from keyhole.documents.recipes import fingerprint_of, placed
from keyhole.documents.store import Document, Entry, OpenDocument, Store
from keyhole.engines.transformers import KeyholeCache, served_layers
from keyhole.engines.transformers.devices import input_device
from keyhole.generation.loading import Loaded
from keyhole.methods import Recipe

_MEMORY = 1 << 30  # bytes of a document that may stay in memory while it is read from disk


class Drift(NamedTuple):
    """How a document would be put to the model otherwise now.

    Attributes:
        token: the first that differs.
        again: it has to be read again from there; else it is used as it was read.
    """

    token: int
    said: str
    again: bool


@dataclass
class Opened(Closing):
    """A document at the end of its text: `cache` is continued by `model`, inside `keyhole.attach(model)`.

    Attributes:
        place: where keys and values are read.
        ids: its tokens.
        text: as it was read from its files.
        facts: how it was put to the model.
    """

    document: Document
    loaded: Loaded
    recipe: Recipe
    cache: KeyholeCache
    place: str
    ids: np.ndarray
    text: str
    facts: dict[str, Any]
    lease: OpenDocument

    @property
    def model(self) -> PreTrainedModel:
        return self.loaded.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.loaded.tokenizer

    @property
    def chat(self) -> bool:
        """Whether it was put to the model by a chat template."""
        return bool(self.facts["chat"])

    @property
    def tail(self) -> str:
        """What comes behind a question."""
        return str(self.facts["tail"])

    @property
    def nbytes(self) -> int:
        """Bytes of it that are stored."""
        return self.document.nbytes

    def drift(self) -> Drift | None:
        """Whether the tokenizer or its template would make other tokens of the document by now."""
        known = identity_of(self.tokenizer)
        changed = [name for name in known if known[name] != self.facts[name]]
        form = form_of(self.tokenizer, self.text, self.chat, ids=None if changed else self.ids)
        if not changed and form.digest == self.facts["head"]:
            return None
        if not changed:
            form = form_of(self.tokenizer, self.text, self.chat)
        at, said = difference(self.tokenizer, self.ids, form.ids)
        if at == len(self.ids) == len(form.ids):
            self.facts = self.facts | {"tail": form.tail}
            return None
        if not changed:
            told = f"the template gives {said}, from token {at:,} on; the document is used as it was read"
            return Drift(at, told, again=False)
        return Drift(at, f"the {' and the '.join(changed)} changed and gives {said}", again=True)

    def close(self) -> None:
        """Let the store do with the document as it likes."""
        self.lease.close()


def open_document(store: Store, models: Models, name: str, place: str | None = None) -> Opened:
    """Open a finished document; see `keyhole.Library.open`."""
    lease = store.open(name)
    try:
        return opened_by(store, models, lease, place)
    except BaseException:
        lease.close()
        raise


def opened_by(store: Store, models: Models, lease: OpenDocument, place: str | None) -> Opened:
    """The document of a lease, with a cache of its own."""
    document = lease.document
    loaded, recipe = models.get(document.model), Recipe.parse(document.method)
    _check_model(document, recipe, models)
    cache = KeyholeCache(loaded.model, recipe)
    models.served(document.model)
    where = _place(cache, recipe, document, place)
    if where != "disk":
        cache = KeyholeCache(loaded.model, placed(recipe, where))
    said = put_by(lease)
    if said is None:
        raise DamagedStoreError(
            f"{document.name!r} lacks how it was put to the model; remove and add it again"
        )
    _fill(store, loaded, recipe, cache, lease, where, said)
    text = said.tensor("text").numpy().tobytes().decode()
    ids = document.tokens.astype(np.int64)
    return Opened(document, loaded, recipe, cache, where, ids, text, said.facts, lease)


def put_by(lease: OpenDocument) -> Entry | None:
    """What says, by its facts, how a document is put to its model; None where that was lost."""
    return lease.state if lease.document.whole else lease.index(FORM, FORM_VERSION)


def _check_model(document: Document, recipe: Recipe, models: Models) -> None:
    expected = fingerprint_of(recipe, models.identity(document.model), whole=document.whole)
    if document.fingerprint != expected:
        raise ValueError(
            f"{document.name!r} was read by another model than {document.model or 'the embedded one'!r} is "
            "now; add it again"
        )


def _place(cache: KeyholeCache, recipe: Recipe, document: Document, asked: str | None) -> str:
    on_disk = not document.whole and reads_from_disk(cache)
    if asked is None:
        return "disk" if on_disk and recipe.retrieval is not None else "device"
    if asked == "disk" and not on_disk:
        raise SpecError(
            f"{document.name!r} is stored by {recipe}, which cannot read it from disk; give place=host or "
            "place=device"
        )
    return asked


def _fill(
    store: Store,
    loaded: Loaded,
    recipe: Recipe,
    cache: KeyholeCache,
    lease: OpenDocument,
    where: str,
    said: Entry,
) -> None:
    document, device = lease.document, input_device(loaded.model)
    if document.whole:
        assert lease.state is not None
        restore_whole(cache, lease.state, device)
        return
    index = lease.index(document.method, INDEX_VERSION)
    if index is None:
        index = rebuild_index(loaded, recipe, Source(document.tokens, {}, said.facts), store, lease)
    if where == "disk":
        storages = list(stored_storages(cache, lease.blocks, device, memory=_MEMORY))
    else:
        load_blocks(cache, lease.blocks, device)
        storages = [layer.storage for layer in served_layers(cache)]
    resume(cache, storages, index, device)
