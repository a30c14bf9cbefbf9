"""Attention of a decode step on a GPU: nothing makes the host wait, and it equals what a CPU computes."""

import pytest
import torch

from keyhole.attention import Logits, Part, attend_slots, dense_attention, merge
from tests.waiting import as_if_on_gpu, without_waiting

pytest.importorskip("triton")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_chosen_slots_and_a_merge(batch, shared, monkeypatch):
    query, (keys, values) = torch.randn(batch, 6, 16), torch.randn(2, batch, 3, 40, 16)
    slots = torch.randint(40, (batch, 20) if shared else (batch, 3, 20), dtype=torch.int32)
    counts = torch.randint(21, slots.shape[:-1], dtype=torch.int32)

    def step() -> Part:
        part = attend_slots(query, keys, values, slots, counts, Logits(0.3))
        return merge(part, attend_slots(query, keys + 1, values + 1, slots, counts, Logits(0.3, softcap=3.0)))

    wanted = step()
    with as_if_on_gpu(monkeypatch), without_waiting(monkeypatch):
        found = step()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_everything(softcap, monkeypatch):
    query, (keys, values) = torch.randn(2, 6, 1, 16), torch.randn(2, 2, 3, 40, 16)
    sinks = None if softcap is None else torch.randn(6)
    with without_waiting(monkeypatch):
        dense_attention(query, keys, values, scale=0.3, softcap=softcap, sink_logits=sinks)
