import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.attention import Logits
from keyhole.core.errors import NonFiniteError
from keyhole.methods import METHODS, Recipe
from keyhole.methods.recipe import alone
from tests import oracles
from tests.layers import Layer, check_dense, check_step, slots_read

SMALL = "sinks=3, window=5"
SPECS = [
    "dense",
    f"oracle(budget=0.2, {SMALL})",
    f"oracle(mass=0.8, floor=2, {SMALL})",
    f"pqcache(budget=0.2, {SMALL}, subspaces=4, bits=3)",
    f"pqcache(budget=4, {SMALL}, subspaces=2, bits=2, rotate=true)",
    f"pqcache(mass=0.8, floor=2, {SMALL}, bits=4)",
    f"quest(budget=0.2, {SMALL}, page=4)",
    f"quest(mass=0.8, floor=2, {SMALL})",
    f"tokenselect(budget=9, {SMALL})",
]
SELECTIVE = SPECS[1:]


@pytest.mark.parametrize("spec", SPECS)
def test_steps_after_a_prompt(spec):
    layer = Layer(spec)
    layer.append(63)
    check_dense(layer, layer.attend(63), 63)
    for _ in range(20):
        layer.step()
    assert layer.cache.usage.steps == 20
    assert (layer.observed is None) == (spec == "dense")


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("pieces", [[1, 62], [31, 31, 1], [62, 1], [1] * 63])
def test_a_prompt_in_pieces_is_the_prompt_at_once(spec, pieces):
    whole, parts = Layer(spec), Layer(spec)
    whole.append(63)
    for piece in pieces:
        parts.cache.append(
            *(tensor[:, :, parts.length :][:, :, :piece] for tensor in (whole.keys, whole.values))
        )
        parts.keys, parts.values = (
            whole.keys[:, :, : parts.length + piece],
            whole.values[:, :, : parts.length + piece],
        )
    parts.random.set_state(whole.random.get_state())
    for _ in range(12):
        assert torch.equal(whole.step(), parts.step())


@pytest.mark.parametrize("spec", SELECTIVE)
def test_chunks_and_steps_take_turns(spec):
    layer = Layer(spec)
    for count in (31, 1, 1, 40, 1, 2, 1, 1, 100, 1, 1):
        layer.append(count)
        out = layer.attend(count)
        if count == 1:
            check_step(layer, out)
        else:
            check_dense(layer, out, count)


@pytest.mark.parametrize("spec", SELECTIVE)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 9, 10, 11, 12, 16, 17])
def test_lengths_about_the_borders(spec, length):
    """Sinks alone, sinks and a token, sinks and window, and as many candidates as centroids."""
    layer = Layer(spec)
    layer.append(length)
    for _ in range(8):
        layer.step()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    "padding",
    [[0, 0], [0, 3], [0, 40], [20, 50], [0, 58], [0, 59], [0, 62], [55, 55], [62, 62]],
    ids=str,
)
def test_padding(spec, padding):
    """Also rows shorter than sinks and window, shorter than the window, of one token."""
    layer = Layer(spec, batch=2, padding=padding)
    layer.append(63)
    check_dense(layer, layer.attend(63), 63)
    for _ in range(25):
        layer.step()


@pytest.mark.parametrize("spec", SELECTIVE)
def test_one_mask_serves_all_rows(spec):
    layer = Layer(spec, batch=3, padding=[7, 7, 7])
    layer.append(63)
    layer.append(1)
    layer.observed, layer.query = None, layer.draw(3, layer.heads, 1, 16)
    check_step(layer, layer.cache.attend(layer.query, layer.logits, mask=layer.mask()[:1]))


@pytest.mark.parametrize("spec", SELECTIVE)
def test_tokens_hidden_inside_are_never_read(spec):
    """Padding between the turns of a conversation, other in each row, in sinks, window and what competes."""
    layer = Layer(spec, batch=2, padding=[0, 7])
    layer.append(63)
    shown = torch.ones(2, 63, dtype=torch.bool)
    shown[1, :7] = shown[0, 1:3] = shown[0, 20:31] = shown[1, 40:44] = shown[1, 60:62] = False
    for _ in range(3):
        layer.append(1)
        shown = F.pad(shown, (0, 1), value=True)
        layer.query = 3 * layer.draw(2, layer.heads, 1, 16)
        found = layer.cache.attend(layer.query, layer.logits, mask=shown[:, None, None])
        for row, reads in enumerate(slots_read(layer)):
            assert all(shown[row, read].all() and len(read) == len(set(read)) for read in reads)
            operands = (layer.query[row, :, -1], layer.keys[row], layer.values[row])
            expected, _ = oracles.attention(*map(oracles.array, operands), reads, scale=layer.logits.scale)
            np.testing.assert_allclose(found[row, :, 0], expected, rtol=1e-3, atol=1e-4)


def test_a_mask_of_other_sizes_is_refused():
    layer = Layer(SPECS[1])
    layer.append(63)
    for shape in ((1, 1, 1, 62), (1, 4, 1, 63), (1, 1, 2, 63), (2, 1, 1, 63)):
        with pytest.raises(ValueError, match="does not match 1 queries"):
            layer.cache.attend(
                layer.draw(1, 4, 1, 16), layer.logits, mask=torch.ones(shape, dtype=torch.bool)
            )


@pytest.mark.parametrize("spec", SPECS)
def test_cropped_tokens_are_forgotten(spec):
    layer = Layer(spec)
    layer.append(100)
    layer.step()
    for length in (95, 60, 61, 7, 1):
        layer.crop(length)
        layer.append(40, level=2.0)
        for _ in range(4):
            layer.step()


@pytest.mark.parametrize("spec", SPECS)
def test_crop_to_nothing_and_regrow_with_another_batch(spec):
    layer = Layer(spec, batch=2)
    layer.append(63)
    layer.step()
    layer.crop(0)
    assert layer.cache.length == 0
    layer.keys, layer.values = layer.keys[:1], layer.values[:1]
    layer.append(50)
    for _ in range(10):
        layer.step()


def test_crop_beyond_the_length_does_nothing():
    layer = Layer(SPECS[3])
    layer.append(63)
    layer.crop(64)
    layer.step()


@pytest.mark.parametrize("length", [-1, -63])
def test_a_negative_crop_is_refused(length):
    layer = Layer(SPECS[3])
    layer.append(63)
    with pytest.raises(ValueError, match=str(length)):
        layer.cache.crop(length)
    assert layer.cache.length == 63


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("rows", [[1, 0], [1, 1], [0], [1, 0, 1, 1]], ids=str)
@pytest.mark.parametrize("padding", [None, [0, 30]])
def test_reordered_rows(spec, rows, padding):
    layer = Layer(spec, batch=2, padding=padding)
    layer.append(63)
    layer.step()
    layer.reorder(rows)
    for _ in range(8):
        layer.step()


def test_reordering_nothing():
    layer = Layer(SPECS[3])
    layer.cache.reorder(torch.tensor([0, 0]))
    assert layer.cache.length == 0


@pytest.mark.parametrize("spec", SELECTIVE)
@settings(max_examples=8)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.sampled_from([1, 2, 31, 100])),
            st.tuples(st.just("step"), st.integers(1, 9)),
            st.tuples(st.just("crop"), st.integers(1, 120)),
            st.tuples(st.just("prepare"), st.just(0)),
            st.tuples(st.just("reorder"), st.lists(st.integers(0, 1), min_size=2, max_size=2)),
        ),
        min_size=1,
        max_size=10,
    ),
    st.booleans(),
    st.integers(0, 99),
)
def test_any_history(spec, history, padded, seed):
    layer = Layer(spec, batch=2, padding=[0, 6] if padded else None, seed=seed)
    layer.append(13)
    for action, argument in history:
        if action == "append":
            layer.append(argument, level=1.0 + seed % 3)
        elif action == "step":
            for _ in range(argument):
                layer.step()
        elif action == "crop":
            layer.crop(max(argument, 7))
        elif action == "prepare":
            layer.cache.prepare(layer.mask())
        else:
            layer.reorder(argument)
    layer.step()


@pytest.mark.parametrize("spec", SELECTIVE)
def test_every_token_can_be_read(spec):
    """Sinks, what competes and the window are each token once, in every step, on every layer by itself."""
    layers = [Layer(spec, seed=seed) for seed in range(2)]
    for layer in layers:
        layer.append(40)
        layer.step()
    for _ in range(30):
        for layer in layers:
            layer.step()
            parts = layer.observed.read.regions
            always = parts.always[0, : parts.always_counts[0]].tolist()
            competing = range(int(parts.first[0]), parts.last)
            assert sorted([*always, *competing]) == list(range(layer.length))
            assert layer.cache.indexed >= parts.last, "a token left the window and is not indexed"


def test_a_token_is_read_for_as_long_as_it_matters():
    """One key answers every query; it is read in the window, on leaving it, and long after."""
    for spec in SELECTIVE:
        layer = Layer(spec, groups=1, size=16)
        layer.append(60)
        special = torch.full((1, 2, 1, 16), 4.0)
        layer.cache.append(special, special)
        layer.keys, layer.values = torch.cat([layer.keys, special], 2), torch.cat([layer.values, special], 2)
        for _ in range(40):
            layer.append(1)
            layer.query = torch.full((1, 2, 1, 16), 3.0)
            layer.cache.attend(layer.query, layer.logits)
            assert all(60 in read for read in slots_read(layer)[0]), spec


@pytest.mark.parametrize("spec", SELECTIVE[:1] + SELECTIVE[2:3])
def test_a_share_follows_the_length(spec):
    layer = Layer(spec)
    counts = []
    for _ in range(4):
        layer.append(100)
        layer.step()
        counts.append(int(layer.observed.read.selection.counts[0, 0]))
    assert counts == [round(0.2 * length) for length in (101, 202, 303, 404)]


def test_the_oracle_reads_the_exact_best():
    layer = Layer("oracle(budget=9, sinks=3, window=5)", groups=3, batch=2, padding=[0, 11], softcap=4.0)
    layer.append(63)
    for _ in range(5):
        layer.step()
        for row, start in enumerate(layer.starts):
            query, keys = oracles.array(layer.query[row, :, 0]), oracles.array(layer.keys[row])
            logits = oracles.exact_logits(query, keys, scale=layer.logits.scale, softcap=4.0)
            early, middle, late = oracles.regions(start, layer.length, 3, 5)
            shares, _ = oracles.group_shares(logits[:, middle], logits[:, early + late], 2)
            for head in range(2):
                best = [middle[n] for n in oracles.top_k(shares[head], 9)]
                assert slots_read(layer)[row][head] == sorted(early + best + late)


@pytest.mark.parametrize("spec", SELECTIVE)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_softcap_and_sink_logits(spec, softcap, with_sinks):
    sinks = torch.tensor([0.0, 8.0, -3.0, 2.0]) if with_sinks else None
    layer = Layer(spec, softcap=softcap, sink_logits=sinks)
    layer.append(63)
    check_dense(layer, layer.attend(63), 63)
    for _ in range(6):
        layer.step()


@pytest.mark.parametrize("value_size", [8, 40])
def test_values_of_another_size(value_size):
    layer = Layer(SPECS[3], value_size=value_size)
    layer.append(63)
    assert layer.step().shape == (1, 4, 1, value_size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", SPECS)
def test_half_precision(spec, dtype):
    exact, half = Layer(spec), Layer(spec)
    exact.append(100)
    half.cache.append(exact.keys.to(dtype), exact.values.to(dtype))
    query = exact.draw(1, 4, 1, 16)
    ours = half.cache.attend(query.to(dtype), half.logits)
    assert ours.dtype == dtype
    full = Layer(spec)
    full.cache.append(exact.keys.to(dtype).float(), exact.values.to(dtype).float())
    torch.testing.assert_close(
        ours.float(), full.cache.attend(query.to(dtype).float(), full.logits), rtol=0.03, atol=0.03
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["keys", "values"])
def test_not_finite_is_refused_and_leaves_no_trace(bad, where):
    layer = Layer(SPECS[3])
    layer.append(63)
    layer.step()
    tokens = {"keys": torch.zeros(1, 2, 4, 16), "values": torch.zeros(1, 2, 4, 16)}
    tokens[where][0, 1, 3, 7] = bad
    with pytest.raises(NonFiniteError, match=f"{where} of tokens from 64"):
        layer.cache.append(tokens["keys"], tokens["values"])
    layer.step()


@pytest.mark.parametrize("shape", [(1, 2, 3, 16), (1, 1, 4, 16), (2, 2, 4, 16)])
def test_keys_and_values_of_different_tokens_are_refused(shape):
    layer = Layer(SPECS[3])
    layer.append(63)
    with pytest.raises(ValueError, match="are of different tokens"):
        layer.cache.append(torch.zeros(1, 2, 4, 16), torch.zeros(shape))
    layer.step()


def test_no_tokens_at_all_change_nothing():
    layer = Layer(SPECS[3])
    for count in (0, 63, 0):
        layer.append(count)
    layer.step()
    layer.append(0)
    layer.step()


def test_memory_that_was_never_written_is_never_read(monkeypatch):
    """Every fresh buffer is full of NaN."""

    def poisoned(shape, dtype, device):
        return torch.full(shape, torch.nan, dtype=dtype, device=device)

    monkeypatch.setattr("keyhole.storage.tiers.buffer.empty", poisoned)
    for spec in SPECS:
        layer = Layer(spec, batch=2, padding=[0, 9])
        layer.append(31)
        for _ in range(8):
            layer.step()
        layer.append(300)
        layer.reorder([1, 1, 0])
        layer.step()
        layer.crop(100)
        layer.step()


@pytest.mark.parametrize("spec", SELECTIVE)
def test_requests_do_not_influence_each_other(spec):
    def run(seed, length):
        layer = Layer(spec, seed=seed)
        layer.append(length)
        return [layer.step() for _ in range(5)]

    alone = run(3, 50)
    run(4, 200)
    assert all(torch.equal(a, b) for a, b in zip(alone, run(3, 50), strict=True))


@pytest.mark.parametrize("spec", [spec for spec in SPECS if "0.2" not in spec])
def test_a_row_does_not_depend_on_its_neighbours(spec):
    pair, single = Layer(spec, batch=2), Layer(spec)
    pair.append(63)
    single.cache.append(pair.keys[1:], pair.values[1:])
    for _ in range(4):
        pair.append(1)
        single.cache.append(pair.keys[1:, :, -1:], pair.values[1:, :, -1:])
        out = pair.attend()
        alone = single.cache.attend(pair.query[1:], single.logits)
        torch.testing.assert_close(out[1:], alone)


@pytest.mark.parametrize("spec", SPECS)
def test_a_saved_layer_goes_on_as_if_nothing_had_happened(spec):
    layer = Layer(spec)
    layer.append(63)
    layer.step()
    saved = {name: tensor.clone() for name, tensor in layer.cache.state().items()}
    restored = Recipe.parse(spec).layers(1)[0]
    restored.restore(saved, layer.cache.indexed)
    assert (restored.length, restored.indexed) == (layer.cache.length, layer.cache.indexed)
    for _ in range(12):
        layer.append(1)
        restored.append(layer.keys[:, :, -1:], layer.values[:, :, -1:])
        assert torch.equal(layer.attend(), restored.attend(layer.query, layer.logits))


@pytest.mark.parametrize("spec", SPECS)
def test_two_layers_from_one_state_go_their_own_ways(spec):
    layer = Layer(spec)
    layer.append(70)  # room for more codes, so that nobody has to make room
    layer.step()
    state = layer.cache.state()
    forks = [Layer(spec, seed=seed) for seed in (1, 2)]
    for fork in forks:
        fork.cache.restore(state, layer.cache.indexed)
        fork.keys, fork.values = layer.keys, layer.values
    alone = [Layer(spec, seed=seed) for seed in (1, 2)]
    for other in alone:
        other.cache.restore({name: tensor.clone() for name, tensor in state.items()}, layer.cache.indexed)
        other.keys, other.values = layer.keys, layer.values
    for _ in range(12):
        for fork, other in zip(forks, alone, strict=True):
            assert torch.equal(fork.step(), other.step())


def test_an_empty_layer_goes_round():
    empty = Recipe.parse(SPECS[3]).layers(1)[0]
    other = Recipe.parse(SPECS[3]).layers(1)[0]
    other.restore(empty.state(), empty.indexed)
    assert other.length == 0


@pytest.mark.parametrize("spec", SPECS)
def test_prepare_indexes_what_is_there(spec):
    layer = Layer(spec)
    layer.append(63)
    for _ in range(2):
        layer.cache.prepare()
        assert layer.cache.indexed == (0 if spec == "dense" else 63)
    for _ in range(8):
        layer.step()


def test_prepare_of_nothing():
    for kind in METHODS.values():
        cache = alone(kind()).layers(1)[0]
        cache.prepare()
        assert (cache.length, cache.indexed) == (0, 0)


def test_a_few_tokens_are_indexed_in_batches():
    """Tokens wait in the window; the index is asked about once in as many steps as the window is long."""
    layer = Layer("pqcache(budget=8, sinks=3, window=20, bits=3)")
    layer.append(63)
    lengths = []
    for _ in range(60):
        layer.step()
        lengths.append(layer.cache.indexed)
    assert sorted(lengths) == lengths
    assert len(set(lengths)) <= 4


@pytest.mark.parametrize("spec", SPECS)
def test_usage_counts_what_was_read(spec):
    layer = Layer(spec, kv_heads=3, value_size=24)
    layer.append(63)
    read = tokens = mass = 0
    for _ in range(5):
        layer.step()
        tokens += layer.length
        if layer.observed is None:
            read, mass = read + layer.length, mass + 1
        else:
            read += sum(map(len, slots_read(layer)[0])) / 3
            mass += float(layer.observed.read.selection.mass.mean())
    usage = layer.cache.usage
    assert (usage.steps, usage.tokens) == (5, tokens)
    assert usage.read == pytest.approx(read)
    assert usage.mass == pytest.approx(mass)
    assert usage.bytes >= 0.999 * read * 3 * (16 + 24) * 4


def test_footprint_counts_keys_values_and_index():
    layer = Layer(SPECS[3])
    assert layer.cache.footprint.device == 0
    layer.append(63)
    before = layer.cache.footprint.device
    assert before >= 63 * 2 * 32 * 4
    layer.step()
    assert layer.cache.footprint.device == before + layer.cache.selector.nbytes > before


def test_an_empty_layer_has_nothing_to_attend_to():
    cache = Recipe.parse("dense").layers(1)[0]
    with pytest.raises(ValueError, match="append first"):
        cache.attend(torch.zeros(1, 2, 1, 8), Logits(1.0))
