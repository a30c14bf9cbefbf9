"""Rows that are fetched from a tier: what plain tensors hold, whatever happened, and what is at hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.storage import make_rows
from keyhole.storage.chosen import Chosen
from tests.storage.histories import drawing, histories, play

BLOCK = 2 * 3 * 128 * 5 * 4  # bytes, of rows that `drawing` makes
ROWS = {
    "device": lambda: make_rows("device"),
    "host": lambda: make_rows("host"),
    "disk": lambda: make_rows("disk"),
    "host, one block": lambda: make_rows("host", BLOCK, "lru"),
    "host, hot": lambda: make_rows("host", device=torch.device("cuda")),
    "disk, two blocks": lambda: make_rows("disk", 2 * BLOCK + 7),
}


def some(count, seed):
    """Slots below `count`, each head's a different number of them."""
    random = torch.Generator().manual_seed(seed)
    slots = torch.randint(count, (2, 3, 40), generator=random, dtype=torch.int32)
    return Chosen(slots, torch.randint(41, (2, 3), generator=random))


def check(rows, plain, chosen):
    found = rows.fetch(chosen)
    wanted = plain.gather(2, chosen.slots.long().unsqueeze(-1).expand(-1, -1, -1, plain.shape[3]))
    assert torch.equal(found[chosen.valid_mask()], wanted[chosen.valid_mask()])
    assert bool(found.isfinite().all())


@pytest.mark.parametrize("make", ROWS.values(), ids=ROWS)
@settings(max_examples=25)
@given(histories, st.integers(0, 99))
def test_any_history_equals_plain_tensors(make, history, seed):
    rows = make()
    for plain in play(history, rows.append, rows.crop, rows.reorder, drawing(seed)):
        assert rows.length == plain.shape[2]
        assert torch.equal(rows.view(), plain)
        if not plain.shape[2]:
            continue
        for again in (0, 0, 1):
            check(rows, plain, some(plain.shape[2], seed + again))


def test_what_is_read_again_is_at_hand():
    rows, plain = make_rows("disk", BLOCK), drawing()(300)
    rows.append(plain)
    chosen = Chosen(torch.full((2, 3, 4), 130, dtype=torch.int32), torch.full((2, 3), 4))
    for lookups in ((0, 24), (24, 24), (48, 24)):
        check(rows, plain, chosen)
        assert rows.resident.lookups[:2] == lookups
    assert rows.footprint.device == BLOCK
    assert rows.footprint.disk == 300 * 2 * 3 * 5 * 4


def test_nothing_chosen():
    rows = make_rows("host", BLOCK)
    rows.append(drawing()(300))
    none = Chosen(torch.zeros(2, 3, 1, dtype=torch.int32), torch.zeros(2, 3, dtype=torch.int32))
    assert rows.fetch(none).shape == (2, 3, 1, 5)
    assert rows.resident.lookups[:2] == (0, 0)
