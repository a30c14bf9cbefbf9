"""Beginnings of prompts are read once; answers do not depend on what is stored."""

import pytest

from keyhole.documents.library import Library
from keyhole.methods import Recipe
from keyhole.serving.requests import Started
from tests.serving.prompts import PQ, alone, request, text_of

WAIT = 60
TEXT = text_of("a", 30)  # three whole blocks and a bit


def ask(scheduler, loaded, text=TEXT, **options):
    served = scheduler.submit(request(loaded, text, **options)).result(WAIT)
    usage = served.finished.usage
    return served.text, usage.cached_tokens, usage.cache_write_tokens


def test_a_prompt_that_was_read_is_taken_from_the_store(loaded, serve, library):
    expected = alone(loaded, TEXT).text
    scheduler = serve(library=library, recipe=PQ)
    assert ask(scheduler, loaded) == (expected, 0, 768)
    assert ask(scheduler, loaded) == (expected, 768, 0)
    tokens = scheduler.state().tokens
    assert (tokens["cached"], tokens["written"]) == (768, 768)


def test_a_prompt_that_goes_on_otherwise_takes_what_is_the_same(loaded, serve, library):
    scheduler = serve(library=library, recipe=PQ)
    ask(scheduler, loaded)
    other = f"{TEXT[: len(TEXT) * 3 // 4]} And then? {text_of('b', 20)}"
    text, cached, written = ask(scheduler, loaded, other)
    assert text == alone(loaded, other).text
    assert cached == 512
    assert written > 0
    assert ask(scheduler, loaded, other) == (text, cached + written, 0)


def test_another_process_takes_what_was_stored(loaded, serve, library):
    first = serve(library=library, recipe=PQ)
    text, _, _ = ask(first, loaded)
    first.close()
    again = serve(library=Library(library.path), recipe=PQ)
    assert ask(again, loaded) == (text, 768, 0)


def test_methods_that_read_prompts_alike_share_blocks_and_others_do_not(loaded, serve, library):
    scheduler = serve(library=library, recipe=PQ)
    ask(scheduler, loaded)
    quest = Recipe.parse("quest(page=8, dense_below=0)")
    int4 = Recipe.parse("pqcache(kv_dtype=int4, dense_below=0)")
    assert ask(scheduler, loaded, recipe=quest) == (alone(loaded, TEXT, quest).text, 768, 0)
    assert ask(scheduler, loaded, recipe=int4) == (alone(loaded, TEXT, int4).text, 0, 768)
    assert ask(scheduler, loaded, recipe=int4) == (alone(loaded, TEXT, int4).text, 768, 0)
    snapkv = Recipe.parse("snapkv")
    assert ask(scheduler, loaded, recipe=snapkv) == (alone(loaded, TEXT, snapkv).text, 0, 0)


def test_without_a_library_nothing_is_stored(loaded, serve):
    scheduler = serve(recipe=PQ)
    assert ask(scheduler, loaded)[1:] == ask(scheduler, loaded)[1:] == (0, 0)


def test_prompts_are_stored_only_where_that_is_wanted(loaded, serve, library):
    scheduler = serve(library=library, recipe=PQ, store_prompts=False)
    assert ask(scheduler, loaded)[1:] == ask(scheduler, loaded)[1:] == (0, 0)
    assert library.documents() == []


def test_short_prompts_are_not_stored(loaded, serve, library):
    assert ask(serve(library=library, recipe=PQ), loaded, text_of("a", 3))[1:] == (0, 0)


def test_a_store_without_room_changes_no_answer(loaded, serve, tmp_path):
    scheduler = serve(library=Library(tmp_path / "small", quota=1 << 20), recipe=PQ)
    text, cached, written = ask(scheduler, loaded)
    assert (text, cached) == (alone(loaded, TEXT).text, 0)
    assert written < 768


def test_a_damaged_block_is_not_used(loaded, serve, library):
    scheduler = serve(library=library, recipe=PQ)
    text, _, _ = ask(scheduler, loaded)
    for path in (library.path / "blocks").rglob("*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-5000] ^= 0xFF
        path.write_bytes(data)
    assert ask(scheduler, loaded)[:2] == (text, 0)


def test_the_same_prompt_at_once_is_stored_once(loaded, serve, library):
    scheduler = serve(library=library, recipe=PQ)
    tickets = [scheduler.submit(request(loaded, TEXT)) for _ in range(4)]
    served = [ticket.result(WAIT) for ticket in tickets]
    assert len({one.text for one in served}) == 1
    assert sum(one.finished.usage.cache_write_tokens for one in served) == 768
    assert len(library.documents()) == 1


def test_what_is_kept_of_prompts_ends_by_itself(loaded, serve, library):
    ask(serve(library=library, recipe=PQ), loaded)
    (kept,) = library.documents()
    assert kept.source == "a prompt"
    assert kept.ttl is not None
    assert kept.finished


def test_a_prompt_that_is_cancelled_leaves_the_store_usable(loaded, serve, library):
    scheduler = serve(library=library, recipe=PQ)
    ticket = scheduler.submit(request(loaded, TEXT))
    for event in ticket:
        if isinstance(event, Started):
            break
    ticket.cancel()
    list(ticket)
    assert ask(scheduler, loaded)[0] == alone(loaded, TEXT).text
    assert library.verify().clean


@pytest.mark.parametrize("verses", [9, 10, 11, 19, 20])
def test_prompts_that_end_near_a_block_are_read_alike(loaded, serve, library, verses):
    scheduler = serve(library=library, recipe=PQ)
    text = text_of("a", verses)
    first, second = ask(scheduler, loaded, text), ask(scheduler, loaded, text)
    assert first[0] == second[0] == alone(loaded, text).text
