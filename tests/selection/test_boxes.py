import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.core.budget import Budget
from keyhole.selection import BoxSelector
from tests import oracles, oracles_pages
from tests.lives import live
from tests.steps import competing, make_step


def draw_keys(tokens, *, batch=1, heads=2, size=8, seed=0, dtype=torch.float32):
    return torch.randn(batch, heads, tokens, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def built(keys, first, *, page, pieces=None):
    """A selector of which the first piece is the prompt."""
    pieces = pieces or [keys.shape[2]]
    selector = BoxSelector(page)
    selector.build(keys[:, :, : pieces[0]], competing(first, pieces[0], pieces[0]))
    for begin, end in zip(
        torch.tensor(pieces).cumsum(0)[:-1], torch.tensor(pieces).cumsum(0)[1:], strict=True
    ):
        selector.append(keys[:, :, begin:end])
    assert selector.length == keys.shape[2]
    return selector


def check(selector, query, keys, first, last, budget):
    heads, page = keys.shape[1], selector.page
    anchor = torch.zeros(query.shape[:2])
    step = make_step(query, keys, first, last, anchor, Budget(tokens=budget))
    selection = selector.select(step)
    scale = keys.shape[-1] ** -0.5
    for row, start in enumerate(first):
        pages = oracles_pages.pages_of(start, last, page)
        boxed = oracles_pages.pages_of(start, selector.length, page)
        arrays = oracles.array(query[row]), oracles.array(keys[row])
        scores = oracles_pages.quest_scores(*arrays, pages, boxed, scale=scale)
        for head in range(heads):
            found = selection.slots[row, head, : selection.counts[row, head]].tolist()
            assert found == oracles_pages.read_pages(scores[head], pages, budget)
            assert 0 < float(selection.mass[row, head]) <= 1 + 1e-5


@settings(max_examples=40)
@given(
    st.sampled_from([1, 4, 16]),
    st.sampled_from([17, 63, 100]),
    st.integers(1, 4),
    st.integers(1, 60),
    st.data(),
)
def test_best_pages_by_their_bounds(page, tokens, groups, budget, data):
    first = [data.draw(st.integers(0, tokens - 2)) for _ in range(2)]
    last = data.draw(st.integers(max(first) + 1, tokens))
    cut = data.draw(st.integers(max(first), tokens))
    pieces = [size for size in (cut, tokens - cut) if size]
    keys = draw_keys(tokens, batch=2, seed=tokens + page)
    query = torch.randn(2, 2 * groups, 8, generator=torch.Generator().manual_seed(groups))
    check(built(keys, first, page=page, pieces=pieces), query, keys, first, last, budget)


def test_bounds_hold():
    keys, query = draw_keys(100, size=32), torch.randn(1, 6, 32)
    step = make_step(query, keys, [0], 100, torch.zeros(1, 6), Budget(tokens=1), softcap=3.0)
    upper, lower = built(keys, [0], page=16)._bounds(step)
    for head in range(6):
        logits = oracles.exact_logits(
            oracles.array(query[0]), oracles.array(keys[0]), scale=32**-0.5, softcap=3.0
        )[head]
        for number in range(7):
            page = logits[16 * number : 16 * number + 16]
            assert lower[0].flatten(0, 1)[head, number] - 1e-5 <= page.min()
            assert page.max() <= upper[0].flatten(0, 1)[head, number] + 1e-5


def test_one_head_that_outshines_does_not_decide_alone():
    """Softmax before the sum: three heads agree on the second page, one is very sure of the first."""
    keys = torch.zeros(1, 1, 8, 4)
    keys[0, 0, :4, 0], keys[0, 0, 4:, 1] = 100.0, 10.0
    query = torch.zeros(1, 4, 4)
    query[0, 0, 0], query[0, 1:, 1] = 1.0, 1.0
    step = make_step(query, keys, [0], 8, torch.zeros(1, 4), Budget(tokens=4))
    assert built(keys, [0], page=4).select(step).slots[0, 0].tolist() == [4, 5, 6, 7]


def test_bounds_far_below_the_best_are_no_ties():
    """Their softmax underflows; the better of two hopeless pages still comes first."""
    keys = torch.zeros(1, 1, 12, 2)
    for number, level in enumerate([0.0, 50.0, 1000.0]):
        keys[0, 0, 4 * number : 4 * number + 4, 0] = level
    step = make_step(torch.ones(1, 2, 2), keys, [0], 12, torch.zeros(1, 2), Budget(tokens=8), scale=1.0)
    assert built(keys, [0], page=4).select(step).slots[0, 0].tolist() == list(range(4, 12))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_is_in_no_box(dtype):
    """Huge keys before the first slot neither widen a box nor are read, also where a page has no others."""
    keys = draw_keys(64, batch=2, dtype=dtype)
    keys[0, :, :21] *= 1e4
    first, query = [21, 2], torch.randn(2, 4, 8)
    check(built(keys.float(), first, page=16), query, keys.float(), first, 60, 20)
    selector = built(keys, first, page=16, pieces=[10, 30, 24])
    selection = selector.select(make_step(query, keys, first, 60, torch.zeros(2, 4), Budget(tokens=64)))
    assert selection.counts.tolist() == [[39, 39], [58, 58]]
    assert bool(selection.mass.isfinite().all())


@pytest.mark.parametrize("length", [0, 5, 16, 31, 33, 63])
def test_a_cropped_page_is_filled_anew(length):
    """The box of a page that is cut does not remember what was cut off."""
    keys, other = draw_keys(64), draw_keys(64, seed=1)
    selector = built(100 * keys, [0], page=16)
    selector.crop(length)
    assert selector.length <= length
    joined = torch.cat([100 * keys[:, :, : selector.length], other[:, :, selector.length :]], 2)
    if selector.length:
        selector.append(joined[:, :, selector.length :])
    else:
        selector.build(joined, competing([0], 60, 64))
    torch.testing.assert_close(
        selector.state()["summaries"], built(joined, [0], page=16).state()["summaries"]
    )


def test_crop_beyond_the_end_changes_nothing():
    selector = built(draw_keys(37), [0], page=16)
    selector.crop(40)
    assert selector.length == 37


def test_state_and_reorder():
    keys = draw_keys(45, batch=2)
    selector = built(keys, [3, 0], page=16)
    other = BoxSelector(16)
    other.restore({name: tensor.clone() for name, tensor in selector.state().items()}, selector.length)
    rows = torch.tensor([1, 1, 0])
    other.reorder(rows)
    other.append(torch.ones(3, 2, 9, 8))
    wanted = torch.cat([keys[rows], torch.ones(3, 2, 9, 8)], 2)
    torch.testing.assert_close(
        other.state()["summaries"], built(wanted, [0, 0, 3], page=16).state()["summaries"]
    )
    assert BoxSelector(16).state() == {}
    assert selector.nbytes >= selector.state()["summaries"].nbytes


def test_reads_two_vectors_a_page():
    selector = built(draw_keys(64, dtype=torch.bfloat16), [0], page=16)
    step = make_step(torch.zeros(1, 4, 8), draw_keys(64), [0], 40, torch.zeros(1, 4), Budget(tokens=1))
    assert selector.bytes_read(step) == 3 * 2 * 8 * 2


def test_refuses_to_append_before_it_is_built():
    with pytest.raises(ValueError, match="call build first"):
        BoxSelector(16).append(draw_keys(3))


@pytest.mark.parametrize("budget", ["budget=5", "budget=0.3", "mass=0.8, floor=3"])
@pytest.mark.parametrize("page", [1, 4, 16])
def test_a_long_life(page, budget):
    live(f"quest({budget}, page={page}, box_dtype=auto, sinks=3, window=5, dense_below=0)")
