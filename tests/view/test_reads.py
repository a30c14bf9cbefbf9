"""What a listener hears is what the layer read: by selection, by dropping, densely, with padding."""

import numpy as np
import pytest

from keyhole.evaluation.mass import exact
from keyhole.view.reads import reads_of
from tests.composed import Composed
from tests.evictions import Evicting
from tests.layers import Layer, slots_read
from tests.small import EVICTING, SELECTIVE, small

PADDING = [0, 9]


def heard(layer, rows=2, **options):
    """Let a layer be listened to; returns the list that the last call's reads of each row are in."""
    found = []

    def hear(event):
        if event.layer is layer.cache:
            found[:] = [reads_of(event, row, **options) for row in range(rows)]

    for cache in (*layer.before, layer.cache):
        cache.request.listener = hear
    return found


def positions(found):
    return [[head.tolist() for head in row.positions] for row in found]


def in_text(slots):
    return [
        [[slot - start for slot in head] for head in row] for row, start in zip(slots, PADDING, strict=True)
    ]


@pytest.mark.parametrize("name", SELECTIVE)
def test_selections_are_heard(name):
    layer = Layer(small(name, 0.2), batch=2, padding=PADDING)
    found = heard(layer, exact=False)
    layer.append(100)
    layer.attend(100)
    for _ in range(4):
        layer.append(1)
        layer.attend()
        assert layer.observed is not None
        expected = slots_read(layer)
        assert positions(found) == in_text(expected)
        mass = layer.observed.read.selection.mass
        for row, each in enumerate(found):
            np.testing.assert_allclose(each.missed, 1 - np.clip(mass[row].numpy(), 0, 1), atol=1e-6)
            assert each.held.tolist() == [layer.length - PADDING[row]] * 2
            assert each.counts.tolist() == [len(head) for head in expected[row]]


@pytest.mark.parametrize("name", ["oracle", "quest", "pqcache"])
def test_exact_shares_are_those_of_all_keys(name):
    layer = Layer(small(name, 0.1), batch=2, padding=PADDING)
    found = heard(layer, exact=True)
    layer.append(100)
    layer.attend(100)
    layer.append(1)
    layer.attend()
    expected = exact(layer.observed).mass.numpy()
    for row, each in enumerate(found):
        np.testing.assert_allclose(1 - each.exact, expected[row], atol=1e-5)
        shares, places = each.attention
        np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-5)
        assert (shares[places < 0] == 0).all()


@pytest.mark.parametrize("name", EVICTING)
def test_what_is_kept_is_heard(name):
    layer = Evicting(small(name, 0.3), batch=2, padding=PADDING)
    found = heard(layer, exact=True)
    layer.prompt(60)
    layer.prompt(40)
    for _ in range(4):
        layer.step()
        assert positions(found) == in_text(layer.read)
        assert all((each.missed == 0).all() and (each.exact < 1e-5).all() for each in found)
        held = [each.held.tolist() for each in found]
        assert held == [[len(head) for head in row] for row in layer.read]


def test_a_selection_among_what_is_kept():
    layer = Composed(
        "snapkv(budget=0.6, window=6) + oracle(budget=0.1, sinks=2, window=6)", batch=2, padding=PADDING
    )
    found = heard(layer, exact=True)
    layer.prompt(100)
    layer.step()
    assert layer.selected
    assert positions(found) == in_text(layer.read)
    assert any((each.exact > 0).any() for each in found)


def test_dense_layers_read_everything():
    layer = Layer("dense", batch=2, padding=PADDING)
    found = heard(layer, exact=True)
    layer.append(50)
    layer.attend(50)
    layer.append(1)
    layer.attend()
    assert positions(found) == [[list(range(51 - start))] * 2 for start in PADDING]


def test_questions_that_share_a_selection():
    layer = Layer("oracle(budget=0.1, sinks=2, window=6)")
    layer.cache.request.together = True
    layer.append(100)
    layer.attend(100)
    found = heard(layer, rows=1, exact=True)
    layer.append(7)
    layer.attend(7)
    [[one, other]] = positions(found)
    for read in (one, other):
        assert set(range(2)) | set(range(107 - 6 - 6, 107)) <= set(read)
        assert len(read) == 2 + 12 + layer.cache.reading.budget.limit(107)
    assert one != other


def test_nothing_is_heard_of_copies_and_restarts():
    from copy import deepcopy

    layer = Layer(small("quest"))
    heard(layer, exact=False)
    assert deepcopy(layer.cache).request.listener is None
    assert "listener" not in layer.cache.request.state()
