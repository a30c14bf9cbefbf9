"""Prompts longer than a model's range: `keyhole.generate` and `compare`."""

import pytest

import keyhole
from keyhole.core.errors import SpecError, UnsupportedModelError
from keyhole.evaluation import compare
from keyhole.evaluation.stretch import NEEDLES, hold, stretch
from keyhole.methods import Recipe
from tests.evaluation.small_text import TEXT, byte_tokenizer, own_byte_model

CONTEXT = "The sea is calm tonight. The tide is full, the moon lies fair upon the straits. " * 5
QUESTIONS = ["Who is at sea?", "The tide is", "And the moon? Say more than before."]
SMALL = "budget=12, sinks=2, window=8, chunk=16, distance=8, dense_below=0"
BOTH = "renumber=true, sparse_prefill=true"
METHODS = ["tokenselect", "pqcache", "quest"]


def ask(questions, method, *, positions=128, **options):
    options = {"max_new_tokens": 6, "context": CONTEXT} | options
    model = own_byte_model(max_position_embeddings=positions)
    return keyhole.generate(model, byte_tokenizer(), questions=questions, method=method, **options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("aware", [False, True])
def test_questions_are_answered_as_each_alone(method, aware):
    spec = f"{method}({SMALL}, {BOTH})"
    together = ask(QUESTIONS, spec, question_aware=aware)
    alone = [ask(question, spec, question_aware=aware) for question in QUESTIONS]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    for answer in together:
        assert answer.prompt_tokens > 400
        assert answer.usage.read / answer.usage.steps == 12 + 2 + 8


@pytest.mark.parametrize("method", METHODS)
def test_the_same_as_of_a_model_that_states_a_longer_range(method):
    spec = f"{method}({SMALL}, {BOTH})"
    short, long = (ask(QUESTIONS, spec, positions=positions) for positions in (128, 4000))
    assert [answer.tokens for answer in short] == [answer.tokens for answer in long]


@pytest.mark.parametrize("method", ["dense", "oracle", "snapkv + pqcache", *METHODS])
def test_beyond_range_picks_a_recipe(method):
    answer = ask(QUESTIONS[0], method, beyond_range=True)
    own = method if method in METHODS else "pqcache" if "pqcache" in method else "tokenselect"
    assert answer.method.startswith(f"{own}(")
    for option in ("renumber=True", "sparse_prefill=True", "distance=8", "budget=32"):
        assert option in answer.method
    assert answer.usage.read / answer.usage.steps == 32 + 2 + 8
    assert answer.tokens == ask(QUESTIONS[0], answer.method).tokens


@pytest.mark.parametrize("method", ["oracle(budget=0.2, sinks=2, window=6, dense_below=0)", "dense", "quest"])
def test_beyond_range_changes_nothing_within_the_range(method):
    plain, beyond = (ask(QUESTIONS, method, positions=1024, beyond_range=flag) for flag in (False, True))
    for one, other in zip(plain, beyond, strict=True):
        assert (one.tokens, one.method, vars(one.usage)) == (other.tokens, other.method, vars(other.usage))


def test_each_question_by_its_own_length():
    """Of two questions, one is beyond the range with its answer."""
    context = CONTEXT[:100]
    short, long = ask(["?", "The moon? " * 4], "oracle", context=context, beyond_range=True)
    assert short.method == "oracle"
    assert long.method.startswith("tokenselect")


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (
            "dense",
            "range of 128 positions; shorten the context.*dense does not renumber.*--beyond-range",
        ),
        ("pqcache(budget=4)", "needs renumber=true and sparse_prefill=true.*beyond_range=True"),
        (f"quest(budget=100, {BOTH})", "quest: budget=100 .*more than the model's 128"),
        (f"tokenselect(budget=0.5, window=8, chunk=8, {BOTH})", "a budget of at most 96"),
    ],
)
def test_what_cannot_be_read_is_refused(method, says):
    with pytest.raises(SpecError, match=says):
        ask(QUESTIONS, method)


def test_a_model_that_cannot_is_refused():
    model = own_byte_model(
        max_position_embeddings=128,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    )
    with pytest.raises(UnsupportedModelError, match="'dynamic'"):
        keyhole.generate(model, byte_tokenizer(), context=CONTEXT, questions="?", beyond_range=True)


def run(methods):
    model = own_byte_model(max_position_embeddings=300)
    return compare(
        model,
        byte_tokenizer(),
        methods=methods,
        budgets=[12],
        tasks=["single"],
        context=400,
        samples=1,
        haystack=TEXT,
    )


def test_compare_takes_what_renumbers():
    options = SMALL.removeprefix("budget=12, ")
    rows = run([f"{method}({options}, {BOTH})" for method in METHODS])
    assert [row.method.split("(")[0] for row in rows if row.task == "mean"] == ["dense", *METHODS]
    assert all(row.read_fraction < 0.1 for row in rows if row.method != "dense")


def test_compare_refuses_what_does_not():
    with pytest.raises(SpecError, match="the model has 300: quest needs renumber=true"):
        run([f"pqcache({SMALL}, {BOTH})", "quest"])


def test_a_stretch_of_text_is_read_and_continued():
    model = own_byte_model(max_position_embeddings=128)
    text = stretch(byte_tokenizer(), " ".join(TEXT.sentences), 600, following=5)
    assert text.tokens.shape == (1, 600)
    read = byte_tokenizer().decode(text.tokens[0])
    places = [read.index(f"{needle.asked} {needle.answer}.") / 600 for needle in NEEDLES]
    for place, needle in zip(places, NEEDLES, strict=True):
        assert abs(place - needle.depth) < 0.15
    recipes = [Recipe.parse(f"{method}({SMALL}, {BOTH})") for method in (*METHODS, "quest")]
    found = list(hold(model, byte_tokenizer(), recipes, text, chunk=64))
    assert [len(held.losses) for held in found] == [5] * 4
    assert found[2].losses == found[3].losses
    assert found[0].losses != found[2].losses
    assert all(held.read == 12 + 2 + 8 for held in found)
    (alone,) = hold(model, byte_tokenizer(), recipes[2:3], text, chunk=64)
    assert (alone.losses, alone.found) == (found[2].losses, found[2].found)
    with pytest.raises(ValueError, match="longer text"):
        stretch(byte_tokenizer(), "Too short.", 600)
