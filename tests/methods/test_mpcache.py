"""MPCache's layers together: pairs keep and read the same, the first two are on their own."""

import pytest
import torch

from keyhole.attention import Logits
from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import METHODS, Recipe
from keyhole.selection import ClusterSelector, FollowingClusters

OPTIONS = "keep=0.5, budget=8, sinks=2, window=6, fine=2, coarse=6, dense_below=0, share=true"


class Model:
    """Layers of one request; what each reads is noted by position."""

    def __init__(self, spec, layers=6, *, seed=0, heads=2):
        self.layers = Recipe.parse(spec).layers(layers)
        self.random, self.heads = torch.Generator().manual_seed(seed), heads
        self.reads = [None] * layers
        for index, layer in enumerate(self.layers):
            layer.observe(lambda seen, index=index: self.note(index, seen.read))

    def note(self, index, read):
        slots = read.selection.slots.long()
        kept = getattr(self.layers[index], "kept", None)
        self.reads[index] = (slots if kept is None else kept.positions.gather(-1, slots)).tolist()

    def feed(self, tokens):
        self.reads = [None] * len(self.layers)
        for layer in self.layers:
            keys, values, query = (
                torch.randn(2, heads, tokens, 16, generator=self.random)
                for heads in (self.heads, self.heads, 2 * self.heads)
            )
            layer.append(keys, values)
            layer.attend(3 * query, Logits(0.25))

    def kept(self):
        return [layer.kept.positions.tolist() for layer in self.layers]


def grouped(found):
    """For each layer the first that has the same."""
    return [found.index(each) for each in found]


def test_pairs_keep_and_read_the_same():
    model = Model(f"mpcache({OPTIONS})", 7)
    model.feed(90)
    for _ in range(20):
        model.feed(1)
        assert grouped(model.kept()) == [0, 1, 2, 2, 4, 4, 6]
        assert grouped(model.reads) == [0, 1, 2, 2, 4, 4, 6]
    for layer in model.layers:
        layer.crop(layer.length - 3)
        layer.reorder(torch.tensor([1, 1]))
    model.feed(30)
    model.feed(1)
    assert grouped(model.kept()) == grouped(model.reads) == [0, 1, 2, 2, 4, 4, 6]


def test_layers_of_their_own():
    model = Model(f"mpcache({OPTIONS}, per_head=true)".replace("share=true", "share=false"))
    model.feed(90)
    model.feed(1)
    assert grouped(model.kept()) == grouped(model.reads) == [0, 1, 2, 3, 4, 5]
    row = model.kept()[0][0]
    assert row[0] != row[1]


def test_heads_keep_the_same_unless_asked():
    model = Model(f"mpcache({OPTIONS})")
    model.feed(90)
    model.feed(1)
    assert all(row[0] == row[1] for layer in model.kept() for row in layer)


def test_a_follower_has_no_index():
    model = Model(f"mpcache({OPTIONS})", 4)
    model.feed(90)
    model.feed(1)
    kinds = [type(layer.selector) for layer in model.layers]
    assert kinds == [ClusterSelector, ClusterSelector, ClusterSelector, FollowingClusters]
    assert [layer.selector.nbytes > 0 for layer in model.layers] == [True, True, True, False]


def test_a_follower_alone_is_refused():
    *_, leader, follower = Recipe.parse(f"mpcache({OPTIONS})".replace("keep=0.5", "keep=1.0")).layers(4)
    keys = torch.randn(1, 2, 60, 16)
    follower.append(keys, keys)
    with pytest.raises(ValueError, match="without its leader"):
        follower.attend(torch.randn(1, 4, 1, 16), Logits(0.25))
    more = torch.randn(1, 4, 60, 16)
    leader.append(more, more)
    leader.attend(torch.randn(1, 8, 1, 16), Logits(0.25))
    with pytest.raises(ValueError, match="2 KV heads"):
        follower.attend(torch.randn(1, 4, 1, 16), Logits(0.25))


def test_everything_kept_and_read_is_dense():
    for spec in (
        "mpcache(keep=1.0, budget=1.0)",
        "mpcache(keep=1000, budget=1000)",
        "mpcache(keep=1000, budget=1.0)",
    ):
        found, dense = Model(spec), Model("dense")
        for model in (found, dense):
            model.feed(300)
            model.feed(1)
        for mine, plain in zip(found.layers, dense.layers, strict=True):
            assert torch.equal(mine.storage.keys(), plain.storage.keys())
            assert mine.usage.read == mine.usage.tokens == 301


def test_keeping_everything_leaves_that_question_to_others():
    assert METHODS["mpcache"](keep=1.0).retention(ModelInfo.of(2)) is None
    assert len(METHODS["mpcache"](keep="40%").retention(ModelInfo.of(2))) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": Budget(mass=0.9)}, "number of tokens depend on the text"),
        ({"keep": "mass=0.9"}, "number of tokens depend on the text"),
        ({"coarse": 20}, "multiple of fine=8"),
        ({"coarse": 4}, "at least 8"),
        ({"kernel": 4}, "kernel=4 is even"),
        ({"alpha": 1.5}, "give a number, 0 to 1"),
        ({"survivors": -0.1}, "give a number, 0 to 1"),
        ({"share": 1}, "true nor false"),
    ],
)
def test_options_out_of_range(options, said):
    with pytest.raises(SpecError, match=said):
        METHODS["mpcache"](**options)


def test_text_and_back():
    spec = "mpcache(budget=0.05, keep=0.3, share=True, alpha=0.5)"
    assert str(Recipe.parse(spec)) == spec
    assert Recipe.parse(str(Recipe.parse(spec))) == Recipe.parse(spec)
