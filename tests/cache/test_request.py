"""What layers share: which tokens are a prompt's, and where the parts of the sequence lie."""

import copy
import gc
import weakref

import pytest
import torch

from keyhole.cache.request import Request

CPU = torch.device("cpu")


def played(calls, *, known=None, prompt_length=None):
    """Which of the calls, of so many tokens each, bring generated tokens."""
    request, length, found = Request(), 0, []
    request.prompt_length = prompt_length
    for tokens in calls:
        decided = request.decide(length, tokens, known)
        request.begin(length, tokens, known)
        assert request.generates(tokens) == decided
        found.append(decided)
        length += tokens
    return found


@pytest.mark.parametrize(
    ("calls", "generated"),
    [
        ([193, 1, 1, 1], [0, 0, 1, 1]),
        ([96, 96, 1, 1], [0, 0, 0, 1]),
        ([96, 1, 96, 1, 1], [0, 0, 0, 0, 1]),
        ([1] * 5, [0] * 5),
        ([1, 1, 50, 1, 1], [0, 0, 0, 0, 1]),
        ([50, 1, 1, 20, 1, 1], [0, 0, 1, 0, 0, 1]),
    ],
)
def test_by_hand(calls, generated):
    assert played(calls) == [bool(one) for one in generated]


@pytest.mark.parametrize(
    ("calls", "length", "generated"),
    [
        ([193, 1, 1], 193, [0, 1, 1]),
        ([96, 1, 96, 1], 193, [0, 0, 0, 1]),
        ([1, 1, 1, 1], 2, [0, 0, 1, 1]),
        ([1, 1], 0, [1, 1]),
        ([50, 1, 20, 1, 1], 50, [0, 1, 0, 0, 1]),
        ([60, 1], 50, [0, 1]),
    ],
)
def test_by_the_length_of_the_prompt(calls, length, generated):
    assert played(calls, prompt_length=length) == [bool(one) for one in generated]


def test_what_the_engine_knows_counts():
    assert played([50, 1, 1], known=True) == [False, True, True]
    assert played([50, 1, 1], known=False) == [False] * 3
    assert played([1, 1, 1], known=True) == [False, True, True]
    # Drafts are generated where generated tokens came before.
    assert played([50, 4, 1, 4], known=True) == [False, False, True, True]


def test_without_an_engine_a_single_token_is_generated():
    assert Request().generates(1)
    assert not Request().generates(2)


def test_a_cache_that_was_taken_over_may_end_its_prompt():
    request = Request()
    assert not request.decide(100, 1, None)
    request.begin(100, 1, None)
    assert request.decide(101, 1, None)


def test_layers_are_given_the_same_regions():
    request = Request()
    mask = torch.ones(2, 1, 1, 40, dtype=torch.bool)
    mask[1, ..., :7] = False
    first, second = (request.regions(40, request.look(mask, 2), 2, 6, CPU) for _ in range(2))
    assert first is second
    assert first.padding == (0, 7)
    assert first.starts is second.starts
    other = mask.clone()
    other[0, ..., 20:25] = False
    hidden = request.regions(40, request.look(other, 2), 2, 6, CPU)
    assert hidden is not first
    assert hidden.hidden.nonzero().tolist() == [[0, slot] for slot in range(20, 25)]
    assert request.regions(41, request.look(None, 2), 2, 6, CPU).length == 41


def test_two_requests_share_nothing():
    one, other = Request(), Request()
    seen = one.look(None, 1)
    assert one.regions(40, seen, 2, 6, CPU) is not other.regions(40, seen, 2, 6, CPU)


def test_a_mask_is_not_kept():
    request = Request()
    mask = torch.zeros(1, 1, 3, 40)
    request.look(request.boolean(mask), 1)
    gone = weakref.ref(mask)
    del mask
    gc.collect()
    assert gone() is None
    assert copy.deepcopy(request).look(None, 1).padding == (0,)
