"""Low-rank keys: what is kept exactly, what is rebuilt, and how near it comes."""

import numpy as np
import pytest
import torch

from keyhole.attention import Logits, attend_slots
from keyhole.core.layout import regions
from keyhole.core.rope import NoRope, PlainRope
from keyhole.storage import LowRankStorage
from tests import oracles, oracles_shadowkv
from tests.layers import Layer, check_dense
from tests.waiting import as_if_on_gpu, without_waiting

CPU = torch.device("cpu")
LOGITS = Logits(0.25)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(rank, *, tokens=80, padding=(0,), sinks=2, window=10, chunk=4, outliers=2, rope=None, keys=None):
    keys = draw(len(padding), 2, tokens, 8) if keys is None else keys
    storage = LowRankStorage(rope or PlainRope(), rank=rank, chunk=chunk, outliers=outliers)
    storage.append(keys, draw(len(padding), 2, tokens, 6, seed=1))
    parts = regions(tokens, tuple(padding), sinks, window, CPU)
    storage.settle(parts)
    return storage, keys, parts


def test_the_full_rank_loses_nothing():
    storage, keys, _ = filled(16, padding=(0, 30))
    for start in (0, 1, 33, 70, 79):
        found = storage.keys(start)[1 if start < 30 else 0 :]
        torch.testing.assert_close(found, keys[1 if start < 30 else 0 :, :, start:], rtol=1e-4, atol=1e-4)


def test_error_falls_with_the_rank_and_is_the_least_there_is():
    """Without rotation, sinks and outliers the rebuilt keys are the best of that rank, by singular values."""
    errors = []
    for rank in (1, 4, 8, 12, 16):
        storage, keys, parts = filled(rank, sinks=0, outliers=0, rope=NoRope())
        rows = oracles.array(keys[0, :, : parts.last]).transpose(1, 0, 2).reshape(parts.last, -1)
        found = oracles.array(storage.keys()[0, :, : parts.last]).transpose(1, 0, 2).reshape(parts.last, -1)
        np.testing.assert_allclose(found, oracles_shadowkv.low_rank(rows, rank), rtol=1e-3, atol=1e-3)
        errors.append(np.linalg.norm(found - rows))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_keys_are_compressed_before_their_rotation():
    """Keys of rank 3 before rotation, of full rank after: nothing is lost (some say otherwise: post-RoPE)."""
    bare = (draw(1, 80, 3) @ draw(1, 3, 16, seed=1)).unflatten(-1, (2, 8)).transpose(1, 2)
    keys = PlainRope().rotate(bare, torch.arange(80).unsqueeze(0))
    assert torch.linalg.matrix_rank(keys[0].transpose(0, 1).flatten(1)) > 10
    storage, _, _ = filled(3, keys=keys)
    torch.testing.assert_close(storage.keys(), keys, rtol=1e-3, atol=1e-3)


def test_a_bias_of_the_keys_takes_no_rank():
    keys = draw(1, 2, 80, 1) @ draw(1, 2, 1, 8, seed=1) + 100 * draw(1, 2, 1, 8, seed=2)
    storage, _, _ = filled(2, keys=keys, rope=NoRope(), sinks=0, outliers=0)
    torch.testing.assert_close(storage.keys(), keys, rtol=1e-4, atol=1e-2)


def test_sinks_outliers_and_the_window_stay_as_they_are():
    storage, keys, parts = filled(2, padding=(0, 15))
    kept = storage.keys() == keys
    for row, start in enumerate((0, 15)):
        for head in range(2):
            mine = oracles.array(keys[row, head])
            apart = oracles_shadowkv.outliers(mine, int(parts.first[row]), parts.last, 4, 2)
            exact = {slot for slot in range(start + 2, 70) if slot // 4 in apart} | {start, start + 1}
            assert {slot for slot in range(start, 70) if bool(kept[row, head, slot].all())} == exact
    assert bool(kept[:, :, 70:].all())


def test_attention_is_over_the_keys_it_shows():
    """Rebuilt for a step, found again in the next, kept exactly: all are the keys that `keys` shows."""
    storage, _, parts = filled(3, padding=(0, 5))
    keys, query = storage.keys(), draw(2, 4, 8, seed=3)
    torch.manual_seed(0)
    for _ in range(5):
        slots = (
            torch.stack([torch.randperm(65)[:20].sort().values + 15 for _ in range(4)]).view(2, 2, 20).int()
        )
        counts = torch.tensor([[20, 13], [1, 0]], dtype=torch.int32)
        for picked in ((slots, counts), (parts.always, parts.always_counts)):
            found = storage.attend(query, *picked, LOGITS)
            wanted = attend_slots(query, keys, storage.values(), *picked, LOGITS)
            torch.testing.assert_close(found.out, wanted.out, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.lse, wanted.lse, rtol=1e-4, atol=1e-5)


def test_counts_what_a_step_finds_rebuilt():
    storage, *_ = filled(3, sinks=0, outliers=0)
    query, counts = draw(1, 4, 8), torch.full((1, 2), 10, dtype=torch.int32)

    def read(start):
        slots = torch.arange(start, start + 10, dtype=torch.int32).expand(1, 2, 10)
        storage.attend(query, slots, counts, LOGITS)
        return storage.lookups[:2]

    assert read(0) == (0, 20)
    assert read(0) == (20, 20)
    assert read(6) == (28, 32)
    assert read(40) == (28, 52)
    assert read(66) == (28, 60)  # the last six are still exact


def test_a_gpu_reads_the_same_without_being_waited_for(monkeypatch):
    pytest.importorskip("triton")
    storage, _, parts = filled(3, padding=(0, 5))
    query, counts = draw(2, 4, 8, seed=3), torch.tensor([[20, 13], [1, 0]], dtype=torch.int32)
    slots = torch.stack([torch.randperm(65)[:20].sort().values + 15 for _ in range(4)]).view(2, 2, 20).int()
    for picked in ((slots, counts), (parts.always, parts.always_counts)):
        wanted = storage.attend(query, *picked, LOGITS)
        with as_if_on_gpu(monkeypatch), without_waiting(monkeypatch):
            found = storage.attend(query, *picked, LOGITS)
        torch.testing.assert_close(found.out, wanted.out, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.lse, wanted.lse, rtol=1e-4, atol=1e-5)


def test_generated_tokens_are_compressed_too():
    storage, *_ = filled(3)
    before = storage.token_bytes
    for _ in range(200):
        storage.append(draw(1, 2, 1, 8), draw(1, 2, 1, 6))
        storage.settle(regions(storage.length, (0,), 2, 10, CPU))
    assert storage._settled >= 280 - 10 - 64
    assert storage._recent.length < 10 + 64
    assert storage.token_bytes == before == 2 * (3 + 6) * 4


def test_a_short_prompt_waits_until_it_tells_enough():
    storage, keys, _ = filled(12, tokens=30, window=10)
    assert torch.equal(storage.keys(), keys)
    storage.append(draw(1, 2, 5, 8), draw(1, 2, 5, 6))
    storage.settle(regions(35, (0,), 2, 10, CPU))
    assert not torch.equal(storage.keys()[:, :, :30], keys)


def test_the_shortest_row_of_a_batch_is_waited_for():
    """Each row has a basis of its own, and that of three tokens would serve none that follow."""
    storage, keys, _ = filled(4, padding=(0, 77), sinks=0, outliers=0)
    assert torch.equal(storage.keys(), keys)
    storage.append(draw(2, 2, 20, 8), draw(2, 2, 20, 6))
    storage.settle(regions(100, (0, 77), 0, 10, CPU))
    assert not torch.equal(storage.keys()[:, :, :80], keys)


def test_what_was_counted_outlives_a_crop():
    storage, *_ = filled(3, sinks=0, outliers=0)
    slots, counts = torch.arange(10, dtype=torch.int32).expand(1, 2, 10), torch.full((1, 2), 10)
    storage.attend(draw(1, 4, 8), slots, counts, LOGITS)
    for length in (40, 0):
        storage.crop(length)
        assert storage.lookups[:2] == (0, 20)


def test_a_crop_of_what_is_compressed_loses_nothing_more():
    """The keys that stay are what they were, also when tokens that follow are compressed, too."""
    storage, *_ = filled(3, tokens=200)
    before = storage.keys()
    storage.crop(100)
    assert torch.equal(storage.keys(), before[:, :, :100])
    keys = draw(1, 2, 90, 8, seed=7)
    storage.append(keys, draw(1, 2, 90, 6))
    torch.testing.assert_close(storage.keys(), torch.cat([before[:, :, :100], keys], 2))
    storage.settle(regions(190, (0,), 2, 10, CPU))
    assert storage._settled == 180
    torch.testing.assert_close(storage.keys()[:, :, :100], before[:, :, :100], rtol=1e-4, atol=1e-4)


def test_outliers_that_were_cropped_do_not_come_back():
    """Their slots belong to other tokens now."""
    storage, keys, _ = filled(3, tokens=200, outliers=3)
    exact = (storage.keys() == keys)[0].all(-1)
    kept = exact[:, 100:190].any(0).nonzero().flatten() + 100
    assert len(kept), "this text has outliers in its later half"
    storage.crop(100)
    new = draw(1, 2, 100, 8, seed=7)
    storage.append(new, draw(1, 2, 100, 6))
    storage.settle(regions(200, (0,), 2, 10, CPU))
    found = storage.keys()[:, :, kept]
    assert not bool((found == keys[:, :, kept]).all(-1).any())
    assert not bool((found == new[:, :, kept - 100]).all(-1).any())


def test_another_text_gets_another_basis():
    storage, *_ = filled(3)
    storage.crop(1)
    keys = draw(1, 2, 1, 8) + 5 * (draw(1, 2, 100, 1, seed=4) @ draw(1, 1, 1, 8, seed=5))
    storage.append(keys, draw(1, 2, 100, 6))
    storage.settle(regions(101, (0,), 2, 10, CPU))
    fresh, *_ = filled(3, tokens=100, keys=keys)
    error, own = ((found - keys).norm() for found in (storage.keys(1), fresh.keys()))
    assert error < 1.5 * own


@pytest.mark.parametrize("spec", ["rank=16, outliers=2", "rank=32, outliers=0, sinks=0"])
def test_a_life(spec):
    """A rank that loses nothing: exact over everything through crop, other text, beams and state."""
    spec = f"shadowkv(mass=1.0, floor=100000, window=5, chunk=4, {spec})"
    layer = Layer(spec, batch=2, padding=[0, 13], size=8)
    layer.append(60)

    def steps(count):
        for _ in range(count):
            layer.append(1)
            check_dense(layer, layer.attend())
            assert layer.observed is not None

    steps(80)
    layer.crop(51)
    layer.append(9)
    steps(3)
    layer.reorder([1, 1, 0])
    steps(70)
    layer.append(20)
    check_dense(layer, layer.attend(20), 20)
    steps(2)
    other = Layer(spec, size=8)
    other.cache.restore(layer.cache.state(), layer.cache.indexed)
    found = other.cache.attend(layer.query, layer.logits, mask=layer.mask())
    torch.testing.assert_close(found, layer.cache.attend(layer.query, layer.logits, mask=layer.mask()))
    assert layer.cache.usage.hits > 0


def test_a_prompt_in_chunks_has_the_same_basis():
    found = []
    for pieces in ([90], [1, 40, 49]):
        layer = Layer("shadowkv(budget=10, rank=4, window=5, chunk=4, outliers=1)", size=8)
        layer.append(90)
        layer.cache.crop(0)
        for part in layer.keys.split(pieces, dim=2):
            layer.cache.append(part, part)
        layer.cache.prepare()
        found.append(layer.cache.storage.keys())
    torch.testing.assert_close(*found)
    assert not torch.equal(found[0], layer.keys)


def test_bfloat16():
    keys = draw(1, 2, 80, 8).bfloat16()
    storage, *_ = filled(16, keys=keys)
    assert storage.keys().dtype == torch.bfloat16
    torch.testing.assert_close(storage.keys(), keys, rtol=0.02, atol=0.02)
