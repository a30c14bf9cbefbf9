"""The tree of the survey: every leaf is answered, every method has one place, every string can be read."""

import pytest

from keyhole.methods import METHODS, Recipe
from keyhole.methods.taxonomy import LEVELS, leaf_of, leaves

SURVEY = (
    *("A1a", "A1b", "A1c", "A2a", "A2b", "A2c", "A3a", "A3b", "A4a", "A4b", "A4c", "A5a", "A5b", "A5c"),
    *("B1a", "B1b", "B2a", "B2b", "B3a", "B3b"),
    *("C1a", "C1b", "C2a", "C2b", "C2c", "C3a", "C3b", "C3c", "C3d"),
)


def test_every_leaf_of_the_survey():
    keys = [leaf.key for leaf in leaves()]
    assert keys == [*SURVEY, "X"]
    assert {leaf.level for leaf in leaves()} == set(LEVELS.values())
    assert all(leaf.systems for leaf in leaves())


def test_every_method_has_one_place():
    placed = [method for leaf in leaves() for method in leaf.methods]
    assert sorted(placed) == sorted(METHODS)
    for method in METHODS:
        assert method in leaf_of(method).methods
    assert leaf_of("nosuch") is None


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.key)
def test_every_system_is_answered(leaf):
    for system in leaf.systems:
        assert system.by or system.why, system.name
        for spec in system.by:
            Recipe.parse(spec)
