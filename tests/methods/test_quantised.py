"""A stage that answers only *place*: alone, before methods that drop tokens, and before those that select."""

import pytest
import torch

from keyhole.attention import Logits
from keyhole.core.errors import SpecError
from keyhole.methods import METHODS, Recipe, RetrievalMethod
from keyhole.storage import DeviceStorage
from keyhole.storage.placed import PlacedStorage
from tests.layers import Layer, check_dense
from tests.lives import Rounded, live


@pytest.mark.parametrize("bits", [8, 4])
def test_alone_it_is_dense_over_what_is_stored(bits):
    layer = Rounded(f"quantised(bits={bits})", batch=2, padding=[0, 9])
    layer.append(200)
    exact = layer.keys.clone()
    layer.attend(200)
    for _ in range(3):
        layer.append(1)
        check_dense(layer, layer.attend())
    error = (layer.cache.storage.keys()[:, :, :200] - exact).abs()
    spread = 2 * 4.5 / (2**bits - 1)
    assert 0 < float(error[0].max()) < spread
    assert layer.cache.storage.form.bits == bits


def test_it_takes_the_memory_it_says():
    dense, *rounded = (Layer(spec) for spec in ("dense", "quantised", "quantised(bits=4)"))
    for layer in (dense, *rounded):
        layer.append(2048)
    whole, eight, four = (sum(layer.cache.footprint) for layer in (dense, *rounded))
    assert four < eight < whole / 2


@pytest.mark.parametrize("name", ["snapkv", "pyramidkv", "adakv", "windowkv", "knorm", "expectedattention"])
@pytest.mark.parametrize("bits", [8, 4])
def test_with_methods_that_drop_tokens(name, bits):
    spec = f"{name}(budget=0.3, sinks=2) + quantised(bits={bits})"
    alone, both = (Recipe.parse(each).layers(2)[0] for each in (spec.split(" + ")[0], spec))
    assert isinstance(both.storage, PlacedStorage)
    draw = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 2, 600, 32, generator=draw) for _ in range(2))
    query = torch.randn(2, 4, 600, 32, generator=draw)
    outs = []
    for layer in (alone, both):
        layer.append(keys, values)
        layer.attend(query, Logits(0.2))
        layer.append(keys[:, :, :1], values[:, :, :1])
        outs.append(layer.attend(query[:, :, :1], Logits(0.2)))
    # Scores are of what is stored, so a few tokens at the edge may differ.
    assert alone.kept.average == both.kept.average
    assert both.storage.length == both.kept.slots
    torch.testing.assert_close(*outs, rtol=0, atol=0.1 if bits == 8 else 0.6)
    assert isinstance(both.storage.form.bits, int)


@pytest.mark.parametrize("name", ["pqcache", "quest", "oracle", "tokenselect", "delta", "infllm", "a2ats"])
def test_with_methods_that_select(name):
    recipe = Recipe.parse(f"quantised(bits=8) + {name}")
    assert recipe == Recipe.parse(str(recipe))
    same = Recipe.parse(f"{name}(kv_dtype=int8)").layers(2)
    for one, other in zip(recipe.layers(2), same, strict=True):
        assert type(one.storage.form) is type(other.storage.form)
        assert one.storage.form.bits == other.storage.form.bits


@pytest.mark.parametrize("place", ["device", "host", "disk", "disk, block_cache=200000, block_eviction=lru"])
def test_a_long_life(place):
    live(
        f"quantised(bits=4, place={place}) + quest(budget=9, page=7, sinks=2, window=6, dense_below=0)",
        Rounded,
    )


@pytest.mark.parametrize("name", ["streamingllm", "h2o", "keyformer", "snapkv(every=5)"])
def test_dropping_while_generating_is_refused(name):
    with pytest.raises(SpecError, match=r"give .*every=0"):
        Recipe.parse(f"{name} + quantised")
    assert Recipe.parse("h2o(every=0) + quantised").layers(1)[0].storage.form.bits == 8


@pytest.mark.parametrize(
    "spec",
    [
        "quantised + shadowkv",
        "quantised + pqcache(kv_dtype=int8)",
        "quest(place=host) + quantised",
        "quantised + quantised",
    ],
)
def test_one_answer_to_place(spec):
    with pytest.raises(SpecError, match="'place'; keep one"):
        Recipe.parse(spec)


@pytest.mark.parametrize("option", ["bits=5", "bits=8.0", "bits=true", "bits='8'", "block_cache=9"])
def test_options_out_of_range(option):
    with pytest.raises(SpecError, match="quantised"):
        Recipe.parse(f"quantised({option})")


def test_who_selects_leaves_place_to_others():
    for name, kind in METHODS.items():
        if issubclass(kind, RetrievalMethod) and name not in ("shadowkv", "nosa"):  # with a form of their own
            assert isinstance(Recipe((kind(),)).layers(1)[0].storage, DeviceStorage)
