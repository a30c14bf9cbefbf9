"""Figures: files, ratios, tables and plots of them."""

import json

import pytest

from keyhole.bench.against.figures import Figure, Measured, ratios, read_figures, write_figures
from keyhole.bench.against.plot import draw
from keyhole.bench.against.tables import lines, markdown, noise

MIB = 1 << 20


def figure(engine: str, tokens: int, ms: float, *, prompt: float | None = None) -> Figure:
    synthetic = prompt is None
    return Figure(
        engine, engine.startswith("k"), tokens, synthetic, prompt, (ms, 0.9 * ms, 1.1 * ms), MIB, 2 * MIB
    )


FIGURES = [
    figure("keyhole dense", 512, 4.0, prompt=2.0),
    figure("llama.cpp", 512, 6.0, prompt=5.0),
    figure("keyhole dense", 4096, 5.0),
    figure("llama.cpp", 4096, 20.0),
    figure("keyhole dense", 8192, 6.0),
]


def test_a_file_gives_back_what_was_written(tmp_path):
    measured = Measured(FIGURES, {"cpu": "some", "notes": ["one"]})
    write_figures(tmp_path / "sub" / "f.json", measured)
    assert read_figures(tmp_path / "sub" / "f.json") == measured


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"figures": [{"engine": 1}], "conditions": {}}'])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "f.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="bench against --json"):
        read_figures(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*none.json"):
        read_figures(tmp_path / "none.json")


def test_ratios_are_of_the_same_length():
    assert [(ours.tokens, other.step / ours.step) for ours, other in ratios(FIGURES)] == [
        (512, 1.5),
        (4096, 4.0),
    ]


def test_a_table_has_times_and_ratios():
    found = lines(FIGURES)
    assert found[0].cells == ("512", "keyhole dense", "2.00", "4.00", "3.60", "4.00", "2")
    assert [line.ratios for line in found] == [
        ("step 1.50x, prompt 2.50x",),
        ("",),
        ("step 4.00x",),
        ("",),
        ("",),
    ]
    assert found[2].cells[0] == "4,096 (synthetic)"
    page = markdown(FIGURES).splitlines()
    assert len(page) == 2 + len(FIGURES)
    assert len({line.count("|") for line in page}) == 1


def test_noise_is_named():
    slow = Figure("keyhole dense", True, 1, True, None, (1.0, 9.0, 9.0), 1, 1)
    assert noise(FIGURES) == []
    assert "9.0 times" in noise([*FIGURES, slow])[0]


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_figures_give_the_same_plot(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    drawn = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path in drawn:
        draw(FIGURES, path, title="a title")
    assert drawn[0].read_bytes() == drawn[1].read_bytes()
    assert drawn[0].stat().st_size > 5000


def test_figures_are_plain_json(tmp_path):
    write_figures(tmp_path / "f.json", Measured(FIGURES, {}))
    row = json.loads((tmp_path / "f.json").read_text())["figures"][0]
    assert row["step_ms"] == [4.0, 3.6, 4.4]
