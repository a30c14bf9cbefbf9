"""The length from which a loss is none, and which length a batch goes by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhole.core.break_even import ALWAYS, NEVER, BreakEven, first_paying


@given(st.integers(0, 1 << 21), st.floats(1e-6, 10))
def test_the_first_length_without_a_loss_rounded_up(crossing, slope):
    found = first_paying(lambda tokens: slope * (crossing - tokens))
    assert found % 32 == 0
    assert max(crossing, 1) <= found < max(crossing, 1) + 32


def test_a_loss_at_short_lengths_only_counts_where_it_ends():
    """A floor of tokens read: selecting pays for nothing, then loses, then pays."""
    assert first_paying(lambda tokens: max(2000 - tokens, 0.1 * tokens - 500)) == NEVER
    assert first_paying(lambda tokens: max(500 - tokens, 100 - 0.1 * tokens)) == 1024


@pytest.mark.parametrize("loss", [lambda _: 1.0, lambda tokens: 1e9 - tokens, lambda tokens: tokens + 1.0])
def test_never(loss):
    assert first_paying(loss) == NEVER


def test_batches_use_the_length_of_the_next_fewer():
    pays = BreakEven(4096, ((3, 2048), (8, 1024)))
    assert [pays.at(batch) for batch in (1, 2, 3, 7, 8, 9)] == [4096, 4096, 2048, 2048, 1024, 1024]
    assert ALWAYS.at(5) == 0
