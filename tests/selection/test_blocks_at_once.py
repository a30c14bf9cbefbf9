"""The native choice of blocks against the rules it stands for: slots, counts, estimated mass."""

import pytest
import torch

from keyhole import kernels
from keyhole.attention import Logits
from keyhole.methods import Nosa, Recipe
from keyhole.selection import compressed
from tests.heads import AnyHead

pytestmark = pytest.mark.skipif(not kernels.native_available(), reason="there is no native library")
BATCH, KV, GROUPS, SIZE = 3, 2, 3, 16
HOW = Logits(SIZE**-0.5)
SIZES = ["block=16, stride=4", "block=8, stride=8", "block=6, stride=1", "block=64, stride=16"]


@pytest.fixture(autouse=True)
def strong(monkeypatch):
    monkeypatch.setattr(Nosa, "heads", lambda _, info: [AnyHead(seed=5, scale=0.7)] * len(info))


def steps(spec, tokens, padding, natively, monkeypatch, count=5):
    """What the steps of a layer select, and what they answer."""
    if not natively:
        monkeypatch.setattr(compressed, "picks_blocks_natively", lambda _: False)
    layer = Recipe.parse(spec).layers(1)[0]
    random = torch.Generator().manual_seed(tokens)

    def draw(*shape):
        return torch.randn(shape, generator=random)

    def mask(length):
        return torch.arange(length) >= torch.tensor(padding).view(-1, 1, 1, 1)

    layer.append(draw(BATCH, KV, tokens, SIZE), draw(BATCH, KV, tokens, SIZE))
    layer.prepare(mask(tokens))
    found = []
    for _ in range(count):
        layer.append(draw(BATCH, KV, 1, SIZE), draw(BATCH, KV, 1, SIZE))
        with layer.observed() as seen:
            out = layer.attend(3 * draw(BATCH, KV * GROUPS, 1, SIZE), HOW, mask=mask(layer.length))
        found.append((seen[0].read.selection, out))
    monkeypatch.undo()
    monkeypatch.setattr(Nosa, "heads", lambda _, info: [AnyHead(seed=5, scale=0.7)] * len(info))
    return found


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("budget", ["64", "0.3", "500"])
@pytest.mark.parametrize("padding", [[0, 0, 0], [0, 37, 301]])
@pytest.mark.parametrize("name", ["infllm_v2", "nosa"])
def test_as_by_the_rules(name, padding, budget, sizes, monkeypatch):
    spec = f"{name}({sizes}, sinks=16, window=70, budget={budget}, dense_below=0)"
    pairs = [steps(spec, 603, padding, natively, monkeypatch) for natively in (True, False)]
    for (found, out), (expected, wanted) in zip(*pairs, strict=True):
        assert torch.equal(found.counts, expected.counts)
        assert torch.equal(found.slots, expected.slots)
        torch.testing.assert_close(found.mass, expected.mass, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", [150, 191, 200, 260])
def test_where_hardly_a_window_is_whole(tokens, monkeypatch):
    spec = "nosa(block=64, stride=64, sinks=2, window=70, budget=64, dense_below=0)"
    pairs = [steps(spec, tokens, [0, 3, 9], natively, monkeypatch, 3) for natively in (True, False)]
    for (found, _), (expected, _) in zip(*pairs, strict=True):
        assert torch.equal(found.slots, expected.slots)
        torch.testing.assert_close(found.mass, expected.mass, rtol=1e-4, atol=1e-5)


def test_of_equal_blocks_the_lower_ones(monkeypatch):
    """Keys that are all alike: every window has the same share."""
    for natively in (True, False):
        if not natively:
            monkeypatch.setattr(compressed, "picks_blocks_natively", lambda _: False)
        layer = Recipe.parse("infllm_v2(block=16, stride=4, sinks=0, window=16, budget=64, dense_below=0)")
        layer = layer.layers(1)[0]
        layer.append(torch.zeros(1, KV, 301, SIZE), torch.zeros(1, KV, 301, SIZE))
        with layer.observed() as seen:
            layer.attend(torch.ones(1, KV * GROUPS, 1, SIZE), HOW)
        # One of the four is the block that the window cuts through.
        assert seen[0].read.selection.slots[0, 0, :48].tolist() == list(range(48))
