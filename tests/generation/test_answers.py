"""`keyhole.generate`: every question is answered as if it were asked alone."""

import copy
from dataclasses import replace

import pytest
import torch

import keyhole
from keyhole.generation.decoding import decode, prefill
from keyhole.methods import RetrievalMethod
from tests.evaluation.small_text import byte_model, byte_tokenizer, own_byte_model
from tests.small import BESIDE_OTHERS, WRAPPERS, small

CONTEXT = "The sea is calm tonight. The tide is full, the moon lies fair upon the straits. " * 3
QUESTIONS = ["Who is at sea?", "The tide is", "And the moon? Say more than before."]
METHOD = "oracle(budget=0.2, sinks=2, window=6, dense_below=0)"


def ask(questions, method=METHOD, model=None, **options):
    options = {"max_new_tokens": 6, "context": CONTEXT} | options
    return keyhole.generate(
        model or byte_model(), byte_tokenizer(), questions=questions, method=method, **options
    )


def selecting(name):
    method = small(name)
    return replace(method, dense_below=0) if isinstance(method, RetrievalMethod) else method


SELECTING = {name: selecting(name) for name in keyhole.METHODS if name not in BESIDE_OTHERS} | {
    "tail": "quest(sinks=2, window=6, dense_below=0) + tail(tokens=5)",
    **{name: f"{name} + snapkv(budget=0.3, sinks=2, window=8)" for name in WRAPPERS},
    "int4": "pqcache(kv_dtype=int4, sinks=2, window=6, dense_below=0)",
    "disk": "quest(place=disk, block_cache='1MB', sinks=2, window=6, dense_below=0)",
    "renumbered": "tokenselect(renumber=true, sinks=2, window=6, dense_below=0)",
    "renumbered index": "quest(renumber=true, distance=9, sinks=2, window=6, dense_below=0)",
    "both": "snapkv(budget=0.5) + pqcache(budget=0.2, sinks=2, window=6, dense_below=0)",
    "weights": "oracle(budget=0.2, sinks=2, window=6, dense_below=0) + chess",
}


@pytest.mark.parametrize("method", SELECTING.values(), ids=SELECTING)
def test_several_questions_are_answered_as_each_alone(method):
    # The last question is the shorter one, so what the first one left behind would be seen.
    first, last = QUESTIONS[2], QUESTIONS[0]
    together = ask([first, last], method, max_new_tokens=4)
    alone = ask([last], method, max_new_tokens=4)[0]
    assert [answer.question for answer in together] == [first, last]
    assert together[1].tokens == alone.tokens
    assert vars(together[1].usage) == vars(alone.usage)


def test_a_question_is_answered_as_alone_wherever_it_stands():
    answers = [ask(order) for order in (QUESTIONS, QUESTIONS[::-1])]
    told = [{answer.question: answer.tokens for answer in group} for group in answers]
    assert told[0] == told[1] == {question: ask(question).tokens for question in QUESTIONS}


@pytest.mark.parametrize("family", ["gemma2", "qwen3_next"])
def test_layers_of_other_kinds_are_taken_back_too(family):
    model = byte_model(family)
    together = ask(QUESTIONS, model=model)
    assert [a.tokens for a in together] == [ask([question], model=model)[0].tokens for question in QUESTIONS]


@pytest.mark.parametrize("aware", [False, True])
def test_a_full_budget_is_plain_greedy_generation(aware):
    model, tokenizer = byte_model(), byte_tokenizer()
    for answer in ask(QUESTIONS, "oracle(budget=1.0)", question_aware=aware):
        inputs = tokenizer(f"{CONTEXT.rstrip()}\n{answer.question}", return_tensors="pt").input_ids
        expected = model.generate(inputs, max_new_tokens=6, do_sample=False)[0, inputs.shape[1] :]
        assert list(answer.tokens) == expected.tolist()
        assert answer.text == tokenizer.decode(answer.tokens, skip_special_tokens=True)
        assert answer.prompt_tokens == inputs.shape[1]


def test_one_question_gives_one_answer_and_none_continues_the_context():
    assert ask(QUESTIONS[0]).tokens == ask(QUESTIONS[:1])[0].tokens
    model, tokenizer = byte_model(), byte_tokenizer()
    inputs = tokenizer(CONTEXT, return_tensors="pt").input_ids
    expected = model.generate(inputs, max_new_tokens=6, do_sample=False)[0, inputs.shape[1] :]
    assert list(ask("", "dense").tokens) == expected.tolist()
    assert ask([]) == []


@pytest.mark.parametrize("name", ["snapkv", "h2o", "mpcache"])
def test_aware_of_the_question_a_prompt_is_read_in_one(name):
    method, model, tokenizer = small(name), byte_model(), byte_tokenizer()
    answers = ask(QUESTIONS, method, question_aware=True)
    for answer in answers:
        inputs = tokenizer(f"{CONTEXT.rstrip()}\n{answer.question}", return_tensors="pt").input_ids
        with keyhole.attach(model, method):
            cache = keyhole.KeyholeCache(model, method)
            prefill(model, inputs[:, :-1], cache)
            tokens = [token.id for token in decode(model, int(inputs[0, -1]), cache, limit=6)]
        assert list(answer.tokens) == tokens


def test_usage_counts_what_was_read():
    answer = ask(QUESTIONS[1])
    assert answer.usage.steps == 2 * 6
    assert 0 < answer.usage.read < answer.usage.tokens
    assert answer.footprint.device > 0
    assert answer.selects.tokens == 0
    assert not answer.ended
    assert str(answer) == answer.text


def test_the_model_is_as_it_was():
    model = own_byte_model()
    before, weights = model.config._attn_implementation, copy.deepcopy(model.state_dict())
    ask(QUESTIONS, "chess + h2o(budget=0.5)", model=model)
    assert model.config._attn_implementation == before
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def test_chunks_change_nothing_and_progress_is_told():
    told = []
    cut = ask(QUESTIONS, chunk=50, progress=lambda *arguments: told.append(arguments))
    assert [a.tokens for a in cut] == [a.tokens for a in ask(QUESTIONS)]
    total = len(CONTEXT.rstrip()) + 1
    assert len(told) == 1 + -(-total // 50)
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
    assert told[-1] == ("indexing", total, total)


def test_streams_what_it_returns():
    pieces = []
    answer = ask(QUESTIONS[0], stream=pieces.append)
    assert "".join(pieces) == answer.text


def test_stops_at_a_string_and_at_a_token():
    free = ask(QUESTIONS[0], max_new_tokens=12)
    string = free.text[4:6]
    pieces = []
    stopped = ask(QUESTIONS[0], max_new_tokens=12, stop=string, stream=pieces.append)
    assert stopped.text == free.text[: free.text.index(string)] == "".join(pieces)
    assert stopped.ended
    model = own_byte_model()
    model.generation_config.eos_token_id = free.tokens[3]
    ended = ask(QUESTIONS[0], max_new_tokens=12, model=model)
    assert ended.tokens == free.tokens[: free.tokens.index(free.tokens[3]) + 1]
    assert ended.ended


def test_sampling_repeats_by_seed_for_each_question():
    drawn = [ask(QUESTIONS[:1] * 2, temperature=5.0, seed=seed, top_p=0.9) for seed in (1, 1, 2)]
    assert len({answer.tokens for answers in drawn[:2] for answer in answers}) == 1
    assert drawn[2][0].tokens != drawn[0][0].tokens


CHAT = "{% for m in messages %}[{{ m.role }}: {{ m.content | trim }}]{% endfor %} I say:"


def test_a_chat_model_is_asked_in_its_form():
    tokenizer = byte_tokenizer().__class__(tokenizer_object=byte_tokenizer().backend_tokenizer)
    tokenizer.chat_template = CHAT
    model = byte_model()
    answers = keyhole.generate(
        model, tokenizer, context=CONTEXT, questions=QUESTIONS, method="dense", max_new_tokens=4
    )
    for answer in answers:
        asked = f"[user: {CONTEXT.rstrip()}\n{answer.question}] I say:"
        ids = tokenizer(asked, return_tensors="pt").input_ids
        expected = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1] :]
        assert list(answer.tokens) == expected.tolist()
    raw = keyhole.generate(
        model, tokenizer, context=CONTEXT, questions=QUESTIONS[0], chat=False, max_new_tokens=4
    )
    assert raw.prompt_tokens == len(f"{CONTEXT.rstrip()}\n{QUESTIONS[0]}")


def test_a_template_that_repeats_the_message_is_refused():
    tokenizer = byte_tokenizer().__class__(tokenizer_object=byte_tokenizer().backend_tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }} {{ messages[0].content }}"
    with pytest.raises(ValueError, match="chat=False"):
        keyhole.generate(byte_model(), tokenizer, context=CONTEXT, questions="?")


def test_a_model_by_its_directory(tmp_path):
    byte_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    for name in (tmp_path, str(tmp_path)):
        found = keyhole.generate(
            name, context=CONTEXT, questions=QUESTIONS[0], method=METHOD, max_new_tokens=6
        )
        assert found.tokens == ask(QUESTIONS[0]).tokens


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"max_new_tokens": 1000}, "1,024 positions; shorten the context by 2"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"temperature": 10**310}, "temperature"),
        ({"top_p": 0}, "top_p 0"),
        ({"top_p": float("nan")}, "top_p nan"),
        ({"seed": -1}, "seed -1"),
        ({"chunk": 1}, "chunk 1"),
        ({"stop": ["a", ""]}, "stop string ''"),
        ({"chat": True}, "no chat template"),
        ({"method": "pqcach"}, "did you mean 'pqcache'"),
        ({"context": "", "questions": ""}, "give at least 2"),
    ],
)
def test_bad_values(options, said):
    questions = options.pop("questions", QUESTIONS)
    with pytest.raises(ValueError, match=said):
        ask(questions, **options)


def test_a_model_without_its_tokenizer():
    with pytest.raises(ValueError, match="tokenizer"):
        keyhole.generate(byte_model(), context=CONTEXT, questions="?")
