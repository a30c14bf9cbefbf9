"""Beyond the range of a model: positions counted from 0, prompts and steps."""

import pytest
import torch

import keyhole
from tests.engines.transformers.running import answer, assert_same, left_padded
from tests.tiny import fresh_model, prompt, tiny_model

METHODS = ["tokenselect(scaled_vote=false", "pqcache(subspaces=4, iterations=2", "quest(page=4"]
OPTIONS = "renumber=true, distance=8, sparse_prefill=true, chunk=16, sinks=2, window=8"


@pytest.mark.parametrize("family", ["llama", "cohere2", "smollm3"])
@pytest.mark.parametrize("method", METHODS)
def test_a_full_read_is_dense(family, method):
    model = tiny_model(family)
    ids, mask = left_padded(prompt(60), prompt(40, seed=1))
    wanted = answer(model, ids, mask=mask)
    for budget in ("1.0", "1000"):
        with keyhole.attach(model, f"{method}, budget={budget}, {OPTIONS}, dense_below=0)"):
            assert_same(answer(model, ids, mask=mask), wanted)


@pytest.mark.parametrize("method", METHODS)
def test_generation_beyond_the_range(method):
    """A text of 10 times the range: what a chunk or a step reads, 38 tokens at most, fits into it."""
    model = fresh_model("llama", max_position_embeddings=40)
    ids = prompt(400)
    spec = f"{method}, budget=12, {OPTIONS}, dense_below=0)"
    with keyhole.attach(model, spec) as attached:
        found = answer(model, ids, steps=20)
        assert len(attached.layers) == 2
        assert attached.usage.read / attached.usage.steps == 2 + 12 + 8
    assert bool(found.logits.isfinite().all())
    with keyhole.attach(model, spec.replace("renumber=true", "renumber=false")):
        other = answer(model, ids, steps=20)
    assert not torch.allclose(found.logits[0], other.logits[0], rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3", "cohere2", "qwen3_next"])
def test_the_range_that_a_model_states_changes_nothing_else(family):
    """The same weights with a stated range of 40 and of 4,000, sliding and recurrent layers among them."""
    found = []
    for positions in (40, 4000):
        model = fresh_model(family, max_position_embeddings=positions)
        ids, mask = left_padded(prompt(200), prompt(150, seed=1))
        with keyhole.attach(model, f"quest(page=4, budget=12, {OPTIONS}, dense_below=0)"):
            found.append(answer(model, ids, mask=mask, num_beams=2, steps=8))
    assert_same(*found)


def test_what_is_read_whole_is_within_the_range():
    model = fresh_model("llama", max_position_embeddings=40)
    with keyhole.attach(model, f"quest(page=4, budget=6, {OPTIONS}, dense_below=1000)") as attached:
        answer(model, prompt(30), steps=6)
        assert attached.usage.read == attached.usage.tokens
    with keyhole.attach(model, f"quest(page=4, budget=6, {OPTIONS}, dense_below=1000)") as attached:
        answer(model, prompt(100), steps=6)
        assert attached.usage.read / attached.usage.steps == 2 + 6 + 8
