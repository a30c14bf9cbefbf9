"""Tokens behind a prompt that share one selection, against masked attention over what they read."""

import pytest
import torch

from keyhole.attention import Logits
from keyhole.core.budget import Budget
from keyhole.methods import Recipe
from tests.small import BY_MASS, SELECTIVE, small

SINKS, WINDOW, LENGTH = 2, 6, 160


class Together:
    """A layer that selects, whose newest tokens asked together."""

    def __init__(self, method, *, asked=5, ends=None, softcap=None, sink_logits=None):
        heads, kv_heads, size = 4, 2, 16
        self.random = torch.Generator().manual_seed(3)
        layers = Recipe.parse(method).layers(3)
        self.layer = next(one for one in layers if one.selector is not None and not one.selector.reads_all)
        self.before = layers[: layers.index(self.layer)]
        self.logits = Logits(size**-0.5, softcap, sink_logits)
        self.heads, self.kv_heads, self.size = heads, kv_heads, size
        self.request = self.layer.request
        self.keys, self.values = self._draw(kv_heads, LENGTH), self._draw(kv_heads, LENGTH)
        self._call(self.keys, self.values, self._draw(heads, LENGTH), together=False)
        for one in [*self.before, self.layer]:
            one.prepare()
        self.asked = asked
        self.query = self._draw(heads, asked)
        keys, values = self._draw(kv_heads, asked), self._draw(kv_heads, asked)
        self.keys, self.values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        self.selected = self._watch()
        self.request.prompt_length = ends
        self.out = self._call(keys, values, self.query, together=True)

    def _draw(self, heads, tokens):
        return torch.randn(1, heads, tokens, self.size, generator=self.random)

    def _call(self, keys, values, query, *, together):
        self.request.together = together
        for one in [*self.before, self.layer]:
            one.arrive(keys.shape[2], lambda: False)
            one.append(keys, values)
            out = one.attend(query, self.logits)
        return out

    def _watch(self):
        """What the selector gives, and the query it was asked with."""
        seen, select = [], self.layer.selector.select

        def watched(step):
            seen.append((step, select(step)))
            return seen[-1][1]

        self.layer.selector.select = watched
        return seen

    def _beside(self, own, lse, at):
        """Attention over what was read, with the estimate of the rest merged in where there is one."""
        rest = self.layer.selector.rest(*self.selected[0])
        if rest is None:
            return own
        step, selection = self.selected[0]
        rest = self.layer.selector.rest(step._replace(query=self.query.flatten(1, 2)), selection)
        share = torch.sigmoid(lse - rest.lse[0, at])
        return share * own + (1 - share) * rest.out[0, at]

    def expected(self):
        """Each query's attention over sinks, the window of the first, those before it, and the selection."""
        (_, selection), length = self.selected[0], LENGTH + self.asked
        group, window = self.heads // self.kv_heads, WINDOW + self.asked - 1
        out = torch.empty_like(self.out)
        for head in range(self.heads):
            kv = head // group
            chosen = selection.slots[0, kv, : selection.counts[0, kv]].tolist()
            for place in range(self.asked):
                own = LENGTH + place
                always = [*range(SINKS), *range(length - window, own + 1)]
                read = torch.tensor(sorted({*always, *chosen}))
                weights = self.keys[0, kv, read] @ self.query[0, head, place] * self.logits.scale
                if self.logits.softcap:
                    weights = self.logits.softcap * torch.tanh(weights / self.logits.softcap)
                if self.logits.sink_logits is not None:
                    weights = torch.cat([weights, self.logits.sink_logits[head : head + 1]])
                shares = weights.softmax(0)[: len(read)]
                own = shares @ self.values[0, kv, read]
                out[0, head, place] = self._beside(own, weights.logsumexp(0), head * self.asked + place)
        return out


@pytest.mark.parametrize("name", [name for name in SELECTIVE if name != "shadowkv"])
def test_queries_share_what_their_mean_elects(name):
    found = Together(small(name, 24))
    torch.testing.assert_close(found.out, found.expected(), rtol=2e-4, atol=2e-4)
    step, selection = found.selected[0]
    torch.testing.assert_close(step.query, found.query.mean(2))
    assert int(selection.counts.max()) <= 24 + 7  # pages are read whole
    usage = found.layer.usage
    assert usage.steps == 1
    assert usage.tokens == LENGTH + found.asked
    always = SINKS + WINDOW + found.asked - 1
    assert usage.read == pytest.approx(float(selection.counts.float().mean()) + always)


@pytest.mark.parametrize(("ends", "last"), [(LENGTH + 5, True), (LENGTH + 6, False), (None, False)])
def test_the_last_token_of_a_prompt_elects_for_those_before_it(ends, last):
    found = Together("oracle(budget=24, sinks=2, window=6)", ends=ends)
    step, _ = found.selected[0]
    torch.testing.assert_close(step.query, found.query[:, :, -1] if last else found.query.mean(2))
    torch.testing.assert_close(found.out, found.expected(), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_sink_logits_and_softcaps(softcap):
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    found = Together("oracle(budget=24, sinks=2, window=6)", softcap=softcap, sink_logits=sinks)
    torch.testing.assert_close(found.out, found.expected(), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", BY_MASS)
def test_all_of_the_mass_is_exact(name):
    found = Together(small(name, Budget(mass=1.0, floor=1_000_000)))
    keys, values = (part.repeat_interleave(2, 1) for part in (found.keys, found.values))
    weights = found.query @ keys.transpose(-1, -2) * found.logits.scale
    own = torch.arange(LENGTH, LENGTH + found.asked).view(-1, 1)
    weights = weights.masked_fill(torch.arange(weights.shape[-1]) > own, -torch.inf)
    tolerance = 2e-4 if name != "shadowkv" else 2e-3
    torch.testing.assert_close(found.out, weights.softmax(-1) @ values, rtol=tolerance, atol=tolerance)


def test_one_token_that_is_no_generated_one_is_read_alike():
    found = Together("oracle(budget=24, sinks=2, window=6)", asked=1)
    torch.testing.assert_close(found.out, found.expected(), rtol=2e-4, atol=2e-4)


def test_a_long_question_reads_everything():
    """Where little is left before its window, there is nothing to select."""
    layer = Recipe.parse("oracle(budget=24, sinks=2, window=6)").layers(1)[0]
    layer.request.together = True
    random = torch.Generator().manual_seed(0)
    for tokens in (20, 150):
        keys, values = (torch.randn(1, 2, tokens, 16, generator=random) for _ in range(2))
        layer.arrive(tokens, lambda: False)
        layer.append(keys, values)
        layer.attend(torch.randn(1, 4, tokens, 16, generator=random), Logits(0.25))
    assert layer.usage.steps == 0
