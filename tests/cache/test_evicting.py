"""Layers that drop tokens: what they keep is what was asked for, and all of it is read exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.attention import Logits
from keyhole.cache.evicting import EvictingLayer
from keyhole.methods import Recipe
from tests.evictions import HISTORIES, Evicting, counts
from tests.layers import check_dense
from tests.small import EVICTING

OPTIONS = {"budget": 20, "sinks": 2, "window": 6, "prompt": "pieces"}


def spec_of(name, **more):
    options = ", ".join(f"{option}={value}" for option, value in (OPTIONS | more).items())
    return f"{name}({options})"


@pytest.mark.parametrize("name", EVICTING)
@pytest.mark.parametrize("length", [1, 2, 5, 8, 19, 20, 21, 63])
def test_a_prompt_is_cut_to_the_budget(name, length):
    layer = Evicting(spec_of(name, layers="uniform"))
    layer.append(length)
    out = layer.attend(length)
    if length > 1:
        check_dense(layer, out, length)
    kept = counts(layer)[0]
    assert sum(kept) == len(kept) * min(length, 20)
    for _ in range(9):
        layer.step()


@pytest.mark.parametrize("name", EVICTING)
@pytest.mark.parametrize("every", [0, 1, 3])
def test_generated_tokens(name, every):
    layer = Evicting(spec_of(name, every=every, layers="uniform"))
    layer.append(50)
    layer.attend(50)
    for step in range(1, 12):
        layer.step()
        fresh = step if every == 0 else step % every
        assert sum(counts(layer)[0]) == 2 * (20 + fresh)


@pytest.mark.parametrize("name", EVICTING)
@pytest.mark.parametrize("padding", [[0, 0], [0, 3], [0, 40], [20, 50], [0, 58], [0, 62], [55, 55]], ids=str)
@pytest.mark.parametrize("pieces", [[63], [40, 23], [10, 53], [61, 2]], ids=str)
def test_padding_and_pieces(name, padding, pieces):
    """Rows differ in length, and a piece may be nothing but padding for some."""
    layer = Evicting(spec_of(name, every=1, layers="uniform"), batch=2, padding=padding)
    for piece in pieces:
        layer.append(piece)
        layer.attend(piece)
    for _ in range(5):
        layer.step()
    for row, start in zip(counts(layer), padding, strict=True):
        assert sum(row) == 2 * min(20, 68 - start)


@pytest.mark.parametrize("name", EVICTING)
def test_rows_do_not_matter_to_each_other(name):
    """Two prompts in a batch, one padded, keep what each keeps alone."""
    both = Evicting(spec_of(name), batch=2, padding=[0, 13])
    both.append(63)
    both.attend(63)
    for row, start in enumerate([0, 13]):
        alone = Evicting(spec_of(name))
        alone.cache.append(both.keys[row : row + 1, :, start:], both.values[row : row + 1, :, start:])
        alone.cache.attend(both.query[row : row + 1, :, start:], both.logits)
        positions = alone.cache.kept.positions[0]
        assert [[p + start for p in head.tolist() if p >= 0] for head in positions] == both.kept()[row]


@pytest.mark.parametrize("name", EVICTING)
def test_the_whole_prompt_is_waited_for(name):
    """Pieces change nothing then, and memory falls with the first generated token."""
    whole, pieces = (Evicting(spec_of(name, prompt="whole")) for _ in range(2))
    whole.append(60)
    whole.attend(60)
    pieces.keys, pieces.values = whole.keys, whole.values
    for start, stop in ((0, 33), (33, 58), (58, 60)):
        pieces.cache.append(whole.keys[:, :, start:stop], whole.values[:, :, start:stop])
        pieces.cache.attend(whole.query[:, :, start:stop], whole.logits)
    assert whole.cache.kept.slots == 60
    for layer in (whole, pieces):
        layer.random.manual_seed(7)
        layer.step()
    assert whole.read == pieces.read
    assert sum(map(len, whole.read[0])) == 2 * 21


@pytest.mark.parametrize("name", EVICTING)
def test_memory_is_given_back(name):
    layer = Evicting(spec_of(name, every=1, budget=64), kv_heads=4, size=64)
    layer.append(2048)
    layer.attend(2048)
    token = 4 * 2 * 64 * 4
    bound = 1.3 * (64 + 64) * token  # with room for the next 64 tokens
    if name == "expectedattention":
        bound += 8 * 64 * (64 + 1) * 4 + 4  # how the queries of each head are distributed
    assert layer.cache.footprint.device < bound
    for _ in range(150):
        layer.step()
    assert layer.cache.footprint.device < bound


@pytest.mark.parametrize("name", EVICTING)
def test_pieces_bound_memory_to_budget_and_piece(name):
    layer = Evicting(spec_of(name, budget=64, layers="uniform"), kv_heads=2, size=64)
    for _ in range(20):
        layer.append(100)
        assert layer.cache.storage.length <= 64 + 100 + 64 * (name == "adakv")
        layer.attend(100)


@pytest.mark.parametrize("name", EVICTING)
def test_a_crop_takes_the_newest(name):
    layer = Evicting(spec_of(name, every=1), batch=2, padding=[0, 9])
    layer.append(50)
    layer.attend(50)
    for _ in range(6):
        layer.step()
    for length in (54, 50, 49, 30, 12):
        layer.crop(length)
        assert all(p < length for row in layer.kept() for head in row for p in head)
        layer.append(3)
        layer.attend(3)
        layer.step()


@pytest.mark.parametrize("name", EVICTING)
def test_crop_to_nothing_and_regrow_with_another_batch(name):
    layer = Evicting(spec_of(name), batch=2)
    layer.append(63)
    layer.attend(63)
    layer.crop(0)
    assert layer.cache.length == 0
    layer.keys, layer.values = layer.keys[:1], layer.values[:1]
    layer.append(50)
    layer.attend(50)
    layer.step()


@pytest.mark.parametrize("name", EVICTING)
@pytest.mark.parametrize("rows", [[1, 0], [1, 1], [0], [1, 0, 1, 1]], ids=str)
def test_reordered_rows(name, rows):
    layer = Evicting(spec_of(name, every=1), batch=2, padding=[0, 30])
    layer.append(63)
    layer.attend(63)
    layer.step()
    layer.reorder(rows)
    for _ in range(8):
        layer.step()


@pytest.mark.parametrize("name", EVICTING)
@pytest.mark.parametrize("every", [0, 2])
def test_a_restored_layer_goes_on_alike(name, every):
    spec = spec_of(name, every=every)
    layer, other = (Evicting(spec, batch=2, padding=[0, 9]) for _ in range(2))
    layer.append(63)
    layer.attend(63)
    layer.step()
    state = {key: tensor.clone() for key, tensor in layer.cache.state().items()}
    other.cache.restore(state, layer.cache.indexed)
    other.keys, other.values = layer.keys, layer.values
    for each in (layer, other):
        each.random.manual_seed(3)
        for _ in range(5):
            each.step()
    assert layer.read == other.read


@pytest.mark.parametrize("name", EVICTING)
@settings(max_examples=10)
@given(
    HISTORIES,
    st.booleans(),
    st.integers(0, 3),
    st.sampled_from(["pieces", "whole"]),
    st.integers(0, 99),
)
def test_any_history(name, history, padded, every, prompt, seed):
    spec = spec_of(name, every=every, prompt=prompt)
    layer = Evicting(spec, batch=2, padding=[0, 6] if padded else None, seed=seed)
    layer.live(spec, history)


@pytest.mark.parametrize("name", EVICTING)
def test_a_share_follows_the_length(name):
    layer = Evicting(f"{name}(budget=0.25, sinks=2, window=6, every=1, layers=uniform, prompt=pieces)")
    for length in (100, 200, 300):
        layer.append(100)
        layer.attend(100)
        assert sum(counts(layer)[0]) == 2 * length // 4
    for step in range(1, 9):
        layer.step()
        assert sum(counts(layer)[0]) == 2 * round((300 + step) / 4)


@pytest.mark.parametrize("name", EVICTING)
def test_softcap_and_sink_logits(name):
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    layer = Evicting(spec_of(name, every=1), softcap=4.0, sink_logits=sinks)
    layer.append(50)
    layer.attend(50)
    for _ in range(5):
        layer.step()


@pytest.mark.parametrize("name", EVICTING)
def test_what_a_layer_takes_over_is_cut_too(name):
    dense, layer = Recipe.parse("dense").layers(1)[0], Evicting(spec_of(name))
    dense.remember = 1000
    keys, values, query = layer.draw(1, 2, 60, 16), layer.draw(1, 2, 60, 16), layer.draw(1, 4, 60, 16)
    for cache in (dense, layer.cache):
        cache.append(keys, values)
        cache.attend(query, layer.logits)
    other = Recipe.parse(spec_of(name)).layers(1)[0]
    other.take(dense)
    assert isinstance(other, EvictingLayer)
    assert torch.equal(other.kept.positions, layer.cache.kept.positions)


def test_a_batch_of_bfloat16():
    layer = Recipe.parse(spec_of("snapkv")).layers(1)[0]
    draw = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 2, 50, 16, generator=draw).bfloat16() for _ in range(2))
    layer.append(keys, values)
    out = layer.attend(torch.randn(2, 4, 50, 16, generator=draw).bfloat16(), Logits(0.25))
    assert (out.dtype, layer.storage.keys().dtype) == (torch.bfloat16, torch.bfloat16)
    assert layer.storage.length == 20
