"""A budget of mass is held in truth, not by estimate."""

import pytest
import torch

from keyhole.attention import Logits
from keyhole.cache.prompted import Prompted
from keyhole.core.errors import SpecError
from keyhole.evaluation.mass import exact
from keyhole.methods import METHODS, Recipe

SIZE, HEADS, TOKENS, ASKED = 32, 2, 700, 24
HOW = Logits(SIZE**-0.5)
METHODS_BY_MASS = ("pqcache", "a2ats", "quest", "shadowkv(rank=32", "tokenselect", "oracle")
INDEXES = METHODS_BY_MASS[:4]


def text(rows=1, seed=0, tokens=TOKENS + ASKED):
    """Keys of passages, neighbours somewhat alike, and queries that look for a few of them."""
    random = torch.Generator().manual_seed(seed)
    passages = torch.randn(rows, HEADS, tokens // 12 + 1, 1, SIZE, generator=random)
    own = torch.randn(rows, HEADS, tokens // 12 + 1, 12, SIZE, generator=random)
    keys = (passages + own).flatten(2, 3)[:, :, :tokens]
    wanted = torch.randint(tokens, (rows, 2 * HEADS, tokens, 1), generator=random).expand(-1, -1, -1, SIZE)
    found = keys.repeat_interleave(2, 1).gather(2, wanted)
    queries = 1.2 * found + torch.randn(found.shape, generator=random)
    return keys, torch.randn(keys.shape, generator=random), queries


def layer_of(method, mass=0.9, rest="", layers=1):
    options = f"mass={mass}, dense_below=0, sinks=4, window=16{rest}"
    spec = f"{method}, {options})" if "(" in method else f"{method}({options})"
    return Recipe.parse(spec).layers(layers)[0]


def filled(layer, keys, values, queries, tokens=TOKENS, shown=64):
    layer.append(keys[:, :, :tokens], values[:, :, :tokens])
    if shown:
        layer.see(Prompted(queries[:, :, tokens - shown : tokens], HOW))
    layer.prepare()  # the prompt is complete
    return layer


def asked(layer, keys, values, queries, begin=TOKENS, steps=ASKED, mask=None):
    """The exact mass and the estimate of each step, `[steps, B, Hkv]` both, and the share of tokens read."""
    seen, found = [], []
    layer.observe(seen.append)
    for at in range(begin, begin + steps):
        layer.append(keys[:, :, at : at + 1], values[:, :, at : at + 1])
        layer.attend(queries[:, :, at : at + 1], HOW, mask=None if mask is None else mask[..., : at + 1])
        found.append((exact(seen[-1]).mass, seen[-1].read.selection.mass))
    return (torch.stack(part) for part in zip(*found, strict=True))


@pytest.mark.parametrize("target", [0.5, 0.9, 0.97])
@pytest.mark.parametrize("method", METHODS_BY_MASS)
def test_later_queries_hold_it(method, target):
    held, reported = asked(filled(layer_of(method, target), *text()), *text())
    # Nine in ten are meant; of 48 cases fewer may, by chance.
    assert (held >= target - 1e-5).float().mean() >= 0.85
    assert -0.1 < reported.mean() - held.mean() < 0.05


@pytest.mark.parametrize("method", INDEXES)
def test_without_a_prompts_queries_each_step_holds_it(method):
    layer = filled(layer_of(method), *text(), shown=0)
    held, _ = asked(layer, *text(), steps=6)
    assert (held >= 0.9 - 1e-4).all()
    assert layer.usage.read < layer.usage.tokens
    # Keys are scored for it, and that is told.
    assert layer.usage.bytes > 6 * TOKENS * SIZE * 4 * HEADS / 2


@pytest.mark.parametrize("method", INDEXES)
def test_a_row_reads_as_far_as_it_would_alone(method):
    keys, values, queries = text(rows=2)
    padding = 390
    mask = torch.ones(2, 1, 1, TOKENS + ASKED, dtype=torch.bool)
    mask[0, ..., :padding] = False
    layer = layer_of(method)
    filled(layer, keys, values, queries)
    together, _ = asked(layer, keys, values, queries, steps=3, mask=mask)
    alone, _ = asked(filled(layer_of(method), *(part[1:] for part in (keys, values, queries))),
                     *(part[1:] for part in (keys, values, queries)), steps=3)  # fmt: skip
    torch.testing.assert_close(together[:, 1:], alone, atol=1e-3, rtol=0)
    assert (together[:, 0] >= 0.85).all()


@pytest.mark.parametrize("method", INDEXES)
def test_what_was_learnt_is_kept(method):
    keys, values, queries = text(rows=2)
    layer = filled(layer_of(method), keys, values, queries)
    asked(layer, keys, values, queries, steps=1)
    other = layer_of(method)
    other.restore(layer.state(), layer.indexed)
    rest = {"begin": TOKENS + 1, "steps": 2}
    expected, _ = asked(layer, keys, values, queries, **rest)
    found, _ = asked(other, keys, values, queries, **rest)
    torch.testing.assert_close(found, expected)
    turned = torch.tensor([1, 0])
    other.crop(TOKENS + 1)
    other.reorder(turned)
    found, _ = asked(other, keys[turned], values[turned], queries[turned], **rest)
    torch.testing.assert_close(found, expected[:, turned], atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", [name for name in METHODS if name in ("delta", "mpcache")])
def test_what_cannot_promise_a_mass_refuses_it(name):
    with pytest.raises(SpecError, match="give tokens or a fraction"):
        Recipe.parse(f"{name}(mass=0.9)")


def plain(method, budget="0.1"):
    options = f"budget={budget}, dense_below=0, sinks=4, window=16)"
    return Recipe.parse(f"{method}, {options}" if "(" in method else f"{method}({options}").layers(1)[0]


@pytest.mark.parametrize("budget", ["0.1", "40"])
@pytest.mark.parametrize("method", ["shadowkv(rank=32", "a2ats", "a2ats(ranges=1", "quest"])
def test_budgets_without_a_mass_tell_what_they_hold(method, budget):
    """A mean key stands for less than its tokens hold, and what is read is what rates highest."""
    held, told = asked(filled(plain(method, budget), *text()), *text())
    _, guessed = asked(filled(plain(method, budget), *text(), shown=0), *text())
    assert (told - held).mean().abs() < 0.08  # what guesses miss by 0.44 at worst
    assert (told - held).mean().abs() < (guessed - held).mean().abs()


@pytest.mark.parametrize("method", ["shadowkv(rank=32", "a2ats"])
def test_what_a_plain_budget_learnt_is_saved_and_follows_its_rows(method):
    parts = text(rows=2)
    layer = filled(plain(method), *parts)
    asked(layer, *parts, steps=1)
    other = plain(method)
    other.restore(layer.state(), layer.indexed)
    layer.reorder(torch.tensor([1, 0]))
    swapped = [part.flip(0) for part in parts]
    _, told = asked(layer, *swapped, begin=TOKENS + 1, steps=3)
    _, restored = asked(other, *parts, begin=TOKENS + 1, steps=3)
    torch.testing.assert_close(told.flip(1), restored)
