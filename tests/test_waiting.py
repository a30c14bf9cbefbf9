"""The finder of waiting finds it."""

import pytest
import torch

from keyhole import kernels
from tests.waiting import WaitedError, without_waiting

pytest.importorskip("triton")
NUMBERS = torch.tensor([3.0, 0.0, 2.0])


@pytest.mark.parametrize(
    "waits",
    [
        lambda: NUMBERS.tolist(),
        lambda: NUMBERS.sum().item(),
        lambda: int(NUMBERS.max()),
        lambda: bool((NUMBERS > 0).any()),
        lambda: NUMBERS[NUMBERS > 0],
        lambda: NUMBERS.nonzero(),
        lambda: torch.equal(NUMBERS, NUMBERS),
        lambda: NUMBERS.repeat_interleave(torch.ones(3, dtype=torch.int64)),
        lambda: torch.tensor([1, 2]),
    ],
)
def test_waiting_is_found(waits, monkeypatch):
    with pytest.raises(WaitedError), without_waiting(monkeypatch):
        waits()


def test_what_does_not_wait_passes(monkeypatch):
    query, keys = torch.randn(1, 2, 16), torch.randn(1, 40, 16)
    with without_waiting(monkeypatch):
        scores = kernels.exact_scores(query, keys, 0, 40, impl="triton")
        scores.masked_fill(scores > 0, 0.0).gather(2, scores.argsort(-1)).clone()
