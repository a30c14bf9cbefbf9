"""The official client, over a socket: its calls work unchanged."""

import pytest

from tests.serving.http.fakes import TEXT, overloaded

openai = pytest.importorskip("openai", reason="the package openai is not installed")

SAID = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def api(live):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{live}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_models(api):
    assert [each.id for each in api.models.list()] == ["tiny"]
    assert api.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("gpt")


def test_chat(api):
    found = api.chat.completions.create(model="tiny", messages=SAID, logprobs=True, top_logprobs=1)
    assert found.choices[0].message.content == TEXT
    assert found.usage.prompt_tokens_details.cached_tokens == 4
    assert found.usage.prompt_tokens_details.cache_write_tokens == 2
    assert found.x_keyhole["share"] == 0.25
    assert found._request_id.startswith("req_")
    spelled = found.choices[0].logprobs.content
    assert bytes(byte for each in spelled for byte in each.bytes).decode() == TEXT


def test_chat_streamed(api):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(api.chat.completions.create(model="tiny", messages=SAID, **options))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == TEXT
    assert "\ufffd" not in "".join(pieces)
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 4
    with api.chat.completions.stream(model="tiny", messages=SAID) as stream:
        assert stream.get_final_completion().choices[0].message.content == TEXT


def test_completions(api):
    found = api.completions.create(model="tiny", prompt=["One", "Two"], max_tokens=100, n=2)
    assert [each.text for each in found.choices] == [TEXT] * 4
    streamed = api.completions.create(model="tiny", prompt="One", max_tokens=100, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == TEXT


def test_responses(api):
    found = api.responses.create(model="tiny", input="Hi", instructions="Be brief.")
    assert (found.output_text, found.status) == (TEXT, "completed")
    assert found.usage.input_tokens_details.cached_tokens == 4
    again = api.responses.create(model="tiny", input=[*SAID, *found.output, *SAID])
    assert again.output_text == TEXT


def test_responses_streamed(api):
    with api.responses.stream(model="tiny", input="Hi") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == TEXT
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")


def test_own_fields_go_by_extra_body(api, scheduler):
    own = {"x_keyhole": {"method": "dense"}}
    found = api.chat.completions.create(model="tiny", messages=SAID, extra_body=own)
    assert found.x_keyhole["method"] == "dense"
    assert str(scheduler.requests[0].recipe) == "dense"


def test_errors_are_of_its_kinds(api, scheduler):
    with pytest.raises(openai.NotFoundError) as unknown:
        api.chat.completions.create(model="gpt", messages=SAID)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        api.chat.completions.create(model="tiny", messages=SAID, temperature=3)
    scheduler.error = overloaded()
    with pytest.raises(openai.InternalServerError) as full:
        api.chat.completions.create(model="tiny", messages=SAID)
    assert (full.value.status_code, full.value.response.headers["retry-after"]) == (503, "7")


def test_a_stream_that_fails_raises(api, scheduler):
    from keyhole.serving.requests import Failed

    scheduler.failure = Failed("it went wrong", "model")
    with pytest.raises(openai.APIError, match="it went wrong"):
        list(api.chat.completions.create(model="tiny", messages=SAID, stream=True))


def test_a_call_alone_is_streamed_without_a_message_also_with_log_probabilities(api, scheduler):
    scheduler.text = '<tool_call>{"name": "find", "arguments": {"x": 1}}</tool_call>'
    tool = {"type": "function", "name": "find", "parameters": {"type": "object"}, "strict": False}
    options = {"tools": [tool], "include": ["message.output_text.logprobs"]}
    with api.responses.stream(model="tiny", input="Hi", **options) as stream:
        kinds = [event.type for event in stream]
        (item,) = stream.get_final_response().output
    assert (item.type, item.name, item.arguments) == ("function_call", "find", '{"x": 1}')
    assert kinds.count("response.output_item.added") == 1
    assert "response.output_text.delta" not in kinds
