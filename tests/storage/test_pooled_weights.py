"""What a pooled storage tells of the logits it attends by."""

import pytest
import torch

from keyhole.attention import Logits
from keyhole.storage import Chosen, PooledStorage, Storage


def ragged(dtype):
    """Heads of 12, 3, 1 and 7 tokens, after drops that leave the pool out of order."""
    make = torch.Generator().manual_seed(0)
    storage = PooledStorage()
    storage.append(*(torch.randn(2, 2, 20, 16, generator=make).to(dtype) for _ in range(2)))
    for _ in range(3):
        storage.keep(Chosen.without(torch.randint(0, 20, (2, 2), generator=make), 20))
        storage.append(*(torch.randn(2, 2, 1, 16, generator=make).to(dtype) for _ in range(2)))
    counts = torch.tensor([[12, 3], [1, 7]])
    slots = torch.stack([torch.randperm(19, generator=make)[:12].sort().values for _ in range(4)])
    storage.keep(Chosen(slots.view(2, 2, 12).int(), counts))
    return storage, counts, torch.randn(2, 6, 1, 16, generator=make).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("logits", [Logits(0.25), Logits(0.25, 3.0, torch.linspace(-1, 1, 6))], ids=str)
def test_logits_lie_where_their_slots_do(dtype, logits):
    storage, counts, query = ragged(dtype)
    seen = torch.arange(12) >= (12 - counts).unsqueeze(-1)
    mask = seen.unsqueeze(2)
    out, weights = storage.weigh_all(query, logits, mask)
    plain_out, plain = Storage.weigh_all(storage, query, logits, mask)
    assert torch.equal(out, plain_out)
    torch.testing.assert_close(weights, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(weights == -torch.inf, ~seen.repeat_interleave(3, 1))
