"""Product-quantiser kernels on a GPU, at lengths that the interpreter can take; what the device decides."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.cases import make_index
from tests.kernels.test_pq_encode import assert_nearest
from tests.kernels.test_pq_select import check, select
from tests.waiting import without_waiting

from keyhole import kernels
from keyhole.kernels.pq.tables import pq_tables

pytest.importorskip("triton")

SHAPES = [
    {"bits": 4}, {"bits": 8}, {"bits": 2, "heads": 1}, {"heads": 7, "subspaces": 5, "width": 3},
    {"bits": 6, "heads": 3, "subspaces": 3, "rows": 1}, {"subspaces": 40, "width": 1, "rows": 1},
    {"bits": 8, "heads": 2, "subspaces": 20, "width": 2, "rows": 1},
]  # fmt: skip


def picked_by_triton(index, first, last, **options):
    picked = select(index, first, last, "triton", **options)
    check(index, picked, first, last, **options)
    return picked


@pytest.mark.parametrize("shape", SHAPES)
def test_tables_are_those_of_the_reference(shape):
    from keyhole.kernels.pq.triton.tables import heads_of_word, packed_tables

    index = make_index(n=1, **shape)
    packed = packed_tables(index.query, index.codebooks, index.scale)
    expected = pq_tables(index.query, index.codebooks, scale=index.scale)
    heads, subspaces = expected.entries.shape[1:3]
    together = heads_of_word(index.codebooks.shape[2])
    for head in range(heads):
        inner = head % together
        entries = packed.words[:, head // together] >> 16 * (inner % 2) + 8 * (inner // 2)
        entries &= 255 if together == 4 else 65535
        assert torch.equal(entries[:, :subspaces], expected.entries[:, head])
        assert not entries[:, subspaces:].any()
    assert torch.equal(packed.base[:, :heads], expected.base.float())
    assert torch.equal(packed.step[:, :heads], expected.step.float())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [1, 65, 600])
def test_scores(shape, n):
    assert_scores(make_index(n=n, **shape), n)


@pytest.mark.parametrize("softcap", [0.5, 20.0])
def test_scores_are_capped(softcap):
    assert_scores(make_index(n=70, spread=50.0), 70, softcap=softcap)


def test_scores_of_nothing():
    index = make_index()
    assert kernels.pq_scores(*index.parts, 0, scale=1.0, impl="triton").shape == (2, 4, 0)


def assert_scores(index, n, **options):
    """Equal but for float32 rounding of the logits of a zero sum and of what is added to it."""
    options["scale"] = index.scale
    found, expected = (kernels.pq_scores(*index.parts, n, impl=i, **options) for i in ("triton", "reference"))
    assert (found - expected).abs().max() <= 4e-7 * (
        expected.abs().max() + pq_tables(index.query, index.codebooks, scale=index.scale).base.abs().max()
    )


@pytest.mark.parametrize(
    ("n", "bits", "k"),
    [(1, 4, 1), (31, 8, 5000), (63, 4, 0), (64, 8, 1), (65, 4, 64), (600, 4, 50), (1100, 2, 400)],
)
def test_sizes(n, bits, k):
    picked_by_triton(make_index(n=n, bits=bits), 0, n, k=k)


@pytest.mark.parametrize("spread", [0.0, 0.01, 30.0, 1000.0])
def test_spreads(spread):
    anchors = torch.randn(2, 4) * spread
    picked_by_triton(make_index(n=1300, spread=spread), 1, 1300, k=100, anchor_lse=anchors)


@pytest.mark.parametrize("options", [
    {"mass": 0.5}, {"mass": 1.0}, {"mass": 0.0}, {"mass": 0.0, "floor": 7}, {"mass": 0.9, "cap": 30},
    {"mass": 0.3, "floor": 400, "cap": 450, "softcap": 5.0}, {"mass": 0.9, "floor": 9000},
    {"mass": 0.99, "cap": 0}, {"mass": 0.8, "softcap": 5.0},
])  # fmt: skip
def test_mass_budgets(options):
    anchors = torch.tensor([[-math.inf, 0.0, 1.0, 8.0]] * 2)
    picked_by_triton(make_index(n=600, spread=4.0), 10, 590, anchor_lse=anchors, **options)


@pytest.mark.parametrize("options", [{"k": 300}, {"mass": 0.4, "cap": 4000}])
def test_rows_of_many_chunks(options):
    """Ranges that begin and end inside of chunks, and leave chunks out."""
    index = make_index(rows=3, heads=2, n=9000, subspaces=2, spread=4.0)
    picked_by_triton(index, [0, 4095, 5000], [9000, 4097, 8193], **options)


@pytest.mark.parametrize("k", [1, 70, 1200])
def test_equal_slots_tie_by_position(k):
    """More equal shares than a program holds at a time."""
    index = make_index(rows=1, heads=2, n=2500, subspaces=2)
    index.codes[:] = index.codes[:, :1]
    kernels.write_codes(index.buffer, 0, index.codes, bits=4)
    picked = picked_by_triton(index, 5, 2500, k=k)
    assert picked.slots[0].tolist() == list(range(5, 5 + k))


@settings(max_examples=8)
@given(
    rows=st.integers(1, 3),
    heads=st.integers(1, 5),
    n=st.integers(1, 300),
    subspaces=st.integers(1, 9),
    bits=st.sampled_from([2, 4, 8]),
    spread=st.sampled_from([0.0, 2.0, 20.0]),
    budget=st.sampled_from([{"k": 30}, {"mass": 0.7, "floor": 3, "cap": 200}]),
    seed=st.integers(0, 1000),
)
def test_any_index(rows, heads, n, subspaces, bits, spread, budget, seed):
    index = make_index(rows=rows, heads=heads, n=n, subspaces=subspaces, bits=bits, spread=spread, seed=seed)
    anchors = torch.randn(rows, heads) * spread
    picked_by_triton(index, seed % (n + 1), n, anchor_lse=anchors, **budget)


def test_ranges_are_cut_to_the_buffer():
    index = make_index()
    kernels.write_codes(index.buffer, 300, torch.zeros(2, 84, 8, dtype=torch.uint8), bits=4)
    wide = select(index, torch.tensor([-7, 10]), torch.tensor([9999, 5]), "triton", k=20)
    assert torch.equal(wide.slots[0], select(index, 0, 384, "triton", k=20).slots[0])
    assert wide.counts.tolist() == [20, 0]


@pytest.mark.parametrize("budget", [{"k": 20}, {"mass": 0.9, "cap": 30}])
@pytest.mark.parametrize("place", ["query", "anchor_lse"])
def test_what_is_not_finite_stays_in_its_bounds(place, budget):
    index, anchors = make_index(), torch.zeros(2, 4)
    (index.query if place == "query" else anchors)[0, 1] = math.nan
    picked = select(index, 3, 290, "triton", anchor_lse=anchors, **budget)
    found = picked.slots[0, : picked.counts[0]]
    assert ((found >= 3) & (found < 290)).all()
    assert picked.counts[1] > 0


def test_labels_among_more_centroids_than_a_program_holds():
    # Small whole numbers, whose products have no rounding errors: equal centroids are equally near.
    points, centroids = (torch.randint(-8, 9, (1, n, 37)).float() for n in (70, 300))
    centroids[:, 290:] = centroids[:, :10]
    labels = kernels.kmeans_assign(points, centroids, impl="triton")
    assert_nearest(labels, points, centroids)
    assert labels.max() < 290


@pytest.mark.parametrize("bits", [4, 8, 3])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_codes_are_written_where_the_device_says(bits, dtype):
    codes = torch.randint(0, 1 << bits, (2, 7, 140), dtype=torch.uint8).transpose(1, 2)
    for start in (0, 5, 63, 400, -9):
        found, expected = (kernels.allocate_codes(2, 192, 7, bits).fill_(17) for _ in range(2))
        kernels.write_codes(found, torch.tensor([start], dtype=dtype), codes, bits=bits, impl="triton")
        kept = codes[:, max(0, -start) : max(0, 192 - start)]
        kernels.write_codes(expected, min(max(start, 0), 192), kept, bits=bits, impl="reference")
        assert torch.equal(found, expected)


def test_start_may_be_a_tensor_everywhere(any_impl):
    codes = torch.randint(0, 16, (2, 70, 5), dtype=torch.uint8)
    buffer = kernels.allocate_codes(2, 128, 5, 4)
    kernels.write_codes(buffer, torch.tensor(9), codes, bits=4, impl=any_impl)
    assert torch.equal(kernels.read_codes(buffer, 9, 79, subspaces=5, bits=4), codes)


def test_nothing_waits_for_the_device(monkeypatch):
    index, start = make_index(n=100), torch.tensor([99])
    first, last, anchors = torch.tensor([0, 3]), torch.tensor([100, 90]), torch.zeros(2, 4)
    keys = torch.randn(2, 1, 32).bfloat16()
    with without_waiting(monkeypatch):
        codes = kernels.pq_encode(keys, index.codebooks, impl="triton")
        for place in (start, 99):
            kernels.write_codes(index.buffer, place, codes, bits=4, impl="triton")
        kernels.kmeans_assign(keys, index.codebooks[:, 0].repeat(1, 1, 8), impl="triton")
        kernels.pq_scores(*index.parts, 100, scale=0.1, impl="triton")
        for budget in ({"k": 20}, {"mass": 0.9, "cap": 30}):
            select(index, first, last, "triton", anchor_lse=anchors, **budget)
        select(index, 0, 100, "triton", k=20)
