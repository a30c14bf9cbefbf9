from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole.core.layout import regions
from keyhole.core.masks import left_padding
from keyhole.selection.picking.pages import spans
from keyhole.selection.picking.rank import competing
from tests import oracles

CPU = torch.device("cpu")


def check(length, padding, sinks, window):
    """Sinks, what competes and window of each row are the oracle's: each token once, none missing."""
    parts = regions(length, tuple(padding), sinks, window, CPU)
    assert parts.padding == tuple(padding)
    for row, start in enumerate(padding):
        early, middle, late = oracles.regions(start, length, sinks, window)
        count = int(parts.always_counts[row])
        assert parts.always[row, :count].tolist() == early + late
        assert list(range(int(parts.first[row]), parts.last)) == middle
        assert length - 1 in parts.always[row, :count]
    assert parts.always.dtype == parts.always_counts.dtype == parts.first.dtype == torch.int32
    assert bool(((parts.always >= 0) & (parts.always < length)).all()), "filling must be a valid slot"


@st.composite
def batches(draw):
    length = draw(st.integers(1, 200))
    padding = draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=4))
    return length, padding, draw(st.integers(0, 250)), draw(st.integers(1, 250))


@given(batches())
def test_every_token_belongs_to_one_part(batch):
    check(*batch)


@pytest.mark.parametrize("sinks", [0, 1, 4])
@pytest.mark.parametrize("window", [1, 2, 8])
@pytest.mark.parametrize("length", [1, 2, 4, 5, 9, 12, 13, 31])
def test_lengths_about_the_borders(length, sinks, window):
    check(length, [0, length - 1, length // 2, max(length - window, 0)], sinks, window)


def test_what_follows_from_regions_is_made_once_for_all_layers():
    parts, other = (regions(100, (0, 3), 4, 10, CPU) for _ in range(2))
    made = []
    found = [parts.derived(key, lambda: made.append(1) or len(made)) for key in ("a", "a", "b")]
    assert found == [1, 1, 2]
    assert other.derived("a", lambda: 7) == 7
    assert competing(parts, 100) is competing(parts, 100)
    assert spans(parts, 8)[0] is spans(parts, 8)[0]
    shorter = replace(parts, last=50, stop=torch.full_like(parts.stop, 50))
    assert spans(shorter, 8)[0].shape[1] == 7
    assert not torch.equal(spans(parts, 8)[1], spans(parts, 4)[1][:, : len(spans(parts, 8)[1][0])])


def test_a_row_shorter_than_the_window_competes_for_nothing():
    parts = regions(100, (0, 95), 4, 10, CPU)
    assert parts.always_counts.tolist() == [14, 5]
    assert int(parts.first[1]) >= parts.last


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_left_padding_is_read_from_the_mask(padding):
    mask = torch.arange(10) >= torch.tensor(padding).view(-1, 1, 1, 1)
    assert left_padding(mask, mask.shape[0]) == tuple(padding)


def test_left_padding_looks_at_the_newest_token():
    mask = torch.ones(1, 1, 3, 5, dtype=torch.bool).tril(2)
    mask[..., :1] = False
    assert left_padding(mask, mask.shape[0]) == (1,)


@pytest.mark.parametrize("seen", ["11110", "10111", "01011", "00000"])
def test_other_padding_is_refused_with_the_way_out(seen):
    mask = torch.tensor([bit == "1" for bit in seen]).view(1, 1, 1, -1)
    with pytest.raises(ValueError, match="padding_side = 'left'"):
        left_padding(mask, mask.shape[0])
