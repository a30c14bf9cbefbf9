"""TokenSelect beyond the range of a model: positions counted from 0, prompts and steps."""

import pytest
import torch

import keyhole
from tests.engines.transformers.running import answer, assert_same, left_padded
from tests.tiny import fresh_model, prompt, tiny_model

PAPER = "renumber=true, distance=8, scaled_vote=false, sparse_prefill=true, chunk=16, sinks=2, window=8"


@pytest.mark.parametrize("family", ["llama", "cohere2", "smollm3"])
def test_a_full_read_is_dense(family):
    model = tiny_model(family)
    ids, mask = left_padded(prompt(60), prompt(40, seed=1))
    wanted = answer(model, ids, mask=mask)
    for budget in ("1.0", "1000"):
        with keyhole.attach(model, f"tokenselect(budget={budget}, {PAPER}, dense_below=0)"):
            assert_same(answer(model, ids, mask=mask), wanted)


def test_generation_beyond_the_range():
    """A text of 10 times the range: what a chunk or a step reads, 38 tokens at most, fits into it."""
    model = fresh_model("llama", max_position_embeddings=40)
    ids = prompt(400)
    spec = f"tokenselect(budget=12, {PAPER}, dense_below=0)"
    with keyhole.attach(model, spec) as attached:
        found = answer(model, ids, steps=20)
        assert len(attached.layers) == 2
        assert attached.usage.read / attached.usage.steps == 2 + 12 + 8
    assert bool(found.logits.isfinite().all())
    with keyhole.attach(model, spec.replace("renumber=true", "renumber=false")):
        other = answer(model, ids, steps=20)
    assert not torch.allclose(found.logits[0], other.logits[0], rtol=1e-3)
