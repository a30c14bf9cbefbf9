"""Answers of a scheduler are those that each request gets alone."""

import random
import threading
from dataclasses import replace

import pytest
import torch

from keyhole.core.errors import SpecError
from keyhole.methods import Recipe
from keyhole.serving.requests import Failed, Finished, OverloadedError, Piece, Request, Started, TooLongError
from keyhole.serving.scheduler import Scheduler
from keyhole.serving.tickets import RequestFailedError
from tests.generation.test_answers import SELECTING
from tests.serving.prompts import PQ, alone, ids_of, request, text_of

WAIT = 60
QUICK = (
    "dense",
    "pqcache",
    "quest",
    "delta",
    "snapkv",
    "h2o",
    "infllm",
    "sale",
    "tokenselect",
    "int4",
    "disk",
)
SLOW = [name for name in SELECTING if name not in QUICK and "chess" not in str(SELECTING[name])]


def check_together(loaded, serve, library, names):
    texts = {name: text_of(f"{number}.", 10 + number % 3) for number, name in enumerate(names)}
    recipes = {name: Recipe.parse(SELECTING[name]) for name in names}
    scheduler = serve(library=library)
    tickets = {
        name: scheduler.submit(request(loaded, text, recipe=recipes[name])) for name, text in texts.items()
    }
    for name, ticket in tickets.items():
        served, expected = ticket.result(WAIT), alone(loaded, texts[name], recipes[name])
        assert served.text == expected.text, name
        usage = served.finished.usage
        assert usage.completion_tokens == len(expected.tokens)
        assert usage.share == pytest.approx(expected.read_fraction), name
        assert usage.bytes_read == pytest.approx(expected.usage.bytes), name


def test_methods_answer_together_as_each_alone(loaded, serve, library):
    check_together(loaded, serve, library, QUICK)


@pytest.mark.slow
def test_all_methods_answer_together_as_each_alone(loaded, serve, library):
    check_together(loaded, serve, library, SLOW)


def test_a_server_of_skipped_weights_answers_as_alone(loaded, serve):
    method = "pqcache(dense_below=0) + chess"
    served = serve(recipe=method).submit(request(loaded, text_of("a", 5))).result(WAIT)
    assert served.text == alone(loaded, text_of("a", 5), method).text


def test_requests_that_are_cancelled_at_random_change_no_other_answer(loaded, serve, library):
    draw = random.Random(5)
    texts = [text_of(f"{number}.", draw.choice((1, 2, 11))) for number in range(12)]
    expected = [alone(loaded, text).text for text in texts]
    scheduler = serve(library=library, recipe=PQ, slots=4)
    tickets = [scheduler.submit(request(loaded, text)) for text in texts]
    left = draw.sample(range(12), 4)
    for number in left:
        for _, event in zip(range(draw.randint(0, 6)), tickets[number], strict=False):
            if isinstance(event, (Finished, Failed)):
                break
        tickets[number].cancel()
    for number, ticket in enumerate(tickets):
        if number not in left:
            assert ticket.result(WAIT).text == expected[number]
    assert scheduler.close()
    state = scheduler.state()
    assert (state.running, state.waiting, state.held_bytes) == (0, 0, 0)
    assert sum(state.finished.values()) == 12


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.9, "seed": 3}, {"temperature": 1.5, "top_p": 0.8, "seed": 1}, {"stop": ("moon",)}],
)
def test_sampling_and_stop_strings_are_those_of_generate(loaded, serve, options):
    text = text_of("a", 8)
    served = serve(recipe=PQ).submit(request(loaded, text, max_tokens=20, **options)).result(WAIT)
    expected = alone(loaded, text, max_new_tokens=20, **options)
    assert served.text == expected.text
    assert served.finished.reason == ("stop" if expected.ended else "length")


def test_pieces_make_up_the_text_and_its_tokens(loaded, serve):
    served = serve(recipe=PQ).submit(request(loaded, text_of("a", 3), max_tokens=12)).result(WAIT)
    assert served.text == loaded.tokenizer.decode(served.tokens, skip_special_tokens=True)
    assert served.finished.usage.completion_tokens >= len(served.tokens)


def test_log_probabilities_are_those_of_the_logits(loaded, serve):
    ids = ids_of(loaded, "The sea is")
    served = serve(recipe="dense").submit(Request(ids, max_tokens=3, logprobs=4)).result(WAIT)
    for place, found in enumerate(served.logprobs):
        seen = torch.tensor([[*ids, *served.tokens[:place]]])
        with torch.no_grad():
            expected = torch.log_softmax(loaded.model(seen).logits[0, -1].float(), -1)
        assert found.token == served.tokens[place]
        assert found.logprob == pytest.approx(float(expected[found.token]), abs=1e-4)
        assert [token for token, _ in found.top] == expected.topk(4).indices.tolist()
        assert found.top[0] == (found.token, found.logprob)


def test_a_prompt_of_one_token_is_answered(loaded, serve):
    with torch.no_grad():
        expected = int(loaded.model(torch.tensor([[17]])).logits[0, -1].argmax())
    served = serve(recipe=PQ).submit(Request((17,), max_tokens=1)).result(WAIT)
    assert served.tokens == (expected,)
    assert served.finished.reason == "length"


def test_events_come_in_order(loaded, serve):
    events = list(serve(recipe=PQ).submit(request(loaded, text_of("a", 12))))
    kinds = [type(event).__name__ for event in events]
    assert list(dict.fromkeys(kinds)) == ["Queued", "Started", "Progress", "Piece", "Finished"]
    assert events[kinds.index("Started")] == Started(0)
    done = [event.done for event in events if hasattr(event, "done")]
    assert done == sorted(done)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": ()}, "no tokens"),
        ({"prompt": (1, 99_999)}, "token id 99999 is out of range"),
        ({"prompt": (1, -1)}, "token id -1 is out of range"),
        ({"max_tokens": 0}, "0 is out of range"),
        ({"temperature": -1.0}, "temperature -1.0 is out of range"),
        ({"top_p": 0.0}, "top_p 0.0 is out of range"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"stop": ("",)}, "stop string '' is not usable"),
        ({"logprobs": 21}, "logprobs 21 is out of range"),
        ({"document": "d"}, "keeps no documents"),
        ({"recipe": Recipe.parse("chess")}, "reads other weights"),
    ],
)
def test_what_cannot_be_served_is_refused_before_it_runs(serve, changes, said):
    scheduler = serve()
    with pytest.raises(ValueError, match=said):
        scheduler.submit(replace(Request((1, 2)), **changes))
    assert scheduler.state().waiting == scheduler.state().running == 0


@pytest.mark.parametrize(
    ("options", "tokens", "said"),
    [
        ({"max_context": 300}, 250, "the server takes 300 together"),
        ({}, 16_300, "model's range of 16,384 positions"),
        ({"memory": 1 << 20}, 2000, "would hold up to"),
    ],
)
def test_what_is_too_long_is_refused_before_it_runs(serve, options, tokens, said):
    with pytest.raises(TooLongError, match=said) as refused:
        serve(**options).submit(Request((1,) * tokens, max_tokens=100))
    for option in ("max_new_tokens", "beyond_range", "--", "context by"):
        assert option not in str(refused.value)  # clients have none of that name


@pytest.mark.parametrize("option", ["slots", "memory", "max_context"])
def test_a_scheduler_of_nothing_is_refused(loaded, option):
    with pytest.raises(ValueError, match=f"{option} 0 is out of range"):
        Scheduler(loaded, **{option: 0})
    with pytest.raises(SpecError):
        Scheduler(loaded, recipe="none of that name")


def test_requests_wait_until_there_is_memory(loaded, serve):
    scheduler = serve(recipe="dense", memory=2 << 20)
    texts = [text_of(f"{number}.", 12) for number in range(3)]
    tickets = [scheduler.submit(request(loaded, text, max_tokens=2)) for text in texts]
    held = set()
    for ticket in tickets:
        for event in ticket:
            if isinstance(event, Piece):
                held.add(scheduler.state().held_bytes)
    assert max(held) <= 2 << 20
    assert scheduler.state().finished == {"length": 3}


def test_a_call_of_the_model_that_fails_fails_one_request(loaded, serve, monkeypatch):
    from keyhole.serving import reading

    prefill, bad = reading.prefill, ids_of(loaded, text_of("bad", 3))

    def broken(model, tokens, cache, **options):
        if tuple(tokens[0].tolist()) == bad[:-1]:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 byte")
        return prefill(model, tokens, cache, **options)

    monkeypatch.setattr(reading, "prefill", broken)
    scheduler = serve(recipe=PQ)
    texts = [text_of("good", 12), text_of("bad", 3), text_of("better", 2)]
    first, second, third = [scheduler.submit(request(loaded, text)) for text in texts]
    with pytest.raises(RequestFailedError, match="out of memory") as failed:
        second.result(WAIT)
    assert failed.value.failed.kind == "memory"
    assert first.result(WAIT).text == alone(loaded, texts[0]).text
    assert third.result(WAIT).text == alone(loaded, texts[2]).text
    assert scheduler.state().alive


def test_closing_drains(loaded, serve):
    scheduler = serve(recipe=PQ, slots=1)
    tickets = [scheduler.submit(request(loaded, text_of(f"{number}.", 2))) for number in range(3)]
    assert scheduler.close(patience=WAIT)
    assert all(ticket.over and ticket.result(1).text for ticket in tickets)
    with pytest.raises(OverloadedError, match="stopping"):
        scheduler.submit(Request((1, 2)))
    assert not scheduler.state().alive


def test_a_record_is_made_where_one_is_wanted(loaded, serve):
    class Recorder:
        def begin(self, model, cache, prompt):
            self.seen = [model is loaded.model, cache.get_seq_length(), len(prompt)]

        def step(self, token):
            self.seen.append(token)

        def end(self):
            return self.seen

    scheduler = serve(recipe=PQ, recorder=Recorder)
    asked = request(loaded, text_of("a", 3), max_tokens=3)
    assert scheduler.submit(asked).result(WAIT).finished.record is None
    served = scheduler.submit(replace(asked, record=True)).result(WAIT)
    length = len(asked.prompt)
    assert served.finished.record == [True, length - 1, length, *served.tokens]


def test_an_answer_is_whole_without_a_record_that_is_too_large(loaded, serve):
    class Recorder:
        def begin(self, model, cache, prompt):
            pass

        def step(self, token):
            pass

        def end(self):
            raise ValueError("the record takes 40,000,000 bytes, more than 33,554,432")

    asked = request(loaded, text_of("a", 3), max_tokens=3, record=True)
    served = serve(recipe=PQ, recorder=Recorder).submit(asked).result(WAIT)
    assert len(served.tokens) == 3
    assert served.finished.record is None
    assert "more than 33,554,432" in served.finished.unrecorded


def test_no_record_is_made_for_a_client_that_went_away(loaded, serve):
    ended, ready, dropped = [], threading.Event(), threading.Event()

    class Recorder:
        def begin(self, model, cache, prompt):
            pass

        def step(self, _):
            ready.wait(WAIT)
            tickets[0].cancel()

        def end(self):
            ended.append(self)

        def drop(self):
            dropped.set()

    scheduler = serve(recipe=PQ, recorder=Recorder)
    tickets = []
    tickets.append(scheduler.submit(request(loaded, text_of("a", 3), max_tokens=100, record=True)))
    ready.set()
    assert dropped.wait(WAIT)
    assert not ended


def test_the_model_is_left_as_it_was(loaded, serve):
    before = loaded.model.config._attn_implementation
    scheduler = serve(recipe=PQ)
    scheduler.submit(request(loaded, text_of("a", 1))).result(WAIT)
    scheduler.close()
    assert loaded.model.config._attn_implementation == before
