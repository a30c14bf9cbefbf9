"""Block lists against oracles written from the rules, at every edge: windows, pooling, ties, boundaries."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole.selection.block_lists import (
    BlockRule,
    block_lists,
    by_block,
    sequence_lists,
    visible_windows,
    window_means,
)
from tests import oracles_nosa as oracle

SMALL = {"block": 8, "stride": 2, "init": 1, "local": 2, "blocks": 7, "recalled": 2}


def _lists(lists):
    return [block for block in lists.tolist() if block >= 0]


@pytest.mark.parametrize("recalled", [None, 1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 3, 4, 31, 64, 129])
def test_every_token_reads_the_blocks_of_the_rules(tokens, recalled):
    generator = torch.Generator().manual_seed(tokens)
    rule = SMALL | {"recalled": recalled}
    query = torch.randn(2, 6, tokens, 16, generator=generator, dtype=torch.float64)
    keys = torch.randn(2, 2, tokens, 16, generator=generator, dtype=torch.float64)
    matter = torch.randn(2, 2, tokens, generator=generator)
    given_importance = None if recalled is None else matter
    found = sequence_lists(query.float(), keys.float(), given_importance, BlockRule(**rule), scale=0.3)
    for row, head, token in np.ndindex(2, 2, tokens):
        queries = query[row, 3 * head : 3 * head + 3, token].numpy()
        before = keys[row, head, : token + 1].numpy()
        if recalled is None:
            expected = oracle.infllm_v2_blocks(queries, before, rule, 0.3)
        else:
            expected = oracle.nosa_blocks(
                queries, before, matter[row, head, : token + 1].double().numpy(), rule, 0.3
            )
        assert _lists(found[row, head, token]) == expected, (row, head, token)


@pytest.mark.parametrize(("tokens", "windows"), [(0, 0), (31, 0), (32, 1), (47, 1), (48, 2), (1000, 61)])
def test_only_whole_windows_exist(tokens, windows):
    rows = torch.randn(tokens, 4)
    means = window_means(rows, 16)
    assert len(means) == windows == max((tokens - 32) // 16 + 1, 0)
    for j, mean in enumerate(means):
        torch.testing.assert_close(mean, rows[16 * j : 16 * j + 32].mean(0))


def test_a_window_is_visible_from_its_last_token_on():
    for j in range(4):
        assert not visible_windows(torch.tensor(16 * j + 31), 9, 16)[j]
        assert visible_windows(torch.tensor(16 * j + 32), 9, 16)[j]


def test_pooling_takes_five_windows_four_at_the_first_block_and_what_there_is_at_the_last():
    windows = torch.arange(10.0)
    everywhere = torch.ones(10, dtype=torch.bool)
    assert by_block(windows, everywhere, 3, 4).tolist() == [3, 7, 9]
    assert by_block(-windows, everywhere, 3, 4).tolist() == [0, -3, -7]
    assert by_block(windows, everywhere, 4, 4).tolist() == [3, 7, 9, -torch.inf]


def test_of_33_blocks_by_the_query_18_are_forced_and_31_of_64_follow_importance():
    rule = BlockRule(recalled=16)
    recall, matter = torch.arange(200.0), -torch.arange(200.0)
    current = torch.tensor([150])
    found = set(_lists(block_lists(recall[None], matter[None], current, rule)[0]))
    forced = {0} | set(range(134, 151))
    asked = set(range(119, 134))  # 15: the best for the query among those before the local ones
    assert len(forced) == 18
    assert found == forced | asked | set(range(1, 32))
    assert len(found) == 64


@given(st.integers(0, 40), st.integers(1, 12), st.integers(0, 3), st.integers(0, 3), st.data())
def test_lists_hold_forced_blocks_none_of_the_future_and_all_if_there_are_few(
    current, free, init, local, data
):
    recalled = data.draw(st.none() | st.integers(1, free))
    rule = BlockRule(block=4, stride=2, init=init, local=local, blocks=init + local + free, recalled=recalled)
    scores = data.draw(st.lists(st.sampled_from([0.0, 1.0, -torch.inf]), min_size=48, max_size=48))
    matter = torch.tensor(scores[::-1])[None]
    found = _lists(block_lists(torch.tensor(scores)[None], matter, torch.tensor([current]), rule)[0])
    assert found == sorted(set(found))
    assert len(found) == min(rule.blocks, current + 1)
    assert oracle.forced_blocks(current, init, local) <= set(found) <= set(range(current + 1))


def test_ties_go_to_the_lower_block():
    rule = BlockRule(init=0, local=0, blocks=4, recalled=2)
    equal = torch.zeros(1, 9)
    assert _lists(block_lists(equal, equal, torch.tensor([8]), rule)[0]) == [0, 1, 2, 8]


def test_rank_by_importance_is_rank_by_its_exponential():
    matter = torch.randn(1, 50, dtype=torch.float64)
    rule = BlockRule(init=1, local=2, blocks=12, recalled=3)
    recall, current = torch.randn(1, 50), torch.tensor([49])
    plain = block_lists(recall.double(), matter, current, rule)
    assert torch.equal(plain, block_lists(recall.double(), matter.exp(), current, rule))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"block": 60}, "whole strides"),
        ({"blocks": 17}, "at least 18"),
        ({"recalled": 48}, "1 to 47"),
        ({"recalled": 0}, "1 to 47"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(numbers, message):
    with pytest.raises(ValueError, match=message):
        BlockRule(**numbers)


def test_importance_is_asked_for():
    with pytest.raises(ValueError, match="importance"):
        block_lists(torch.zeros(1, 3), None, torch.tensor([2]), BlockRule(recalled=1))
