"""`/v1/responses`: input items, the response object, and the order of events."""

import json

import pytest

from keyhole.serving.requests import Failed
from tests.serving.http.fakes import TEXT
from tests.serving.http.test_chat import events_of, prompt_of

PATH = "/v1/responses"
ASKED = {"model": "tiny", "input": "Hi"}


def test_a_response_has_openais_form(client, scheduler):
    found = client.post(PATH, json=ASKED | {"instructions": "Be brief.", "metadata": {"a": "b"}}).json()
    assert prompt_of(scheduler) == "<|system|>Be brief.\n<|user|>Hi\n<|assistant|>"
    assert (found["object"], found["status"], found["error"]) == ("response", "completed", None)
    (item,) = found["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    assert item["content"] == [{"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}]
    assert found["usage"]["input_tokens_details"] == {"cached_tokens": 4, "cache_write_tokens": 2}
    assert found["usage"]["output_tokens_details"] == {"reasoning_tokens": 0}
    assert (found["store"], found["metadata"]) == (False, {"a": "b"})
    assert found["x_keyhole"]["share"] == 0.25


def test_items_are_messages_calls_and_results(client, scheduler):
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Q"}]},
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Well.", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "call_id": "1", "name": "find", "arguments": '{"a": 1}', "id": "fc_1"},
        {"type": "function_call_output", "call_id": "1", "output": "found"},
    ]
    assert client.post(PATH, json=ASKED | {"input": items}).status_code == 200
    assert prompt_of(scheduler) == "<|user|>Q\n<|assistant|>Well.\n<|tool|>found\n<|assistant|>"


def test_events_come_in_openais_order_and_say_what_the_response_says(client):
    whole = client.post(PATH, json=ASKED).json()
    text = client.post(PATH, json=ASKED | {"stream": True}).text
    named = [line.removeprefix("event: ") for line in text.split("\n") if line.startswith("event: ")]
    blocks = [block.split("\n")[-1] for block in text.split("\n\n") if block.startswith("event: ")]
    events = [json.loads(block.removeprefix("data: ")) for block in blocks]
    assert [each["type"] for each in events] == named
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    assert [kind for kind in named if kind != "response.output_text.delta"] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    deltas = "".join(each["delta"] for each in events if each["type"] == "response.output_text.delta")
    assert deltas == TEXT == whole["output"][0]["content"][0]["text"]
    last = events[-1]["response"]
    assert last["usage"] == whole["usage"]
    assert set(last) == set(whole)
    items = {each["item_id"] for each in events if "item_id" in each}
    assert items == {last["output"][0]["id"]}


def test_an_answer_cut_by_its_limit_is_incomplete(client):
    found = client.post(PATH, json=ASKED | {"max_output_tokens": 3}).json()
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    text = client.post(PATH, json=ASKED | {"max_output_tokens": 3, "stream": True}).text
    assert "event: response.incomplete\n" in text
    assert "response.completed" not in text


def test_calls_are_items_of_their_own(client, scheduler):
    scheduler.text = '<tool_call>{"name": "find", "arguments": {"x": 1}}</tool_call>'
    tool = {"type": "function", "name": "find", "parameters": {"type": "object"}, "strict": False}
    (item,) = client.post(PATH, json=ASKED | {"tools": [tool]}).json()["output"]
    assert (item["type"], item["name"], json.loads(item["arguments"])) == ("function_call", "find", {"x": 1})
    text = client.post(PATH, json=ASKED | {"tools": [tool], "stream": True}).text
    kinds = [line.removeprefix("event: response.") for line in text.split("\n") if line.startswith("event: ")]
    assert kinds[2:] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]


def test_log_probabilities_are_included_when_asked_for(client):
    more = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    part = client.post(PATH, json=ASKED | more).json()["output"][0]["content"][0]
    assert len(part["logprobs"]) == len(TEXT.encode())
    deltas = [each for each in events_of(client.post(PATH, json=ASKED | more | {"stream": True}).text)]
    assert deltas == []  # every event has a name, and none is of the older kind


def test_what_fails_ends_the_stream_as_failed(client, scheduler):
    scheduler.failure = Failed("it went wrong", "model")
    text = client.post(PATH, json=ASKED | {"stream": True}).text
    last = json.loads(text.strip().split("data: ")[-1])
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["message"] == "it went wrong"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"type": "reasoning"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"include": ["file_search_call.results"]}, "include"),
        ({"tools": [{"type": "file_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "f", "strict": True}]}, "tools[0].strict"),
        ({"conversation": "c"}, "conversation"),
        ({"n": 2}, "n"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(refused, change, param):
    assert refused(PATH, ASKED | change)["param"] == param
