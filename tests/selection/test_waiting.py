"""As on a GPU, selectors pick what they pick on a CPU, and nothing waits for the device."""

import pytest
import torch

from keyhole.attention import Logits
from keyhole.core.budget import Budget
from keyhole.core.distances import Distances
from keyhole.core.layout import regions
from keyhole.core.rope import FixedDistance, PlainRope
from keyhole.selection import ExactSelector, Step
from keyhole.selection.boxes import BoxSelector
from keyhole.selection.clusters import ClusterSelector
from keyhole.selection.codewords import CodewordSelector
from keyhole.selection.distant import DistantVoteSelector
from keyhole.selection.landmarks import LandmarkSelector
from keyhole.selection.shared import Board, Role, SharedPageSelector
from keyhole.selection.vote import Vote, VoteSelector
from tests.steps import stored
from tests.waiting import as_if_on_gpu, without_waiting

pytest.importorskip("triton")

TOKENS = 203
ROPE = PlainRope()


class Shared(SharedPageSelector):
    """Leads and follows in one step."""

    def __init__(self):
        super().__init__(Role.LEADER, Board(), 8)

    def select(self, step):
        self.watch(step.query, step.storage, step.regions, step.logits)
        return super().select(step)


def codewords(union):
    options = {"book": None, "codewords": 16, "iterations": 2, "sample": 100}
    return CodewordSelector(Distances(ROPE, 50, ranges=4, window=3), union=union, **options)


SELECTORS = {
    "boxes": lambda: BoxSelector(8),
    "clusters": lambda: ClusterSelector(4, 16, 0.5, 0.6),
    "codewords by share": lambda: codewords("share"),
    "codewords in turns": lambda: codewords("turns"),
    "distant votes": lambda: DistantVoteSelector(Vote(per_head=False, scaled=True), FixedDistance(ROPE, 50)),
    "exact": ExactSelector,
    "landmarks": lambda: LandmarkSelector(8, 2),
    "pages shared by layers": Shared,
    "votes": lambda: VoteSelector(Vote(per_head=False, scaled=True)),
    "votes by head": lambda: VoteSelector(Vote(per_head=True, scaled=False)),
}


@pytest.mark.parametrize(
    "budget", [Budget(tokens=21), Budget(fraction=0.2), Budget(mass=0.7, cap=0.5)], ids=str
)
@pytest.mark.parametrize("name", SELECTORS)
def test_nothing_waits(name, budget, monkeypatch):
    generator = torch.Generator().manual_seed(7)
    keys = torch.randn(2, 2, TOKENS, 16, generator=generator)
    query, anchor = 3 * torch.randn(2, 4, 16, generator=generator), torch.randn(2, 4, generator=generator)
    parts = regions(TOKENS, (0, 37), 4, 9, keys.device)
    step = Step(query, stored(keys), parts, anchor, Logits(0.25), budget)
    selector = SELECTORS[name]()
    selector.build(keys, parts)
    usual = selector.select(step)
    with as_if_on_gpu(monkeypatch), without_waiting(monkeypatch):
        found = selector.select(step)
    assert torch.equal(found.counts, usual.counts)
    torch.testing.assert_close(found.mass, usual.mass, atol=1e-4, rtol=1e-4)
    most = usual.slots.shape[-1]
    assert found.slots.shape[-1] >= most
    asked = torch.arange(most) < usual.counts.unsqueeze(-1)
    assert torch.equal(found.slots[..., :most][asked], usual.slots[asked])
    assert ((found.slots >= 0) & (found.slots < TOKENS)).all()
