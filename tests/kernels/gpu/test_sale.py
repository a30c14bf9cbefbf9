"""Sparse prompts by Triton kernels against the reference, which rounds as they do."""

import pytest
import torch

pytest.importorskip("triton")

from tests.waiting import without_waiting

from keyhole import kernels
from keyhole.attention import Logits, dense_attention
from keyhole.kernels import Reach
from keyhole.kernels.sale.reference import attend_reference
from keyhole.kernels.sale.tiles import unpack
from keyhole.kernels.sale.triton import attention as sale
from keyhole.kernels.sale.triton import estimate as sale_estimate
from keyhole.kernels.sale.triton import tiles as sale_tiles
from keyhole.methods import Sale
from keyhole.prefill import SalePrefill
from keyhole.storage import DeviceStorage

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, about infinities

SHAPES = [
    # heads, KV heads, queries, tokens, D, Dv, padding, dtype; tau, width, pooled, rows, means
    ((4, 2, 150, 283, 16, 20, (0,), torch.float32), (0.03, 1, True, 64, False)),
    ((4, 2, 150, 283, 16, 20, (0,), torch.float32), (0.5, 32, False, 64, False)),
    ((3, 1, 130, 270, 33, 24, (0, 141), torch.float32), (0.2, 4, True, 64, False)),
    ((5, 1, 65, 259, 80, 96, (40,), torch.bfloat16), (0.5, 16, False, 64, False)),
    ((1, 1, 257, 257, 128, 64, (30,), torch.float16), (0.2, 2, True, 16, False)),
    ((2, 2, 1, 300, 7, 128, (0,), torch.float32), (0.5, 32, True, 64, False)),
    ((3, 1, 170, 283, 16, 20, (7,), torch.float32), (0.4, 1, False, 32, False)),
    ((4, 2, 150, 283, 16, 20, (0,), torch.float32), (0.4, 1, True, 16, True)),
    ((3, 1, 130, 270, 33, 24, (0, 141), torch.float32), (0.4, 4, True, 32, True)),
    ((5, 1, 65, 259, 80, 96, (40,), torch.bfloat16), (0.2, 1, True, 16, True)),
    ((1, 1, 257, 257, 128, 64, (30,), torch.float16), (0.4, 2, True, 64, True)),
    ((2, 2, 1, 300, 7, 128, (0,), torch.float32), (0.5, 32, True, 16, True)),
    ((2, 1, 90, 300, 24, 16, (0,), torch.bfloat16), (0.8, 8, False, 32, True)),
]
DEFAULT = {"width": 1, "rows": 16, "means": True}


def drawn(heads, kv_heads, queries, tokens, size, value_size, padding=(0,), dtype=torch.float32):
    """Operands with NaN where nothing may be read: in padding, and between rows and heads."""
    make, batch = torch.Generator().manual_seed(heads), len(padding)
    wide = torch.full((3, batch, tokens + 1, heads + 1, max(size, value_size) + 3), torch.nan)
    parts = (
        (queries, heads, size, 0.0),
        (tokens, kv_heads, size, 1.0),
        (tokens, kv_heads, value_size, 0.0),
    )
    for operand, (rows, count, width, shift) in zip(wide, parts, strict=True):
        part = operand[:, :rows, :count, 1 : width + 1]
        part.copy_(torch.randn(part.shape, generator=make) + shift)
    wide[0] *= 2
    for row, unused in enumerate(padding):
        wide[1:, row, :unused] = torch.nan
    query, keys, values = wide.to(dtype).transpose(2, 3)
    return (
        query[:, :heads, :queries, 1 : size + 1],
        keys[:, :kv_heads, :tokens, 1 : size + 1],
        values[:, :kv_heads, :tokens, 1 : value_size + 1],
    )


def run(query, keys, values, tau, *, padding=(0,), with_map=True, **reach):
    tau = torch.as_tensor(tau, dtype=torch.float32).expand(query.shape[1])
    return kernels.sale_attention(
        query, keys, values, tau, scale=query.shape[-1] ** -0.5, reach=Reach(**reach), padding=padding,
        with_map=with_map, impl="triton",
    )  # fmt: skip


def expected_of(query, keys, values, tau, *, padding=(0,), **reach):
    tau = torch.as_tensor(tau, dtype=torch.float32).expand(query.shape[1])
    scale = query.shape[-1] ** -0.5
    return attend_reference(
        query, keys, values, tau, scale, Reach(**reach), padding, True, sale_tiles.ROUNDING
    )


def assert_same(found, expected, tolerance=1e-4, *, rows=64, skipped=0):
    """Equal, but for few groups of queries of which a key lies where rounding meets a threshold.

    Args:
        skipped: queries of each batch row that are padding, or of all.
    """
    differing = (found.map != expected.map).any(-1)
    assert int(differing.sum()) <= 0.05 * differing.numel()
    query = torch.arange(found.out.shape[2]) - torch.as_tensor(skipped).view(-1, 1, 1)
    group = (query.clamp(min=0) // rows).expand(*found.out.shape[:3])
    same = ~differing.gather(2, group)
    torch.testing.assert_close(found.out[same], expected.out[same], rtol=tolerance, atol=tolerance)
    assert torch.equal(found.kept[~differing], expected.kept[~differing])
    assert torch.equal(found.kept, unpack(found.map, found.map.shape[3] * 32).sum(-1).int())


@pytest.mark.parametrize(("shape", "reach"), SHAPES, ids=str)
def test_the_reference_that_rounds_alike_agrees(shape, reach):
    queries, tokens, (padding, dtype), (tau, *reach) = shape[2], shape[3], shape[6:], reach
    operands, unused = drawn(*shape), torch.tensor(padding)
    options = dict(zip(("width", "pooled", "rows", "means"), reach, strict=True), sinks=3, window=41)
    expected = expected_of(*operands, tau, padding=padding, **options)
    assert bool((expected.kept[..., -1] < tokens - unused.view(-1, 1)).any())
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    found, skipped = run(*operands, tau, padding=padding, **options), (queries - tokens + unused).clamp(min=0)
    assert_same(found, expected, tolerance, rows=options["rows"], skipped=skipped)


@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_is_dense(dtype, means):
    operands = drawn(4, 2, 130, 200, 24, 24, dtype=dtype)
    found = run(*operands, 0.0, sinks=0, window=0, means=means)
    expected = dense_attention(*(part.float() for part in operands), scale=24**-0.5)
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.out.float(), expected, rtol=tolerance, atol=tolerance)
    assert found.kept[0, 0].tolist() == [134, 198, 200]


@pytest.mark.parametrize("means", [False, True])
def test_heads_have_thresholds_of_their_own(means):
    operands, tau = drawn(3, 1, 128, 300, 16, 16), torch.tensor([0.0, 1e30, 0.02])
    found = run(*operands, tau, window=10, means=means)
    assert found.kept[0, :2].tolist() == [[236, 300], [236 - 128, 300 - 192]]
    assert_same(found, expected_of(*operands, tau, window=10, means=means))


def test_pieces_of_a_prompt_and_parts_of_its_keys_make_the_whole(monkeypatch):
    operands = drawn(3, 1, 130, 330, 16, 16)
    whole = run(*operands, 0.02, window=10, **DEFAULT)
    monkeypatch.setattr(sale, "_LISTS", 1)
    monkeypatch.setattr(sale_estimate, "_SPAN", 128)
    for with_map in (True, False):
        parts = run(*operands, 0.02, window=10, with_map=with_map, **DEFAULT)
        assert torch.equal(parts.out, whole.out)
        assert torch.equal(parts.kept, whole.kept)
        assert torch.equal(parts.map, whole.map) if with_map else parts.map is None


def test_tiles_in_parts_and_short_steps(monkeypatch):
    operands = drawn(1, 1, 70, 140, 16, 16)
    whole = run(*operands, 0.02, window=10, **DEFAULT)
    tiling = property(lambda _: {"ROWS": 16, "KEYS": 32, "num_warps": 4})
    monkeypatch.setattr(sale_tiles.Prompt, "tiling", tiling)
    parts = run(*operands, 0.02, window=10, **DEFAULT)
    assert torch.equal(parts.map, whole.map)
    torch.testing.assert_close(parts.out, whole.out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_query_that_is_not_finite_spoils_itself_alone(value, means):
    query, keys, values = (part.clone() for part in drawn(2, 1, 130, 260, 16, 16))
    query[0, 1, 70, 3] = value
    options = {**DEFAULT, "means": means}
    found = run(query, keys, values, 0.02, **options)
    assert found.out[0, 1, 70].isnan().all()
    assert int(found.out.isnan().any(-1).sum()) == 1
    assert torch.equal(found.map, expected_of(query, keys, values, 0.02, **options).map)


def test_the_host_does_not_wait(monkeypatch):
    operands, tau = drawn(2, 1, 70, 200, 16, 16, padding=(0, 9)), torch.full((2,), 0.02)
    with without_waiting(monkeypatch):
        kernels.sale_attention(
            *operands,
            tau,
            scale=0.25,
            reach=Reach(window=10, **DEFAULT),
            padding=(0, 9),
            with_map=True,
            impl="triton",
        )


def test_prompts_of_a_method_that_is_not_told_otherwise():
    query, keys, values = drawn(4, 2, 150, 300, 16, 16)
    storage = DeviceStorage()
    storage.append(keys, values)
    reach = Sale().reach
    found = SalePrefill(0.3, reach, impl="triton").attend(query, storage, Logits(0.25), None)
    expected = expected_of(query, keys, values, 0.3, **reach._asdict()).out
    assert float((found - expected).norm() / expected.norm()) < 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_takes_them():
    assert kernels.sale_pays(*(part.cuda() for part in drawn(4, 2, 150, 300, 16, 16)))


def test_rows_that_registers_do_not_hold_are_refused():
    for size, dtype in ((129, torch.float32), (257, torch.bfloat16)):
        with pytest.raises(RuntimeError, match="no kernel"):
            run(*drawn(1, 1, 70, 70, size, 8, dtype=dtype), 0.1)
