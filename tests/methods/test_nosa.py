"""Steps of infllm_v2 and nosa against the oracles of their rules, on every place; locality by count."""

import numpy as np
import pytest
import torch

import keyhole
from keyhole.attention import Logits
from keyhole.cli.methods import answers_of
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import Nosa, Recipe
from keyhole.selection.importance import ImportanceHead, write_heads
from keyhole.storage import BiasedStorage
from tests import oracles_nosa as oracle
from tests.heads import AnyHead, _read
from tests.tiny import tiny_model

KV, GROUPS, SIZE, VALUE = 2, 3, 16, 16
RULE = {"block": 16, "stride": 4, "init": 1, "local": 4, "blocks": 17, "recalled": 4}
OPTIONS = "block=16, stride=4, sinks=16, window=64, budget=192, dense_below=0"
HOW = Logits(SIZE**-0.5)
PLACES = ["place=device", "place=host", "place=disk", "place=host, resident=blocks, block_cache='1MB'"]


@pytest.fixture
def strong(monkeypatch):
    """Heads whose importance changes attention much."""
    head = AnyHead(seed=5, scale=0.7)
    monkeypatch.setattr(Nosa, "heads", lambda _, info: [head] * len(info))
    return head.of(KV, VALUE)


class Text:
    """A layer that is fed random tokens, beside plain tensors."""

    def __init__(self, spec, tokens, batch=1, seed=0, dtype=torch.float32):
        self.layer = Recipe.parse(spec).layers(1)[0]
        self.random = torch.Generator().manual_seed(seed)
        self.dtype = dtype
        self.keys = torch.empty(batch, KV, 0, SIZE, dtype=dtype)
        self.values = torch.empty(batch, KV, 0, VALUE, dtype=dtype)
        self.append(tokens)

    def draw(self, *shape):
        return torch.randn(shape, generator=self.random).to(self.dtype)

    def append(self, tokens):
        more = self.draw(len(self.keys), KV, tokens, SIZE), self.draw(len(self.keys), KV, tokens, VALUE)
        self.layer.append(*more)
        self.keys, self.values = (
            torch.cat(pair, 2) for pair in zip((self.keys, self.values), more, strict=True)
        )

    def step(self):
        """The query `[B, H, D]` of a new token, what it read, and the answer `[B, H, Dv]`."""
        self.append(1)
        query = 3 * self.draw(len(self.keys), KV * GROUPS, 1, SIZE)
        with self.layer.observed() as seen:
            out = self.layer.attend(query, HOW)
        return query[:, :, 0], seen[0].read if seen else None, out[:, :, 0]


def blocks_read(read, block=16):
    """For each row and head, the blocks of which a step read anything."""
    parts, (slots, counts, _) = read.regions, read.selection
    always = [
        set((row[:count] // block).tolist())
        for row, count in zip(parts.always, parts.always_counts, strict=True)
    ]
    return [
        [always[row] | set((slots[row, head, : counts[row, head]] // block).tolist()) for head in range(KV)]
        for row in range(len(slots))
    ]


def expected_blocks(text, query, importance, row, head):
    queries = query[row].unflatten(0, (KV, GROUPS))[head].double().numpy()
    keys = text.keys[row, head].double().numpy()
    if importance is None:
        return oracle.infllm_v2_blocks(queries, keys, RULE, HOW.scale)
    return oracle.nosa_blocks(queries, keys, importance[row][head], RULE, HOW.scale)


def check(text, head_of=None):
    """One step: the blocks of the rules, and attention over all of their tokens, raised by importance."""
    query, read, out = text.step()
    importance = None
    if head_of is not None:
        weights = head_of.weight.double().numpy(), head_of.scale.double().numpy()
        importance = [oracle.importance(*weights, row) for row in text.values.double().numpy()]
    for row, heads in enumerate(blocks_read(read)):
        for head, found in enumerate(heads):
            assert found == set(expected_blocks(text, query, importance, row, head))
            slots = [s for b in sorted(found) for s in range(16 * b, min(16 * b + 16, text.keys.shape[2]))]
            keys, values = (part[row, head, slots].double().numpy() for part in (text.keys, text.values))
            bias = 0.0 if importance is None else importance[row][head][slots]
            queries = query[row].unflatten(0, (KV, GROUPS))[head].double().numpy()
            answer = oracle.biased_attention(queries, keys, values, bias, HOW.scale)
            given = out[row].unflatten(0, (KV, GROUPS))[head]
            np.testing.assert_allclose(given, answer, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["infllm_v2", "nosa"])
def test_a_step_reads_the_blocks_of_the_rules(name, place, strong):
    text = Text(f"{name}({OPTIONS}, {place})", 600, batch=2)
    for _ in range(20):  # over the ends of two blocks
        check(text, strong if name == "nosa" else None)
    text.layer.crop(589)
    text.keys, text.values = text.keys[:, :, :589], text.values[:, :, :589]
    text.append(33)
    for _ in range(3):
        check(text, strong if name == "nosa" else None)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("sinks", [None, torch.linspace(-1, 1, KV * GROUPS)])
@pytest.mark.parametrize("queries", [1, 7, 40])
def test_prompts_and_whole_steps_have_the_bias(strong, queries, sinks, softcap):
    text = Text("nosa(budget=1.0, block=8, stride=2)", 40)
    query = text.draw(1, KV * GROUPS, queries, SIZE)
    how = HOW._replace(softcap=softcap, sink_logits=sinks)
    out = text.layer.attend(query, how)
    bias = strong(text.values).double()
    logits = query.double().unflatten(1, (KV, GROUPS)) @ text.keys.double().unsqueeze(2).mT * how.scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    logits = logits + bias[:, :, None, None]
    future = torch.arange(40) > torch.arange(40 - queries, 40).view(-1, 1)
    weights = logits.masked_fill(future, -torch.inf).exp()
    more = 0.0 if sinks is None else sinks.double().exp().view(1, KV, GROUPS, 1, 1)
    expected = (weights @ text.values.double().unsqueeze(2)) / (weights.sum(-1, keepdim=True) + more)
    torch.testing.assert_close(out.double(), expected.flatten(1, 2), rtol=1e-4, atol=1e-5)


def test_the_bias_is_numerator_over_denominator_of_two_calls(strong):
    text = Text("nosa(budget=1.0, block=8, stride=2)", 40)
    query, raised = text.draw(1, KV * GROUPS, 40, SIZE), strong(text.values).exp().unsqueeze(-1)
    plain = Recipe.parse("dense").layers(1)[0], Recipe.parse("dense").layers(1)[0]
    plain[0].append(text.keys, text.values * raised)
    plain[1].append(text.keys, raised.expand_as(text.values))
    above, below = (layer.attend(query, HOW) for layer in plain)
    torch.testing.assert_close(text.layer.attend(query, HOW), above / below, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_head_without_scale_changes_nothing_to_the_bit(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(Nosa, "heads", _read)
    generator = torch.Generator().manual_seed(0)
    head = ImportanceHead.initial(KV, VALUE, bias=False, generator=generator)
    write_heads(tmp_path, {0: head}, model="m")
    spec = f"nosa(head={str(tmp_path)!r}, {OPTIONS}, query_share=1.0)"
    texts = [Text(each, 600, dtype=dtype) for each in (spec, f"infllm_v2({OPTIONS})")]
    query = texts[0].draw(1, KV * GROUPS, 600, SIZE)
    texts[1].draw(1, KV * GROUPS, 600, SIZE)
    assert torch.equal(*(text.layer.attend(query, HOW) for text in texts))
    for _ in range(9):
        assert torch.equal(*(text.step()[2] for text in texts))


def test_a_zero_bias_in_channels_changes_no_step_to_the_bit():
    """The kernels add zeros: what is stored with a bias of 0 is read as without."""
    keys, values, query = torch.randn(1, 2, 50, 16), torch.randn(1, 2, 50, 12), torch.randn(1, 6, 16)
    slots, counts = torch.arange(0, 50, 3, dtype=torch.int32)[None], torch.tensor([17])
    outs = []
    for zero in (None, lambda values: torch.zeros(values.shape[:3])):
        storage = BiasedStorage(Recipe.parse("dense").layers(1)[0].storage, zero)
        storage.append(keys, values)
        outs.append(storage.attend(query, slots, counts, HOW))
    assert torch.equal(outs[0].out, outs[1].out)
    assert torch.equal(outs[0].lse, outs[1].lse)


@pytest.mark.usefixtures("strong")
@pytest.mark.parametrize(("share", "steps"), [(0.0, 100), (0.25, 1000), (0.5, 100)])
def test_of_each_of_1000_steps_the_static_share_was_read_before(share, steps):
    text = Text(f"nosa({OPTIONS}, query_share={share}, place=host)", 700)
    recalled = max(int(share * RULE["blocks"]), 1)
    static, before, least = RULE["blocks"] - recalled, None, 1.0
    for _ in range(steps):
        (now,) = blocks_read(text.step()[1])
        for head in range(KV):
            assert len(now[head]) == RULE["blocks"]
            if before is not None:
                both = len(now[head] & before[head])
                assert both >= static
                least = min(least, both / RULE["blocks"])
        before = now
    assert least < 1
    # A block that is fetched was chosen anew by the query, or is the window's next.
    block_bytes = 16 * (SIZE + VALUE + 6) * 4
    most = (steps + 1) * (recalled + 1) + RULE["blocks"]
    assert text.layer.usage.fetched <= most * KV * block_bytes


def test_unlike_queries_without_importance_change_more():
    texts = [Text(f"{name}({OPTIONS}, place=host)", 700) for name in ("nosa", "infllm_v2")]
    for text in texts:
        for _ in range(60):
            text.step()
    steady, free = (text.layer.usage for text in texts)
    assert steady.gamma > free.gamma
    assert steady.misses < free.misses
    assert steady.fetched < free.fetched


def test_without_a_model_it_can_be_described(monkeypatch):
    monkeypatch.setattr(Nosa, "heads", _read)
    assert answers_of(Nosa)[2:4] == ("biased", "static")


def test_without_a_head_it_is_refused_with_the_command(monkeypatch):
    monkeypatch.setattr(Nosa, "heads", _read)
    with pytest.raises(SpecError, match="keyhole train --selection nosa --out DIR"):
        keyhole.make_cache(tiny_model("llama"), "nosa")
    with pytest.raises(SpecError, match="kv_dtype=int8 is not supported"):
        Recipe.parse("nosa(kv_dtype=int8)")
    with pytest.raises(SpecError, match="resident=slots is not supported"):
        Recipe.parse("shadowkv(place=host, resident=slots)")
    with pytest.raises(SpecError, match="not a multiple of stride=16"):
        Recipe.parse("infllm_v2(block=40)")


@pytest.mark.usefixtures("strong")
def test_the_published_numbers_of_blocks():
    """4,096 tokens in 64 blocks: the first, the newest 17, 15 by the query, 31 by importance."""
    text = Text("nosa(dense_below=0)", 9000)
    for _ in range(3):
        read = text.step()[1]
        for found in blocks_read(read, 64)[0]:
            assert len(found) == 64
    rule = text.layer.selector.rule(47 * 64)
    assert (rule.init, rule.local, rule.blocks, rule.recalled) == (1, 16, 64, 16)


def test_heads_are_those_of_the_model(tmp_path, monkeypatch):
    monkeypatch.setattr(Nosa, "heads", _read)
    write_heads(tmp_path, {0: AnyHead(scale=1.0).of(KV, VALUE)}, model="this one")
    with pytest.raises(ValueError, match="this one, not that one"):
        Nosa(head=str(tmp_path)).heads(ModelInfo((0,), fingerprint=lambda: "that one"))
