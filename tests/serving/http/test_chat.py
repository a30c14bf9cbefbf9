"""`/v1/chat/completions`: what is asked of the scheduler, and how its answer is shown."""

import base64
import json

import pytest

from keyhole.methods import Recipe
from keyhole.serving.http.settings import Settings
from keyhole.serving.requests import Failed, TooLongError
from tests.serving.http.clients import client_of
from tests.serving.http.fakes import TEXT, FakeScheduler, overloaded

HI = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
PATH = "/v1/chat/completions"


def events_of(text):
    """The data of server-sent events, without comments."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def prompt_of(scheduler, number=0):
    return scheduler.loaded.tokenizer.decode(scheduler.requests[number].prompt)


def test_an_answer_has_openais_form(client, scheduler):
    found = client.post(PATH, json=HI).json()
    assert found["object"] == "chat.completion"
    assert found["model"] == "tiny"
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": TEXT, "refusal": None, "annotations": []}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    size = len(scheduler.requests[0].prompt)
    count = len(TEXT.encode())
    assert found["usage"] == {
        "prompt_tokens": size,
        "completion_tokens": count,
        "total_tokens": size + count,
        "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2},
    }
    assert found["x_keyhole"] == {
        "method": str(FakeScheduler.recipe),
        "tokens_read": 10.0,
        "tokens_in_context": 40.0,
        "share": 0.25,
        "bytes_read": 1000.0,
        "bytes_held": {"device": 7, "host": 0, "disk": 1},
        "missed_mass": 0.05,
    }


def test_messages_go_through_the_chat_template(client, scheduler):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "Three"},
    ]
    client.post(PATH, json=HI | {"messages": messages})
    assert (
        prompt_of(scheduler)
        == "<|system|>Be brief.\n<|user|>One\nTwo\n<|assistant|>Yes\n<|user|>Three\n<|assistant|>"
    )


def test_without_a_template_the_contents_follow_one_another():
    scheduler = FakeScheduler()
    messages = [
        {"role": "system", "content": "Facts."},
        {"role": "user", "content": "Q1"},
        {"role": "assistant", "content": "A1"},
        {"role": "user", "content": "Q2"},
    ]
    with client_of(scheduler) as client:
        assert client.post(PATH, json=HI | {"messages": messages}).status_code == 200
    assert prompt_of(scheduler) == "Facts.\nQ1A1\nQ2"


def test_a_request_is_as_it_was_asked(client, scheduler):
    more = {"temperature": 0.7, "top_p": 0.9, "seed": 5, "max_completion_tokens": 9, "stop": "x"}
    client.post(PATH, json=HI | more | {"x_keyhole": {"method": "quest(budget=0.2)"}})
    (request,) = scheduler.requests
    assert (request.temperature, request.top_p, request.seed, request.max_tokens) == (0.7, 0.9, 5, 9)
    assert request.stop == ("x",)
    assert request.recipe == Recipe.parse("quest(budget=0.2)")


def test_an_answer_is_greedy_and_within_the_context_unless_said(client, scheduler):
    client.post(PATH, json=HI)
    client.post(PATH, json=HI | {"messages": [{"role": "user", "content": "a" * 4000}]})
    first, second = scheduler.requests
    assert (first.temperature, first.max_tokens) == (0.0, 1024)
    assert len(second.prompt) + second.max_tokens == scheduler.max_context


def test_choices_differ_by_their_seeds_and_count_the_prompt_once(client, scheduler):
    found = client.post(PATH, json=HI | {"n": 3, "seed": 2**63 - 1, "temperature": 1}).json()
    assert [each.seed for each in scheduler.requests] == [2**63 - 1, 0, 1]
    assert [each["index"] for each in found["choices"]] == [0, 1, 2]
    assert found["usage"]["prompt_tokens"] == len(scheduler.requests[0].prompt)
    assert found["usage"]["completion_tokens"] == 3 * len(TEXT.encode())
    assert found["x_keyhole"]["share"] == 0.25


@pytest.mark.parametrize("count", [1, 3])
def test_a_stream_says_what_the_whole_answer_says(client, count):
    more = {"n": count, "seed": 1, "logprobs": True, "top_logprobs": 2}
    whole = client.post(PATH, json=HI | more).json()
    streamed = client.post(PATH, json=HI | more | {"stream": True, "stream_options": {"include_usage": True}})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events_of(streamed.text)
    assert done == "[DONE]"
    assert (usage["choices"], usage["usage"], usage["x_keyhole"]) == ([], whole["usage"], whole["x_keyhole"])
    assert all(chunk["usage"] is None and chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    for index, choice in enumerate(whole["choices"]):
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"].get("content") or "" for c in mine) == choice["message"]["content"]
        spelled = [one for c in mine if c["logprobs"] for one in c["logprobs"]["content"]]
        assert spelled == choice["logprobs"]["content"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]


def test_without_usage_the_last_chunk_says_what_was_read(client):
    chunks = events_of(client.post(PATH, json=HI | {"stream": True}).text)
    assert all("usage" not in chunk for chunk in chunks[:-1])
    assert chunks[-2]["x_keyhole"]["share"] == 0.25


def test_records_are_part_of_what_was_read(scheduler):
    with client_of(scheduler, Settings(model="tiny", records=True)) as client:
        asked = HI | {"x_keyhole": {"record": True}, "n": 2}
        whole = client.post(PATH, json=asked).json()["x_keyhole"]["record"]
        chunks = events_of(client.post(PATH, json=asked | {"stream": True}).text)
    assert whole == chunks[-2]["x_keyhole"]["record"] == [base64.b64encode(b"record").decode()] * 2


def test_waiting_is_said_in_comments(client):
    text = client.post(PATH, json=HI | {"stream": True}).text
    assert text.startswith(": queued 2\n\n: queued 1\n\n: reading 3 of 9\n\ndata: ")


def test_log_probabilities_spell_the_bytes_of_pieces_of_characters(client):
    found = client.post(PATH, json=HI | {"logprobs": True, "top_logprobs": 0}).json()
    spelled = found["choices"][0]["logprobs"]["content"]
    assert bytes(byte for one in spelled for byte in one["bytes"]).decode() == TEXT
    assert all(one["top_logprobs"] == [] and one["logprob"] == -0.5 for one in spelled)


TOOL = {
    "type": "function",
    "function": {"name": "find", "description": "d", "parameters": {"type": "object"}},
}


def test_calls_of_tools_are_read_from_the_answer(client, scheduler):
    call = '<tool_call>\n{"name": "find", "arguments": {"what": "ü"}}\n</tool_call>'
    scheduler.text = f"Let me see. {call}{call}"
    asked = HI | {"tools": [TOOL], "tool_choice": "auto"}
    choice = client.post(PATH, json=asked).json()["choices"][0]
    assert prompt_of(scheduler).startswith('<|tools|>[{"type": "function"')
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see. "
    calls = choice["message"]["tool_calls"]
    assert [(each["type"], each["function"]["name"]) for each in calls] == [("function", "find")] * 2
    assert json.loads(calls[0]["function"]["arguments"]) == {"what": "ü"}
    chunks = events_of(client.post(PATH, json=asked | {"stream": True}).text)[:-1]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Let me see. "
    streamed = [one for delta in deltas for one in delta.get("tool_calls", [])]
    assert [one["index"] for one in streamed] == [0, 1]
    assert [one["function"] for one in streamed] == [one["function"] for one in calls]


def test_earlier_calls_and_results_are_given_back(client, scheduler):
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "1", "content": "found"},
    ]
    assert client.post(PATH, json=HI | {"messages": messages, "tools": [TOOL]}).status_code == 200
    assert prompt_of(scheduler).endswith("<|assistant|>\n<|tool|>found\n<|assistant|>")


def test_fields_without_effect_are_taken(client):
    more = {
        "frequency_penalty": 0,
        "logit_bias": {},
        "metadata": {"a": "b"},
        "modalities": ["text"],
        "parallel_tool_calls": True,
        "presence_penalty": 0.0,
        "prompt_cache_key": "k",
        "response_format": {"type": "text"},
        "safety_identifier": "s",
        "service_tier": "auto",
        "store": True,
        "top_logprobs": None,
        "user": "u",
    }
    assert client.post(PATH, json=HI | more).status_code == 200


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"model": "gpt"}, "model", "model_not_found"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "Hi"}, "messages", "invalid_type"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "user", "content": "x", "odd": 1}]}, "messages[0].odd", "unknown_parameter"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 17}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"stop": [""]}, "stop", "invalid_value"),
        ({"stop": [1]}, "stop", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "unsupported_parameter"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
        ({"nonsense": 1}, "nonsense", "unknown_parameter"),
        ({"x_keyhole": {"method": "nosuch"}}, "x_keyhole.method", "invalid_method"),
        ({"x_keyhole": {"method": "chess(file='/etc')"}}, "x_keyhole.method", "invalid_method"),
        ({"x_keyhole": {"metod": "dense"}}, "x_keyhole.metod", "unknown_parameter"),
        ({"x_keyhole": {"exact": True}}, "x_keyhole.exact", "invalid_value"),
        ({"x_keyhole": {"record": True}}, "x_keyhole.record", "unsupported_parameter"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(refused, change, param, code):
    error = refused(PATH, HI | change, status=404 if code == "model_not_found" else 400)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


def test_a_model_without_tools_in_its_template_is_not_given_any():
    with client_of(FakeScheduler()) as client:
        response = client.post(PATH, json=HI | {"tools": [TOOL]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools"


def test_a_template_that_refuses_messages_says_why():
    scheduler = FakeScheduler(chat_template="{{ raise_exception('roles must alternate') }}")
    with client_of(scheduler) as client:
        response = client.post(PATH, json=HI)
    assert response.status_code == 400
    assert "roles must alternate" in response.json()["error"]["message"]


def test_a_text_beyond_any_context_is_refused_untokenised(refused):
    error = refused(PATH, HI | {"messages": [{"role": "user", "content": "a" * 100_000}]})
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_503_with_the_time_to_wait(client, scheduler, stream):
    scheduler.error = overloaded()
    response = client.post(PATH, json=HI | {"stream": stream})
    assert (response.status_code, response.headers["retry-after"]) == (503, "7")
    assert response.json()["error"]["code"] == "overloaded"


def test_what_is_too_long_is_400(client, scheduler):
    scheduler.error = TooLongError("the prompt has 5,000 tokens")
    response = client.post(PATH, json=HI)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("kind", "status"), [("model", 500), ("document", 409), ("memory", 503), ("closed", 503)]
)
def test_what_fails_later_has_its_status_or_ends_the_stream(client, scheduler, kind, status):
    scheduler.failure = Failed("it went wrong", kind)
    response = client.post(PATH, json=HI)
    assert (response.status_code, response.json()["error"]["message"]) == (status, "it went wrong")
    last = events_of(client.post(PATH, json=HI | {"stream": True}).text)[-1]
    assert last["error"]["message"] == "it went wrong"


def test_all_or_none_of_the_choices_are_submitted(client, scheduler):
    submit = scheduler.submit

    def once(request):
        if scheduler.requests:
            raise overloaded()
        return submit(request)

    scheduler.submit = once
    assert client.post(PATH, json=HI | {"n": 2}).status_code == 503
    assert len(scheduler.requests) == 1


def test_an_error_of_ours_is_500_without_a_word_of_the_request(client, scheduler, caplog):
    scheduler.error = RuntimeError("secret words of the prompt")
    response = client.post(PATH, json=HI)
    assert response.status_code == 500
    assert "secret" not in response.text + caplog.text
    assert "RuntimeError at" in caplog.text


def test_more_answers_than_there_may_ever_be_at_once_are_not_worth_a_retry(refused, scheduler):
    scheduler.slots = 2  # beside 6 that may wait
    assert refused(PATH, HI | {"n": 9})["param"] == "n"
    assert not scheduler.requests
