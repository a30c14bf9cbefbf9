"""The page of runs against other engines: made from their files, and as the files say."""

import pytest

from keyhole.bench.against.figures import Figure, Measured
from tests.docs import DOCS, script


def run(command: str, *lengths: int) -> Measured:
    figures = [
        figure
        for tokens in lengths
        for figure in (
            Figure("keyhole dense", True, tokens, False, 2.0, (4.0, 4.1), 1 << 20, 1 << 21),
            Figure("llama.cpp", False, tokens, False, 4.0, (8.0, 8.2), 1 << 20, 1 << 21),
        )
    ]
    known = {
        "file": "some.gguf",
        "random_weights": True,
        "dtype": "float32",
        "threads": 2,
        "cores": 2,
        "cpu": "a processor",
        "system": "Linux",
        "versions": {"torch": "2.13"},
        "date": "2026-12-01",
        "command": command,
        "engines": {"llama.cpp": "llama-cpp-python 0.3.36; CPU : AVX2 = 1 | AVX512 = 1 | "},
        "notes": ["a note"],
    }
    return Measured(figures, known)


def test_a_section_for_each_file():
    page = script("against").page(
        {"one": run("keyhole bench against", 512), "two": run("keyhole bench against -q", 512, 1024)}
    )
    assert page.count("## some, random weights, float32, 2 threads, a processor") == 2
    assert "`keyhole bench against`, measured on 2026-12-01" in page
    assert "![step time over context length](against/two.svg)" in page
    assert "against/one.svg" not in page  # one length makes no line
    assert "- llama.cpp: llama-cpp-python 0.3.36; CPU : AVX2, AVX512\n- a note\n" in page
    assert "| 512 | `keyhole dense` | 2.00 | 4.05 | 4.00 | 4.05 | 2 | step 2.00x, prompt 2.00x |" in page


def test_the_page_is_that_of_the_files():
    against = script("against")
    found = against.measured()
    if not found:
        pytest.skip("nothing was measured yet: there is no file in docs/results/against")
    held = (DOCS / "results" / "against.md").read_text(encoding="utf-8")
    assert held == against.page(found), "run: python docs/gen/against.py"
    plots = {path.stem for path in (DOCS / "results" / "against").glob("*.svg")}
    assert plots == {name for name, one in found.items() if against.lengths(one) > 1}
