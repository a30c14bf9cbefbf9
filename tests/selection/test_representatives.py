"""InfLLM's representatives and block scores, by the definition."""

import numpy as np
import pytest
import torch

from tests.layers import Layer, slots_read
from tests.lives import live
from tests.oracles import array

BLOCK, R, WINDOW = 8, 2, 6
SPEC = f"infllm(budget={{}}, sinks=3, window={WINDOW}, block={BLOCK}, representatives={R}, dense_below=0{{}})"


def representatives(keys, queries, start, last):
    """The slots that represent each block of one KV head: keys `[N, D]`, queries `[G, N, D]`."""
    chosen = []
    for begin in range(0, last, BLOCK):
        members = [m for m in range(begin, min(begin + BLOCK, last)) if m >= start]
        scores = {}
        for m in members:
            following = range(m + 1, min(m + WINDOW, queries.shape[1]))
            scores[m] = sum(keys[m] @ query[j] for query in queries for j in following) / len(following)
        chosen.append(sorted(members, key=lambda m, scores=scores: (-scores[m], m))[:R])
    return chosen


def relevance(chosen, keys, queries, at):
    """The summed mean logits of each block's representatives, -inf where a block has none."""
    return np.array(
        [
            sum(np.mean([keys[m] @ query[at] for m in members]) for query in queries) if members else -np.inf
            for members in chosen
        ]
    )


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("pieces", [[90], [40, 50], [7, 2, 81]])
@pytest.mark.parametrize("seed", range(2))
def test_the_best_blocks_by_their_representatives(per_head, pieces, seed):
    shape = {"batch": 2, "padding": [0, 5], "seed": seed}
    layer = Layer(SPEC.format(17, f", per_head={str(per_head).lower()}"), **shape)
    queries = []
    for piece in pieces:
        layer.append(piece)
        layer.attend(piece)
        queries.append(layer.query)
    layer.append(1)
    layer.attend()
    queries, length, last = torch.cat([*queries, layer.query], 2), 91, 91 - WINDOW
    for row, start in enumerate([0, 5]):
        first = start + 3
        scores = []
        for head in range(2):
            own = array(layer.keys[row, head]), array(queries[row, 2 * head : 2 * head + 2])
            chosen = representatives(own[0], own[1][:, :-1], first, last)
            scores.append(relevance(chosen, *own, length - 1))
        if not per_head:
            scores = [sum(scores)] * 2
        for head in range(2):
            order = np.argsort(-scores[head], kind="stable")
            slots = [
                s for block in order for s in range(block * BLOCK, (block + 1) * BLOCK) if first <= s < last
            ]
            always = [*range(start, first), *range(last, length)]
            assert slots_read(layer)[row][head] == sorted([*slots[:17], *always])


def test_tokens_whose_queries_were_not_seen_are_represented_by_the_first():
    layer = Layer(SPEC.format(9, ""))
    layer.append(60)
    layer.step()
    keys, _ = layer.cache.selector._parts(layer.cache.selector._summaries.view())
    firsts = [range(begin, begin + R) if begin else (3, 4) for begin in range(0, 48, BLOCK)]
    for block, slots in enumerate(firsts):
        assert torch.equal(keys[0, 0, block], layer.keys[0, 0, list(slots)])


@pytest.mark.parametrize(
    "spec", [SPEC.format(9, ""), SPEC.format(9, ", per_head=true, place=disk, kv_dtype=int8")]
)
def test_a_long_life_and_memory_that_goes_back(spec, monkeypatch):
    monkeypatch.setattr("keyhole.selection.local_scores._SLACK", 4)
    monkeypatch.setattr("keyhole.selection.local_scores._PIECE", 16)
    from tests.lives import Rounded

    layer = live(spec, Rounded, tokens=120)
    held = layer.cache.selector._scores._held.length
    assert held <= WINDOW + BLOCK + 4 + 11 + 9


def test_steps_that_read_everything_leave_gaps():
    """Tokens whose own step was dense have no query noted; those before and after them count."""
    layer = Layer(SPEC.format("9", "").replace("dense_below=0", "dense_below=70"))
    layer.append(60)
    layer.attend(60)
    for _ in range(30):
        layer.step()
    assert layer.observed is not None
    counts = layer.cache.selector._scores._held.view()[0, 0, :, 1]
    base = layer.cache.selector._scores._from
    assert counts[50 - base] == WINDOW - 1
    assert counts[62 - base] == 0
