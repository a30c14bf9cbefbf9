"""A decode step that skips weights waits for nothing, so that a CUDA graph can hold it."""

from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from keyhole import kernels
from keyhole.feedforward import FeedForward, Gated, Projection, Rule, Steps, gated
from tests.waiting import without_waiting


@pytest.mark.parametrize("first", ["gate", "up"])
def test_a_step_and_its_account(monkeypatch, first):
    channels, size = 70, 40
    x, threshold = torch.randn(1, size), torch.full((channels,), 0.3)
    lead, other = (Projection(torch.randn(channels, size) / size**0.5) for _ in range(2))
    down = Projection(torch.randn(channels, size).t(), torch.randn(size))
    parts = Gated(lead, other, down, torch.nn.functional.silu)
    steps = Steps(FeedForward(Rule(first), {"mlp": threshold}))
    expected, _ = gated.sparse_gated(parts, x, threshold, first)
    monkeypatch.setattr(gated.kernels, "matvec_skips", lambda _: True)
    for name in ("matvec_skip_rows", "matvec_skip_columns"):
        monkeypatch.setattr(gated.kernels, name, partial(getattr(kernels, name), impl="triton"))
    with without_waiting(monkeypatch):
        steps.begin(1000, x.device)
        found, kept = gated.sparse_gated(parts, x, steps.threshold("mlp", x.device), first)
        steps.record(kept, 3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert steps.activated.dense == 1000
    assert steps.activated.skipped == 3 * int((~kept).sum()) > 0
