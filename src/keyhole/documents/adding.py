"""Adding a document: what is known of it before it is read, and whether it has to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from keyhole.documents.form import Form, fitting_recipe, form_of, identity_of
from keyhole.documents.layers import whole_because
from keyhole.documents.models import Models
from keyhole.documents.opening import Opened
from keyhole.documents.reading import Progress, Source, read_blocks, read_whole
from keyhole.documents.recipes import fingerprint_of
from keyhole.documents.sizes import stored_bytes
from keyhole.documents.store import Document, Store
from keyhole.engines.transformers import KeyholeCache
from keyhole.generation.loading import Loaded
from keyhole.methods import Recipe


@dataclass(frozen=True)
class Adding:
    """A document to be added.

    Attributes:
        model: its name among the models of the library.
        chat: by the chat template; None is by it if there is one.
        source: where the text came from, in words.
        beyond_range: by a method that reads beyond the model's range, where the text is longer.
    """

    name: str
    text: str
    model: str
    recipe: Recipe
    chat: bool | None
    source: str
    beyond_range: bool = False
    pinned: bool = False
    ttl: float | None = None


def as_before(opened: Opened) -> Adding:
    """An open document, to be added as it was."""
    one = opened.document
    return Adding(
        one.name,
        opened.text,
        one.model,
        opened.recipe,
        opened.chat,
        one.source,
        pinned=one.pinned,
        ttl=one.ttl,
    )


def add_document(store: Store, models: Models, adding: Adding, progress: Progress | None = None) -> Document:
    """Read what is not stored yet of a document; see `keyhole.Library.add`."""
    loaded = models.get(adding.model)
    form = form_of(loaded.tokenizer, adding.text, adding.chat)
    recipe = adding.recipe.for_text(adding.text)
    recipe = fitting_recipe(loaded.model, recipe, form.ids, beyond=adding.beyond_range)
    probe = KeyholeCache(loaded.model, recipe)
    whole = whole_because(probe) is not None
    if not whole:
        store.admit(stored_bytes(probe, loaded.model, len(form.ids)))
    fingerprint = fingerprint_of(recipe, models.identity(adding.model), whole=whole)
    if _is_there(store, adding.name, form, fingerprint, recipe):
        return store.document(adding.name)
    waiting = None if progress is None else (lambda done, total: progress("waiting", done, total))
    said: dict[str, Any] = {"method": str(recipe), "model": adding.model, "source": adding.source}
    said |= {"pinned": adding.pinned, "ttl": adding.ttl, "waiting": waiting}
    with store.begin(adding.name, form.ids, fingerprint, whole=whole, **said) as writer:
        read = read_whole if whole else read_blocks
        read(loaded, recipe, _source(form, adding.text, loaded), writer, progress)
    return store.document(adding.name)


def _is_there(store: Store, name: str, form: Form, fingerprint: str, recipe: Recipe) -> bool:
    """Whether the very document is stored under this name."""
    return any(
        one.finished
        and (one.name, one.fingerprint, one.method) == (name, fingerprint, str(recipe))
        and np.array_equal(one.tokens, form.ids)
        for one in store.documents()
    )


def _source(form: Form, text: str, loaded: Loaded) -> Source:
    facts = {"chat": form.chat, "tail": form.tail, "head": form.digest} | identity_of(loaded.tokenizer)
    data = torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())
    return Source(form.ids, {"text": data}, facts)
