"""What only the Triton kernels of pooled attention do: they wait for nothing."""

import pytest
import torch
from tests.waiting import as_if_on_gpu, without_waiting

from keyhole import kernels

pytest.importorskip("triton")


@pytest.mark.parametrize("page", [4, 2000])
def test_nothing_waits(page, monkeypatch):
    query, keys = torch.randn(1, 4, 16), torch.randn(1, 2, 50, 16)
    bounds = torch.tensor([[0], [50], [1], [40]], dtype=torch.int32)
    span = kernels.Span(*bounds, 44)
    with as_if_on_gpu(monkeypatch), without_waiting(monkeypatch):
        kernels.pooled_attention(query, keys, span, kernels.Pooling(0.2, page=page))
