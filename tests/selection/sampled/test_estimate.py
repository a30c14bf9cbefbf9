"""Attention by a sample against float64 written out, and over many draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.attention import Logits, Part, add_sink_logits, merge
from keyhole.core.budget import Budget
from keyhole.core.layout import regions
from keyhole.kernels.backend.rows import at
from keyhole.selection.base import Estimates, Means, Step
from keyhole.selection.sampled.draw import Priorities
from keyhole.selection.sampled.estimate import _by_means, _by_sample, _Read, estimate
from keyhole.storage import DeviceStorage
from tests import oracles
from tests.oracles_sampled import drawn, error_variance, sampled_attention

SIZE, GROUPS, WINDOW, SINKS = 8, 2, 4, 2


def stored_pairs(keys, values):
    storage = DeviceStorage()
    storage.append(keys, values)
    return storage


class Case:
    """A step over random tokens, of which `count` are read, and estimates of them that are `off` so much."""

    def __init__(
        self, *, tokens=60, count=20, rows=1, off=0.7, seed=0, softcap=None, sinks=None, means=False
    ):
        self.random = torch.Generator().manual_seed(seed)
        self.keys = self.draw(rows, 1, tokens, SIZE)
        self.values = self.draw(rows, 1, tokens, SIZE) + 0.5
        self.query = 2 * self.draw(rows, GROUPS, SIZE)
        self.logits = Logits(SIZE**-0.5, softcap, sinks)
        self.regions = regions(tokens, (0,) * rows, SINKS, WINDOW, torch.device("cpu"))
        self.storage = stored_pairs(self.keys, self.values)
        self.anchor = self.storage.attend(
            self.query, self.regions.always, self.regions.always_counts, self.logits
        )
        begun = self.logits.with_sinks(self.anchor.lse)
        self.step = Step(self.query, self.storage, self.regions, begun, self.logits, Budget(error=0.1))
        last = self.regions.last
        exact = self.storage.scores(self.query, self.logits)[..., :last]
        self.known = Estimates(exact + off * self.draw(*exact.shape))
        if means:
            labels = torch.randint(-1, 6, (rows, 1, last), generator=self.random)
            self.known = self.known._replace(means=Means(labels, self.draw(rows, 1, 6, SIZE) + 0.5))
        self.competes = torch.arange(last).view(1, 1, -1) >= SINKS
        self.weights = self.known.logits.exp().mean(2)
        self.chance = torch.rand(self.weights.shape, generator=self.random).clamp(min=2**-24)
        self.counts = torch.full((rows, 1), min(count, last - SINKS))

    def draw(self, *shape):
        return torch.randn(shape, generator=self.random)

    @property
    def sample(self):
        most = int(self.counts.max())
        return Priorities(self.weights, self.competes, self.chance, most).sample(self.counts)

    def found(self):
        return estimate(self.step, self.anchor, self.sample, self.known)

    def out(self):
        """The step's output, float32 `[B, G, SIZE]`."""
        sample, found = self.sample, self.found()
        part = self.storage.attend_beside(
            self.anchor, self.query, sample.slots, sample.counts.int(), self.logits
        )
        return add_sink_logits(merge(part, found.rest), self.logits).out

    def dense(self):
        slots = torch.arange(self.regions.length, dtype=torch.int32).expand(len(self.keys), -1)
        counts = torch.full((len(self.keys),), self.regions.length)
        return add_sink_logits(self.storage.attend(self.query, slots, counts, self.logits), self.logits).out


CASES = {
    "count": st.integers(1, 60),
    "tokens": st.integers(10, 70),
    "seed": st.integers(0, 99),
    "softcap": st.sampled_from([None, 3.0]),
    "sinks": st.sampled_from([None, torch.tensor([0.5, -1.0])]),
}


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries(CASES))
def test_it_is_the_estimator_written_out(options):
    check(Case(**options), counted=False)


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries(CASES))
def test_with_means_it_is_one_of_two(options):
    """By clusters, or as without them, whichever has less spread."""
    case = Case(**options, means=True)
    plain = case.step, case.anchor, case.sample, case.known._replace(means=None)
    better = case.found().error < estimate(*plain).error - 1e-6
    same = case.found().error > estimate(*plain).error - 1e-9
    for head in range(GROUPS):
        if better[0, 0, head] or same[0, 0, head]:
            check(case, counted=bool(better[0, 0, head]), heads=[head])


def check(case, *, counted, heads=(0, 1)):
    keys, values = (oracles.array(part[0, 0]) for part in (case.keys, case.values))
    numbers = (oracles.array(part[0, 0]) for part in (case.weights, case.chance))
    candidates = list(range(SINKS, case.regions.last))
    read, chances = drawn(*numbers, candidates, int(case.counts[0, 0]))
    always = [slot for slot in range(len(keys)) if slot not in candidates]
    out, sinks = case.out(), case.logits.sink_logits
    for head in heads:
        logits = keys @ oracles.array(case.query[0, head]) * case.logits.scale
        if case.logits.softcap:
            logits = case.logits.softcap * np.tanh(logits / case.logits.softcap)
        more = {}
        if counted:
            labels, rows = case.known.means.labels[0, 0], oracles.array(case.known.means.values[0, 0])
            rows = np.where((labels >= 0).numpy()[:, None], rows[labels.clamp(min=0)], np.nan)
            more = {"likely": oracles.array(case.known.logits[0, 0, head]), "means": rows}
        sink = None if sinks is None else float(sinks[head])
        expected = sampled_attention(logits, values, always, read, chances, sink=sink, **more)
        np.testing.assert_allclose(out[0, head], expected, rtol=1e-3, atol=1e-4)
        if not counted:
            weights = sum(np.exp(logits[t]) for t in always) + sum(
                np.exp(logits[t]) / chances[t] for t in read
            )
            total = weights + (0 if sink is None else np.exp(sink))
            _, length = error_variance(logits, values, expected, total, read, chances)
            error = float(estimate(*_plainly(case)).error[0, 0, head])
            assert error == pytest.approx(length / np.linalg.norm(expected), rel=1e-2, abs=1e-4)


def _plainly(case):
    return case.step, case.anchor, case.sample, case.known._replace(means=None)


@pytest.mark.parametrize("means", [False, True])
def test_all_parts_are_dense_where_everything_is_read(means):
    case = Case(count=1000, means=means)
    assert torch.equal(case.found().error, torch.zeros(1, 1, GROUPS))
    assert bool((case.found().rest.lse == -torch.inf).all())
    torch.testing.assert_close(case.out(), case.dense())
    torch.testing.assert_close(case.found().mass, torch.ones(1, 1, GROUPS))


@pytest.mark.parametrize("means", [False, True])
def test_the_rest_is_unbiased(means):
    """Over 10,000 draws, weight and weighted values of the rest, and of what was read, add up to all."""
    one, draws = Case(tokens=50, count=14, off=1.0, means=means), 10_000
    many = Case(tokens=50, count=14, off=1.0, rows=draws, means=means)
    for name in ("keys", "values", "query"):
        getattr(many, name)[:] = getattr(one, name)
    many.storage = stored_pairs(many.keys, many.values)
    many.anchor = Part(*(part.expand(draws, *part.shape[1:]) for part in one.anchor))
    many.step = many.step._replace(query=many.query, storage=many.storage, anchor_lse=many.anchor.lse)
    spread = [None if part is None else part.expand(draws, *part.shape[1:]) for part in one.known[:1]]
    known = Estimates(spread[0], None, None)
    if means:
        labels, values = one.known.means
        known = known._replace(means=Means(labels.expand(draws, -1, -1), values.expand(draws, -1, -1, -1)))
    many.known, many.weights = known, one.weights.expand(draws, -1, -1)
    sample = many.sample
    read = many.storage.attend(many.query, sample.slots, sample.counts.int(), many.logits)
    rest = sums_by_kind(many, sample, means)
    everything = one.storage.scores(one.query, one.logits)[0, 0, :, SINKS : one.regions.last].exp()
    weight = (read.lse.exp() + rest[0]).double()
    values = (read.lse.exp().unsqueeze(-1) * read.out + rest[1]).double()
    true = everything.sum(-1), everything @ one.values[0, 0, SINKS : one.regions.last]
    for found, expected in zip((weight, values), true, strict=True):
        off = (found.mean(0) - expected).abs() / (found.std(0) / draws**0.5)
        assert float(off.max()) < 4  # of 2 or 16 numbers


def sums_by_kind(case, sample, means):
    """Weight and weighted values of the rest: of each head by the estimator that is asked for."""
    keys, values, places = case.storage.picked(sample.slots)
    weights = torch.einsum("bhgd,bhsd->bhgs", case.query.unsqueeze(1), at(keys, places)) * case.logits.scale
    read = _Read(weights.exp(), at(values, places), sample.unread.unsqueeze(2), sample.meant.unsqueeze(2))
    rest = _by_means(read, case.known.means, case.known.logits.exp(), sample) if means else _by_sample(read)
    return rest.weight.squeeze(1), rest.values.squeeze(1)


def test_what_an_index_is_known_to_miss_widens_the_bound():
    """A key that codes are far off for is feared before it is read, whatever the sample shows."""
    case = Case(count=20)
    plain = case.found().error
    variance = torch.full_like(case.known.logits, 0.01)
    case.known = case.known._replace(variance=variance)
    assert bool((case.found().error >= plain).all())
    assert bool((case.found().error < 2 * plain).all())
    unread = next(slot for slot in range(SINKS, 56) if slot not in case.sample.slots[0, 0])
    variance[..., unread] = 30.0
    assert bool((case.found().error > 100 * plain).all())
    case.counts[:] = 54
    assert not case.found().error.any()
