"""The official client, answered by the real scheduler and the embedded model as in this process."""

import base64
import time
from urllib.request import urlopen

import pytest

import keyhole
from keyhole.view.file import from_json
from tests.serving.http.whole import Command, whole_server
from tests.serving.prompts import PQ, VERSE, alone, text_of

openai = pytest.importorskip("openai", reason="the package openai is not installed")

TEXT = text_of("a", 30)
QUESTION = "Who is at sea?"


def client_at(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def server(talking, library):
    with whole_server(talking, library) as found:
        found.url = f"http://127.0.0.1:{found.port}"
        yield found


@pytest.fixture
def api(server):
    with client_at(server.url) as found:
        yield found


def add(api, name="d", text=TEXT):
    return api.post("/documents", body={"name": name, "text": text}, cast_to=object)


def said(text):
    return [{"role": "user", "content": text}]


def chat(api, text, **options):
    return api.chat.completions.create(
        **{"model": "keyhole", "messages": said(text), "max_tokens": 8} | options
    )


def streamed(chunks):
    pieces = [chunk.choices[0] for chunk in chunks if chunk.choices]
    return "".join((one.delta.content if hasattr(one, "delta") else one.text) or "" for one in pieces)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 4, "top_p": 0.9}])
def test_completions_are_those_of_generate(api, loaded, options):
    asked = {"model": "keyhole", "prompt": TEXT, "max_tokens": 8} | options
    expected = alone(loaded, TEXT, max_new_tokens=8, **options)
    found = api.completions.create(**asked)
    assert found.choices[0].text == expected.text
    assert found.usage.prompt_tokens == expected.prompt_tokens
    assert found.x_keyhole["share"] == pytest.approx(expected.read_fraction)
    assert streamed(api.completions.create(**asked, stream=True)) == expected.text


def test_a_stop_string_ends_the_text_before_it(api, loaded):
    whole = alone(loaded, TEXT, max_new_tokens=8).text
    stop = whole[len(whole) // 2 :][:3]
    found = api.completions.create(model="keyhole", prompt=TEXT, max_tokens=8, stop=stop)
    assert (found.choices[0].text, found.choices[0].finish_reason) == (whole.split(stop)[0], "stop")


@pytest.mark.parametrize("method", [PQ, "quest(dense_below=0, budget=0.2)", "dense"])
def test_chat_and_responses_are_those_of_generate(api, talking, method):
    options = {"max_new_tokens": 8, "question_aware": True, "method": method}
    expected = keyhole.generate(talking.model, talking.tokenizer, context=TEXT, questions=QUESTION, **options)
    own, text = {"x_keyhole": {"method": method}}, f"{TEXT}\n{QUESTION}"
    found = chat(api, text, extra_body=own)
    assert found.choices[0].message.content == expected.text
    assert found.usage.completion_tokens == len(expected.tokens)
    asked = {"extra_body": own, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(chat(api, text, **asked))
    assert streamed(chunks) == expected.text
    assert chunks[-1].usage.prompt_tokens == found.usage.prompt_tokens
    told = {"model": "keyhole", "input": text, "max_output_tokens": 8, "extra_body": own}
    assert api.responses.create(**told).output_text == expected.text
    with api.responses.stream(**told) as stream:
        assert stream.get_final_response().output_text == expected.text


def test_what_was_read_before_comes_from_the_store(api, loaded):
    def ask(prompt):
        found = api.completions.create(model="keyhole", prompt=prompt, max_tokens=6)
        return found.choices[0].text, found.usage.prompt_tokens_details

    text = text_of("b", 40)
    answer, first = ask(text)
    assert (answer, first.cached_tokens) == (alone(loaded, text).text, 0)
    assert first.cache_write_tokens >= 512
    answer, again = ask(f"{text} Who?")
    assert answer == alone(loaded, f"{text} Who?").text
    assert again.cached_tokens == first.cache_write_tokens
    assert api.get("/documents", cast_to=object)["data"] == []  # prompts are nobody's documents


def test_a_document_is_asked_as_by_a_library(api, library):
    added = add(api)
    expected = library.ask("d", QUESTION, max_new_tokens=8)
    own = {"extra_body": {"x_keyhole": {"document": "d"}}}
    found = chat(api, QUESTION, **own)
    assert found.choices[0].message.content == expected.text
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (expected.prompt_tokens, len(expected.tokens))
    assert usage.prompt_tokens_details.cached_tokens == added["tokens"]
    assert streamed(chat(api, QUESTION, stream=True, **own)) == expected.text
    parts = [{"type": "input_file", "file_id": "d"}, {"type": "input_text", "text": QUESTION}]
    told = api.responses.create(
        model="keyhole", input=[{"role": "user", "content": parts}], max_output_tokens=8
    )
    assert told.output_text == expected.text
    exact = {"x_keyhole": {"document": "d", "exact": True}}
    expected = library.ask("d", QUESTION, max_new_tokens=8, exact=True)
    assert chat(api, QUESTION, extra_body=exact).choices[0].message.content == expected.text


def test_a_record_of_what_was_read(api):
    found = chat(api, TEXT, extra_body={"x_keyhole": {"record": True}})
    (data,) = found.x_keyhole["record"]
    record = from_json(base64.b64decode(data))
    answer = record.text.rpartition("assistant:")[2]
    assert answer.startswith(found.choices[0].message.content)
    assert record.prompt == found.usage.prompt_tokens
    read = sum(step.counts.mean() for step in record.steps)
    assert read == pytest.approx(found.x_keyhole["tokens_read"])


def test_errors_are_those_of_the_real_scheduler(api, server):
    with pytest.raises(openai.NotFoundError, match="no document 'd'"):
        chat(api, "Who?", extra_body={"x_keyhole": {"document": "d"}})
    with pytest.raises(openai.BadRequestError, match="unknown method"):
        chat(api, "Who?", extra_body={"x_keyhole": {"method": "nosuch"}})
    for prompt in ([1] * 20_000, VERSE * 100_000):
        with pytest.raises(openai.BadRequestError) as long:
            api.completions.create(model="keyhole", prompt=prompt)
        assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="token id 4000000"):
        api.completions.create(model="keyhole", prompt=[4_000_000])
    assert server.scheduler.state().finished == {}


def test_a_client_that_goes_away_frees_its_request(api, server):
    with chat(api, TEXT, max_tokens=10_000, stream=True) as stream:
        next(chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content)
    ends = time.monotonic() + 60
    while server.scheduler.state().running:
        assert time.monotonic() < ends
    state = server.scheduler.state()
    assert state.finished == {"stopped": 1}
    assert state.held_bytes == 0
    time.sleep(0.1)
    assert server.scheduler.state().tokens == state.tokens


@pytest.mark.slow
def test_the_command_drains_and_starts_again_with_its_documents(library):
    own = {"extra_body": {"x_keyhole": {"document": "d"}}}
    with Command(library.path) as first, client_at(first.url) as api:
        added, chunks = add(api), []
        for chunk in chat(api, QUESTION, max_tokens=300, stream=True, **own):
            if not streamed(chunks) and streamed([chunk]):
                first.process.terminate()
            chunks.append(chunk)
        output, code = first.end()
    assert code == 0, output
    assert "Traceback" not in output
    assert streamed(chunks) == library.ask("d", QUESTION, max_new_tokens=300).text
    with Command(library.path) as second, client_at(second.url) as api:
        found = chat(api, "And the moon?", **own)
        assert b"<!doctype html>" in urlopen(second.url).read()
    assert found.usage.prompt_tokens_details.cached_tokens == added["tokens"]
    assert found.choices[0].message.content == library.ask("d", "And the moon?", max_new_tokens=8).text
