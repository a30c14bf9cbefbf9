"""Documents behind a scheduler: added in turns, asked as by a library, found again after a restart."""

import pytest

from keyhole.core.errors import UnknownDocumentError
from keyhole.documents.library import Library
from keyhole.serving.requests import Added, Failed, NewDocument, Progress, Request, Started
from keyhole.serving.tickets import RequestFailedError
from tests.serving.prompts import PQ, alone, request, text_of

WAIT = 60
TEXT = text_of("a", 22)
RENUMBERED = "pqcache(renumber=true, sparse_prefill=true, budget=64, window=16, chunk=16, sinks=4)"


def add(scheduler, name="d", text=TEXT, **options):
    return list(scheduler.submit_document(NewDocument(name, text, **options)))


def messages(*said):
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(said)]


def ask(scheduler, *said, **options):
    prompt = scheduler.document_prompt("d", messages(*said))
    return scheduler.submit(Request(prompt, document="d", max_tokens=8, **options)).result(WAIT)


@pytest.mark.parametrize("chat", [True, False])
def test_a_document_is_added_and_asked_as_by_a_library(talking, serve, library, chat):
    scheduler = serve(talking, library=library, recipe=PQ)
    last = add(scheduler, chat=chat)[-1]
    assert isinstance(last, Added)
    assert last.document.name == "d"
    for options in ({}, {"exact": True}, {"temperature": 0.8, "seed": 4}):
        served = ask(scheduler, "Who is at sea?", **options)
        expected = library.ask("d", "Who is at sea?", max_new_tokens=8, **options)
        assert served.text == expected.text
        usage = served.finished.usage
        assert (usage.cached_tokens, usage.prompt_tokens) == (
            len(last.document.tokens),
            expected.prompt_tokens,
        )
        assert usage.share == pytest.approx(expected.read_fraction)


@pytest.mark.parametrize("exact", [False, True])
def test_a_document_by_renumbered_positions_is_asked_as_by_a_library(serve, library, exact):
    scheduler = serve(library=library, recipe=RENUMBERED)
    add(scheduler)
    expected = library.ask("d", "Who is at sea?", max_new_tokens=8, exact=exact)
    served = ask(scheduler, "Who is at sea?", exact=exact)
    assert served.text == expected.text
    assert served.finished.usage.share == pytest.approx(expected.read_fraction)


def test_several_turns_follow_the_document(talking, serve, library):
    scheduler = serve(talking, library=library, recipe=PQ)
    add(scheduler)
    said = ("Who is at sea?", "A pilot.", "And the moon?")
    with library.chat("d") as talk:
        talk.turns.append(said[:2])
        expected = talk.ask(said[2], max_new_tokens=8)
    served = ask(scheduler, *said)
    assert served.text == expected.text
    assert served.finished.usage.prompt_tokens == expected.prompt_tokens


def test_a_system_message_goes_in_front_of_the_first_question(serve, library):
    scheduler = serve(library=library, recipe=PQ)
    add(scheduler)
    system = [{"role": "system", "content": "Be short."}, *messages("Who?")]
    assert scheduler.document_prompt("d", system) == scheduler.document_prompt(
        "d", messages("Be short.\n\nWho?")
    )


def test_a_server_that_starts_again_has_its_documents(serve, library):
    first = serve(library=library, recipe=PQ)
    add(first)
    text = ask(first, "Who is at sea?").text
    first.close()
    again = serve(library=Library(library.path), recipe=PQ)
    served = ask(again, "Who is at sea?")
    assert served.text == text
    assert served.finished.usage.cached_tokens == len(library.document("d").tokens)


def test_an_answer_does_not_depend_on_what_is_answered_beside_it(loaded, serve, library):
    scheduler = serve(library=library, recipe=PQ)
    add(scheduler)
    prompts = [scheduler.document_prompt("d", messages(text)) for text in ("Who?", "The tide?", "The moon?")]
    expected = [library.ask("d", text, max_new_tokens=8).text for text in ("Who?", "The tide?", "The moon?")]
    tickets = [scheduler.submit(Request(prompt, document="d", max_tokens=8)) for prompt in prompts]
    other = scheduler.submit(request(loaded, text_of("b", 20)))
    events = add(scheduler, "e", text_of("c", 40))
    assert isinstance(events[-1], Added)
    assert [ticket.result(WAIT).text for ticket in tickets] == expected
    assert other.result(WAIT).text == alone(loaded, text_of("b", 20)).text


def test_adding_goes_on_where_it_was_cancelled(serve, library):
    scheduler = serve(library=library, recipe=PQ)
    ticket = scheduler.submit_document(NewDocument("d", text_of("a", 60)))
    for event in ticket:
        if isinstance(event, Progress) and event.done >= 512:
            ticket.cancel()
    assert event == Failed("the request was cancelled", "stopped")
    scheduler.close(drain=False)
    assert not library.document("d").finished
    again = serve(library=library, recipe=PQ)
    events = add(again, text=text_of("a", 60))
    started = next(event for event in events if isinstance(event, Started))
    assert started.cached_tokens >= 512
    assert isinstance(events[-1], Added)
    assert add(again, text=text_of("a", 60))[-2:][0] == Started(len(library.document("d").tokens))


@pytest.mark.parametrize(
    ("new", "said"),
    [
        (NewDocument("", TEXT), "name"),
        (NewDocument("d", " "), "empty"),
        (NewDocument("d", TEXT, ttl=-5), "ttl"),
        (NewDocument("d", TEXT, kv_dtype="int5"), "kv_dtype=int5"),
        (NewDocument("d", "a\ud800"), "Unicode"),
    ],
)
def test_a_document_that_cannot_be_is_refused(serve, library, new, said):
    scheduler = serve(library=library, recipe=PQ)
    with pytest.raises(ValueError, match=said):
        scheduler.submit_document(new)
    assert library.documents() == []


def test_a_document_beyond_the_quota_fails_alone(loaded, serve, tmp_path):
    scheduler = serve(library=Library(tmp_path / "small", quota=1 << 20), recipe=PQ)
    last = add(scheduler, text=text_of("a", 60))[-1]
    assert isinstance(last, Failed)
    assert last.kind == "document"
    assert "quota" in last.error
    assert str(tmp_path) not in last.error
    assert scheduler.submit(request(loaded, text_of("a", 2))).result(WAIT).text


def test_documents_that_are_not_there_or_not_meant_are_refused(serve, library):
    scheduler = serve(library=library, recipe=PQ)
    with pytest.raises(UnknownDocumentError):
        scheduler.submit(Request((1, 2), document="d"))
    with pytest.raises(UnknownDocumentError):
        scheduler.document_prompt("d", messages("Who?"))
    add(scheduler)
    ids = tuple(library.document("d").tokens.tolist())
    with pytest.raises(ValueError, match="token 1 differs"):
        scheduler.submit(Request((ids[0], ids[1] + 1, *ids[2:], 5), document="d"))
    with pytest.raises(ValueError, match="nothing follows"):
        scheduler.submit(Request(ids, document="d"))
    with pytest.raises(ValueError, match="token 9 differs"):
        scheduler.submit(Request(ids[:9], document="d"))
    for wrong in ([], messages("a", "b"), [{"role": "tool", "content": "x"}]):
        with pytest.raises(ValueError, match=r"messages|role"):
            scheduler.document_prompt("d", wrong)


def test_names_of_prompts_and_of_other_models_are_not_suggested(loaded, serve, library):
    scheduler = serve(library=library, recipe=PQ)
    add(scheduler)
    scheduler.submit(request(loaded, text_of("b", 40))).result(WAIT)
    library.add(text=TEXT, name="doc", model=loaded.model, tokenizer=loaded.tokenizer)
    (kept,) = [each.name for each in library.documents() if each.source == "a prompt"]
    for name in (kept, "do"):
        with pytest.raises(UnknownDocumentError, match="did you mean 'd'"):
            scheduler.document_prompt(name, messages("Who?"))
    with pytest.raises(ValueError, match="by another model than the one that is served"):
        scheduler.document_prompt("doc", messages("Who?"))


def test_a_document_that_goes_while_a_request_waits_fails_that_request(loaded, serve, library):
    scheduler = serve(library=library, recipe=PQ, slots=1)
    add(scheduler)
    prompt = scheduler.document_prompt("d", messages("Who?"))
    first = scheduler.submit(request(loaded, text_of("b", 40)))
    ticket = scheduler.submit(Request(prompt, document="d"))
    library.remove("d")
    with pytest.raises(RequestFailedError, match="no document 'd'") as failed:
        ticket.result(WAIT)
    assert failed.value.failed.kind == "document"
    assert first.result(WAIT).text


def test_another_method_than_the_document_was_read_by_is_refused(serve, library):
    from keyhole.methods import Recipe

    scheduler = serve(library=library, recipe=PQ)
    add(scheduler)
    prompt = scheduler.document_prompt("d", messages("Who?"))
    with pytest.raises(ValueError, match="was read by pqcache"):
        scheduler.submit(Request(prompt, document="d", recipe=Recipe.parse("quest")))
