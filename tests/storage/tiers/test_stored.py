"""Rows of a stored text: what is read, what is not, and what comes behind."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole.core.errors import UnsupportedCacheError
from keyhole.storage.tiers.stored import StoredBuffer

HEADS, WIDTH = 3, 5
LENGTHS = (7, 4, 9)


class Block:
    """Rows in memory that note what is asked of them."""

    def __init__(self, rows):
        self.rows, self.asked = rows, set()

    @property
    def length(self):
        return self.rows.shape[1]

    def some(self, heads, rows):
        pairs = set(zip(heads.tolist(), rows.tolist(), strict=True))
        assert len(pairs) == len(heads), "a row was asked for twice"
        self.asked |= pairs
        return self.rows[heads, rows]

    def whole(self):
        self.asked |= {(head, row) for head in range(HEADS) for row in range(self.length)}
        return self.rows


def stored(most=1 << 30, spare=4):
    rows = torch.randn(1, HEADS, sum(LENGTHS), WIDTH, generator=torch.Generator().manual_seed(0))
    blocks = [Block(part) for part in rows[0].split(LENGTHS, dim=1)]
    return StoredBuffer(blocks, rows[0, :, :0], most=most, spare=spare), rows, blocks


def test_only_rows_that_are_asked_for_are_read():
    buffer, rows, blocks = stored()
    wanted = torch.tensor([[[0, 8, 8], [6, 19, 0], [3, 3, 12]]])
    held = buffer.reading(wanted)
    for head in range(HEADS):
        torch.testing.assert_close(held[0, head, wanted[0, head]], rows[0, head, wanted[0, head]])
    assert blocks[0].asked == {(0, 0), (1, 6), (1, 0), (2, 3)}
    assert blocks[1].asked == {(0, 1)}
    assert blocks[2].asked == {(1, 8), (2, 1)}
    assert buffer.read_rows == 7
    buffer.reading(wanted)
    assert buffer.read_rows == 7


def test_the_newest_rows_are_read_without_their_block():
    buffer, rows, blocks = stored()
    torch.testing.assert_close(buffer.view(19), rows[:, :, 19:])
    assert buffer.read_rows == HEADS
    torch.testing.assert_close(buffer.view(), rows)
    assert len(blocks[0].asked) == HEADS * LENGTHS[0]


def test_what_was_read_goes_when_it_is_more_than_may_stay():
    buffer, rows, _ = stored(most=6 * WIDTH * 4)
    for start in range(0, 20, 4):
        wanted = torch.arange(start, start + 4)
        held = buffer.reading(wanted)
        torch.testing.assert_close(held[:, :, wanted], rows[:, :, wanted])
    assert buffer.read_rows == 20 * HEADS
    buffer.reading(torch.tensor([0]))
    assert buffer.read_rows == 21 * HEADS


@given(
    st.lists(
        st.tuples(st.sampled_from(["read", "append", "crop", "copy", "view"]), st.integers(0, 40)),
        max_size=14,
    )
)
def test_as_plain_rows(steps):
    buffer, rows, _ = stored(most=10 * WIDTH * 4)
    random = torch.Generator().manual_seed(1)
    for what, number in steps:
        if what == "append":
            more = torch.randn(1, HEADS, number % 9, WIDTH, generator=random)
            buffer.append(more)
            rows = torch.cat([rows, more], 2)
        elif what == "crop":
            buffer.crop(number)
            rows = rows[:, :, :number]
        elif what == "copy":
            buffer = copy.deepcopy(buffer)
        elif what == "view":
            start = min(number, rows.shape[2])
            torch.testing.assert_close(buffer.view(start), rows[:, :, start:])
        elif rows.shape[2]:
            wanted = torch.from_numpy(np.random.default_rng(number).integers(0, rows.shape[2], 6))
            torch.testing.assert_close(buffer.reading(wanted)[:, :, wanted], rows[:, :, wanted])
        assert buffer.length == rows.shape[2]
    assert buffer.nbytes == rows.nbytes


def test_batches_and_other_rows_are_refused():
    buffer, rows, _ = stored()
    buffer.reorder(torch.tensor([0]))
    with pytest.raises(UnsupportedCacheError, match="place='host'"):
        buffer.reorder(torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="do not continue"):
        buffer.append(rows.double())


def test_what_came_behind_the_stored_rows_stays_when_those_go():
    """Rows as large as a page, so that all of what goes is given back to the system."""
    rows = torch.randn(1, HEADS, 6, 1024, generator=torch.Generator().manual_seed(0))
    buffer = StoredBuffer([Block(rows[0])], rows[0, :, :0], most=4096, spare=4)
    more = torch.randn(1, HEADS, 3, 1024, generator=torch.Generator().manual_seed(1))
    buffer.append(more)
    for wanted in (torch.arange(4), torch.tensor([0, 5])):
        held = buffer.reading(wanted.expand(1, HEADS, -1))
        torch.testing.assert_close(held[:, :, wanted], rows[:, :, wanted])
        torch.testing.assert_close(held[:, :, 6:], more)
