"""Sparse prompts in layers and models: what is computed whole, and what stands for all of it."""

import pytest
import torch

import keyhole
from keyhole import kernels
from keyhole.attention import Logits, dense_attention
from keyhole.cache.layer import LayerCache
from keyhole.core.errors import SpecError
from keyhole.kernels import Reach
from keyhole.methods import Recipe, Sale
from keyhole.prefill import SalePrefill
from keyhole.storage import DeviceStorage
from tests.engines.transformers.running import answer, assert_same, left_padded
from tests.layers import Layer, check_dense
from tests.tiny import prompt, tiny_model

SCALE = 16**-0.5
REACH = Reach(sinks=32, window=10, width=1)


def filled(tokens, *, batch=1, seed=0):
    make = torch.Generator().manual_seed(seed)
    storage = DeviceStorage()
    storage.append(*(torch.randn(batch, 2, tokens, 16, generator=make) for _ in range(2)))
    return storage, 3 * torch.randn(batch, 6, tokens, 16, generator=make)


def causal(tokens, queries):
    return torch.arange(tokens) <= torch.arange(tokens - queries, tokens).view(-1, 1)


def exact(query, storage, mask=None, **options):
    return dense_attention(query, storage.keys(), storage.values(), scale=SCALE, mask=mask, **options)


def sale(tau=0.02, **options):
    return SalePrefill(tau, REACH, **{"impl": "reference"} | options)


def test_a_prompt_and_a_later_piece_are_near_dense_and_not_dense():
    storage, query = filled(400)
    for queries in (400, 70):
        newest = query[:, :, -queries:]
        found, expected = sale().attend(newest, storage, Logits(SCALE), None), exact(newest, storage)
        error = float((found - expected).norm() / expected.norm())
        assert 1e-3 < error < 0.3


def test_native_code_is_taken_where_there_is_some():
    storage, query = filled(400)
    found = sale(impl="auto").attend(query, storage, Logits(SCALE), None)
    same = sale().attend(query, storage, Logits(SCALE), None)
    if kernels.native_available():
        assert float((found - same).norm() / same.norm()) < 0.02
        assert not torch.allclose(found, exact(query, storage), atol=1e-3)
    else:
        assert torch.equal(found, exact(query, storage))


@pytest.mark.parametrize(
    ("options", "queries"),
    [({"tau": 0.0}, 400), ({"tau": torch.zeros(6)}, 400), ({"dense_below": 401}, 400), ({}, 63), ({}, 1)],
    ids=str,
)
def test_dense_to_the_bit_where_sparse_would_not_pay(options, queries):
    storage, query = filled(400)
    newest = query[:, :, -queries:]
    found = sale(**options).attend(newest, storage, Logits(SCALE), None)
    assert torch.equal(found, exact(newest, storage))


@pytest.mark.parametrize("options", [{"softcap": 3.0}, {"sink_logits": torch.arange(6.0)}], ids=str)
def test_dense_to_the_bit_where_logits_are_changed(options):
    storage, query = filled(400)
    found = sale().attend(query, storage, Logits(SCALE, **options), None)
    assert torch.equal(found, exact(query, storage, **options))


@pytest.mark.parametrize("rows", [slice(None), slice(250, 350)], ids=str)
def test_a_layer_is_dense_to_the_bit_where_a_mask_hides_tokens_inside(rows):
    """From the newest query, or from others only."""
    storage, query = filled(400)
    mask = causal(400, 400)[None, None].clone()
    mask[..., rows, 100:200] = False
    layer = LayerCache(sale(), DeviceStorage())
    layer.append(storage.keys(), storage.values())
    found = layer.attend(query, Logits(SCALE), mask=mask)
    assert torch.equal(found[:, :, 300:], exact(query, storage, mask)[:, :, 300:])


def test_padding_on_the_left():
    storage, query = filled(400, batch=3)
    padding = [0, 11, 330]
    mask = causal(400, 400) & (torch.arange(400) >= torch.tensor(padding).view(-1, 1, 1, 1))
    found = sale().attend(query, storage, Logits(SCALE), mask)
    assert found.isfinite().all()
    for row, unused in enumerate(padding):
        alone = DeviceStorage()
        alone.append(*(part[row : row + 1, :, unused:] for part in (storage.keys(), storage.values())))
        expected = sale().attend(query[row : row + 1, :, unused:], alone, Logits(SCALE), None)
        torch.testing.assert_close(found[row : row + 1, :, unused:], expected)


def test_each_head_has_its_threshold():
    storage, query = filled(400)
    tau = torch.tensor([0.0, 1e30, 0.0, 0.02, 1e30, 0.0])
    found = sale(tau=tau).attend(query, storage, Logits(SCALE), None)
    expected = exact(query, storage)
    near = [torch.allclose(found[:, h], expected[:, h], atol=1e-4) for h in range(6)]
    assert near == [True, False, True, False, False, True]


@pytest.mark.parametrize("pieces", [(100,), (70, 100), (40, 3, 90)])
def test_a_layer_at_threshold_zero(pieces):
    layer = Layer(
        "sale(tau=0, dense_below=0) + pqcache(mass=1.0, floor=1000, dense_below=0)", padding=[0, 9], batch=2
    )
    for piece in pieces:
        layer.append(piece)
        check_dense(layer, layer.attend(piece), piece)
    layer.append(1)
    check_dense(layer, layer.attend())


@pytest.mark.skipif(not kernels.native_available(), reason="without native code prompts are dense")
def test_it_goes_before_methods_that_select():
    model = tiny_model("llama")
    ids, mask = left_padded(prompt(300), prompt(200, seed=1))
    wanted = answer(model, ids, mask=mask, steps=1).logits
    small = "sale(tau=0.03, sinks=0, window=0, dense_below=0)"
    for other in ("", " + quest(budget=8, sinks=2, window=4)"):
        with keyhole.attach(model, small + other):
            found = answer(model, ids, mask=mask, steps=1).logits
        assert found.isfinite().all()
        assert not torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
    with keyhole.attach(model, "sale(tau=0, dense_below=0)"):
        assert_same(answer(model, ids, mask=mask), answer(model, ids, mask=mask))


@pytest.mark.parametrize(
    "options",
    [{"tau": -1}, {"tau": True}, {"tau": "x"}, {"tau": float("nan")}, {"tile": 3}, {"tile": True},
     {"rows": 8}, {"means": 1},
     {"window": -1}, {"sinks": 1.5}, {"pooled": 1}, {"thresholds": 3}, {"dense_below": "auto"}],
    ids=str,
)  # fmt: skip
def test_refuses_options_out_of_range(options):
    with pytest.raises(SpecError, match=f"sale: {next(iter(options))}="):
        Sale(**options)


def test_two_answers_to_compute_are_refused():
    with pytest.raises(SpecError, match="sale and tokenselect both answer the question 'compute'"):
        Recipe.parse("sale + tokenselect(sparse_prefill=true)")
