from dataclasses import replace

import pytest

from keyhole.evaluation.divergence import plot
from tests.evaluation.divergence.test_rows import ROW

DENSE = replace(ROW, method="dense", budget="full")
ROWS = [DENSE, ROW, replace(ROW, budget="mass=0.9", mass_target=0.9)]
MANY = [DENSE, *(replace(ROW, method=f"method{i}") for i in range(40))]


@pytest.mark.parametrize("rows", [ROWS, MANY])
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_draws(tmp_path, kind, rows):
    path = tmp_path / f"plot.{kind}"
    plot.draw(rows, path)
    assert path.stat().st_size > 5000


def test_what_is_drawn_is_named(tmp_path):
    longer = [replace(row, settings=replace(row.settings, context=8192)) for row in ROWS]
    plot.draw(ROWS + longer, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    for name in ("quest", "full attention", "read per generated token", "held per sequence", "8,192"):
        assert f"<!-- {name}" in text or f"{name} of 2 texts" in text or name in text


def test_zero_and_single_texts_have_a_place(tmp_path):
    score = replace(ROW.by_text[0], kl=(0.0, 0.0))
    plot.draw([DENSE, replace(ROW, by_text=(score, replace(score, name="b")))], tmp_path / "zero.png")


def test_nothing_but_dense(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.draw([DENSE], tmp_path / "plot.png")
