"""Every method through a long life: whatever happens, a step reads what it should, each token once."""

from dataclasses import replace

import pytest

from keyhole.core.budget import Budget
from tests.layers import Layer
from tests.lives import Rounded, live
from tests.small import BY_MASS, SELECTIVE, small

BUDGETS = [Budget(tokens=5), Budget(fraction=0.3), Budget(mass=0.8, floor=3), Budget(mass=0.95, cap=0.5)]


@pytest.mark.parametrize("name", SELECTIVE)
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("window", [1, 30])
def test_a_long_life(name, budget, window):
    if budget.mass is not None and name not in BY_MASS:
        pytest.skip("how many tokens it reads follows from lengths")
    method = replace(small(name, budget), window=window, dense_below=0)
    live(method, Rounded if name == "shadowkv" else Layer, kv_heads=3, value_size=24)


@pytest.mark.parametrize("options", ["rank=8, chunk=4, outliers=3", "rank=5, chunk=7, outliers=0"])
@pytest.mark.parametrize("window", [5, 30])
def test_a_long_life_of_keys_of_low_rank(options, window):
    live(f"shadowkv({options}, budget=9, sinks=3, window={window}, dense_below=0)", Rounded)


@pytest.mark.parametrize("place", ["device", "host", "disk"])
@pytest.mark.parametrize("kv_dtype", ["auto", "int8", "int4"])
def test_a_long_life_elsewhere(place, kv_dtype):
    method = replace(small("quest", 9), place=place, kv_dtype=kv_dtype, page=7, dense_below=0)
    live(method, Layer if kv_dtype == "auto" else Rounded, tokens=200)


@pytest.mark.parametrize("place", ["host", "disk"])
@pytest.mark.parametrize("name", ["quest", "delta", "pqcache", "infllm_v2", "nosa"])
def test_a_long_life_in_resident_slots(place, name):
    method = replace(small(name, 9), place=place, resident="slots", dense_below=0)
    layer = live(method, tokens=200)
    usage = layer.cache.usage
    assert usage.fetched > 0
    assert 0 < usage.gamma <= 1
