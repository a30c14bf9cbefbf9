"""A storage over a pool of blocks is one of the same tokens in one piece, whatever other blocks hold."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from keyhole import kernels
from keyhole.attention import Logits
from keyhole.storage import DeviceStorage, PagedStorage, split_pages

HEADS = 2


@dataclass
class Pool:
    """Pages full of NaN, of which one request has some in no order, and what it wrote there in one piece."""

    pages: Tensor
    table: Tensor
    storage: PagedStorage
    plain: DeviceStorage

    def append(self, count: int) -> None:
        heads, size = self.storage.keys().shape[1], self.storage.keys().shape[3]
        new = torch.randn(2, 1, heads, count, size).to(self.pages.dtype)
        self.storage.append(*new)
        self.plain.append(*new)

    def check(self) -> None:
        assert self.storage.length == self.plain.length
        found = self.storage.keys(), self.storage.values()
        torch.testing.assert_close(found, (self.plain.keys(), self.plain.values()), rtol=0, atol=0)


def pool(*, width=9, block_size=16, heads=HEADS, size=24, dtype=torch.float32, planar=False, extra=3) -> Pool:
    pages = torch.full((width + 6, heads, block_size, 2 * size + extra), math.nan, dtype=dtype)
    keys, values, _ = split_pages(pages, size, planar=planar)
    storage, plain = PagedStorage(keys, values), DeviceStorage()
    table = torch.randperm(width + 6)[:width].int()
    storage.at(table, 0)
    plain.append(*torch.empty(2, 1, heads, 0, size, dtype=dtype))
    return Pool(pages, table, storage, plain)


@given(
    st.lists(
        st.tuples(st.sampled_from(["append", "crop"]), st.sampled_from([0, 1, 2, 12, 13, 14, 26, 40])),
        max_size=12,
    ),
    st.sampled_from([1, 2, 13, 16]),
    st.booleans(),
)
def test_what_is_written_is_read(history, block_size, planar):
    held = pool(width=600, block_size=block_size, planar=planar)
    for event, count in history:
        if event == "append":
            held.append(count)
        else:
            held.storage.crop(count)
            held.plain.crop(count)
        held.check()
        start = held.storage.length // 2
        assert torch.equal(held.storage.keys(start), held.plain.keys(start))
        assert torch.equal(held.storage.values(start), held.plain.values(start))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("logits", [Logits(0.3), Logits(0.3, 2.0)])
def test_attends_as_in_one_piece(dtype, planar, logits):
    held = pool(dtype=dtype, planar=planar)
    held.append(100)
    query = torch.randn(1, 6, 24).to(dtype)
    by_head = torch.stack([torch.randperm(100)[:30] for _ in range(HEADS)]).int().unsqueeze(0)
    for slots, counts in (
        (by_head, torch.tensor([[30, 7]], dtype=torch.int32)),
        (by_head[:, 0], torch.tensor([11], dtype=torch.int32)),
    ):
        found = held.storage.attend(query, slots, counts, logits)
        expected = held.plain.attend(query, slots, counts, logits)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("logits", [Logits(0.3), Logits(0.3, 2.0), Logits(0.3, sink_logits=torch.randn(6))])
def test_attends_to_everything(logits):
    held = pool()
    held.append(100)
    query = torch.randn(1, 6, 1, 24)
    mask = torch.rand(1, 1, 1, 100) > 0.3
    for seen in (None, mask):
        found = held.storage.attend_all(query, logits, seen)
        torch.testing.assert_close(found, held.plain.attend_all(query, logits, seen))


@pytest.mark.parametrize("planar", [False, True])
def test_pages_are_split_without_a_copy(planar):
    pages = torch.arange(3 * 2 * 4 * 7.0).view(3, 2, 4, 7)
    keys, values, rest = split_pages(pages, 3, 2, planar=planar)
    assert keys.shape == (3, 4, 2, 3)
    assert values.shape == (3, 4, 2, 2)
    assert rest.shape == ((3, 2, 8) if planar else (3, 2, 4, 2))
    parts = [part.flatten() for part in (keys, values, rest)]
    assert torch.equal(torch.cat(parts).sort().values, pages.flatten())
    keys.zero_(), values.zero_(), rest.zero_()
    assert not pages.any()


def test_pages_with_a_head_in_pieces_are_no_planar_ones():
    with pytest.raises(ValueError, match="contiguous for each head"):
        split_pages(torch.zeros(3, 4, 2, 8).transpose(1, 2), 4, planar=True)
    assert split_pages(torch.zeros(3, 4, 2, 8).transpose(1, 2), 4).keys.shape == (3, 4, 2, 4)


def test_pages_too_narrow_are_refused():
    with pytest.raises(ValueError, match="too few for a key of 4 and a value of 5"):
        split_pages(torch.zeros(3, 4, 2, 8), 4, 5)


def test_the_table_is_the_engines():
    held = pool()
    held.append(40)
    held.storage.at(held.table.clone(), 20)
    held.plain.crop(20)
    held.check()
    held.pages.normal_()
    held.storage.at(torch.tensor([3, 1]), 32)
    assert torch.equal(held.storage.keys(31)[0, :, 0], held.pages[1, :, 15, :24])


def test_the_newest_key_is_a_view():
    held = pool(width=9)
    held.append(130)
    newest = held.storage.keys(129)
    assert newest.shape == (1, HEADS, 1, 24)
    assert newest.untyped_storage().data_ptr() == held.pages.untyped_storage().data_ptr()


def test_tokens_beyond_the_table_are_refused_before_anything_is_written():
    held = pool(width=2)
    held.append(30)
    with pytest.raises(ValueError, match="33 tokens do not fit the block table, which has room for 0 to 32"):
        held.append(3)
    with pytest.raises(ValueError, match="33 tokens do not fit"):
        held.storage.at(held.table, 33)
    held.check()


@pytest.mark.parametrize("table", [torch.zeros(2, 3, dtype=torch.int32), torch.zeros(3)])
def test_other_tables_are_refused(table):
    with pytest.raises(ValueError, match="a list of integers"):
        pool().storage.at(table, 0)


def test_tokens_of_another_shape_or_dtype_are_refused():
    held = pool()
    for new in (torch.zeros(2, 2, HEADS, 5, 24), torch.zeros(2, 1, HEADS, 5, 24).bfloat16()):
        with pytest.raises(ValueError, match="cannot be written to pages"):
            held.storage.append(*new)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.reorder(torch.tensor([0, 0])), "cannot be reordered; each sequence"),
        (lambda s: s.keep(None), "cannot drop single tokens"),
        (lambda s: s.restore({}), "cannot take over a saved state"),
    ],
)
def test_what_a_shared_pool_cannot_do_is_refused(change, reason):
    with pytest.raises(ValueError, match=reason):
        change(pool().storage)


def test_its_blocks_are_counted():
    held = pool()
    held.append(33)
    assert held.storage.token_bytes == 2 * HEADS * 24 * 4
    assert held.storage.footprint == (48 * 2 * HEADS * 24 * 4, 0, 0)


def test_pages_of_other_kinds_are_refused():
    keys = torch.zeros(3, 4, 2, 8)
    for values in (keys[..., :6], keys.bfloat16(), keys[0]):
        with pytest.raises(ValueError, match="of one dtype and both"):
            PagedStorage(keys, values)
    with pytest.raises(ValueError, match="side by side"):
        PagedStorage(keys.transpose(2, 3), keys.transpose(2, 3))


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_scores_and_pools_as_in_one_piece(planar, softcap):
    held = pool(planar=planar, width=20, block_size=13, dtype=torch.bfloat16)
    held.append(100)
    query, logits = torch.randn(1, 6, 24), Logits(0.3, softcap)
    found, expected = (part.scores(query, logits) for part in (held.storage, held.plain))
    assert found.shape == (1, HEADS, 3, 100)
    torch.testing.assert_close(found, expected)
    bounds = torch.tensor([[2], [99], [5], [90]])
    span, how = kernels.Span(*bounds, 95), kernels.Pooling(0.3, softcap, page=4)
    extras = {"score_extra": torch.randn(1, 6), "share_extra": torch.randn(1, 6)}
    torch.testing.assert_close(
        held.storage.pooled(query, span, how, **extras), held.plain.pooled(query, span, how, **extras)
    )
