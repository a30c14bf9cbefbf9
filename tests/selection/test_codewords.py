"""A2ATS's selector beside a brute-force oracle, and what released code got wrong."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.attention import Logits
from keyhole.core.budget import Budget
from keyhole.core.distances import Distances
from keyhole.core.layout import regions
from keyhole.core.rope import PlainRope
from keyhole.selection import CodewordSelector, Step
from keyhole.selection.quantisers.codebook import Codebook, fit_codebook, query_metric
from tests import oracles, oracles_a2ats
from tests.layers import Layer
from tests.steps import stored


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def a_book(heads, count, size, seed=0):
    queries = draw(1, heads, 3 * size, size, seed=seed + 1) * torch.arange(1, size + 1)
    metric = query_metric(queries.transpose(-1, -2) @ queries)
    return Codebook.of(draw(1, heads, count, size, seed=seed) @ metric, metric)


def codewords_of(book, row):
    """c = z L^-1, `[H, C, D]`, and L."""
    row = 0 if len(book.points) == 1 else row
    return np.array(
        oracles.array(book.points[row]) @ np.linalg.inv(oracles.array(book.metric[row]))
    ), oracles.array(book.metric[row])


def selector(book=None, distance=50, union="share", ranges=1, **options):
    options = {"codewords": 64, "iterations": 3, "sample": 1000} | options
    ranking = Distances(PlainRope(), distance, ranges=ranges, window=3)
    return CodewordSelector(ranking, union=union, book=book, **options)


class Case:
    """Random keys of rows with padding, indexed, and a query."""

    def __init__(self, selector, *, padding, tokens, heads, groups, size, budget, sinks=2, window=3, seed=0):
        self.keys = draw(len(padding), heads, tokens, size, seed=seed)
        self.query = 2 * draw(len(padding), heads * groups, size, seed=seed + 1)
        self.parts = regions(tokens, tuple(padding), sinks, window, torch.device("cpu"))
        self.selector, self.padding, self.tokens = selector, padding, tokens
        self.anchor = draw(len(padding), heads * groups, seed=seed + 2)
        self.scale = size**-0.5
        selector.build(self.keys, self.parts)
        step = Step(self.query, stored(self.keys), self.parts, self.anchor, Logits(self.scale), budget)
        self.selection = selector.select(step)

    def logits(self, row):
        codewords, metric = codewords_of(self.selector._book, row)
        bare = oracles_a2ats.unrotated_keys(oracles.array(self.keys[row]), self.padding[row])
        coded = oracles_a2ats.codes(bare, codewords, metric)
        return oracles_a2ats.windowed_logits(
            oracles.array(self.query[row]),
            self.tokens,
            self.padding[row],
            codewords,
            coded,
            distance=self.selector.ranking.distance,
            scale=self.scale,
            ranges=self.selector.ranking.ranges,
        )

    def chosen(self, row, head):
        slots = self.selection.slots[row, head, : self.selection.counts[row, head]].tolist()
        assert slots == sorted(set(slots))
        return slots

    def rows(self):
        return range(len(self.padding))


@st.composite
def shapes(draw_):
    tokens = draw_(st.sampled_from([20, 31, 63]))
    return {
        "tokens": tokens,
        "padding": draw_(st.lists(st.integers(0, tokens - 1), min_size=1, max_size=3)),
        "heads": draw_(st.integers(1, 3)),
        "groups": draw_(st.integers(1, 4)),
        "size": draw_(st.sampled_from([4, 8])),
        "seed": draw_(st.integers(0, 99)),
    }


@settings(max_examples=30)
@given(
    shapes(), st.sampled_from([1, 2, 5, 17]), st.booleans(), st.integers(1, 70), st.sampled_from([1, 2, 4])
)
def test_reads_the_greatest_windowed_logits(shape, count, given_book, limit, ranges):
    book = a_book(shape["heads"], count, shape["size"]) if given_book else None
    case = Case(selector(book, ranges=ranges), budget=Budget(tokens=limit), **shape)
    for row in case.rows():
        _, middle, _ = oracles.regions(case.padding[row], case.tokens, 2, 3)
        always = oracles.array(case.anchor[row]).reshape(-1, 1)
        logits = case.logits(row)
        shares, fixed = oracles.group_shares(logits[:, middle], always, shape["heads"])
        for head in range(shape["heads"]):
            # Tokens of a codeword tie exactly here, and in the oracle but for rounding.
            best = oracles.top_k(shares[head].round(9).tolist(), limit)
            found = case.chosen(row, head)
            assert len(found) == min(limit, len(middle))
            assert set(found) <= set(middle)
            wanted = sorted(shares[head][best])
            np.testing.assert_allclose(
                sorted(shares[head][[n - middle[0] for n in found]]) if found else [], wanted, rtol=1e-3
            )
            held = fixed[head] + sum(wanted)
            assert float(case.selection.mass[row, head]) == pytest.approx(held, abs=1e-4)


@settings(max_examples=20)
@given(shapes(), st.integers(1, 40))
def test_turns_hold_the_union_of_each_heads_best(shape, limit):
    case = Case(
        selector(a_book(shape["heads"], 9, shape["size"]), union="turns"),
        budget=Budget(tokens=limit),
        **shape,
    )
    for row in case.rows():
        _, middle, _ = oracles.regions(case.padding[row], case.tokens, 2, 3)
        if not middle:
            continue
        logits = case.logits(row)[:, middle].round(9)
        heads = shape["heads"]
        for head in range(heads):
            found = [n - middle[0] for n in case.chosen(row, head)]
            group = logits[head * shape["groups"] : (head + 1) * shape["groups"]]
            assert len(found) == min(limit, len(middle))
            # Each head's places count; of what is left, no head puts less before it than of what is read.
            left = set(range(len(middle))) - set(found)
            worst = max(min(int((row_ > row_[n]).sum()) for row_ in group) for n in found)
            assert all(min(int((row_ > row_[n]).sum()) for row_ in group) >= worst for n in left)


def test_tokens_of_a_codeword_are_cut_from_the_lower_slot_on():
    """One codeword for all: ties, as the many tokens of a codeword are."""
    book = a_book(1, 1, 8)
    case = Case(selector(book), padding=[4], tokens=40, heads=1, groups=2, size=8, budget=Budget(tokens=5))
    assert case.chosen(0, 0) == [6, 7, 8, 9, 10]


def test_as_many_codewords_as_keys_rank_by_exact_windowed_rope():
    keys = draw(1, 1, 40, 8)
    bare = PlainRope().unrotate(keys, torch.arange(40).unsqueeze(0))
    book = Codebook.of(bare, torch.eye(8).expand(1, 1, 8, 8))
    one = selector(book)
    one.build(keys, regions(40, (0,), 0, 1, torch.device("cpu")))
    assert one.state()["labels"].flatten().tolist() == list(range(40))


def test_a_constant_distance_is_the_logit_at_that_distance():
    """q R_b k' is RoPE's own score of two tokens b apart (first test of the specification)."""
    rope, query, key = PlainRope(), draw(1, 1, 1, 16), draw(1, 1, 1, 16, seed=1)
    apart = rope.rotate(query, torch.tensor([[2048]])) @ key.transpose(-1, -2)
    for position in (0, 7, 500):
        at = torch.tensor([[position]])
        true = rope.rotate(query, at + 2048) @ rope.rotate(key, at).transpose(-1, -2)
        torch.testing.assert_close(apart, true, rtol=1e-3, atol=1e-3)


def test_more_ranges_rank_more_like_the_true_rotation():
    """A token's distance says more, the narrower its range is: with one distance each, all of it."""
    rope, query, keys = PlainRope(), draw(1, 4, 1, 32), draw(1, 4, 900, 32, seed=1)
    slots = torch.arange(900)
    true = (rope.rotate(query, torch.tensor([[899]])) @ rope.rotate(keys, slots[None]).mT).squeeze(2)
    errors = []
    for ranges in (1, 2, 4, 16):
        ranking = Distances(rope, 450, ranges=ranges, window=8)
        asked = ranking.queries(rope.rotate(query, torch.tensor([[899]])).squeeze(2), 899, torch.zeros(1))
        found = (asked.transpose(1, 2) @ keys.mT).gather(2, ranking.range_of(899 - slots).expand(1, 4, 1, -1))
        errors.append(float((found.squeeze(2) - true)[..., :880].square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2


def test_shown_queries_say_in_which_directions_keys_are_told_apart():
    keys, parts = draw(1, 2, 400, 16), regions(400, (0,), 2, 3, torch.device("cpu"))
    queries = draw(1, 4, 40, 16, seed=1) * torch.tensor([20.0] + [0.1] * 7).repeat(2)
    errors = []
    for shown in (False, True):
        one = selector(codewords=16, iterations=9, ranges=4)
        if shown:
            one.see(queries, 2, 400)
        one.build(keys, parts)
        bare = PlainRope().unrotate(keys, torch.arange(400)[None])
        book = one._book
        coded = book.encode(bare).long().unsqueeze(-1).expand(-1, -1, -1, 16)
        off = (book.points @ book.inverse).gather(2, coded) - bare
        errors.append(float(off[..., [0, 8]].square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_the_metric_measures_errors_of_logits():
    """|(k - c) L|^2 is (k - c) H (k - c)'; with an upper triangular factor it would be something else."""
    queries = draw(200, 16) * torch.arange(1, 17)
    moment = queries.T @ queries
    metric, errors = query_metric(moment), draw(50, 16, seed=1)
    assert torch.equal(metric, metric.tril())
    wanted = torch.einsum("nd,de,ne->n", errors, moment, errors)
    found = (errors @ metric).square().sum(-1)
    torch.testing.assert_close(found / found.sum(), wanted / wanted.sum(), rtol=1e-3, atol=1e-6)
    wrong = (errors @ metric.T).square().sum(-1)
    assert not torch.allclose(wrong / wrong.sum(), wanted / wanted.sum(), rtol=1e-2)


def test_knowing_the_queries_lessens_the_error_of_logits():
    keys, queries = draw(1, 2, 600, 16), draw(1, 2, 500, 16, seed=1) * torch.arange(16.0).exp2()
    moment = queries.transpose(-1, -2) @ queries
    errors = []
    for known in (None, moment):
        book = fit_codebook(keys, known, 32, iterations=20, spread=True)
        met = book.map(lambda tensor: tensor)
        products = met.products(queries, 1.0)
        codes = book.encode(keys).long().unsqueeze(2).expand(-1, -1, 500, -1)
        errors.append((products.gather(-1, codes) - queries @ keys.transpose(-1, -2)).norm())
    assert errors[1] < 0.7 * errors[0]


def test_without_known_queries_it_is_plain_k_means():
    keys = draw(2, 1, 64, 8)
    book = fit_codebook(keys, None, 4, iterations=300, spread=True)
    coded = book.encode(keys).long()
    for row in range(2):
        for word in range(4):
            mine = keys[row, 0][coded[row, 0] == word]
            assert len(mine)  # no codeword is wasted
            torch.testing.assert_close(book.points[row, 0, word], mine.mean(0), rtol=1e-3, atol=1e-3)


def test_encoding_in_pieces_is_encoding_at_once(monkeypatch):
    keys, parts = draw(2, 2, 300, 8), regions(300, (0, 9), 2, 3, torch.device("cpu"))
    whole, pieces = selector(a_book(2, 30, 8)), selector(a_book(2, 30, 8))
    whole.build(keys, parts)
    monkeypatch.setattr("keyhole.selection.codewords._CHUNK", 7)
    pieces.build(keys[:, :, :100], parts)
    pieces.append(keys[:, :, 100:])
    assert torch.equal(whole.state()["labels"], pieces.state()["labels"])
    assert whole.state()["labels"].dtype == torch.int16


def test_the_distance_changes_what_is_read_and_never_how_it_weighs():
    """The released offload path lets the constant rotation into its output; here only true logits do."""
    read = {}
    for distance in (10, 5000):
        layer = Layer(f"a2ats(budget=6, distance={distance}, window=4, sinks=2)", size=16)
        layer.append(90)
        layer.step()  # checked to be exact attention over what was read
        read[distance] = layer.observed.read.selection.slots.tolist()
    assert read[10] != read[5000]


@pytest.mark.parametrize("union", ["share", "turns"])
def test_a_life(union):
    """Prompt, steps, crop, other text, beams and state, with padding; every step checked."""
    layer = Layer(
        f"a2ats(budget=0.2, window=5, sinks=2, union={union}, codewords=16, iterations=2)",
        batch=2,
        padding=[0, 13],
    )
    layer.append(60)
    for _ in range(12):
        layer.step()
    layer.crop(51)
    layer.append(9)
    for _ in range(3):
        layer.step()
    layer.reorder([1, 1, 0])
    for _ in range(60):
        layer.step()
    assert layer.cache.footprint.device > 0
    other = Layer(f"a2ats(budget=0.2, window=5, sinks=2, union={union}, codewords=16, iterations=2)")
    other.cache.restore(layer.cache.state(), layer.cache.indexed)
    query = layer.query
    torch.testing.assert_close(
        other.cache.attend(query, layer.logits, mask=layer.mask()),
        layer.cache.attend(query, layer.logits, mask=layer.mask()),
    )


def test_a_codebook_of_its_own_is_fitted_anew_as_text_grows():
    layer = Layer("a2ats(budget=4, window=3, sinks=1, iterations=1)")
    layer.append(40)
    layer.step()
    few = layer.cache.selector._book.points.shape[2]
    for _ in range(60):
        layer.step()
    assert layer.cache.selector._book.points.shape[2] > few


def test_a_copy_shares_what_is_the_models():
    """A prompt's cache is copied for each question: codes are its own, codebook and rotation are not."""
    keys, held = draw(2, 2, 40, 8), selector(a_book(2, 30, 8))
    held.build(keys, regions(40, (0, 9), 2, 3, torch.device("cpu")))
    copied = deepcopy(held)
    assert copied._book is held._book
    assert copied.ranking.rope is held.ranking.rope
    copied.append(keys[:, :, :3])
    assert (held.length, copied.length) == (40, 43)
    assert torch.equal(held.state()["labels"], copied.state()["labels"][:, :, :40])
