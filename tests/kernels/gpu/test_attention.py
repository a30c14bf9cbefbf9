"""What is particular to attention by Triton kernels: sharing out slots, operands out of range, no waiting."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.kernels.cases import strided
from tests.kernels.test_gather_attention import assert_close, by_definition, case
from tests.kernels.test_packed_attention import check
from tests.kernels.test_paged_attention import GROUP, HEADS, REQUESTS, SIZE, in_one_piece, paged, selection
from tests.waiting import without_waiting

from keyhole import kernels

pytest.importorskip("triton")
from keyhole.kernels.attention.triton import tiles as attention


@pytest.fixture(params=[1, 3])
def programs(request, monkeypatch):
    """So few programs that each has several tiles, and some splits of a row are not reached."""
    monkeypatch.setattr(attention, "_PROGRAMS", request.param)


def gathered(*operands, **options):
    return kernels.gather_attention(*operands, **options, impl="triton")


@given(st.integers(1, 600), st.integers(0, 9000), st.sampled_from([32, 64, 160, 256, 512, 1024]))
def test_splits_cover_a_row_once(rows, width, row_bytes):
    splits = attention.splits_of(rows, width, row_bytes)
    assert splits.slots % splits.tile == 0
    assert splits.count * splits.slots >= width
    assert (splits.count - 1) * splits.slots < max(width, 1)
    assert splits.count * rows <= attention._PROGRAMS + rows


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("counts", [(150, 0), (64, 65), (1, 149)])
def test_several_tiles_of_a_program(counts):
    query, keys, values, slots, _ = case(width=150, heads=3, size=40)
    operands = query, keys, values, slots, torch.tensor(counts)
    options = {"scale": 0.3, "softcap": 4.0, "sink_logits": torch.randn(2, 3)}
    found = gathered(*operands, **options, with_logits=True)
    assert_close(found, by_definition(*operands, **options), values)
    expected = kernels.gather_attention(*operands, **options, with_logits=True, impl="reference")
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("bits", [8, 4])
def test_several_tiles_of_codes(bits):
    check("triton", bits, width=150, counts=torch.tensor([150, 33]))


@pytest.mark.parametrize("size", [5, 130])
def test_values_of_another_size(size):
    query, keys, _, slots, counts = case(size=33)
    values = torch.randn(2, 300, size)
    expected = kernels.gather_attention(query, keys, values, slots, counts, scale=0.3, impl="reference")
    found = gathered(query, keys, values, slots, counts, scale=0.3)
    assert_close(found, (expected.out.double(), expected.lse.double()), values)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)])
def test_dtypes_that_differ(dtypes):
    query, keys, values, slots, counts = case(size=24)
    operands = query, keys.to(dtypes[0]), values.to(dtypes[1]), slots.int(), counts.int()
    assert_close(gathered(*operands, scale=0.3), by_definition(*operands, scale=0.3), values)


def test_rows_that_share_slots_and_columns_that_lie_apart():
    """Selections of stride 0 along rows, keys whose channels are not neighbours."""
    query, _, values, slots, counts = case(size=24)
    values, shared = torch.randn(2, 300, 24), slots[:1].expand(2, -1)
    apart = torch.randn(2, 24, 300).transpose(1, 2)
    operands = query, apart, strided(values), shared, counts[:1].expand(2)
    assert_close(gathered(*operands, scale=0.3), by_definition(*operands, scale=0.3), values)


@pytest.mark.parametrize("bad", [-1, 300, -(1 << 31), (1 << 31) - 1])
def test_slots_outside_are_as_if_not_selected(bad):
    query, keys, values, slots, counts = case(width=70)
    slots[0, [3, 69]] = bad
    kept = slots[0, [entry for entry in range(70) if entry not in (3, 69)]]
    found = gathered(query, keys, values, slots.int(), counts, scale=0.3, with_logits=True)
    narrow = torch.stack([kept, slots[1, :68]]), torch.tensor([68, 68])
    expected = by_definition(query[:1], keys[:1], values[:1], narrow[0][:1], narrow[1][:1], scale=0.3)
    assert_close(kernels.Attended(found.out[:1], found.lse[:1]), expected, values)
    assert (found.logits[0, :, [3, 69]] == -math.inf).all()


@pytest.mark.parametrize("bad", [-5, 900])
def test_counts_outside_are_clamped(bad):
    query, keys, values, slots, counts = case(width=70)
    counts[1] = bad
    found = gathered(query, keys, values, slots, counts, scale=0.3)
    meant = counts.clamp(0, 70)
    assert_close(found, by_definition(query, keys, values, slots, meant, scale=0.3), values)


@pytest.mark.parametrize("bad", [-1, 26, (1 << 31) - 1])
def test_blocks_outside_are_as_if_not_selected(bad):
    keys, values, table = paged(torch.float32)
    slots, counts = selection(112)
    table[0, 2] = bad
    query = torch.randn(REQUESTS * HEADS, GROUP, SIZE)
    found = kernels.paged_gather_attention(
        query, keys, values, table, slots, counts, scale=0.3, impl="triton"
    )
    whole = table.clone()
    whole[0, 2] = 0
    flat = [in_one_piece(source, whole) for source in (keys, values)]
    inside = [[s for s in row[:n] if r >= HEADS or s // 16 != 2] for r, (row, n) in enumerate(
        zip(slots.tolist(), counts.tolist(), strict=True))]  # fmt: skip
    counts = torch.tensor([len(row) for row in inside])
    slots = torch.tensor([row + [0] * (60 - len(row)) for row in inside])
    expected = kernels.gather_attention(query, *flat, slots, counts, scale=0.3, impl="reference")
    torch.testing.assert_close(found.out, expected.out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.lse, expected.lse, rtol=1e-5, atol=1e-5)


def test_nan_spreads_to_its_row_only():
    query, keys, values, slots, counts = case(width=70)
    keys[0, slots[0, 66]] = math.nan
    found = gathered(query, keys, values, slots, counts, scale=0.3)
    expected = kernels.gather_attention(query, keys, values, slots, counts, scale=0.3, impl="reference")
    assert found.out[0].isnan().all()
    assert found.lse[0].isnan().all()
    torch.testing.assert_close(found.out, expected.out, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_nothing_waits(monkeypatch):
    query, keys, values, slots, counts = case(width=70)
    held, flat, table = paged(torch.float32)
    rows, each = selection(112)
    asked = torch.randn(REQUESTS * HEADS, GROUP, SIZE)
    with without_waiting(monkeypatch):
        gathered(query, keys, values, slots, counts, scale=0.3, sink_logits=query[..., 0], with_logits=True)
        kernels.paged_gather_attention(asked, held, flat, table, rows, each, scale=0.3, impl="triton")


@pytest.mark.parametrize("sizes", [{"heads": 17}, {"size": 257}])
def test_sizes_without_a_kernel_are_refused(sizes):
    with pytest.raises(RuntimeError, match="no kernel"):
        gathered(*case(**sizes, width=3), scale=1.0)
