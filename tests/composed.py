"""A layer that drops tokens and selects among the rest: what a step reads, as positions, can be checked."""

import numpy as np

from keyhole.selection import HashSelector
from tests import oracles
from tests.evictions import Evicting, check_read, check_stored
from tests.layers import Layer, slots_read


class Composed(Evicting):
    """`read` is what the last step read, by row and head; `selected` says whether it was a selection."""

    def attend(self, queries=1):
        out = Layer.attend(self, queries)
        if queries == 1:
            self.selected = self.observed is not None
            self.read = _positions(self) if self.selected else self.kept()
            if self.selected:
                _check_selection(self)
            check_read(self, out, self.read, self.observed.read.rest if self.selected else None)
        check_stored(self)
        return out


def _positions(layer):
    """The positions in the text of the slots read."""
    held = layer.cache.kept.positions
    return [
        [[int(held[row, head, slot]) for slot in slots] for head, slots in enumerate(heads)]
        for row, heads in enumerate(slots_read(layer))
    ]


def _check_selection(layer):
    """Each token once, of those that are kept: sinks and newest of these, and what the budget allows."""
    reading, selection = layer.cache.reading, layer.observed.read.selection
    for row, (reads, holds) in enumerate(zip(layer.read, layer.kept(), strict=True)):
        context = layer.length - layer.starts[row]
        for head, (read, held) in enumerate(zip(reads, holds, strict=True)):
            assert len(read) == len(set(read)), "a token is read twice"
            assert set(read) <= set(held)
            early, middle, late = oracles.regions(0, len(held), reading.sinks, reading.window)
            assert {held[slot] for slot in early + late} <= set(read)
            if reading.budget.mass is None:
                most = len(early + late) + min(reading.budget.limit(context), len(middle))
                # Who samples may find less.
                found = isinstance(layer.cache.selector, HashSelector)
                assert (len(early + late) if found else most) <= len(read) <= most
            mass = float(selection.mass[row, head])
            assert np.isfinite(mass)
            assert 0 < mass <= 1 + 1e-5
