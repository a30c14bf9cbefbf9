from dataclasses import replace

import pytest

from keyhole.cli import outputs
from keyhole.evaluation import plot
from keyhole.evaluation.rows import Row

DENSE = Row("dense", "mean", 4096, "full", 70, 0.9, 0.9, 1, 1, 1, 8e6, 9e6, 0, 0, 1.0, 5.0)
ROWS = [
    DENSE,
    replace(DENSE, method="oracle", budget="0.1", kv_bytes_read_per_token=1e6),
    replace(DENSE, method="oracle", budget="mass=0.9", mass_target=0.9, kv_bytes_read_per_token=2e6),
    replace(DENSE, method="pqcache", budget="64", accuracy=0.0, kv_bytes_read_per_token=5e5),
]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_draws(tmp_path, kind):
    path = tmp_path / f"plot.{kind}"
    plot.draw(ROWS, path)
    assert path.stat().st_size > 5000


@pytest.mark.parametrize("rows", [[DENSE], [replace(row, accuracy=0.0, context=16) for row in ROWS]])
def test_draws_the_odd_cases(tmp_path, rows):
    plot.draw(rows, tmp_path / "plot.png")


def test_every_line_is_named(tmp_path):
    plot.draw(ROWS, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    for name in ("full attention", "oracle", "pqcache", "keys, values and index read", "accuracy"):
        assert f"<!-- {name}" in text


def test_refuses_another_kind_of_file(tmp_path):
    with pytest.raises(ValueError, match=r"\.png"):
        outputs.check_plot(tmp_path / "plot.bmp")


def test_says_how_to_get_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="pip install"):
        outputs.check_plot(tmp_path / "plot.png")
