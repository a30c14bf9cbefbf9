"""Where two measured lines cross, and which lengths are measured to find it."""

import pytest
import torch

from keyhole.methods import Recipe
from keyhole.tuning import search as search_module
from keyhole.tuning.crossing import NEVER, Point, crossing
from keyhole.tuning.search import LENGTHS, Heads, search

HEADS = Heads(4, 2, 16, 16, torch.float32, torch.device("cpu"))
PQ = Recipe.parse("pqcache(subspaces=4, bits=4, budget=64, sinks=4, window=8)")


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([], NEVER),
        ([(512, 1, 2)], 512),
        ([(512, 2, 1)], NEVER),
        ([(512, 2, 1), (1024, 2, 4)], 683),
        ([(512, 1, 2), (1024, 3, 2), (2048, 2, 3)], 1536),
        ([(1024, 3, 1), (2048, 3, 2)], 3072),
        ([(1024, 3, 1), (2048, 5, 2)], NEVER),
        ([(1024, 3, 1), (2048, 3.01, 1.1)], NEVER),
    ],
    ids=[
        "nothing",
        "always",
        "one slower",
        "between",
        "last counts",
        "drawn on",
        "parting",
        "too far",
    ],
)
def test_crossing(points, expected):
    assert crossing([Point(*point) for point in points]) == expected


def lines(monkeypatch, selective, dense):
    """Steps that take as long as two functions of the length say; returns the lengths asked for."""
    asked = []

    def point(layer, *_):
        asked.append(layer.length)
        return Point(layer.length, selective(layer.length), dense(layer.length))

    monkeypatch.setattr(search_module, "_point", point)
    return asked


def test_search_halves_the_lengths(monkeypatch):
    asked = lines(monkeypatch, lambda n: 3000 + n / 10, lambda n: n)
    found = search(PQ, HEADS, lengths=LENGTHS[:5], seconds=600)
    assert found.settled
    assert len(asked) <= 3
    assert crossing(found.points) == round(3000 / 0.9)


def test_search_ends_early_where_lines_part(monkeypatch):
    asked = lines(monkeypatch, lambda n: 2 * n, lambda n: n)
    found = search(PQ, HEADS, lengths=LENGTHS[:5], seconds=600)
    assert found.settled
    assert len(asked) == 2
    assert crossing(found.points) == NEVER


def test_search_without_time_settles_nothing(monkeypatch):
    lines(monkeypatch, lambda n: n, lambda n: n)
    assert search(PQ, HEADS, seconds=0.0) == ([], False)


def test_lengths_that_read_everything_have_no_point():
    found = search(PQ, HEADS, lengths=(32, 64, 256), seconds=600)
    assert [point.tokens for point in found.points] == [256]
    assert all(point.selective > 0 < point.dense for point in found.points)


def test_search_tells_how_far_it_is(monkeypatch):
    lines(monkeypatch, lambda n: 2000 + 0 * n, lambda n: n)
    told: list[tuple[int, int]] = []
    search(
        PQ, HEADS, lengths=(1024, 2048), seconds=600, progress=lambda done, total: told.append((done, total))
    )
    assert told
    assert all(0 <= done <= total == 2 for done, total in told)
    assert told[-1] == (2, 2)


@pytest.mark.parametrize(
    ("sizes", "said"), [((4, 3, 16, 16), "4 query heads"), ((4, 2, 0, 16), "head_dim=0")]
)
def test_impossible_heads_are_refused(sizes, said):
    with pytest.raises(ValueError, match=said):
        Heads(*sizes, torch.float32, torch.device("cpu"))
