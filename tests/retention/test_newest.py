"""MPCache's static stage: what the prompt's newest fifth attends to is kept, once and for all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.methods import Recipe
from keyhole.retention.newest import newest
from tests import oracles
from tests import oracles_eviction_mpcache as formulae
from tests.evictions import Evicting
from tests.oracles_eviction_windowkv import attention


def spec_of(**options):
    given = {"keep": 20, "budget": 1.0, "sinks": 2, "window": 5, "fine": 2, "coarse": 4, "kernel": 1}
    return f"mpcache({', '.join(f'{name}={value}' for name, value in (given | options).items())})"


def test_a_fifth_looks_and_of_long_texts_a_tenth():
    assert [newest(context) for context in (0, 1, 5, 6, 35, 24_000, 24_001)] == [0, 1, 1, 2, 7, 4800, 2401]


def check(layer, pieces, keep, per_head, kernel):
    for row, start in enumerate(layer.starts):
        query, keys = (oracles.array(tensor[row, :, start:]) for tensor in (pieces, layer.keys))
        weights = attention(query, keys[:, : query.shape[1]], scale=layer.logits.scale)
        count = max(keep if isinstance(keep, int) else round(keep * query.shape[1]), 7)
        how = {"count": count, "per_head": per_head, "kernel": kernel}
        wanted = formulae.kept(weights, keys.shape[0], sinks=2, window=5, **how)
        new = range(layer.length - len(keys[0]) + query.shape[1], layer.length)
        assert [[*(p + start for p in head), *new] for head in wanted] == layer.kept()[row]


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from([2, 9, 31, 40]), min_size=1, max_size=3),
    st.one_of(st.integers(1, 40), st.sampled_from([0.2, 0.4, 0.9])),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([None, [0, 1], [0, 8]]),
    st.sampled_from([1, 3, 7]),
)
def test_what_is_kept_is_what_the_formulae_keep(pieces, keep, groups, per_head, padding, kernel):
    """In whatever pieces the prompt comes; a row's fifth is of its own text."""
    spec = spec_of(keep=keep, per_head=str(per_head).lower(), kernel=kernel)
    layer, queries = Evicting(spec, batch=2, groups=groups, padding=padding), []
    for piece in (9, *pieces):
        layer.append(piece)
        layer.attend(piece)
        queries.append(layer.query)
    assert layer.cache.kept.slots == layer.length, "nothing is dropped before the prompt is complete"
    layer.append(1)
    check(layer, torch.cat(queries, 2), keep, per_head, kernel)


def test_generated_tokens_stay():
    layer = Evicting(spec_of())
    layer.append(60)
    layer.attend(60)
    for step in range(1, 30):
        layer.append(1)
        layer.attend()
        assert [len(head) for head in layer.kept()[0]] == [20 + step] * 2


def test_counts_depend_on_lengths_alone():
    told = set()
    for seed, level in ((0, 1.0), (1, 1.0), (2, 0.0), (3, 50.0)):
        layer = Evicting(spec_of(keep=0.3, per_head="true"), batch=2, padding=[0, 11], seed=seed)
        layer.append(70, level)
        layer.attend(70)
        layer.step()
        told.add(str([[len(head) for head in row] for row in layer.kept()]))
    assert len(told) == 1


def test_queries_are_held_until_they_were_asked():
    layer = Evicting(spec_of())
    layer.append(60)
    layer.attend(60)
    state = layer.cache.state()
    assert state["scorer.queries"].shape == (1, 4, 12, 16)
    layer.step()
    assert layer.cache.retention.scorer.nbytes == 0


def test_a_restored_prompt_is_dropped_from_alike():
    layer, other = Evicting(spec_of()), Recipe.parse(spec_of()).layers(1)[0]
    layer.append(60)
    layer.attend(60)
    other.restore({name: tensor.clone() for name, tensor in layer.cache.state().items()}, 0)
    for cache in (layer.cache, other):
        cache.append(layer.keys[:, :, :1], layer.values[:, :, :1])
    assert torch.equal(other.kept.positions, layer.cache.kept.positions)


def test_queries_before_generated_tokens_are_not_taken_for_newer_ones():
    """A second prompt after an answer, shorter than a fifth of the text: only its own queries look."""
    layer, other = Evicting(spec_of(keep=62)), Evicting(spec_of(keep=62))
    for each in (layer, other):
        each.append(60)
    layer.attend(60)
    for each in (layer, other):
        each.random.manual_seed(5)
        for _ in range(4):
            each.step()
        each.append(3)
        each.attend(3)
        each.step()
        assert [len(head) for head in each.kept()[0]] == [63, 63]
    assert layer.kept() == other.kept()


def test_prepare_drops_what_the_next_step_would():
    layer, prepared = Evicting(spec_of()), Evicting(spec_of())
    for each in (layer, prepared):
        each.append(60)
        each.attend(60)
    prepared.cache.prepare()
    assert prepared.cache.storage.length == 20
    for each in (layer, prepared):
        each.step()
    assert layer.kept() == prepared.kept()


@pytest.mark.parametrize("place", ["host", "disk"])
def test_elsewhere(place):
    layer = Evicting(spec_of(place=place))
    layer.append(60)
    layer.attend(60)
    for _ in range(3):
        layer.step()
