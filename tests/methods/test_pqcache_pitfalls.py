"""One test for each pitfall of PQCache's released code (arXiv 2407.12820), which that code would fail.

Some cannot apply here:

- Pitfall 4, 5 and 7, the block cache's position table, last block and hit lists: keys and values stay on one
  device, so there is no block cache in front of them. Of 4 the wider meaning is tested.
- Pitfall 10 and 11, the clustering-time model and a core for each worker: the number of iterations is an
  option, not a schedule against the prefill time of one graphics card, and there are no worker processes.
- Pitfall 8 and 13, what the times enclose and are compared with: nothing here takes times.
"""

import pytest
import torch

from keyhole.attention import attend_slots
from keyhole.methods import PQCache
from keyhole.selection.product import default_subspaces
from keyhole.selection.quantisers import product as quantiser
from tests import oracles
from tests.layers import Layer, check_codes, check_step, index_of, slots_read

SPEC = "pqcache(budget=10, sinks=4, window=8, subspaces=4, bits=3, rotate=false)"


def clustered_rows(monkeypatch):
    """Whatever is given to k-means from now on, in a list."""
    seen = []
    kmeans = quantiser.kmeans

    def spy(points, *args, **kwargs):
        seen.append(points.clone())
        return kmeans(points, *args, **kwargs)

    monkeypatch.setattr(quantiser, "kmeans", spy)
    return seen


@pytest.mark.parametrize("padding", [0, 25])
def test_1_clusters_the_tokens_that_are_there(monkeypatch, padding):
    """The release clusters `local` rows that were never written: garbage, or keys of the prompt before."""
    seen = clustered_rows(monkeypatch)
    for length in (200, 90):  # a shorter prompt after a longer one
        layer = Layer(SPEC, size=16, padding=[padding])
        layer.append(length)
        layer.step()
        pieces = layer.keys[0, :, padding + 4 :].unflatten(-1, (4, 4)).transpose(1, 2).flatten(0, 1)
        clustered = seen.pop()
        assert clustered.shape == pieces.shape
        for ours, theirs in zip(clustered, pieces, strict=True):
            assert sorted(ours.tolist()) == sorted(theirs.tolist())
        check_codes(layer)


def test_1_codes_of_the_first_tokens_to_leave_the_window_are_their_own():
    layer = Layer(SPEC)
    layer.append(100)
    for _ in range(20):
        layer.step()
    assert layer.cache.indexed > 100
    check_codes(layer)


def test_2_what_leaves_the_window_is_stored_once_and_unchanged():
    """The release overwrites the window's slot before it copies the evicted token out."""
    layer = Layer(SPEC)
    layer.append(60)
    for _ in range(40):
        layer.step()  # compares storage with the true sequence
        check_codes(layer)


def test_3_every_layer_keeps_its_own_count():
    """The release advances shared counters at layer 0, so that the other layers miss one token."""
    layers = [Layer(SPEC, seed=seed) for seed in range(3)]
    for layer in layers:
        layer.append(60)
    for _ in range(20):
        for layer in layers:
            layer.step()
        assert len({layer.cache.length for layer in layers}) == 1
        assert len({layer.cache.indexed for layer in layers}) == 1
    for layer in layers:
        parts = layer.observed.read.regions
        always = parts.always[0, : parts.always_counts[0]].tolist()
        assert sorted([*always, *range(int(parts.first[0]), parts.last)]) == list(range(80))
        check_codes(layer)


def test_4_nothing_is_left_of_the_prompt_before():
    """The release never resets its position table: the first step of the next prompt reads false hits."""
    fresh, reused = Layer(SPEC, seed=5), Layer(SPEC, seed=4)
    reused.append(150)
    reused.step()
    reused.crop(0)
    reused.random.manual_seed(5)
    for layer in (fresh, reused):
        layer.append(70)
    for _ in range(10):
        assert torch.equal(fresh.step(), reused.step())


def test_6_codes_take_a_byte_or_less():
    """The release keeps labels as int64, eight times as large."""
    for bits, width in ((8, 4), (6, 4), (4, 2)):
        layer = Layer(f"pqcache(budget=10, sinks=4, window=8, subspaces=4, bits={bits})")
        layer.append(1000)
        layer.step()
        codes = layer.cache.selector.state()["codes"]
        assert codes.dtype == torch.uint8
        assert 1001 * width * 2 <= codes.nbytes < 1100 * width * 2


def test_6_a_step_copies_neither_codes_nor_codebooks():
    """The release copies the code buffer at full capacity, and the codebooks, at every step."""
    layer = Layer(SPEC)
    layer.append(100)
    layer.step()
    before = layer.cache.selector.state()
    layer.step()
    after = layer.cache.selector.state()
    assert all(before[name].data_ptr() == after[name].data_ptr() for name in ("codes", "codebooks"))


def test_6_bytes_read_are_counted_without_the_spare_capacity():
    layer = Layer(SPEC)
    layer.append(65)
    layer.step()
    state = layer.cache.selector.state()
    fitted = sum(state[name][0, 0].nbytes for name in ("codebooks", "residuals"))
    assert layer.observed.read.index_bytes == (66 - 8) * 4 + fitted


@pytest.mark.parametrize("length", range(1, 24))
def test_9_short_prompts_are_read_in_full(length):
    """With no more candidates than centroids the release attends to the current token alone."""
    layer = Layer(SPEC)
    layer.append(length)
    layer.step()
    selective = layer.observed is not None
    assert selective == (length + 1 - 4 - 8 > 10)


@pytest.mark.parametrize("length", [4, 5, 12, 20, 21, 29])
def test_9_prompts_of_sinks_and_centroids_grow(length):
    """From dense to selective in one generation: sink, sink+1, sink+window, sink+C, sink+C+1, ... tokens."""
    layer = Layer("pqcache(budget=1, sinks=4, window=8, subspaces=4, bits=3, rotate=false)")
    layer.append(length)
    selective = []
    for _ in range(30):
        layer.step()
        selective.append(layer.observed is not None)
    assert selective == sorted(selective)
    assert selective[-1]
    check_codes(layer)


def test_9_a_short_row_beside_a_long_one():
    layer = Layer(SPEC, batch=2, padding=[0, 95])
    layer.append(100)
    for _ in range(30):
        layer.step()
    check_codes(layer)


@pytest.mark.parametrize("size", [32, 64, 96, 128, 256])
def test_12_the_defaults_are_fit_for_long_contexts(size):
    """2 sub-spaces of 6 bits do not reproduce InfiniteBench; 4 of 8, or 32 bits a key, do."""
    assert default_subspaces(size) * PQCache().bits >= 32
    assert size % default_subspaces(size) == 0


def test_12_there_is_no_longest_sequence():
    """The release allocates for `max_seq_len` tokens and is out of bounds beyond."""
    layer = Layer(SPEC, kv_heads=1, groups=1)
    layer.append(30)
    layer.step()
    for _ in range(5):
        layer.append(997)
        layer.step()
    check_codes(layer)


def test_structural_the_budget_grows_with_the_context():
    """The release freezes window and k at the prompt: 8 tokens each for a prompt of 200, for good."""
    layer = Layer("pqcache(budget=0.1, sinks=4, window=8, bits=3, rotate=false)")
    layer.append(100)
    layer.step()
    first = int(layer.observed.read.selection.counts.min())
    layer.append(900)
    layer.step()
    assert (first, int(layer.observed.read.selection.counts.min())) == (10, 100)


def test_structural_later_turns_are_indexed():
    """The release indexes the first prompt only."""
    layer = Layer(SPEC)
    layer.append(100)
    layer.step()
    layer.append(100)
    layer.attend(100)
    layer.step()
    assert layer.cache.indexed >= 202 - 8
    check_codes(layer)


def test_structural_batches():
    """The release asserts a batch of one."""
    layer = Layer(SPEC, batch=3, padding=[0, 5, 60])
    layer.append(100)
    for _ in range(12):
        layer.step()
    check_codes(layer)


def test_ranking_is_softmax_then_sum_with_the_read_tokens_in_the_denominator():
    """The release leaves sinks and window out of the denominator, so that idle heads vote like busy ones."""
    layer = Layer("pqcache(budget=12, sinks=4, window=8, subspaces=8, bits=8, rotate=false)", groups=4)
    layer.append(280)
    layer.step()
    books, codes = index_of(layer)
    parts = layer.observed.read.regions
    query, keys = oracles.array(layer.query[0, :, 0]), oracles.array(layer.keys[0])
    always = [*range(4), *range(273, 281)]
    competing = range(int(parts.first[0]), parts.last)
    scale = layer.logits.scale
    estimated = oracles.pq_logits(
        query, oracles.array(books[0]), oracles.array(codes[0, :, 4:273]), scale=scale
    )
    exact = oracles.exact_logits(query, keys, scale=scale)
    shares, _ = oracles.group_shares(estimated, exact[:, always], 2)
    for head, read in enumerate(slots_read(layer)[0]):
        best = {competing[n] for n in oracles.top_k(shares[head], 12)}
        assert len(best & set(read)) >= 11, "tables are rounded, so that one near-tie may fall otherwise"


def test_the_order_of_what_is_read_does_not_matter():
    layer = Layer(SPEC)
    layer.append(100)
    layer.append(1)
    out = layer.attend()
    check_step(layer, out)
    read = torch.tensor(slots_read(layer)[0])
    turned = read[:, torch.randperm(read.shape[1])]
    counts = torch.full((1, 2), read.shape[1])
    again = attend_slots(layer.query.squeeze(2), layer.keys, layer.values, turned[None], counts, layer.logits)
    torch.testing.assert_close(again.out, out.squeeze(2))
