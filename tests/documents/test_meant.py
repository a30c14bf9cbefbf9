"""Which document is meant: by name, by file, from another directory; and how long it is kept."""

import io
import sys
from pathlib import Path

import pytest

from keyhole.core.errors import UnknownDocumentError
from keyhole.documents.library import Library
from keyhole.documents.meant import find_document
from keyhole.documents.paths import name_of
from tests.documents.unsaved import QUESTION

SHORT = "The clerk of Ghent keeps nine keys. " * 4
METHOD = "quest(budget=0.1, dense_below=0, sinks=2, window=6)"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(library, document, **added):
    return library.ask(document, QUESTION, max_new_tokens=2, **added)


def test_a_file_of_another_directory_does_not_replace_a_document(library, here, monkeypatch):
    for name in ("a", "b"):
        (here / name).mkdir()
        (here / name / "notes.txt").write_text(f"{name}: {SHORT}")
    monkeypatch.chdir(here / "a")
    library.add("notes.txt", method=METHOD)
    monkeypatch.chdir(here / "b")
    with pytest.raises(ValueError, match=r"'notes' is that of a document of .*a/notes.txt; add this one"):
        ask(library, "notes.txt")
    library.add("notes.txt", name="mine")
    ask(library, "notes.txt")
    assert {(one.name, Path(one.source).parent.name) for one in library.documents()} == {
        ("notes", "a"),
        ("mine", "b"),
    }


def test_a_file_that_moved_is_the_same_document(library, here):
    (here / "notes.txt").write_text(SHORT)
    library.add("notes.txt", method=METHOD)
    (here / "there").mkdir()
    (here / "notes.txt").rename(here / "there" / "notes.txt")
    assert library.add("there/notes.txt", method=METHOD).hits == 0
    assert len(library.documents()) == 1


def test_a_file_that_is_called_as_its_document_is_asked_as_it_is_now(library, here):
    (here / "LICENSE").write_text(SHORT)
    ask(library, "LICENSE")
    before = len(library.document("LICENSE").tokens)
    (here / "LICENSE").write_text(SHORT * 2)
    ask(library, "LICENSE")
    assert len(library.document("LICENSE").tokens) > before


def test_documents_are_kept_as_was_said_last(library, here):
    (here / "notes.txt").write_text(SHORT)
    library.add("notes.txt", pinned=True, ttl=50.0)
    (here / "notes.txt").write_text(SHORT * 2)
    ask(library, "notes.txt")
    kept = library.document("notes")
    assert (kept.pinned, kept.ttl) == (True, 50.0)
    library.add("notes.txt", pinned=False)
    kept = library.add("notes.txt", ttl=60.0)
    assert (kept.pinned, kept.ttl) == (False, 60.0)


def test_a_file_that_was_added_without_a_template_stays_so(library, loaded, here):
    (here / "notes.txt").write_text(SHORT)
    loaded.tokenizer.chat_template = "User: {% for m in messages %}{{ m['content'] }}{% endfor %} A:"
    try:
        given = {"model": loaded.model, "tokenizer": loaded.tokenizer}
        added = library.add("notes.txt", chat=False, **given)
        ask(library, "notes.txt")
        asked = library.document("notes")
        assert asked.tokens.tolist() == added.tokens.tolist()
        assert asked.hits == 1
    finally:
        loaded.tokenizer.chat_template = None


def test_stdin_is_a_document_of_that_name(library, monkeypatch):
    for text in (SHORT, SHORT * 2):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        ask(library, "-")
    assert [one.name for one in library.documents()] == ["stdin"]


def test_a_stored_document_is_not_asked_by_another_method(library):
    library.add(text=SHORT, name="d", method=METHOD)
    ask(library, "d", method=METHOD)
    for other in ({"method": "pqcache"}, {"kv_dtype": "int4"}):
        with pytest.raises(ValueError, match="'d' was read by quest"):
            ask(library, "d", **other)
    with pytest.raises(TypeError, match="tempature"):
        ask(library, "d", tempature=1)


def test_an_unfinished_document_is_said_to_be_unfinished(library):
    def stop(doing, done, _):
        if doing == "reading" and done >= 256:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.add(text=SHORT * 20, name="d", progress=stop)
    with pytest.raises(UnknownDocumentError, match="'d' is not read to its end"):
        ask(library, "d")


@pytest.mark.parametrize("named", ["what does the handbook say of tides? " * 20, "a\0b", "/", "d.txt"])
def test_what_is_neither_document_nor_file(library, named):
    with pytest.raises(UnknownDocumentError, match="there is no document"):
        find_document(library.documents(), named)


@pytest.mark.parametrize("name", ["a\u202fb", "\U0001f468\u200d\U0001f469", "a/b c.d"])
def test_names_of_all_scripts(library, name):
    library.add(text=SHORT, name=name)
    ask(library, name)


def test_names_that_are_refused_and_those_made_of_files():
    for name in ("", "a\nb", "a\u2028b", "\udcff", "x" * 81, "-"):
        with pytest.raises(ValueError, match="name"):
            name_of(name, None)
    assert name_of(None, [f"/t/{'x' * 200}.txt"]) == "x" * 80
    assert name_of(None, ["a\udcff.txt"]) == "a_"


def test_half_a_character_is_refused(library):
    with pytest.raises(ValueError, match="half a character at 4"):
        library.add(text="abc \udcff", name="d")
    library.add(text=SHORT, name="d")
    with pytest.raises(ValueError, match="the question is not Unicode"):
        library.ask("d", "\udcff")


def test_a_store_in_the_current_directory(here):
    Library(".").add(text=SHORT, name="d")
    assert (here.parent / f"{here.name}.models.json").exists()
