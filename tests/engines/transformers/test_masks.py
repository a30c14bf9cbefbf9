"""Attention masks of every shape, on every method: what comes out is exact, or the mask is refused."""

import pytest
import torch
from transformers import DynamicCache

import keyhole
from tests.engines.transformers.running import answer
from tests.small import DROPPING, EXACT, FULL_BUDGET
from tests.tiny import prompt, tiny_model

TOKENS = 90
SPARSE = {
    "sale": "sale(tau=10, sinks=0, window=0, dense_below=0)",
    "tokenselect": "tokenselect(budget=8, sinks=2, window=6, dense_below=0, sparse_prefill=true, chunk=16)",
}


def causal():
    return torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()


def left_padding():
    mask = causal()
    mask[:, :20] = False
    return mask


def right_padding():
    mask = causal()
    mask[:, 70:] = False
    return mask


def padding_inside():
    mask = causal()
    mask[:, 30:41] = False
    return mask


def packed_documents():
    mask = causal()
    mask[40:, :40] = False
    return mask


def hidden_from_the_middle():
    """The newest token sees everything, and rows before it do not."""
    mask = causal()
    mask[30:80, :15] = False
    return mask


def image_span():
    mask = causal()
    mask[10:26, 10:26] = True
    return mask


def prefix():
    mask = causal()
    mask[:, :40] = True
    return mask


def everything():
    return torch.ones(TOKENS, TOKENS, dtype=torch.bool)


def tree():
    """Two drafts of five tokens behind the same text."""
    mask = causal()
    mask[-5:, -10:-5] = False
    return mask


def sliding():
    return causal() & ~torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril(-24)


def chunked():
    chunks = torch.arange(TOKENS) // 32
    return causal() & (chunks == chunks.view(-1, 1))


SHAPES = [
    causal,
    left_padding,
    right_padding,
    padding_inside,
    packed_documents,
    hidden_from_the_middle,
    image_span,
    prefix,
    everything,
    tree,
    sliding,
    chunked,
]
# What dropping methods serve.
LEFT = {causal, left_padding}


def positions(mask):
    return torch.arange(mask.shape[-1]).unsqueeze(0)


@torch.no_grad()
def run(model, ids, mask, cache, *, pieces=(TOKENS,)):
    """Logits of every token, the prompt in pieces."""
    start, found = 0, []
    for piece in pieces:
        stop = start + piece
        out = model(
            input_ids=ids[:, start:stop],
            attention_mask=mask[None, None, start:stop, :stop],
            position_ids=positions(mask)[:, start:stop],
            past_key_values=cache,
        )
        found.append(out.logits)
        start = stop
    return torch.cat(found, 1)


def compare(method, shape, pieces=(TOKENS,)):
    """The largest difference to the model's own logits, among tokens that are no padding; None if refused."""
    model, ids, mask = tiny_model("llama"), prompt(TOKENS), shape()
    wanted = run(model, ids, mask, DynamicCache(), pieces=pieces)
    with keyhole.attach(model, method):
        try:
            found = run(model, ids, mask, DynamicCache(), pieces=pieces)
        except ValueError as error:
            if "not causal with padding on the left" not in str(error):
                raise
            return None
    real = slice(20, None) if shape is left_padding else slice(None)
    # Queries that see nothing have no attention to be right about.
    seen = mask.any(-1)[real]
    return float((found - wanted)[:, real][:, seen].abs().max())


@pytest.mark.parametrize("key", [key for key in FULL_BUDGET if "selected" not in key])
def test_prompts(key):
    for shape in SHAPES:
        difference = compare(FULL_BUDGET[key], shape)
        refused = key in DROPPING and shape not in LEFT
        assert (difference is None) == refused, (shape.__name__, difference)
        assert refused or difference < 1e-4, (shape.__name__, difference)


@pytest.mark.parametrize("key", SPARSE)
def test_sparse_prompts_follow_other_masks_densely(key):
    for shape in SHAPES:
        difference = compare(SPARSE[key], shape)
        assert difference is not None
        assert (difference < 1e-4) == (shape not in LEFT), (shape.__name__, difference)


@pytest.mark.parametrize("key", ["dense", "quest-all", "h2o", "snapkv", "sale"])
@pytest.mark.parametrize("pieces", [(60, 30), (89, 1), (31, 31, 28)], ids=str)
def test_prompts_in_pieces(key, pieces):
    for shape in (left_padding, packed_documents, hidden_from_the_middle, tree, sliding):
        difference = compare(FULL_BUDGET[key], shape, pieces)
        refused = key in DROPPING and shape not in LEFT
        assert (difference is None) == refused, (shape.__name__, difference)
        assert refused or difference < 1e-4, (shape.__name__, difference)


@torch.no_grad()
@pytest.mark.parametrize("name", EXACT)
def test_numbers_that_hide_are_a_mask(name):
    """0 and minus infinity, or the least number, are what true and false are; others are refused."""
    model, ids, mask = tiny_model("llama"), prompt(TOKENS), left_padding()
    method = next(method for key, method in FULL_BUDGET.items() if key.split("-")[0] == name)
    with keyhole.attach(model, method):
        wanted = run(model, ids, mask, DynamicCache())
        for least in (-torch.inf, torch.finfo(torch.float32).min):
            numbers = torch.zeros(mask.shape).masked_fill(~mask, least)
            torch.testing.assert_close(run(model, ids, numbers, DynamicCache()), wanted)
        with pytest.raises(ValueError, match="adds an attention bias"):
            run(model, ids, torch.zeros(mask.shape).masked_fill(~mask, -3.0), DynamicCache())


@torch.no_grad()
@pytest.mark.parametrize("name", EXACT)
def test_a_mask_for_each_head_is_refused(name):
    model, ids = tiny_model("llama"), prompt(TOKENS)
    method = next(method for key, method in FULL_BUDGET.items() if key.split("-")[0] == name)
    mask = causal().expand(1, 4, -1, -1)
    with keyhole.attach(model, method), pytest.raises(ValueError, match="the same for all heads"):
        model(input_ids=ids, attention_mask=mask, past_key_values=DynamicCache())


@torch.no_grad()
@pytest.mark.parametrize("key", FULL_BUDGET)
def test_steps_that_hide_tokens_inside(key):
    """A decode step of each row reads all that its mask shows, and nothing else; or is refused."""
    model, ids = tiny_model("llama"), prompt(TOKENS, rows=2)
    shown = torch.ones(2, TOKENS + 4, dtype=torch.bool)
    for hole in (slice(0, 1), slice(3, 9), slice(40, 60), slice(84, 88)):
        shown[1, hole] = False

    def steps(cache):
        out = [model(input_ids=ids, past_key_values=cache).logits[:, -1]]
        for count in range(TOKENS + 1, TOKENS + 5):
            token = out[-1].argmax(-1, keepdim=True)
            mask = shown[:, None, None, :count]
            out.append(model(input_ids=token, attention_mask=mask, past_key_values=cache).logits[:, -1])
        return torch.stack(out)

    wanted = steps(DynamicCache())
    with keyhole.attach(model, FULL_BUDGET[key]):
        if key in DROPPING:
            with pytest.raises(ValueError, match="not causal"):
                steps(DynamicCache())
            return
        torch.testing.assert_close(steps(DynamicCache()), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "key"),
    [("llama", key) for key in FULL_BUDGET if key not in DROPPING] + [("gemma3", "oracle-selected")],
)
def test_later_turns_of_rows_of_other_lengths(family, key):
    """Each turn of a batch is padded on the left, so padding lies between the turns of a row."""
    model, generator = tiny_model(family), torch.Generator().manual_seed(5)
    turns = [torch.randint(1, 97, (2, length), generator=generator) for length in (60, 30)]
    masks = [torch.ones_like(turn) for turn in turns]
    masks[0][0, :23] = masks[1][1, :11] = 0

    def talk(cache):
        first = answer(model, turns[0], mask=masks[0], past_key_values=cache, steps=5)
        said = first.tokens[:, 60:]
        ids = torch.cat([turns[0], said, turns[1]], 1)
        mask = torch.cat([masks[0], torch.ones_like(said), masks[1]], 1)
        return answer(model, ids, mask=mask, past_key_values=cache, steps=6)

    wanted = talk(DynamicCache(config=model.config))
    with keyhole.attach(model, FULL_BUDGET[key]):
        found = talk(DynamicCache(config=model.config))
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)
