"""H2O and Keyformer against their definition, and what goes wrong in the released code."""

from itertools import pairwise

import pytest
import torch

from keyhole.attention import Logits, column_sums, columns
from keyhole.core.errors import SpecError
from keyhole.kernels import Noise, head_words, query_words
from keyhole.methods import H2O, METHODS, Keyformer, Recipe
from keyhole.retention import Schedule
from tests.oracles import array
from tests.oracles_eviction_keyformer import Oracle
from tests.retention_layer import Fed

SMALL = "budget=20, sinks=2, window=4"


def check_against_oracle(spec, pieces, steps=12, **options):
    """The same tokens are kept after each piece of a prompt and after each step."""
    layer = Fed(spec)
    _, heads, groups, _ = layer.shape
    oracle = Oracle(heads, groups, budget=20, sinks=2, window=4, **options)
    for count in (*pieces, *[1] * steps):
        keys, query = layer.draw(count)
        layer.feed(keys, query)
        oracle.feed(array(query[0]), array(layer.keys[0]), layer.logits.scale)
        assert layer.kept() == oracle.kept
    return layer


@pytest.mark.parametrize("pieces", [(50,), (30, 20), (2, 17, 31), (7,)], ids=str)
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("queries", [0, 6])
def test_h2o_is_its_definition(pieces, normalise, queries):
    spec = f"h2o({SMALL}, normalise={normalise}, queries={queries})"
    check_against_oracle(spec, pieces, recent=0.5, normalise=normalise, queries=queries)


@pytest.mark.parametrize("noise", ["gumbel", "gaussian", "constant", "none"])
@pytest.mark.parametrize("pieces", [(50,), (30, 20)], ids=str)
def test_keyformer_is_its_definition(noise, pieces):
    """With steps beyond the end of the schedule."""
    spec = f"keyformer({SMALL}, noise={noise}, seed=3, generate=5, tau_init=0.8)"
    check_against_oracle(
        spec, pieces, recent=0.3, noise=noise, seed=3, tau=lambda step: 0.8 + 1.2 * min(step / 5, 1)
    )


def test_temperatures():
    schedule = Schedule(1.0, 2.0, 128)
    assert [schedule.at(step) for step in (0, 64, 128, 129, 10_000)] == [1, 1.5, 2, 2, 2]


def kept_by(spec, seed=0, count=50, steps=8):
    layer = Fed(spec, seed=seed)
    for each in (count, *[1] * steps):
        layer.feed(*layer.draw(each))
    return layer.kept()


def test_without_noise_it_is_h2o():
    h2o = kept_by(f"h2o({SMALL})")
    assert kept_by(f"keyformer({SMALL}, noise=none, tau_end=1.0, recent=0.5)") == h2o
    assert kept_by(f"keyformer({SMALL}, noise=constant, tau_end=1.0, recent=0.5)") == h2o
    assert kept_by(f"keyformer({SMALL}, noise=gumbel, tau_end=1.0, recent=0.5)") != h2o


def test_seeds_and_layers_have_noise_of_their_own():
    one = f"keyformer({SMALL}, seed=1)"
    assert kept_by(one) == kept_by(one)
    assert kept_by(one) != kept_by(f"keyformer({SMALL}, seed=2)")
    layers = Recipe.parse(f"keyformer({SMALL})").layers(2)
    feed = Fed("dense").draw(50)
    for layer in layers:
        layer.append(feed[0], feed[0])
        layer.attend(feed[1], Logits(0.25))
    assert not torch.equal(layers[0].kept.positions, layers[1].kept.positions)


@pytest.mark.parametrize("name", ["h2o", "keyformer"])
def test_one_goes_for_one_that_comes(name):
    layer = Fed(f"{name}({SMALL})")
    layer.feed(*layer.draw(50))
    history = [layer.kept()]
    for _ in range(20):
        layer.feed(*layer.draw(1))
        history.append(layer.kept())
    assert {len(head) for kept in history for head in kept} == {20}
    for before, after in pairwise(history):
        for old, new in zip(before, after, strict=True):
            assert len(set(new) - set(old)) == 1 == len(set(old) - set(new))


@pytest.mark.parametrize("name", ["h2o", "keyformer"])
def test_each_query_head_gives_one(name):
    """Before anything was dropped, the weights of each query add up to one."""
    layer = Fed(f"{name}(budget=1000)", groups=3)
    layer.feed(*layer.draw(41))
    torch.testing.assert_close(layer.scores().sum(-1), torch.full((1, 2), 3 * 41.0))
    layer.feed(*layer.draw(1))
    torch.testing.assert_close(layer.scores().sum(-1), torch.full((1, 2), 3 * 42.0))


def test_divided_by_the_queries_that_saw_it():
    layer = Fed("h2o(budget=1000, normalise=true)")
    layer.feed(torch.zeros(1, 2, 4, 16), torch.zeros(1, 4, 4, 16))
    thirds = torch.tensor([(1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, (1 / 2 + 1 / 3 + 1 / 4) / 3, 7 / 24, 1 / 4])
    torch.testing.assert_close(layer.scores()[0, 0], 2 * thirds)


def likes(layer, position, count=1, strength=50.0):
    """Tokens of which queries look at the token of one position, which is unlike all others."""
    keys = 0.01 * torch.randn(1, 2, count, 16, generator=layer.random)
    start = layer.keys.shape[2]
    if start <= position < start + count:
        keys[:, :, position - start] = 1.0
    return keys, torch.full((1, 4, count, 16), strength)


def test_what_leaves_the_window_competes_and_generated_tokens_stay():
    """In the release it is dropped without ever being a candidate."""
    liked, frozen = Fed(f"h2o({SMALL})"), Fed(f"keyformer({SMALL}, freeze_keys=true, noise=none)")
    for layer in (liked, frozen):
        layer.feed(*likes(layer, 52, 50))
        for _ in range(30):
            layer.feed(*likes(layer, 52))
    assert all(52 in head for head in liked.kept())
    assert not any(52 in head for head in frozen.kept())


def test_frozen_keys_are_those_of_the_prompt():
    layer = Fed(f"keyformer({SMALL}, freeze_keys=true)")
    layer.feed(*layer.draw(50))
    chosen = [head[:-6] for head in layer.kept()]
    for step in range(1, 30):
        layer.feed(*layer.draw(1))
        assert layer.kept() == [[*keys, *range(44 + step, 50 + step)] for keys in chosen]
    layer.feed(*layer.draw(40))
    assert [head[:-6] for head in layer.kept()] != chosen  # a new prompt chooses anew


def test_a_shared_selection_is_of_the_summed_scores():
    spec = f"keyformer({SMALL}, noise=none, tau_end=1.0, shared_selection={{}})"
    shared, own = Fed(spec.format("true"), batch=2), Fed(spec.format("false"), batch=2)
    keys, query = own.draw(50)
    for layer in (shared, own):
        layer.feed(keys, query)
    assert shared.kept(0) == shared.kept(1)
    assert own.kept(0) != own.kept(1)
    sums = column_sums(query, keys, own.logits).sum(0)
    best = sums[:, 2:44].topk(20 - 2 - 6).indices.sort(-1).values + 2
    assert [head[2:-6] for head in shared.kept()] == best.tolist()


@pytest.mark.parametrize("name", ["h2o", "keyformer"])
@pytest.mark.parametrize("padding", [[0, 17], [5, 0], [9, 9]], ids=str)
def test_rows_with_padding_are_as_they_are_alone(name, padding):
    """Through prompt pieces and steps: noise goes by the text's positions, not by slots."""
    both = Fed(f"{name}({SMALL})", batch=2)
    alone = [Fed(f"{name}({SMALL})") for _ in padding]
    starts = torch.tensor(padding).view(-1, 1, 1, 1)
    for count in (30, 25, *[1] * 10):
        keys, query = both.draw(count)
        before = both.keys.shape[2]
        slots = torch.arange(before + count)
        both.feed(keys, query, (slots <= slots[before:].view(-1, 1)) & (slots >= starts))
        for row, start in enumerate(padding):
            new = max(start - before, 0)
            alone[row].feed(keys[row : row + 1, :, new:], query[row : row + 1, :, new:])
            assert both.kept(row) == alone[row].kept()


def test_heads_keep_what_their_own_queries_look_at():
    layer = Fed(f"h2o({SMALL})")
    layer.feed(*layer.draw(50))
    first, second = layer.kept()
    assert first != second


def test_equal_heads_of_a_group_are_as_one():
    one, many = Fed(f"h2o({SMALL})", groups=1), Fed(f"h2o({SMALL})", groups=4)
    for count in (50, 1, 1, 1):
        keys, query = one.draw(count)
        one.feed(keys, query)
        many.feed(keys, query.repeat_interleave(4, 1))
        assert one.kept() == many.kept()


@pytest.mark.parametrize("name", ["h2o", "keyformer"])
@pytest.mark.parametrize(
    ("budget", "sinks", "window"), [(1, 0, 1), (8, 0, 8), (8, 4, 4), (9, 4, 4), (3, 0, 1), (2, 4, 4)]
)
@pytest.mark.parametrize("length", [1, 2, 3, 8, 9, 30])
def test_small_budgets(name, budget, sinks, window, length):
    """A budget below sinks and window is as much as these; the newest token is always there."""
    layer = Fed(f"{name}(budget={budget}, sinks={sinks}, window={window})")
    for count in (length, 1, 1, 1, 5, 1):
        layer.feed(*layer.draw(count))
        there = layer.keys.shape[2]
        for head in layer.kept():
            assert len(head) == min(there, max(budget, sinks + window))
            assert head[-1] == there - 1


@pytest.mark.parametrize("name", ["h2o", "keyformer"])
def test_ties_go_to_the_lower_slot(name):
    """Equal keys differ by how many queries saw them; two saw all of those that compete."""
    options = "" if name == "h2o" else ", noise=none"
    layer = Fed(f"{name}({SMALL}, queries=2{options})")
    layer.feed(torch.zeros(1, 2, 50, 16), torch.zeros(1, 4, 50, 16))
    recent = 10 if name == "h2o" else 6
    assert layer.kept()[0] == [*range(20 - recent), *range(50 - recent, 50)]


def test_a_query_that_is_no_number_pays_nothing():
    layer = Fed("h2o(budget=1000)")
    keys, query = layer.draw(10)
    query[0, 0, 4], query[0, 3, 9, 2] = torch.nan, torch.inf
    layer.feed(keys, query)
    assert layer.scores().isfinite().all()
    torch.testing.assert_close(layer.scores().sum(-1), torch.tensor([[19.0, 19.0]]))


@pytest.mark.parametrize("kind", [None, "gumbel", "gaussian"])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_blocks_of_queries_do_not_matter(monkeypatch, kind, softcap):
    """Against the square of weights, and, bit by bit but for the products, against other blocks."""
    make = torch.Generator().manual_seed(0)
    query, keys = torch.randn(2, 4, 30, 16, generator=make), torch.randn(2, 2, 37, 16, generator=make)
    heads, places = head_words(0, 0, 4, keys.device), torch.arange(37, dtype=torch.int32).repeat(4, 1)
    words = query_words(heads.view(2, 2, 1, 2).repeat(2, 1, 1, 1), places[0, 7:])
    noise = None if kind is None else Noise(words, places, kind)
    sinks = torch.tensor([0.1, -2.0, 1.0, 0.0])
    logits, filling = Logits(0.3, softcap, sinks), torch.tensor([[0, 3], [10, 0]])
    found = []
    for block in (1, 1000, 1 << 24):
        monkeypatch.setattr(columns, "_WEIGHTS_PER_BLOCK", block)
        found.append(column_sums(query, keys, logits, filling=filling, noise=noise, temperature=1.7))
    square = query.double() @ keys.double().repeat_interleave(2, 1).mT * 0.3
    square = square if softcap is None else softcap * (square / softcap).tanh()
    if noise is not None:
        square = square + noise.sample().view(2, 4, 30, 37)
    slots = torch.arange(37)
    seen = (slots <= slots[7:].view(-1, 1)) & (slots >= filling.repeat_interleave(2, 1)[..., None, None])
    square = (square / 1.7).masked_fill(~seen, -torch.inf)
    whole = torch.cat([square, (sinks / 1.7).view(1, 4, 1, 1).expand(2, -1, 30, 1)], -1).softmax(-1)[..., :-1]
    whole = whole.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    expected = whole.sum(2).unflatten(1, (2, 2)).sum(2)
    for sums in found:
        torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_newest_share_of_the_budget_is_kept():
    layer = Fed("keyformer(budget=100, recent=0.3, sinks=0, window=8)")
    layer.feed(*layer.draw(300))
    for head in layer.kept():
        assert head[-30:] == [*range(270, 300)]
        assert len(head) == 100
    assert any(head[-31] != 269 for head in layer.kept())


def test_nothing_of_the_prompts_square_is_held():
    """Memory of the scores is one number for each token and head."""
    layer = Fed("h2o(budget=1000)")
    layer.feed(*layer.draw(200))
    assert layer.cache.retention.scorer.nbytes == 2 * (200 + 64) * 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("recent=1.5", "recent=1.5"),
        ("recent=true", "recent=True"),
        ("queries=-1", "queries=-1"),
        ("normalise=2", "normalise=2"),
        ("noise=uniform", "gumbel, gaussian, constant, none"),
        ("tau_init=0", "tau_init=0"),
        ("generate=0", "generate=0"),
        ("freeze_keys=1", "freeze_keys=1"),
        ("seed=-1", "seed=-1"),
        ("window=0", "window=0"),
    ],
)
def test_options_out_of_range(options, told):
    with pytest.raises(SpecError, match=told):
        Recipe.parse(f"keyformer({options})")


def test_published_defaults():
    assert (Keyformer().tau_init, Keyformer().tau_end, Keyformer().noise) == (1.0, 2.0, "gumbel")
    assert (Keyformer().recent, H2O().recent, Keyformer().generate) == (0.3, 0.5, 128)
    assert METHODS["h2o"] is H2O
