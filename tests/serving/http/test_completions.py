"""`/v1/completions`: all forms of prompts, and the older form of log probabilities."""

import pytest

from tests.serving.http.fakes import TEXT
from tests.serving.http.test_chat import events_of

PATH = "/v1/completions"
ASKED = {"model": "tiny", "prompt": "Once", "max_tokens": 100}


def ids_of(scheduler, text):
    return tuple(scheduler.loaded.tokenizer(text).input_ids)


def test_an_answer_has_openais_form(client, scheduler):
    found = client.post(PATH, json=ASKED).json()
    (choice,) = found["choices"]
    assert choice == {"index": 0, "text": TEXT, "logprobs": None, "finish_reason": "stop"}
    assert found["object"] == "text_completion"
    assert found["usage"]["prompt_tokens"] == 4
    assert scheduler.requests[0].prompt == ids_of(scheduler, "Once")


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("Once", ["Once"]),
        (["One", "Two"], ["One", "Two"]),
        ([5, 6], [(5, 6)]),
        ([[5, 6], [7]], [(5, 6), (7,)]),
        (["One", [7, 8]], ["One", (7, 8)]),
    ],
)
def test_prompts_are_texts_or_token_ids(client, scheduler, prompt, texts):
    found = client.post(PATH, json=ASKED | {"prompt": prompt, "n": 2, "seed": 5}).json()
    wanted = [ids_of(scheduler, each) if isinstance(each, str) else each for each in texts]
    assert [each.prompt for each in scheduler.requests] == [ids for ids in wanted for _ in range(2)]
    assert [each.seed for each in scheduler.requests] == [5 + n for n in range(2 * len(texts))]
    assert [each["index"] for each in found["choices"]] == list(range(2 * len(texts)))
    assert found["usage"]["prompt_tokens"] == sum(map(len, wanted))


def test_an_answer_has_sixteen_tokens_unless_said(client, scheduler):
    client.post(PATH, json={"model": "tiny", "prompt": "Once"})
    assert scheduler.requests[0].max_tokens == 16


def test_a_stream_says_what_the_whole_answer_says(client):
    asked = ASKED | {"logprobs": 2, "prompt": ["One", "Two"]}
    whole = client.post(PATH, json=asked).json()
    more = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = events_of(client.post(PATH, json=asked | more).text)
    assert (done, usage["usage"]) == ("[DONE]", whole["usage"])
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        offsets = [at for c in mine if c["logprobs"] for at in c["logprobs"]["text_offset"]]
        assert offsets[0] == 0
        assert offsets == choice["logprobs"]["text_offset"] == sorted(offsets)
        assert offsets[-1] == len(choice["text"]) - 1
        tokens = [token for c in mine if c["logprobs"] for token in c["logprobs"]["tokens"]]
        assert tokens == choice["logprobs"]["tokens"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]


def test_log_probabilities_have_four_lists_of_one_length(client):
    found = client.post(PATH, json=ASKED | {"logprobs": 2}).json()["choices"][0]["logprobs"]
    assert {len(each) for each in found.values()} == {len(TEXT.encode())}
    assert all(len(each) <= 2 for each in found["top_logprobs"])
    assert set(found["token_logprobs"]) == {-0.5}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["x"] * 17}, "prompt"),
        ({"prompt": ["x"] * 6, "n": 3}, "prompt"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"messages": []}, "messages"),
        ({"x_keyhole": {"document": "a"}}, "x_keyhole.document"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(refused, change, param):
    assert refused(PATH, ASKED | change)["param"] == param
