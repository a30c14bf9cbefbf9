"""Adding a document: what is known of it before it is read, and whether it has to be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from keyhole.documents.form import Form, fitting_recipe, form_of, identity_of
from keyhole.documents.layers import whole_because
from keyhole.documents.models import Models
from keyhole.documents.opening import Opened, put_by
from keyhole.documents.reading import Progress, Source, read_blocks, read_whole
from keyhole.documents.recipes import fingerprint_of, stored_recipe
from keyhole.documents.sizes import stored_bytes
from keyhole.documents.store import Document, Store
from keyhole.engines.transformers import KeyholeCache
from keyhole.generation.loading import Loaded
from keyhole.methods import Method, Recipe


@dataclass(frozen=True)
class Adding:
    """A document to be added.

    Attributes:
        model: its name among the models of the library.
        chat: by the chat template; None is by it if there is one.
        source: where the text came from, in words.
        beyond_range: by a method that reads beyond the model's range, where the text is longer.
        pinned, ttl: as in `keyhole.Library.add`; None leaves them as they are.
        named: the name was asked for; else it does not replace a document of another source.
    """

    name: str
    text: str
    model: str
    recipe: Recipe
    chat: bool | None
    source: str
    beyond_range: bool = False
    pinned: bool | None = None
    ttl: float | None = None
    named: bool = True


def as_before(opened: Opened) -> Adding:
    """An open document, to be added as it was."""
    one = opened.document
    return Adding(one.name, opened.text, one.model, opened.recipe, opened.chat, one.source)


def add_document(store: Store, models: Models, adding: Adding, progress: Progress | None = None) -> Document:
    """Read what is not stored yet of a document; see `keyhole.Library.add`."""
    loaded = models.get(adding.model)
    form = form_of(loaded.tokenizer, adding.text, adding.chat)
    recipe = adding.recipe.for_text(adding.text)
    recipe = fitting_recipe(loaded.model, recipe, form.ids, beyond=adding.beyond_range)
    probe = KeyholeCache(loaded.model, recipe)
    whole = whole_because(probe) is not None
    fingerprint = fingerprint_of(recipe, models.identity(adding.model), whole=whole)
    named = [one for one in store.documents() if one.name == adding.name]
    if any(_is(one, form, fingerprint, recipe) for one in named) and _is_whole(store, adding.name):
        return _kept(store, adding)
    adding = _as_kept(adding, named, form)
    if not whole:
        store.admit(stored_bytes(probe, loaded.model, len(form.ids)), form.ids, fingerprint)
    waiting = None if progress is None else (lambda done, total: progress("waiting", done, total))
    said: dict[str, Any] = {"method": str(recipe), "model": adding.model, "source": adding.source}
    said |= {"pinned": adding.pinned, "ttl": adding.ttl, "waiting": waiting}
    with store.begin(adding.name, form.ids, fingerprint, whole=whole, **said) as writer:
        read = read_whole if whole else read_blocks
        read(loaded, recipe, _source(form, adding.text, loaded), writer, progress)
    return store.document(adding.name)


def check_as_stored(
    one: Document, model: str, *, method: str | Method | Recipe | None = None, kv_dtype: str | None = None
) -> None:
    """Check that what is said about adding is how a stored document was added.

    Raises:
        ValueError: it is not.
    """
    wanted = str(stored_recipe(one.method if method is None else method, kv_dtype))
    if (wanted, model) != (one.method, one.model):
        raise ValueError(
            f"{one.name!r} was read by {one.method} on {one.model or 'the embedded model'}; leave method, "
            "kv_dtype and model out, or add its file under another name by these"
        )


def _is(one: Document, form: Form, fingerprint: str, recipe: Recipe) -> bool:
    """Whether a document is stored, and the very one."""
    same = (one.fingerprint, one.method) == (fingerprint, str(recipe))
    return one.finished and same and np.array_equal(one.tokens, form.ids)


def _is_whole(store: Store, name: str) -> bool:
    """Whether nothing of a finished document was lost that only adding it makes again."""
    with store.open(name, counted=False) as lease:
        return put_by(lease) is not None


def _kept(store: Store, adding: Adding) -> Document:
    """A document that is there, kept as long as it shall be now."""
    if adding.pinned is None and adding.ttl is None:
        return store.document(adding.name)
    return store.change(adding.name, pinned=adding.pinned, ttl=-1 if adding.ttl is None else adding.ttl)


def _as_kept(adding: Adding, named: list[Document], form: Form) -> Adding:
    """Kept as long as the document of its name that it replaces, where nothing else is said.

    Raises:
        ValueError: that one is of another file, and the name was not asked for.
    """
    if not named:
        return adding
    first = named[0]
    if not adding.named and first.source != adding.source and not np.array_equal(first.tokens, form.ids):
        raise ValueError(
            f"the name {adding.name!r} is that of a document of {first.source}; add this one under another "
            "name (name=, --name), or remove that one first"
        )
    pinned = first.pinned if adding.pinned is None else adding.pinned
    return replace(adding, pinned=pinned, ttl=first.ttl if adding.ttl is None else adding.ttl)


def _source(form: Form, text: str, loaded: Loaded) -> Source:
    facts = {"chat": form.chat, "tail": form.tail, "head": form.digest} | identity_of(loaded.tokenizer)
    data = torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())
    return Source(form.ids, {"text": data}, facts)
