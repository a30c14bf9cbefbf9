import pytest
import torch

import keyhole
from keyhole.generation.decoding import Token, decode, prefill
from keyhole.generation.sampling import greedy, sampler
from keyhole.generation.text import stop_tokens, text_of
from tests.evaluation.small_text import byte_model, byte_tokenizer
from tests.tiny import prompt, tiny_model


def answer(model, tokens, method="dense", limit=8, **options):
    cache = keyhole.make_cache(model, method)
    prefill(model, tokens[:, :-1], cache, chunk=options.pop("chunk", 8192))
    new = list(decode(model, int(tokens[0, -1]), cache, limit=limit, **options))
    keyhole.detach(model)
    return new


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_next"])
def test_greedy_decoding_is_generate(family):
    model, tokens = tiny_model(family), prompt(60)
    expected = model.generate(tokens, max_new_tokens=8, do_sample=False)[0, 60:]
    assert [token.id for token in answer(model, tokens)] == expected.tolist()


def test_chunks_change_nothing_and_leave_no_single_token():
    model, tokens = tiny_model("llama"), prompt(66)
    cache, sizes = keyhole.make_cache(model, "dense"), []
    prefill(model, tokens[:, :-1], cache, chunk=16, progress=sizes.append)
    assert sizes == [13] * 5
    assert keyhole.usage(cache).steps == 0
    ids = [[token.id for token in answer(model, tokens, chunk=chunk)] for chunk in (16, 8192)]
    assert ids[0] == ids[1]


def test_stops_after_a_stop_token():
    model, tokens = tiny_model("llama"), prompt(40)
    free = [token.id for token in answer(model, tokens)]
    stopped = answer(model, tokens, stops=frozenset([free[2]]))
    assert [token.id for token in stopped] == free[: free.index(free[2]) + 1]
    assert [token.ends for token in stopped] == [False] * (len(stopped) - 1) + [True]


def test_stop_tokens_of_model_and_tokenizer():
    end = byte_tokenizer().eos_token_id
    model = byte_model()
    model.generation_config.eos_token_id = [3, 4]
    assert stop_tokens(model, byte_tokenizer()) == {3, 4, end}
    model.generation_config.eos_token_id = None
    assert stop_tokens(model, byte_tokenizer()) == {end}


def test_text_leaves_the_end_out():
    tokenizer = byte_tokenizer()
    tokens = tokenizer("ab").input_ids
    assert text_of(tokenizer, [Token(tokens[0], False, 0.0), Token(tokens[1], True, 0.0)]) == "a"


def test_sampling_repeats_by_seed_and_follows_the_softmax():
    logits = torch.tensor([0.0, 2.0, -torch.inf])
    draws = [sampler(1.0, 7)(logits) for _ in range(3)]
    assert len(set(draws)) == 1
    pick = sampler(1.0, 0)
    drawn = torch.bincount(torch.tensor([pick(logits) for _ in range(2000)]), minlength=3) / 2000
    torch.testing.assert_close(drawn, logits.softmax(-1), atol=0.04, rtol=0)


def test_temperature_zero_is_greedy():
    assert sampler(0.0, 0) is greedy


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-46, 1e-39, 1e-30, 1e-20])
def test_a_temperature_as_good_as_zero_takes_the_likeliest(temperature):
    assert sampler(temperature, 0)(torch.tensor([3.0, 4.0, 1e4, -torch.inf, 9.9e3])) == 2


@pytest.mark.parametrize("temperature", [-0.1, float("nan")])
def test_temperature_out_of_range(temperature):
    with pytest.raises(ValueError, match="temperature"):
        sampler(temperature, 0)
