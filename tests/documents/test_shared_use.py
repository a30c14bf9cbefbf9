"""Several models, threads and turns at once, and turns that are interrupted."""

import copy
from threading import Thread

import pytest
import torch

from keyhole.documents.library import Library
from tests.documents.unsaved import QUESTION, TEXT

METHOD = "pqcache(budget=0.1, dense_below=0, sinks=2, window=6)"


def other_of(loaded):
    other = copy.deepcopy(loaded.model)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.add_(0.5)
    return other


@pytest.mark.parametrize("named", [True, False])
def test_models_in_memory_are_told_apart_by_their_weights(library, loaded, named):
    """A changed model has the name and the files of the one it was loaded as."""
    model, other = copy.deepcopy(loaded.model), other_of(loaded)
    if not named:
        model.name_or_path = other.name_or_path = ""
    first = library.add(text=TEXT, name="d", model=model, tokenizer=loaded.tokenizer)
    second = library.add(text=TEXT, name="e", model=other, tokenizer=loaded.tokenizer)
    assert first.fingerprint != second.fingerprint
    assert second.shared == 0
    with pytest.raises(ValueError, match="another model"):
        library.ask("d", QUESTION, max_new_tokens=1)


def test_a_turn_after_one_that_was_interrupted(library):
    def stop(_):
        raise KeyboardInterrupt

    library.add(text=TEXT, name="d", method=METHOD)
    expected = library.ask("d", QUESTION, max_new_tokens=6).tokens
    with library.chat("d") as talk:
        with pytest.raises(KeyboardInterrupt):
            talk.ask("Line 3: the", stream=stop, max_new_tokens=6)
        assert talk.ask(QUESTION, max_new_tokens=6).tokens == expected


def test_a_conversation_keeps_its_document(library):
    library.add(text=TEXT, name="d", method=METHOD)
    with library.chat("d") as talk:
        first = talk.ask(QUESTION, max_new_tokens=4).tokens
        second = talk.ask("Line 9:", max_new_tokens=4).tokens
    with library.chat("d") as again:
        assert again.ask(QUESTION, max_new_tokens=4).tokens == first
        library.remove("d")
        library.add(text=TEXT[300:], name="d", method=METHOD)
        assert again.ask("Line 9:", max_new_tokens=4).tokens == second


def test_threads_that_begin_with_an_empty_library(tmp_path):
    found, path = [], tmp_path / "store"

    def add(start):
        text = TEXT[start : start + 400]
        found.append(len(Library(path).add(text=text, name=f"d{start}", method=METHOD).tokens))

    threads = [Thread(target=add, args=(start,)) for start in (0, 0, 90, 180)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(one.finished for one in Library(path).documents())


def test_what_is_stored_already_needs_no_room(tmp_path):
    library = Library(tmp_path / "store", quota=5 << 20)
    text = TEXT * 2
    size = library.add(text=text, name="d", pinned=True).nbytes
    assert size > library.store.quota / 2
    library.add(text=text, name="e")
    assert library.add(text=f"{text} And more.", name="f").shared > size / 2
