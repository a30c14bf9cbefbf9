"""Texts that are long: refused before they are tokenised, and in nobody's way while they are."""

import threading

import pytest

from keyhole.methods import Recipe
from keyhole.serving.incoming import Checks
from keyhole.serving.memory import MOST_METHODS, Needs
from keyhole.serving.requests import NewDocument, TooLongError
from keyhole.serving.tokenizing import OwnTokenizer, check_characters, longest_token
from tests.serving.prompts import PQ, request, text_of

BEYOND = "tokenselect(renumber=true, sparse_prefill=true, budget=64, window=16, chunk=16, sinks=4)"


def test_a_text_is_refused_by_characters_that_no_tokens_can_hold():
    check_characters(40, 10, 4)
    check_characters(10**9, None, 4)
    with pytest.raises(TooLongError, match=r"41 characters, which is more than 10 tokens"):
        check_characters(41, 10, 4)


def test_a_document_that_cannot_fit_is_not_tokenised(loaded, serve, library, monkeypatch):
    scheduler = serve(library=library, recipe=PQ)
    most = loaded.model.config.max_position_embeddings * longest_token(loaded.tokenizer)
    monkeypatch.setattr(OwnTokenizer, "__enter__", lambda _: pytest.fail("it was tokenised"))
    with pytest.raises(TooLongError, match="characters"):
        scheduler.submit_document(NewDocument("d", "a" * (most + 1)))
    assert library.documents() == []


def test_a_question_that_cannot_fit_is_not_tokenised(loaded, serve, library, monkeypatch):
    scheduler = serve(library=library, recipe=PQ)
    list(scheduler.submit_document(NewDocument("d", text_of("a", 4))))
    most = loaded.model.config.max_position_embeddings * longest_token(loaded.tokenizer)
    monkeypatch.setattr(OwnTokenizer, "__enter__", lambda _: pytest.fail("it was tokenised"))
    with pytest.raises(TooLongError, match="characters"):
        scheduler.document_prompt("d", [{"role": "user", "content": "a" * (most + 1)}])


@pytest.mark.parametrize("options", [{"recipe": Recipe.parse(BEYOND)}, {"beyond_range": True}])
def test_what_may_read_beyond_the_range_is_not_bounded_by_it(serve, library, monkeypatch, options):
    scheduler = serve(library=library, recipe=PQ)
    monkeypatch.setattr("keyhole.serving.incoming.position_range", lambda _: 1)
    ticket = scheduler.submit_document(NewDocument("d", text_of("a", 2), **options))
    ticket.cancel()
    with pytest.raises(TooLongError, match="characters"):
        scheduler.submit_document(NewDocument("e", text_of("a", 2)))


def test_a_document_that_is_tokenised_holds_up_no_request(loaded, serve, library, monkeypatch):
    scheduler = serve(library=library, recipe=PQ)
    begun, go = threading.Event(), threading.Event()
    whole = OwnTokenizer.__enter__

    def slow(own):
        found = whole(own)
        if own is scheduler._texts:
            begun.set()
            assert go.wait(60)
        return found

    monkeypatch.setattr(OwnTokenizer, "__enter__", slow)
    events = []
    adding = threading.Thread(
        target=lambda: events.extend(scheduler.submit_document(NewDocument("d", text_of("a", 4))))
    )
    adding.start()
    try:
        assert begun.wait(60)
        assert scheduler.submit(request(loaded, text_of("b", 2))).result(60).text
    finally:
        go.set()
        adding.join(60)
    assert events


def test_what_is_known_of_methods_is_bounded(loaded, monkeypatch):
    monkeypatch.setattr(Needs, "_token_bytes", lambda *_: 1.0)
    monkeypatch.setattr("keyhole.serving.incoming.check_method", lambda *_: None)
    checks = Checks(loaded.model, loaded.tokenizer, Recipe.parse(PQ), None, 1 << 30)
    for count in range(MOST_METHODS + 20):
        recipe = Recipe.parse(f"quest(budget={count + 1})")
        checks.check_recipe(recipe)
        checks.needs(recipe, 10)
    for known in (checks._check_method, checks._needs._measured):
        assert known.cache_info().currsize == MOST_METHODS
