"""The method matrix: whatever is done with a cache, at full budget every method is dense attention."""

import pytest
import torch

import keyhole
from keyhole.cache.usage import Usage
from keyhole.engines.transformers.compat import returned_cache
from tests.engines.transformers.running import Answer, answer, assert_same, given, left_padded
from tests.small import BY_MASS, FULL_BUDGET, SELECTIVE, small
from tests.tiny import prompt, tiny_model

every_method = pytest.mark.parametrize("method", FULL_BUDGET.values(), ids=FULL_BUDGET)
every_selective = pytest.mark.parametrize("name", SELECTIVE)


@pytest.fixture
def model():
    return tiny_model("llama")


@every_method
def test_left_padding(model, method):
    ids, mask = left_padded(prompt(130), prompt(90, seed=1), prompt(2, seed=2))
    wanted = answer(model, ids, mask=mask)
    with keyhole.attach(model, method):
        assert_same(answer(model, ids, mask=mask), wanted)


@every_method
@pytest.mark.parametrize("chunk", [1, 32, 109, 200])
def test_chunked_prefill(model, method, chunk):
    ids = prompt(110)
    wanted = answer(model, ids, steps=3)
    with keyhole.attach(model, method):
        assert_same(answer(model, ids, steps=3, prefill_chunk_size=chunk), wanted)


@every_method
def test_beams(model, method):
    ids, mask = left_padded(prompt(100), prompt(80, seed=1))
    options = {"steps": 6, "mask": mask, "num_beams": 3, "num_return_sequences": 2, "output_logits": False}
    wanted = beams(model, ids, **options)
    with keyhole.attach(model, method):
        found = beams(model, ids, **options)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)
    assert found.tokens.tolist() == wanted.tokens.tolist()


def beams(model, ids, *, steps, mask, **options):
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=steps,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    return Answer(out.sequences, out.sequences_scores)


@every_method
def test_crop(model, method):
    ids = prompt(130)
    wanted = step_by_step(model, ids[:, :110], steps=4)
    with keyhole.attach(model, method):
        cache = step_by_step(model, ids, steps=10).cache
        cache.crop(-(cache.get_seq_length() - 100))
        assert cache.get_seq_length() == 100
        found = step_by_step(model, ids[:, 100:110], steps=4, cache=cache)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)


@every_method
def test_turns(model, method):
    ids = prompt(100)
    wanted = two_turns(model, ids)
    with keyhole.attach(model, method):
        assert_same(two_turns(model, ids), wanted)


def two_turns(model, ids):
    first = model.generate(ids, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, prompt(20, seed=3)], dim=1)
    return answer(model, longer, **given(returned_cache(first)))


@every_method
def test_rows_repeated_and_selected(model, method):
    ids, mask = left_padded(prompt(100), prompt(70, seed=1))
    rows = torch.tensor([0, 1, 1])
    wanted = step_by_step(model, ids[rows], mask=mask[rows], steps=4)
    with keyhole.attach(model, method):
        cache = step_by_step(model, ids, mask=mask, steps=3).cache
        cache.crop(-(cache.get_seq_length() - 99))
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([True, False, True, True]))
        found = step_by_step(model, ids[rows, 99:], mask=mask[rows], steps=4, cache=cache)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)


@every_method
def test_reset_for_a_batch_of_another_size(model, method):
    wanted = step_by_step(model, prompt(80, rows=3), steps=4)
    with keyhole.attach(model, method):
        cache = step_by_step(model, prompt(100, rows=2, seed=1), steps=4).cache
        cache.reset()
        assert cache.get_seq_length() == 0
        found = step_by_step(model, prompt(80, rows=3), steps=4, cache=cache)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)


@every_method
def test_gradient_mode(model, method):
    ids = prompt(60)
    with torch.enable_grad():
        wanted = step_by_step(model, ids, steps=3)
        with keyhole.attach(model, method):
            found = step_by_step(model, ids, steps=3)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)


@every_method
def test_inference_mode_then_without(model, method):
    ids = prompt(60)
    wanted = step_by_step(model, ids, steps=6)
    with keyhole.attach(model, method):
        with torch.inference_mode():
            begun = step_by_step(model, ids, steps=3)
        with torch.no_grad():
            found = step_by_step(model, begun.next, steps=3, cache=begun.cache)
    torch.testing.assert_close(torch.cat([begun.logits, found.logits]), wanted.logits, rtol=1e-4, atol=1e-4)


@every_selective
def test_a_part_is_read_and_indexed_as_text_grows(model, name):
    ids = prompt(150)
    with keyhole.attach(model, small(name, 0.1)) as attached:
        out = model.generate(ids, max_new_tokens=40, do_sample=False)
    assert out.shape == (1, 190)
    selecting = [layer for layer in attached.layers if not layer.selector.reads_all]
    usage = sum((layer.usage for layer in selecting), Usage())
    # Who reads whole blocks, of 8 tokens, leaves a part of the budget.
    assert (0.08 if name in ("infllm_v2", "nosa") else 0.1) < usage.read / usage.tokens < 0.2
    assert 0 < usage.mass / usage.steps <= 1
    # The last token is never fed; what is behind the window must be indexed.
    assert all(layer.length == 189 for layer in attached.layers)
    assert all(layer.indexed >= 189 - 6 for layer in selecting)


@every_selective
@pytest.mark.parametrize("budget", [5, 0.2, "mass=0.8"], ids=str)
def test_a_part_of_a_ragged_batch(model, name, budget):
    """Rows of very different length, one of them shorter than sinks and window together, under beams."""
    if name not in BY_MASS and isinstance(budget, str):
        pytest.skip("how many tokens it reads follows from lengths")
    ids, mask = left_padded(prompt(140), prompt(60, seed=1), prompt(3, seed=2))
    with keyhole.attach(model, small(name, budget)) as attached:
        out = model.generate(ids, attention_mask=mask, max_new_tokens=8, num_beams=2, do_sample=False)
    assert out.shape == (3, 148)
    assert 0 < attached.usage.read < attached.usage.tokens


@every_selective
def test_all_rows_far_from_the_left_edge(model, name):
    """A batch padded to a fixed width, so that no row fills it."""
    ids, mask = left_padded(torch.zeros(1, 200, dtype=torch.long), prompt(40), prompt(30, seed=1))
    mask[0] = 0
    ids, mask = ids[1:], mask[1:]
    wanted = answer(model, ids, mask=mask)
    with keyhole.attach(model, small(name, "mass=1.0" if name in BY_MASS else 1.0)):
        assert_same(answer(model, ids, mask=mask), wanted)


class Steps:
    """Tokens fed one at a time: the logits at each, the cache, and the token that would come next."""

    def __init__(self, logits, cache, following):
        self.logits, self.cache, self.next = logits, cache, following


def step_by_step(model, ids, *, steps, mask=None, cache=None):
    """Feed `ids`, then go on greedily, through plain calls of the model in the caller's gradient mode."""
    logits = []
    mask = (
        torch.ones(ids.shape[0], ids.shape[1] + (cache.get_seq_length() if cache else 0))
        if mask is None
        else mask
    )
    for _ in range(steps):
        out = model(ids, attention_mask=mask.long(), **given(cache), use_cache=True)
        cache = returned_cache(out)
        logits.append(out.logits[:, -1])
        ids = out.logits[:, -1:].argmax(-1)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return Steps(torch.stack(logits), cache, ids)
