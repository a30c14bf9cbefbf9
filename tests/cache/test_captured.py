"""Layers whose steps are of fixed size attend as ordinary ones do, whatever the method."""

import re

import pytest
import torch

from keyhole.attention import Logits
from keyhole.cache.captured import CapturedLayer, check_capturable, release
from keyhole.cache.position import DecodePosition
from keyhole.methods import Recipe
from tests.steps import indexed_one_by_one

LAYERS, BATCH, HEADS, GROUPS, SIZE = 3, 2, 2, 2, 16
PROMPT, NEW, WINDOW = 70, 20, 7
HOW = Logits(SIZE**-0.5, softcap=8.0, sink_logits=torch.linspace(-1, 1, HEADS * GROUPS))
COMMON = f"sinks=3, window={WINDOW}, dense_below=0"
SPECS = [
    f"quest(budget=17, page=4, {COMMON})",
    f"quest(budget=0.3, page=16, {COMMON})",
    f"quest(budget=0.3, page=16, box_dtype=auto, {COMMON})",
    f"tokenselect(budget=17, {COMMON})",
    f"tokenselect(budget=0.2, per_head=true, scaled_vote=false, {COMMON})",
    f"tokenselect(budget=17, distance=30, {COMMON})",
    f"shadowkv(budget=17, chunk=4, outliers=2, rank=32, {COMMON})",
    f"shadowkv(budget=0.3, chunk=8, outliers=1, rank=20, {COMMON})",
    f"shadowkv(budget=17, rank=32, window={WINDOW}, dense_below=500)",
    f"delta(budget=17, page=4, full=(0,), {COMMON})",
    f"delta(budget=0.3, page=4, full=(1,), {COMMON})",
    f"delta(budget=17, leaders=(0,), {COMMON})",
    f"a2ats(budget=17, codewords=16, distance=30, {COMMON})",
    f"a2ats(budget=0.2, union=turns, codewords=16, distance=30, {COMMON})",
    f"pqcache(budget=17, bits=4, {COMMON})",
    f"infllm_v2(budget=16, block=8, stride=4, {COMMON})",
    f"infllm_v2(budget=0.3, block=4, stride=2, {COMMON})",
    f"nosa(budget=16, block=4, stride=2, {COMMON})",
    f"nosa(budget=0.3, block=4, stride=4, {COMMON})",
    f"oracle(budget=17, {COMMON})",
    f"oracle(budget=0.3, {COMMON})",
]


class Text:
    """Tokens of all layers, and queries for those behind the prompt."""

    def __init__(self, padding=(0, 9), seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.padding = padding
        shape = LAYERS, BATCH, HEADS, PROMPT + NEW, SIZE
        self.keys, self.values = (torch.randn(shape, generator=generator) for _ in range(2))
        self.queries = 3 * torch.randn(LAYERS, BATCH, HEADS * GROUPS, NEW, SIZE, generator=generator)

    def filled(self, spec):
        """Layers that hold the prompt, and have indexed it."""
        layers = Recipe.parse(spec).layers(LAYERS)
        for layer, keys, values in zip(layers, self.keys, self.values, strict=True):
            layer.append(keys[:, :, :PROMPT], values[:, :, :PROMPT])
            layer.prepare(self.mask(PROMPT))
        return layers

    def mask(self, length):
        return torch.arange(length) >= torch.tensor(self.padding).view(-1, 1, 1, 1)

    def step(self, layers, nth):
        """What each of the layers answers."""
        slot, found = PROMPT + nth, []
        for index, layer in enumerate(layers):
            token = slice(slot, slot + 1)
            layer.append(self.keys[index][:, :, token], self.values[index][:, :, token])
            query = self.queries[index][:, :, nth : nth + 1]
            found.append(layer.attend(query, HOW, mask=self.mask(slot + 1)))
        return torch.stack(found)

    def fixed(self, layers):
        """Their stand-ins, all memory that is not written yet being poison."""
        position = DecodePosition(PROMPT, PROMPT + NEW, self.padding, torch.device("cpu"))
        stand_ins = [CapturedLayer(layer, position) for layer in layers]
        for each in stand_ins:
            each.storage.keys(PROMPT)[:], each.storage.values(PROMPT)[:] = torch.nan, torch.nan
        return position, stand_ins


def run(text, position, layers, steps):
    found = []
    for nth in range(steps):
        found.append(text.step(layers, nth))
        position.advance()
    return found


def with_budget_of_the_end(spec):
    """A share is one of the longest context there is room for."""
    return re.sub(r"0\.\d", lambda share: str(round(float(share[0]) * (PROMPT + NEW))), spec)


@pytest.mark.parametrize("spec", SPECS)
def test_steps_are_those_of_a_layer_cache(spec):
    text = Text((0, 0) if "0." in spec else (0, 9))
    ordinary = indexed_one_by_one(text.filled(with_budget_of_the_end(spec)))
    position, layers = text.fixed(text.filled(spec))
    for nth, found in enumerate(run(text, position, layers, NEW)):
        torch.testing.assert_close(found, text.step(ordinary, nth), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_steps_that_were_taken_back_leave_nothing(spec):
    text, other = Text(), Text(seed=1)
    position, layers = text.fixed(text.filled(spec))
    expected = run(text, position, layers, NEW)
    position, layers = text.fixed(text.filled(spec))
    run(other, position, layers, NEW - 3)
    position.rewind()
    position.forget()
    torch.testing.assert_close(run(text, position, layers, NEW), expected)


@pytest.mark.parametrize("steps", [0, 1, 5, WINDOW, 13])
@pytest.mark.parametrize("spec", [spec for spec in SPECS if not spec.startswith("pqcache")])
def test_a_layer_cache_is_left(spec, steps):
    """It knows the tokens of the steps that count, and no others."""
    text, other = Text(), Text(seed=1)
    held = text.filled(spec)
    position, layers = text.fixed(held)
    run(other, position, layers, NEW)
    position.rewind()
    position.forget()
    run(text, position, layers, steps)
    release(layers, position, steps)
    for layer, ordinary, keys, values in zip(held, text.filled(spec), text.keys, text.values, strict=True):
        came = slice(PROMPT, PROMPT + steps)
        ordinary.append(keys[:, :, came], values[:, :, came])
        torch.testing.assert_close(layer.storage.state(), ordinary.storage.state())
        assert layer.usage.steps == steps
        if layer.selects:
            for selector in (layer.selector, ordinary.selector):
                selector.append(keys[:, :, selector.length : came.stop])
            torch.testing.assert_close(layer.selector.state(), ordinary.selector.state())


@pytest.mark.parametrize("spec", SPECS)
def test_ordinary_steps_follow(spec):
    # Summaries of single tokens know no moment at which they were made.
    text, of_tokens = Text(), re.sub(r"(page|chunk)=\d+", r"\1=1", spec)
    held, ordinary = text.filled(of_tokens), text.filled(of_tokens)
    position, layers = text.fixed(held)
    run(text, position, layers, 9)
    release(layers, position, 9)
    for nth in range(NEW):
        expected = text.step(ordinary, nth)
        if nth >= 9:
            torch.testing.assert_close(text.step(held, nth), expected, rtol=1e-4, atol=1e-5)


def test_what_has_no_fixed_size_is_named():
    text = Text()
    position = DecodePosition(PROMPT, PROMPT + NEW, text.padding, torch.device("cpu"))
    told = {
        f"tokenselect(budget=17, reuse=0.9, {COMMON})": "elects in some steps only",
        f"quest(mass=0.9, {COMMON})": "give tokens or a fraction",
        f"oracle(error=0.1, {COMMON})": "give tokens or a fraction",
        f"quest(budget=17, kv_dtype=int8, {COMMON})": "PlacedStorage",
        f"shadowkv(budget=17, place=host, {COMMON})": "fetched from another tier",
        f"tokenselect(budget=17, renumber=true, sparse_prefill=true, {COMMON})": "with renumber",
        "h2o(budget=20)": "drops tokens",
    }
    for spec, why in told.items():
        layer = text.filled(spec)[-1]
        with pytest.raises(ValueError, match=rf"^{spec.split('(')[0]}\(.*{why}.*; decode without capturing$"):
            check_capturable(layer, position)
