"""A prompt in pieces is the prompt at once, however it is cut, and the tokens after it are generated."""

from dataclasses import fields, replace

import pytest
import torch
from transformers import DynamicCache

import keyhole
from keyhole.engines.transformers.cache import end_prompt, request_of
from keyhole.methods import METHODS, Recipe
from tests.engines.transformers.running import answer
from tests.small import BESIDE_OTHERS, EVICTING, EXACT, WRAPPERS, small
from tests.tiny import prompt, tiny_model

TOKENS = 193


def reads_all(name):
    """The method where every token of a prompt is computed from all before it.

    Pieces matter to those that drop after each of them (prompt=pieces), and to prompts computed in parts by
    tiles or chunks of queries (sale, sparse_prefill). Later pieces read earlier ones as they are stored
    (quantised).
    """
    method = small(name)
    return replace(method, prompt="whole") if "prompt" in {field.name for field in fields(method)} else method


READ_ALL = {
    name: reads_all(name) for name in METHODS if name in EXACT and name not in ("sale", *BESIDE_OTHERS)
}
READ_ALL |= {name: Recipe((small(name), reads_all("snapkv"))) for name in WRAPPERS}
FEW = ["dense", "quest", "pqcache", "h2o", "chess"]


@torch.no_grad()
def last_logits(model, method, ids, pieces):
    """Of the last token of a prompt that comes in pieces, by hand."""
    with keyhole.attach(model, method):
        cache = DynamicCache(config=model.config)
        for piece in ids.split(pieces, dim=1):
            logits = model(input_ids=piece, past_key_values=cache).logits[:, -1]
    return logits


def check_cuts(name, cuts):
    model, ids = tiny_model("llama"), prompt(TOKENS)
    whole = last_logits(model, READ_ALL[name], ids, [TOKENS])
    for pieces in cuts:
        found = last_logits(model, READ_ALL[name], ids, pieces)
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-4, msg=lambda m, p=pieces: f"{p}: {m}")


@pytest.mark.parametrize("name", READ_ALL)
def test_cut_anywhere(name):
    in_two = [[cut, TOKENS - cut] for cut in (1, 2, 96, 191, 192)]
    check_cuts(name, [*in_two, [96, 96, 1], [96, 1, 96], [1, 1, 191]])


@pytest.mark.parametrize("name", FEW)
def test_token_by_token(name):
    check_cuts(name, [[1] * TOKENS])


@pytest.mark.slow
@pytest.mark.parametrize("name", READ_ALL)
def test_cut_everywhere(name):
    check_cuts(name, [*([cut, TOKENS - cut] for cut in range(1, TOKENS)), [1] * TOKENS])


@pytest.mark.parametrize("name", READ_ALL)
def test_generate_knows_its_pieces(name):
    """A last piece of one token is prompt, and the tokens after it are not."""
    model, ids = tiny_model("llama"), prompt(97)
    with keyhole.attach(model, READ_ALL[name]) as attached:
        whole = answer(model, ids, steps=5)
        wanted = attached.usage
        for size in (96, 32):
            found = answer(model, ids, steps=5, prefill_chunk_size=size)
            torch.testing.assert_close(found.logits, whole.logits, rtol=1e-3, atol=1e-3)
            assert attached.usage.steps == wanted.steps == 4 * 2
            assert attached.usage.read == pytest.approx(wanted.read)


@torch.no_grad()
@pytest.mark.parametrize("name", EVICTING)
def test_what_transformers_began_is_dropped_too(name):
    """A cache that holds all of the prompt but its last token is cut as one that was ours from the start."""
    model, ids = tiny_model("llama"), prompt(200)
    method = replace(small(name, 30), layers="uniform")
    with keyhole.attach(model, method) as attached:
        answer(model, ids, steps=4)
        wanted = attached.usage
    cache = DynamicCache(config=model.config)
    model(input_ids=ids[:, :-1], past_key_values=cache)
    with keyhole.attach(model, method) as attached:
        answer(model, ids, steps=4, past_key_values=cache)
    assert (attached.usage.steps, attached.usage.read) == (wanted.steps, pytest.approx(wanted.read))


@torch.no_grad()
def test_loops_by_hand():
    """The first token after several may end the prompt, and the next ones are generated; or it is said."""
    model, ids = tiny_model("llama"), prompt(100)

    def steps(cache):
        for token in range(3):
            model(input_ids=ids[:, token : token + 1], past_key_values=cache)
        return cache.usage.steps // 2

    with keyhole.attach(model, "dense"):
        cache = keyhole.KeyholeCache(model, small("quest"))
        model(input_ids=ids, past_key_values=cache)
        assert (steps(cache), cache.prompt_length) == (2, None)
        assert steps(cache) == 5
        model(input_ids=ids[:, :7], past_key_values=cache)
        assert steps(cache) == 7
        for length, generated in ((100, 3), (101, 2), (102, 1), (103, 0), (200, 0)):
            cache = keyhole.KeyholeCache(model, small("quest"))
            cache.prompt_length = length
            model(input_ids=ids, past_key_values=cache)
            assert steps(cache) == generated
        assert request_of(cache).prompt_length == 200
        end_prompt(cache)
        assert steps(cache) == 3


@pytest.mark.parametrize("length", [-1, 2.0, True, "9"])
def test_a_length_of_a_prompt_is_a_number(length):
    cache = keyhole.KeyholeCache(tiny_model("llama"), "quest")
    with pytest.raises(ValueError, match=f"prompt_length={length!r}"):
        cache.prompt_length = length
