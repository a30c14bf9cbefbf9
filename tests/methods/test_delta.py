"""Which layers read everything, lead and follow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import keyhole
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import Delta, Recipe
from keyhole.methods.delta import default_layers, roles
from keyhole.selection.shared import Role
from tests import oracles_pages
from tests.tiny import prompt, tiny_model


@given(st.integers(1, 40), st.sets(st.integers(0, 39)))
def test_the_rule_of_roles(layers, full):
    full = {layer for layer in full if layer < layers}
    assert [role.value for role in roles(range(layers), full)] == oracles_pages.delta_roles(layers, full)


@pytest.mark.parametrize(
    ("full", "expected"),
    [
        ((), ["follower"] * 4),
        ((0, 1, 2, 3), ["dense"] * 4),
        ((3,), ["follower"] * 3 + ["dense"]),
        ((0, 1), ["dense", "leader", "follower", "follower"]),
        ((1, 0, 1), ["dense", "leader", "follower", "follower"]),
        ((0, 2), ["leader", "follower", "leader", "follower"]),
    ],
)
def test_roles_of_four_layers(full, expected):
    layers = Recipe((Delta(full=full),)).layers(4)
    assert [layer.selector.role.value for layer in layers] == expected


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (0, ((), ())),
        (1, ((0,), ())),
        (4, ((0,), (2,))),
        (8, ((0,), (2, 5))),
        (30, ((0,), (2, 5, 8, 11, 14, 17, 20, 23, 26, 29))),
    ],
)
def test_a_third_of_the_layers_rank_by_default(layers, expected):
    assert default_layers(layers) == expected
    found = [selector.role for selector in Delta().selectors(ModelInfo.of(layers))]
    assert [at for at, role in enumerate(found) if role is Role.RANKER] == list(expected[1])
    assert [at for at, role in enumerate(found) if role in (Role.DENSE, Role.LEADER)] == list(expected[0])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"full": (0, 1), "leaders": (3,)}, ["dense", "leader", "follower", "ranker", "follower"]),
        ({"full": (0, 1), "leaders": (2,)}, ["dense", "dense", "ranker", "follower", "follower"]),
        ({"leaders": (1, 4)}, ["follower", "ranker", "follower", "follower", "ranker"]),
        ({"full": (1,)}, ["follower", "leader", "follower", "follower", "follower"]),
        ({"full": (), "leaders": ()}, ["follower"] * 5),
    ],
)
def test_layers_that_rank(given, expected):
    assert [selector.role.value for selector in Delta(**given).selectors(ModelInfo.of(5))] == expected


def test_a_layer_has_one_role():
    with pytest.raises(SpecError, match="layer 2 is in full and in leaders"):
        Delta(full=(0, 2), leaders=(2, 4))
    with pytest.raises(SpecError, match="leaders contains layer 9"):
        Delta(leaders=(9,)).selectors(ModelInfo.of(5))


def test_a_leader_leads_the_next_layer_that_is_served():
    """Layers of another kind of attention lie between; numbers are those of the model."""
    served = ModelInfo((1, 3, 5, 7))
    found = [selector.role.value for selector in Delta(full=(1, 3)).selectors(served)]
    assert found == ["dense", "leader", "follower", "follower"]
    with pytest.raises(SpecError, match=r"contains layer 2, .* are 1, 3, 5, 7"):
        Delta(full=(1, 2)).selectors(served)


@pytest.mark.parametrize("full", [3, "0", (0, -1), (0.5,), (True,)])
def test_refuses_layers_that_are_none(full):
    with pytest.raises(SpecError, match="full"):
        Delta(full=full)


def test_pays_from_a_length_that_one_layer_cannot_show():
    assert Delta().pays_from == 4096


def test_as_text():
    method = Delta(full=[2, 0, 1], budget=64)
    assert str(method) == "delta(budget=64, full=(0, 1, 2))"
    assert Recipe.parse(str(method)).stages == (method,)
    assert hash(method) == hash(Recipe.parse(str(method)).stages[0])


def test_requests_do_not_share():
    """Two batches on one model, step by step in turn."""
    model = tiny_model("llama", num_hidden_layers=4)
    method = "delta(budget=8, page=4, sinks=2, window=4, full=(0,), dense_below=0)"
    ids = [prompt(70), prompt(50, seed=1)]
    alone = [follow(model, method, [one])[0] for one in ids]
    assert follow(model, method, ids) == alone


def follow(model, method, prompts, steps=5):
    """Greedy tokens of each prompt, one step of each in turn."""
    caches = [keyhole.make_cache(model, method) for _ in prompts]
    nexts, found = list(prompts), [[] for _ in prompts]
    for _ in range(steps):
        for at, cache in enumerate(caches):
            nexts[at] = model(nexts[at], past_key_values=cache).logits[:, -1:].argmax(-1)
            found[at].append(int(nexts[at]))
    keyhole.detach(model)
    return found


@pytest.mark.parametrize("place", ["host", "disk"])
@pytest.mark.parametrize("kv_dtype", ["auto", "int8"])
def test_layers_read_whole_stay_on_the_device(place, kv_dtype):
    """Whole reads of a slower tier in each step are what a method that reads little is to spare."""
    caches = Recipe((Delta(full=(0, 3), place=place, kv_dtype=kv_dtype, dense_below=0),)).layers(5)
    rows = torch.randn(1, 2, 300, 16)
    for cache in caches:
        cache.append(rows, rows)
    held = [getattr(cache.footprint, place) for cache in caches]
    assert [bool(count) for count in held] == [False, True, True, False, True]
    assert all(cache.footprint.device for cache in (caches[0], caches[3]))


def test_layers_are_told_apart_as_the_model_counts_them():
    info = ModelInfo((1, 3, 5, 7))
    storages = Delta(full=(1, 5), place="host").storage(info)
    assert [storage.buffer.tier for storage in storages] == ["device", "host", "device", "host"]
