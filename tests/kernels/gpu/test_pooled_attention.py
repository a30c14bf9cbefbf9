"""What only the Triton kernels of pooled attention do: they wait for nothing."""

import pytest
import torch
from tests.waiting import without_waiting

from keyhole import kernels

pytest.importorskip("triton")


@pytest.mark.parametrize("page", [4, 2000])
def test_nothing_waits(page, monkeypatch):
    query, keys = torch.randn(1, 4, 16), torch.randn(1, 2, 50, 16)
    span, how = (
        kernels.Span(torch.zeros(1, dtype=torch.int32), 50, torch.ones(1), 40),
        kernels.Pooling(0.2, page=page),
    )
    monkeypatch.setattr("keyhole.kernels.pooled_attention.at_hand", lambda *_: False)
    with without_waiting(monkeypatch):
        kernels.pooled_attention(query, keys, span, how, impl="triton")
