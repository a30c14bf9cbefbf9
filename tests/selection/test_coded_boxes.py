"""Boxes of 4 bits: never smaller than the keys in them, and near what full precision bounds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.core.budget import Budget
from keyhole.selection import CodedBoxSelector
from keyhole.selection.quantisers.boxcodes import PackedBoxes, parts_of
from tests import oracles, oracles_pages
from tests.lives import live
from tests.steps import competing, make_step


def draw_keys(tokens, *, batch=1, heads=2, size=8, seed=0):
    return torch.randn(batch, heads, tokens, size, generator=torch.Generator().manual_seed(seed))


def built(keys, first, *, page=4, prompt=None):
    """A selector of which the first `prompt` tokens came at once, the others behind them."""
    prompt = prompt or keys.shape[2]
    selector = CodedBoxSelector(page)
    selector.build(keys[:, :, :prompt], competing(first, prompt, prompt))
    if prompt < keys.shape[2]:
        selector.append(keys[:, :, prompt:])
    return selector


def bounds(selector, keys, query, first, last):
    step = make_step(query, keys, first, last, torch.zeros(query.shape[:2]), Budget(tokens=1), scale=1.0)
    return [end.flatten(1, 2) for end in selector._bounds(step)]


@settings(max_examples=40)
@given(
    st.sampled_from([1, 4, 16]),
    st.sampled_from([17, 63, 100]),
    st.integers(1, 3),
    st.sampled_from([1.0, 1.2, 50.0]),
    st.data(),
)
def test_bounds_are_those_of_the_oracle(page, tokens, groups, growth, data):
    """Also where later keys lie far beyond those that levels were fitted on."""
    first = [data.draw(st.integers(0, tokens - 2)) for _ in range(2)]
    prompt = data.draw(st.one_of(st.just(tokens), st.integers(max(first) + 1, tokens)))
    keys = draw_keys(tokens, batch=2, seed=tokens + page)
    keys[:, :, prompt:] *= growth
    query = torch.randn(2, 2 * groups, 8, generator=torch.Generator().manual_seed(groups))
    found = bounds(built(keys, first, page=page, prompt=prompt), keys, query, first, tokens)
    for row, start in enumerate(first):
        pages = oracles_pages.pages_of(start, tokens, page)
        for head in range(2 * groups):
            q, k = oracles.array(query[row, head]), oracles.array(keys[row, head // groups])
            wanted = oracles_pages.coded_bounds(q, k, pages, start, prompt)
            for number, (upper, lower, rounding) in wanted.items():
                assert float(found[0][row, head, number]) == pytest.approx(upper, abs=rounding)
                assert float(found[1][row, head, number]) == pytest.approx(lower, abs=rounding)
                if prompt == tokens:
                    logits = k[pages[number]] @ q
                    assert logits.max() <= float(found[0][row, head, number]) + rounding
                    assert float(found[1][row, head, number]) - rounding <= logits.min()


@pytest.mark.parametrize("size", [128, 192, 256])
def test_heads_of_any_size_are_scanned(size):
    """Codes of more than 256 numbers are cut into parts, whose bounds add up."""
    keys, query = draw_keys(70, size=size), torch.randn(1, 4, size)
    upper, lower = bounds(built(keys, [0]), keys, query, [0], 70)
    for head in range(4):
        q, k = oracles.array(query[0, head]), oracles.array(keys[0, head // 2])
        wanted = oracles_pages.coded_bounds(q, k, oracles_pages.pages_of(0, 70, 4), 0, 70)
        most = max(rounding for _, _, rounding in wanted.values())
        np.testing.assert_allclose(upper[0, head], [each[0] for each in wanted.values()], atol=most)
        np.testing.assert_allclose(lower[0, head], [each[1] for each in wanted.values()], atol=most)


@pytest.mark.parametrize("length", [41, 52, 70, 99])
def test_a_cropped_page_is_filled_anew(length):
    keys, other = draw_keys(100), draw_keys(100, seed=1)
    keys[:, :, 40:] *= 30
    selector = built(keys, [0], prompt=40)
    selector.crop(length)
    assert 0 < selector.length <= length
    joined = torch.cat([keys[:, :, : selector.length], other[:, :, selector.length :]], 2)
    selector.append(joined[:, :, selector.length :])
    fresh = built(joined, [0], prompt=40)
    assert torch.equal(selector.state()["summaries"], fresh.state()["summaries"])


def test_state_and_reorder():
    keys = draw_keys(45, batch=2)
    selector = built(keys, [3, 0])
    other = CodedBoxSelector(4)
    other.restore(selector.state(), selector.length)
    rows = torch.tensor([1, 1, 0])
    other.reorder(rows)
    other.append(9 * torch.ones(3, 2, 9, 8))
    query = torch.randn(3, 4, 8)
    wanted = torch.cat([keys[rows], 9 * torch.ones(3, 2, 9, 8)], 2)
    found = bounds(other, wanted, query, [0, 0, 3], 54)
    for row, source in enumerate(rows):
        alone = built(keys[source : source + 1], [[3, 0][source]])
        alone.append(9 * torch.ones(1, 2, 9, 8))
        for mine, its in zip(
            found, bounds(alone, wanted[row : row + 1], query[row : row + 1], [0], 54), strict=True
        ):
            assert torch.equal(mine[row], its[0])
    assert CodedBoxSelector(4).state() == {}
    assert CodedBoxSelector(4).nbytes == 0


def test_reads_a_byte_per_channel_and_its_levels():
    selector = built(draw_keys(64), [0], page=16)
    step = make_step(torch.zeros(1, 4, 8), draw_keys(64), [0], 40, torch.zeros(1, 4), Budget(tokens=1))
    assert selector.bytes_read(step) == 3 * 8 + 8 * 4 * 2


def test_packed_rows_are_what_was_written():
    rows = torch.randint(256, (2, 3, 200, 192), dtype=torch.uint8)
    held = PackedBoxes()
    for part in rows.split([1, 64, 100, 35], 2):
        held.append(part)
    assert torch.equal(held.view(), rows)
    assert torch.equal(held.view(70), rows[:, :, 70:])
    held.put(rows[:, :, :1], torch.tensor([199]))
    held.reorder(torch.tensor([1, 0]))
    assert torch.equal(held.view(199), rows[[1, 0], :, :1])
    held.crop(3)
    assert held.length == 3
    assert [parts_of(size) for size in (8, 128, 192, 256)] == [1, 1, 2, 2]


def test_refuses_to_append_before_it_is_built():
    with pytest.raises(ValueError, match="call build first"):
        CodedBoxSelector(4).append(draw_keys(3))


@pytest.mark.parametrize("budget", ["budget=5", "budget=0.3", "mass=0.8, floor=3"])
@pytest.mark.parametrize("page", [1, 4])
def test_a_long_life(page, budget):
    live(f"quest({budget}, page={page}, sinks=3, window=5, dense_below=0)")
