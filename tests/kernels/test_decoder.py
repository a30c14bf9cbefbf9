"""A decode step by native code is the one in plain torch: every level, odd sizes, every form of weights."""

import pytest
import torch

from keyhole.kernels import cpu_level, cpu_levels
from keyhole.kernels.decoder.api import decoder_step
from keyhole.kernels.decoder.reference import normed
from keyhole.kernels.decoder.types import Decoder, DecoderLayer, DecoderSizes, Linear, Norm
from keyhole.kernels.products.matrix import Packing, dense
from keyhole.kernels.products.packing import quantise
from keyhole.kernels.products.unpacking import unpack_rows

SIZES = {
    "small": DecoderSizes(48, 64, 4, 2, 16),
    "odd": DecoderSizes(31, 63, 3, 1, 10, residual=0.5, embedding=3.0, clip=0.7),
    "one head": DecoderSizes(7, 5, 1, 1, 2),
    "normed heads": DecoderSizes(100, 130, 6, 3, 34, norms_all_heads=True),
    "bfloat16": DecoderSizes(96, 200, 4, 4, 24, dtype=torch.bfloat16),
}


def numbers(*shape, dtype=torch.float32):
    return (torch.randn(*shape) / shape[-1] ** 0.5).to(dtype)


def random_norm(size, dtype):
    return Norm((1 + 0.3 * torch.randn(size)).to(dtype), 1e-5)


def decoder_of(sizes, *, layers=2, form=dense, bias=True, norms=True, ending=False):
    torch.manual_seed(0)
    dtype, heads = sizes.dtype, (sizes.heads * sizes.head_size, sizes.kv_heads * sizes.head_size)

    def linear(rows, columns):
        held = numbers(rows, dtype=dtype) if bias else None
        return Linear(form(numbers(rows, columns, dtype=dtype)), held)

    def norm(size, there=True):
        return random_norm(size, dtype) if there else None

    def layer(place):
        own = sizes.norms_all_heads
        return DecoderLayer(
            *(linear(width, sizes.hidden) for width in (heads[0], heads[1], heads[1])),
            linear(sizes.hidden, heads[0]),
            linear(sizes.forward, sizes.hidden),
            linear(sizes.forward, sizes.hidden),
            linear(sizes.hidden, sizes.forward),
            norm(sizes.hidden, not ending),
            norm(heads[0] if own else sizes.head_size, norms),
            norm(heads[1] if own else sizes.head_size, norms),
            norm(sizes.hidden, ending),
            norm(sizes.hidden, not ending),
            norm(sizes.hidden, ending),
            rotates=place != 1,
        )

    last = random_norm(sizes.hidden, dtype) if norms else Norm(None, 1e-5, centred=True)
    return Decoder(sizes, tuple(layer(place) for place in range(layers)), last)


def run(step, decoder, rows, *, shared_angles=False):
    """All that a step gives on its way, attention played by numbers that depend on it alone."""
    sizes = decoder.sizes
    torch.manual_seed(1)
    angles = torch.rand(1 if shared_angles else rows, sizes.head_size // 2 // 2 * 2 or 2) * 6
    found = [step.begin(numbers(rows, sizes.hidden, dtype=sizes.dtype), angles.cos(), angles.sin())]
    for layer in range(len(decoder.layers)):
        out = numbers(rows, sizes.heads, 1, sizes.head_size, dtype=sizes.dtype)
        found.append(step.attended(layer, out))
    return found


def assert_alike(decoder, rows, tolerance=2e-5, **options):
    wanted = run(decoder_step(decoder, impl="reference"), decoder, rows, **options)
    found = run(decoder_step(decoder, impl="native"), decoder, rows, **options)
    for own, new in zip(wanted, found, strict=True):
        assert new.dtype == own.dtype
        assert new.shape == own.shape
        slack = tolerance if own.dtype == torch.float32 else 2**-7
        torch.testing.assert_close(new.float(), own.float(), rtol=slack, atol=slack)


@pytest.mark.parametrize("level", cpu_levels())
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("rows", [1, 2, 7, 16])
def test_native_is_the_reference(level, name, rows):
    with cpu_level(level):
        assert_alike(decoder_of(SIZES[name]), rows)


@pytest.mark.parametrize("level", cpu_levels())
@pytest.mark.parametrize(
    "options",
    [{"bias": False}, {"norms": False}, {"ending": True}, {"ending": True, "norms": False}, {"layers": 1}],
    ids=str,
)
def test_parts_that_a_model_may_lack(level, options):
    with cpu_level(level):
        for name in ("small", "normed heads"):
            assert_alike(decoder_of(SIZES[name], **options), 3, shared_angles=True)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads):
    decoder, before = decoder_of(SIZES["odd"]), torch.get_num_threads()
    wanted = run(decoder_step(decoder), decoder, 4)
    try:
        torch.set_num_threads(threads)
        found = run(decoder_step(decoder), decoder, 4)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, found, wanted))


def test_a_row_is_computed_as_alone():
    decoder = decoder_of(SIZES["small"])
    together = decoder_step(decoder)
    x, angles = numbers(5, 48), torch.rand(5, 16)
    heads = together.begin(x, angles.cos(), angles.sin())
    for row in range(5):
        own = slice(row, row + 1)
        alone = decoder_step(decoder).begin(x[own], angles[own].cos(), angles[own].sin())
        assert torch.equal(alone, heads[own])


@pytest.mark.parametrize("level", cpu_levels())
@pytest.mark.parametrize("packing", [Packing.INT8, Packing.INT4_MIN])
def test_packed_weights(level, packing):
    """Heads are within what rounding the inputs of a product to int8 may change."""
    decoder = decoder_of(SIZES["small"], form=lambda w: quantise(w.float(), packing), norms=False)
    layer, sizes = decoder.layers[0], decoder.sizes
    x, still = numbers(3, sizes.hidden), torch.zeros(1, 2)
    with cpu_level(level):
        found = decoder_step(decoder, impl="native").begin(x, still + 1, still)[:, :, 0]
    wanted = decoder_step(decoder, impl="reference").begin(x, still + 1, still)[:, :, 0]
    inputs = torch.nn.functional.pad(normed(layer.before_attention, x), (0, -sizes.hidden % 32))
    most = inputs.abs().unflatten(-1, (-1, 32)).amax(-1)
    parts = [linear.matrix for linear in (layer.query, layer.key, layer.value)]
    weights = torch.cat([unpack_rows(part, range(part.rows)) for part in parts]).abs()
    sums = torch.nn.functional.pad(weights, (0, -sizes.hidden % 32)).unflatten(-1, (-1, 32)).sum(-1)
    bound = most @ sums.T / 254 + 1e-5
    assert ((found - wanted).flatten(1).abs() <= bound).all()


@pytest.mark.parametrize("packing", [Packing.INT8, Packing.INT4_MIN])
def test_a_packed_step_is_near(packing):
    decoder = decoder_of(SIZES["small"], form=lambda w: quantise(w.float(), packing))
    wanted = run(decoder_step(decoder, impl="reference"), decoder, 2)
    found = run(decoder_step(decoder, impl="native"), decoder, 2)
    for own, new in zip(wanted, found, strict=True):
        assert (new - own).norm() < 0.05 * own.norm()


def test_memory_that_was_not_written_is_not_read():
    decoder = decoder_of(SIZES["small"])
    step = decoder_step(decoder, impl="native")
    for piece in step._scratch.values():
        piece.fill_(torch.nan)
    assert all(bool(part.isfinite().all()) for part in run(step, decoder, 3))


def test_what_is_no_decoder():
    with pytest.raises(ValueError, match="a decoder has layers"):
        decoder_step(Decoder(SIZES["small"], (), Norm(None, 1e-5)))
    with pytest.raises(ValueError, match=r"float16"):
        decoder_step(decoder_of(SIZES["small"])._replace(sizes=SIZES["small"]._replace(dtype=torch.float16)))


@pytest.mark.parametrize("part", ["down", "query_norm", "after_attention"])
def test_parts_of_other_sizes(part):
    decoder = decoder_of(SIZES["small"], ending=True)
    layer = decoder.layers[1]
    own = Linear(dense(numbers(48, 128))) if part == "down" else random_norm(17, torch.float32)
    other = decoder._replace(layers=(decoder.layers[0], layer._replace(**{part: own})))
    with pytest.raises(ValueError, match=rf"{part} of layer 1 "):
        decoder_step(other)


@pytest.mark.parametrize(
    ("x", "angles"),
    [
        (torch.zeros(2, 48, dtype=torch.float64), torch.zeros(2, 8)),
        (torch.zeros(2, 40), torch.zeros(2, 8)),
        (torch.zeros(17, 48), torch.zeros(1, 8)),
        (torch.zeros(2, 48), torch.zeros(3, 8)),
        (torch.zeros(2, 48), torch.zeros(2, 18)),
        (torch.zeros(2, 48), torch.zeros(2, 8).bfloat16()),
    ],
)
def test_inputs_of_other_sizes(x, angles):
    step = decoder_step(decoder_of(SIZES["small"]), impl="native")
    with pytest.raises(ValueError, match=r"a step of this decoder takes"):
        step.begin(x, angles, angles)


def test_attention_of_other_sizes():
    step, angles = decoder_step(decoder_of(SIZES["small"]), impl="native"), torch.zeros(2, 8)
    step.begin(torch.zeros(2, 48), angles, angles)
    for out in (torch.zeros(1, 4, 1, 16), torch.zeros(2, 4, 1, 16).double()):
        with pytest.raises(ValueError, match=r"a step of this decoder takes"):
            step.attended(0, out)
