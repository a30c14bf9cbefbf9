"""Rows that several programs share: what they counted is put together, blocks of ties are parted rightly."""

import pytest
import torch
from tests.waiting import without_waiting

from keyhole import kernels

pytest.importorskip("triton")

from keyhole.kernels.ranking.triton import top_slots


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch):
    monkeypatch.setattr(top_slots, "_SHORT", 0)
    monkeypatch.setattr(top_slots, "_LEAST_BLOCK", 128)
    monkeypatch.setattr(top_slots, "_TOGETHER", 2)


def check(scores, count):
    found = kernels.top_slots(scores, count, impl="triton")
    assert found.dtype == torch.int64
    assert torch.equal(found, kernels.top_slots(scores, count, impl="reference"))


@pytest.mark.parametrize("count", [1, 300, 610])
@pytest.mark.parametrize("kind", ["spread", "close", "shares", "few", "one"])
def test_long_rows(kind, count):
    scores = torch.randn(1, 611)
    check(
        {
            "spread": scores * torch.logspace(-20, 20, 611),
            "close": 1 + scores * 1e-6,
            "shares": (30 * scores).softmax(-1),
            "few": scores.round(),
            "one": torch.zeros(1, 611),
        }[kind],
        count,
    )


def test_rows_do_not_mix():
    check(torch.randn(3, 300).mul_(torch.tensor([[1.0], [1e-9], [0.0]])), 99)


def test_nothing_waits(monkeypatch):
    scores = torch.randn(1, 300)
    with without_waiting(monkeypatch):
        kernels.top_slots(scores, 40, impl="triton")
