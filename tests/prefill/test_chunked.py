"""Sparse prefill in chunks, against attention over the very slots it should read."""

import numpy as np
import pytest
import torch

import keyhole
from keyhole.attention import Logits
from keyhole.core.budget import Budget
from keyhole.core.rope import FixedDistance, PlainRope
from keyhole.prefill import ChunkedPrefill
from keyhole.selection import Vote
from keyhole.storage import DeviceStorage
from tests import oracles, oracles_pages, oracles_positions
from tests.engines.transformers.running import answer, assert_same, left_padded
from tests.layers import Layer, check_dense
from tests.tiny import prompt, tiny_model

SINKS, WINDOW, CHUNK = 2, 5, 8
SCALE = 8**-0.5


def filled(tokens, *, batch=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    storage = DeviceStorage()
    storage.append(*(torch.randn(batch, 2, tokens, 8, generator=generator) for _ in range(2)))
    return storage, 3 * torch.randn(batch, 6, tokens, 8, generator=generator)


def chunked(budget, *, per_head=False, renumber=False, distance=None, voters=0):
    return ChunkedPrefill(
        Vote(per_head=per_head, scaled=True),
        CHUNK,
        Budget.parse(budget),
        SINKS,
        WINDOW,
        voters=voters,
        scoring=None if distance is None else FixedDistance(PlainRope(), distance),
        renumber=PlainRope() if renumber else None,
    )


def expected(
    storage,
    query,
    padding,
    budget,
    *,
    per_head=False,
    queries=None,
    renumber=False,
    distance=None,
    voters=0,
):
    """Query by query: sinks, what its chunk's mean queries elect, the window before the chunk up to itself.

    Where there is a distance, the chunk's queries are moved to it and what follows, and keys to position 0.
    """
    length, rows = storage.length, []
    queries = queries or length
    for row, start in enumerate(padding):
        q, k, v = (oracles.array(part[row]) for part in (query, storage.keys(), storage.values()))
        out = np.zeros((len(q), queries, 8))
        scored = k if distance is None else oracles_positions.unrotated_keys(k, start)
        for slot in range(max(start, length - queries), length):
            begin = max(slot // CHUNK * CHUNK, length - queries)
            end = min((slot // CHUNK + 1) * CHUNK, length)
            means = _means(q[:, begin - length + queries : end - length + queries], start - begin, voters)
            if distance is not None:
                shift = distance - (begin - start)
                means = [
                    np.array([oracles_positions.rotated(head, shift) for head in mean]) for mean in means
                ]
            early, middle, late = oracles.regions(start, end, SINKS, WINDOW + end - begin)
            chosen = _elected(means, scored, middle, budget, per_head)
            read = [early + sorted(chosen[head]) + late for head in range(2)]
            at = slot - length + queries
            if renumber:
                out[:, at] = oracles_positions.renumbered_attention(
                    q[:, at], slot, k, v, read, start, scale=SCALE
                )
                continue
            read = [[s for s in slots if s <= slot] for slots in read]
            out[:, at], _ = oracles.attention(q[:, at], k, v, read, scale=SCALE)
        rows.append(out)
    return np.stack(rows)


def _means(query, unused, voters):
    """What votes for a chunk `[H, C, D]`, each `[H, D]`, but for the first `unused` queries.

    Up to `voters` means of runs, and each of the `voters` newest queries.
    """
    chunk = query.shape[1]
    early = chunk - voters if voters else chunk
    runs = [[] for _ in range(min(voters or 1, max(early, 0)))]
    runs += [[] for _ in range(max(early, 0), chunk)]
    for place in range(max(unused, 0), chunk):
        at = place * min(voters or 1, early) // early if place < early else len(runs) - chunk + place
        runs[at].append(place)
    return [query[:, run or range(unused, chunk)].mean(1) for run in runs]


def _elected(queries, keys, middle, budget, per_head):
    if not middle:
        return [[], []]
    votes = sum(
        oracles_pages.soft_votes(query, keys, middle[0], middle[-1] + 1, scale=SCALE) for query in queries
    )
    votes = votes.reshape(2, len(votes) // 2, -1).sum(1)
    votes = votes if per_head else votes.sum(0, keepdims=True).repeat(2, 0)
    return [[middle[n] for n in oracles.top_k(head, budget)] for head in votes]


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("tokens", [7, 8, 31, 64, 67])
def test_a_prompt(tokens, per_head):
    storage, query = filled(tokens)
    out = chunked(6, per_head=per_head).attend(query, storage, Logits(SCALE), None)
    wanted = expected(storage, query, [0], 6, per_head=per_head)
    np.testing.assert_allclose(out, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"renumber": True}, {"distance": 9}, {"renumber": True, "distance": 30}], ids=str
)
@pytest.mark.parametrize("tokens", [7, 31, 45])
def test_positions_as_published(tokens, options):
    storage, query = filled(tokens, batch=2)
    padding = [0, 11 % tokens]
    slots = torch.arange(tokens)
    mask = (slots <= slots.view(-1, 1)) & (slots >= torch.tensor(padding).view(-1, 1, 1, 1))
    out = chunked(4, **options).attend(query, storage, Logits(SCALE), mask)
    wanted = expected(storage, query, padding, 4, **options)
    for row, unused in enumerate(padding):
        np.testing.assert_allclose(out[row, :, unused:], wanted[row, :, unused:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{"renumber": True}, {"distance": 9}], ids=str)
def test_a_later_piece_has_positions_as_published(options):
    storage, query = filled(45)
    out = chunked(4, **options).attend(query[:, :, -13:], storage, Logits(SCALE), None)
    wanted = expected(storage, query[:, :, -13:], [0], 4, queries=13, **options)
    np.testing.assert_allclose(out, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("queries", [2, 8, 13, 40])
def test_a_later_piece(queries):
    storage, query = filled(67)
    out = chunked(6).attend(query[:, :, -queries:], storage, Logits(SCALE), None)
    wanted = expected(storage, query[:, :, -queries:], [0], 6, queries=queries)
    np.testing.assert_allclose(out, wanted, rtol=1e-3, atol=1e-4)


def test_padding_is_neither_read_nor_part_of_the_mean():
    storage, query = filled(60, batch=3)
    padding = [0, 11, 42]
    slots = torch.arange(60)
    mask = (slots <= slots.view(-1, 1)) & (slots >= torch.tensor(padding).view(-1, 1, 1, 1))
    for row, unused in enumerate(padding):
        query[row, :, :unused] *= 1e3
    out = chunked(6).attend(query, storage, Logits(SCALE), mask)
    wanted = expected(storage, query, padding, 6)
    for row, unused in enumerate(padding):
        np.testing.assert_allclose(out[row, :, unused:], wanted[row, :, unused:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("distance", [None, 9])
@pytest.mark.parametrize("voters", [1, 2, 3, 5, 8, 100])
def test_newest_queries_and_runs_of_others_vote(voters, distance, monkeypatch):
    monkeypatch.setattr("keyhole.prefill.chunked._VOTING", 3)  # in several passes over the keys
    storage, query = filled(61, batch=3)
    padding = [0, 11, 42]
    slots = torch.arange(61)
    mask = (slots <= slots.view(-1, 1)) & (slots >= torch.tensor(padding).view(-1, 1, 1, 1))
    for row, unused in enumerate(padding):
        query[row, :, :unused] *= 1e3
    out = chunked(6, voters=voters, distance=distance).attend(query, storage, Logits(SCALE), mask)
    wanted = expected(storage, query, padding, 6, voters=voters, distance=distance)
    for row, unused in enumerate(padding):
        np.testing.assert_allclose(out[row, :, unused:], wanted[row, :, unused:], rtol=1e-3, atol=1e-3)


def test_what_one_query_of_a_chunk_asks_for_is_elected():
    """Its mean with the others, which ask for the contrary, would not elect it."""
    storage, _ = filled(64)
    query = torch.randn(1, 6, CHUNK, 8, generator=torch.Generator().manual_seed(1))
    storage.keys()[:, :, 20] = 9 * query[:, ::3, 3]
    storage.values()[:, :, 20] = 1000.0
    query[:, :, 3] = query[:, ::3, 3].repeat_interleave(3, 1)
    query[:, :, 4:] = -query[:, :, 3:4]
    found = [chunked(1, voters=v).attend(query, storage, Logits(SCALE), None)[:, :, 3] for v in (0, CHUNK)]
    assert float(found[0].max()) < 500 < float(found[1].min())


def test_the_first_query_of_a_chunk_sees_the_window():
    """The window is in addition to the chunk: nothing within it is missed by any query."""
    storage, query = filled(64)
    storage.values()[:, :, 40 - WINDOW : 40] += 1000.0
    storage.keys()[:, :, 40 - WINDOW : 40] = 0.0
    out = chunked(1).attend(query[:, :, 40:48], _first(storage, 48), Logits(SCALE), None)
    assert bool((out[:, :, 0].abs() > 1.0).all())


def _first(storage, length):
    storage.crop(length)
    return storage


def test_pieces_at_borders_of_chunks_do_not_matter():
    storage, query = filled(64)
    whole = chunked(6).attend(query, storage, Logits(SCALE), None)
    part = chunked(6).attend(query[:, :, 24:], storage, Logits(SCALE), None)
    torch.testing.assert_close(part, whole[:, :, 24:])


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("budget", [1.0, 1000, "mass=1.0"])
def test_everything_is_dense(budget, softcap):
    sinks = torch.tensor([0.5, -1.0, 0.0, 1.0]) if softcap else None
    budget = budget if isinstance(budget, str) else f"budget={budget}"
    spec = f"tokenselect({budget}, sparse_prefill=true, chunk=7, sinks=2, window=3, dense_below=0)"
    layer = Layer(spec, padding=[0, 9], batch=2, softcap=softcap, sink_logits=sinks)
    for piece in (40, 23):
        layer.append(piece)
        check_dense(layer, layer.attend(piece), piece)


def test_a_model_at_full_budget():
    model = tiny_model("llama")
    ids, mask = left_padded(prompt(100), prompt(60, seed=1))
    wanted = answer(model, ids, mask=mask)
    with keyhole.attach(model, "tokenselect(budget=1.0, sparse_prefill=true, chunk=16, sinks=2, window=4)"):
        assert_same(answer(model, ids, mask=mask), wanted)


def test_a_model_at_a_small_budget():
    model = tiny_model("llama")
    ids, mask = left_padded(prompt(100), prompt(60, seed=1))
    wanted = answer(model, ids, mask=mask, steps=1).logits
    spec = "tokenselect(budget=8, sparse_prefill=true, chunk=16, sinks=2, window=4)"
    with keyhole.attach(model, spec):
        found = answer(model, ids, mask=mask, steps=1).logits
    assert bool(found.isfinite().all())
    assert not torch.allclose(found, wanted, rtol=1e-3)
