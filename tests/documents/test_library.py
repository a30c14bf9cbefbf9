"""The verbs of a library: what is read again and what is not, interruptions, errors, drift of the prompt."""

import functools
import json

import numpy as np
import pytest

import keyhole
from keyhole.core.errors import QuotaError, UnknownDocumentError
from keyhole.documents import opening
from keyhole.documents.library import Library
from keyhole.documents.recipes import stored_recipe
from keyhole.engines.transformers import served_layers, support
from tests.documents.unsaved import BLOCK, QUESTION, TEXT, unsaved_answer

METHOD = "pqcache(budget=0.1, dense_below=0, sinks=2, window=6)"


class Killed(BaseException):
    """As a process ends that is killed: nothing after it runs."""


@pytest.fixture
def calls(monkeypatch):
    """Tokens of each call of a model that reads."""
    from keyhole.documents import reading

    seen, prefill = [], reading.prefill

    def counted(model, tokens, cache, **options):
        seen.append(tokens.shape[1])
        return prefill(model, tokens, cache, **options)

    monkeypatch.setattr(reading, "prefill", counted)
    return seen


def add(library, **changes):
    return library.add(**({"text": TEXT, "name": "d", "method": METHOD} | changes))


def ask(library, name="d"):
    return library.ask(name, QUESTION, max_new_tokens=6)


def test_a_document_belongs_to_the_form_of_weights_that_read_it(library):
    plain, packed = add(library), add(library, name="packed", model="@int8")
    assert (plain.model, packed.model) == ("", "@int8")
    again = Library(library.path)
    assert again.models.identity("") != again.models.identity("@int8")
    assert again.ask("packed", QUESTION, max_new_tokens=6).tokens == ask(library, "packed").tokens


def test_a_document_is_read_once(library, calls):
    first = add(library)
    assert sum(calls) == len(first.tokens)
    read = len(calls)
    again = Library(library.path)
    assert ask(again).tokens == ask(library).tokens
    assert len(calls) == read
    assert again.document("d").hits == 2


@pytest.mark.parametrize("kv_dtype", ["full", "int4"])
@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_reading_that_is_killed_goes_on_at_its_last_block(library, loaded, calls, blocks, kv_dtype):
    def killed(doing, done, _):
        if doing == "reading" and done == blocks * BLOCK:
            raise Killed

    with pytest.raises(Killed):
        add(library, progress=killed, kv_dtype=kv_dtype)
    assert not library.documents()[0].finished
    del calls[:]
    document = add(Library(library.path), kv_dtype=kv_dtype)
    assert sum(calls) == len(document.tokens) - min(blocks, (len(document.tokens) - 64) // BLOCK) * BLOCK
    recipe = stored_recipe(METHOD, kv_dtype)
    assert ask(library).tokens == unsaved_answer(loaded, recipe, limit=6)


def test_documents_that_begin_alike_share_what_is_alike(library, loaded, calls):
    add(library)
    del calls[:]
    longer = f"{TEXT} And one line more, of the harbour of Split."
    document = add(library, text=longer, name="longer")
    alike = np.cumprod(document.tokens[: len(library.document("d").tokens)] == library.document("d").tokens)
    shared = int(alike.sum()) // BLOCK * BLOCK
    assert shared >= BLOCK
    assert sum(calls) == len(document.tokens) - shared
    assert document.shared > 0
    assert ask(library, "longer").tokens == unsaved_answer(
        loaded, stored_recipe(METHOD), text=longer, limit=6
    )


def test_another_method_reads_the_same_blocks_and_makes_its_own_index(library, loaded, calls):
    add(library)
    del calls[:]
    method = "quest(budget=0.1, dense_below=0, sinks=2, window=6)"
    add(library, name="q", method=method)
    assert sum(calls) < BLOCK + 64
    assert ask(library, "q").tokens == unsaved_answer(loaded, stored_recipe(method), limit=6)


@pytest.mark.parametrize("method", [METHOD, "infllm(budget=0.1, dense_below=0, sinks=2, window=6, block=8)"])
def test_an_index_of_another_version_is_made_again(library, monkeypatch, method):
    add(library, method=method)
    expected = ask(library).tokens
    for module in (opening, __import__("keyhole.documents.reading", fromlist=[""])):
        monkeypatch.setattr(module, "INDEX_VERSION", "another")
    assert ask(Library(library.path)).tokens == expected


def test_reading_from_disk_reads_a_part_and_keeps_within_its_memory(library, monkeypatch):
    add(library)
    whole = ask(library).tokens
    with library.open("d") as opened:
        buffers = [layer.storage.buffer for layer in keyhole.served_layers(opened.cache)]
        heads = buffers[0].view(buffers[0].length - 1).shape[1]
        assert all(buffer.read_rows <= heads for buffer in buffers)
    monkeypatch.setattr(opening, "_MEMORY", 1 << 14)
    assert ask(library).tokens == whole


def test_an_opened_document_is_continued_by_its_model(library):
    import torch

    add(library)
    with library.open("d", place="disk") as opened, keyhole.attach(opened.model):
        ids = torch.tensor([[5, 6, 7]])
        logits = opened.model(input_ids=ids, past_key_values=opened.cache).logits
    with library.open("d", place="device") as opened, keyhole.attach(opened.model):
        other = opened.model(input_ids=ids, past_key_values=opened.cache).logits
    torch.testing.assert_close(logits, other)


def test_exact_questions_read_everything(library, loaded):
    add(library)
    found = library.ask("d", QUESTION, max_new_tokens=6, exact=True)
    assert found.tokens == unsaved_answer(loaded, stored_recipe(METHOD), limit=6, exact=True)
    selected = ask(library)
    # The question's tokens are a step more, which is counted.
    assert selected.usage.steps > found.usage.steps


def test_one_call_reads_a_short_question_and_gives_the_first_token(library, monkeypatch):
    add(library)
    with library.open("d") as opened:
        kind, held = type(opened.model), len(opened.ids)
        selecting = sum(layer.selects for layer in served_layers(opened.cache))
    calls, forward = [], kind.forward

    @functools.wraps(forward)
    def counted(*given, **named):
        calls.append(named["input_ids"].shape[1])
        return forward(*given, **named)

    monkeypatch.setattr(kind, "forward", counted)
    found = library.ask("d", QUESTION, max_new_tokens=1)
    assert calls == [found.prompt_tokens - held]
    assert found.usage.steps == selecting > 0


@pytest.fixture
def tried(monkeypatch):
    """Models that were run to see whether they can be served."""
    seen, probe = [], support._probe
    monkeypatch.setattr(support, "_probe", lambda model: seen.append(model) or probe(model))
    return seen


def _another_version(notes):
    return notes | {"version": "another"}


def _another_file(notes):
    (path, said), *_ = notes["models"].items()
    return notes | {"models": {path: said | {"files": said["files"][1:]}}}


def _nothing_known(notes):
    return notes | {"models": 3}


def test_a_model_that_was_served_before_is_not_tried_again(library, tried):
    add(library)
    expected = ask(library).tokens
    assert len(tried) == 1
    assert ask(Library(library.path)).tokens == expected
    assert len(tried) == 1


@pytest.mark.parametrize("changed", [_another_version, _another_file, _nothing_known])
def test_a_model_of_which_nothing_fits_is_tried(library, tried, changed):
    add(library)
    expected = ask(library).tokens
    notes = library.path.with_name("store.models.json")
    notes.write_text(json.dumps(changed(json.loads(notes.read_text()))))
    assert ask(Library(library.path)).tokens == expected
    assert len(tried) == 2


def test_a_conversation_goes_on_as_one_prompt(library):
    add(library)
    with library.chat("d") as talk:
        first = talk.ask(QUESTION, max_new_tokens=4)
        second = talk.ask("Line 9:", max_new_tokens=4)
    assert first.tokens == ask(library).tokens[:4]
    assert [question for question, _ in talk.turns] == [QUESTION, "Line 9:"]
    assert second.prompt_tokens > first.prompt_tokens + 4


def test_a_file_is_added_when_it_is_asked_for(library, tmp_path, calls):
    path = tmp_path / "notes.txt"
    path.write_text(TEXT)
    first = library.ask(path, QUESTION, max_new_tokens=4, method=METHOD)
    read = len(calls)
    assert library.ask("notes", QUESTION, max_new_tokens=4).tokens == first.tokens
    assert library.ask(path, QUESTION, max_new_tokens=4).tokens == first.tokens
    assert len(calls) == read


def test_a_file_that_changed_is_read_again_from_where_it_differs(library, tmp_path, calls):
    path = tmp_path / "notes.txt"
    path.write_text(TEXT)
    library.add(path, method=METHOD)
    del calls[:]
    path.write_text(f"{TEXT} More.")
    library.ask(path, QUESTION, max_new_tokens=1, method=METHOD)
    assert 0 < sum(calls) < 2 * BLOCK + 64


def test_a_template_that_gives_another_date_is_said_and_does_not_read_again(library, loaded, calls):
    template = "{{ date }} {% for m in messages %}{{ m['content'] }}{% endfor %} A:"
    tokenizer, said = loaded.tokenizer, []
    tokenizer.chat_template = template
    days = iter(["Monday", "Tuesday", "Tuesday", "Tuesday"])
    apply = tokenizer.apply_chat_template
    day = [next(days)]
    tokenizer.apply_chat_template = lambda *a, **o: apply(*a, date=day[0], **o)
    try:
        shared = Library(library.path, notice=said.append)
        shared.add(text=TEXT, name="t", method=METHOD, model=loaded.model, tokenizer=tokenizer)
        del calls[:]
        shared.ask("t", QUESTION, max_new_tokens=1)
        assert said == []
        day[0] = next(days)
        shared.ask("t", QUESTION, max_new_tokens=1)
        assert calls == []
        assert "used as it was read" in said[0]
        tokenizer.chat_template = f"Now {tokenizer.chat_template}"
        shared.ask("t", QUESTION, max_new_tokens=1)
        assert said[-1].startswith("read again from token 0")
        assert sum(calls) > BLOCK
    finally:
        tokenizer.chat_template = None
        del tokenizer.apply_chat_template


def test_what_repair_removed_is_made_again_by_adding(library):
    """Also the note of how a document is put to its model, without which it cannot be asked."""
    add(library)
    expected = ask(library).tokens
    for path in sorted(library.path.rglob("*.safetensors")):
        data = bytearray(path.read_bytes())
        data[-5000] ^= 1
        path.write_bytes(data)
        assert not library.verify(repair=True).clean
        add(library)
        assert ask(library).tokens == expected


def test_what_is_larger_than_the_quota_is_refused_before_it_is_read(tmp_path, calls):
    with pytest.raises(QuotaError):
        add(Library(tmp_path / "small", quota=1 << 20), text=TEXT * 3)
    assert calls == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"text": None}, "either files or text"),
        ({"text": " \n"}, "is empty"),
        ({"name": None}, "needs a name"),
        ({"name": " x"}, "cannot be used"),
        ({"kv_dtype": "int5"}, "int5 is out of range"),
        ({"method": "shadowkv", "kv_dtype": "int8"}, "kv_dtype=int8"),
        ({"text": "word " * 40_000}, "range of 16,384 positions"),
    ],
)
def test_refusals(library, arguments, said):
    with pytest.raises(ValueError, match=said):
        add(library, **arguments)
    assert library.documents() == []


def test_unknown_documents_are_named(library):
    with pytest.raises(UnknownDocumentError, match="no document 'nope'"):
        library.ask("nope", QUESTION)
    add(library)
    assert library.remove("d") > 0
    with pytest.raises(UnknownDocumentError):
        library.open("d")


def test_a_state_cannot_be_read_from_disk(library):
    add(library, method="snapkv(budget=0.3)")
    with pytest.raises(ValueError, match="place=host or place=device"):
        library.open("d", place="disk")
