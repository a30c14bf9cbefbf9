"""Keys depend on all that they should, and on nothing else."""

import numpy as np
import pytest

from keyhole.documents.store.keys import BLOCK, block_keys, index_key, state_key
from tests.documents.store.synthetic import tokens


def test_beginnings_share_keys_and_nothing_else_does():
    ids = tokens(1, 3 * BLOCK + 20)
    keys = block_keys(ids, "f")
    assert len(keys) == len(set(keys)) == 4
    assert block_keys(ids[: 2 * BLOCK], "f") == keys[:2]
    assert block_keys(list(map(int, ids)), "f") == keys
    assert not set(block_keys(ids, "g")) & set(keys)
    for place in (0, BLOCK - 1, BLOCK, 3 * BLOCK + 19):
        changed = ids.copy()
        changed[place] += 1
        assert [a == b for a, b in zip(block_keys(changed, "f"), keys, strict=True)] == [
            at < place // BLOCK for at in range(4)
        ]
    repeated = block_keys(np.zeros(2 * BLOCK, int), "f")
    assert repeated[0] != repeated[1]


def test_lists_of_parts_are_not_confused():
    assert index_key("t", "ab", "c") != index_key("t", "a", "bc")
    assert state_key([1, 2], "f") not in block_keys([1, 2], "f")


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([], ValueError, "no tokens"),
        ([-1], ValueError, "found -1"),
        ([1 << 32], ValueError, "4294967295"),
        ([1.0], TypeError, "float64"),
        ([[1]], TypeError, r"\(1, 1\)"),
    ],
)
def test_what_are_no_token_ids_is_refused(ids, error, message):
    with pytest.raises(error, match=message):
        block_keys(ids, "f")
