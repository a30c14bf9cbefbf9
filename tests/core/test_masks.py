"""What a mask shows, against a loop over its entries."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole.core import masks
from keyhole.core.masks import Visible, boolean


def left_padded(queries, tokens, padding):
    own = torch.arange(tokens - queries, tokens).view(-1, 1)
    slots = torch.arange(tokens)
    return ((slots <= own) & (slots >= torch.tensor(padding).view(-1, 1, 1))).unsqueeze(1)


@st.composite
def shapes(draw):
    tokens = draw(st.integers(1, 12))
    padding = draw(st.lists(st.integers(0, tokens), min_size=1, max_size=3))
    return draw(st.integers(1, tokens)), tokens, padding


@given(shapes(), st.integers(1, 30))
def test_causal_with_left_padding(shape, block):
    queries, tokens, padding = shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "_PER_BLOCK", block)
        seen = Visible(left_padded(queries, tokens, padding), len(padding))
        assert seen.causal
        assert seen.padding == tuple(padding)
        assert seen.hidden is None


@given(shapes(), st.data())
def test_any_other_entry_is_noticed(shape, data):
    queries, tokens, padding = shape
    mask = left_padded(queries, tokens, padding)
    row = data.draw(st.integers(0, len(padding) - 1))
    query, slot = data.draw(st.integers(0, queries - 1)), data.draw(st.integers(0, tokens - 1))
    mask[row, 0, query, slot] ^= True
    seen = Visible(mask, len(padding))
    own = tokens - queries + query
    # Another first token that the newest query sees is another padding, which the other rows then tell.
    if seen.padding == tuple(padding):
        alone = tokens == 1 and own < padding[row]
        assert seen.causal == alone
    else:
        wanted = left_padded(queries, tokens, list(seen.padding))
        differs = (mask != wanted).any(-1)[:, 0]
        assert seen.causal == (not differs.any() or _padding_sees_all(mask, differs, seen.padding))


def _padding_sees_all(mask, differs, padding):
    queries, tokens = mask.shape[-2:]
    return all(
        tokens - queries + query < padding[row] and bool(mask[row, 0, query].all())
        for row, query in differs.nonzero().tolist()
    )


def test_padding_may_see_everything():
    """As transformers has it for some versions of torch."""
    mask = left_padded(6, 6, [3])
    mask[0, 0, :3] = True
    assert Visible(mask, 1).causal
    mask[0, 0, 1, 0] = False
    assert not Visible(mask, 1).causal


def test_heads_that_see_other_tokens_are_not_causal():
    assert not Visible(left_padded(6, 6, [3]).expand(-1, 2, -1, -1), 1).causal


def test_none_is_causal():
    seen = Visible(None, 3)
    assert (seen.causal, seen.padding, seen.hidden) == (True, (0, 0, 0), None)


def test_slots_hidden_behind_the_padding():
    mask = torch.tensor([[bit == "1" for bit in row] for row in ("0011011", "1111111")])[:, None, None]
    seen = Visible(mask, 2)
    assert seen.padding == (2, 0)
    assert seen.hidden.nonzero().tolist() == [[0, 4]]
    assert not seen.causal


@pytest.mark.parametrize("least", [-torch.inf, torch.finfo(torch.float32).min])
def test_numbers_that_hide(least):
    mask = left_padded(6, 6, [3])
    assert torch.equal(boolean(torch.zeros(mask.shape).masked_fill(~mask, least)), mask)


@pytest.mark.parametrize("bad", [-1.0, 0.5, -1e9, torch.nan, torch.inf])
def test_numbers_that_do_more_are_no_mask(bad):
    mask = torch.zeros(1, 1, 2, 3)
    mask[0, 0, 1, 1] = bad
    assert boolean(mask) is None
    assert boolean(torch.ones(1, 1, 2, 3, dtype=torch.long)) is None


def test_where_no_mask_is_needed():
    assert Visible(None, 2).plain
    assert Visible(left_padded(3, 7, [0, 0]), 2).plain
    assert not Visible(left_padded(3, 7, [0, 2]), 2).plain
    assert not Visible(left_padded(7, 5, [0]), 1).plain  # queries before the first token see nothing
    assert not Visible(torch.ones(1, 1, 3, 7, dtype=torch.bool), 1).plain
