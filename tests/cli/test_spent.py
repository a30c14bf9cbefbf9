"""What the closing table of `keyhole generate` says of places and resident blocks."""

import re

import pytest


@pytest.fixture
def told(keyhole, model_folder, tmp_path):
    """Runs `generate` over a text of some hundred tokens; returns what is told on stderr."""
    prompt = tmp_path / "long.txt"
    prompt.write_text("The sea is wide and the ships are far away from any land. " * 12)

    def run(options):
        method = f"oracle(budget=20, sinks=2, window=6, {options})"
        arguments = {
            "--model": model_folder,
            "--prompt-file": prompt,
            "--method": method,
            "--max-new-tokens": 5,
        }
        result = keyhole("generate", *sum(arguments.items(), ()))
        assert result.exit_code == 0, result.output
        return " ".join(result.stderr.split())

    return run


def test_bytes_by_place(told):
    words = told("place=disk")
    assert re.search(r"0 on device, 0 on host, [1-9][\d.]* [KM]iB on disk", words)
    assert "block cache" not in words


def test_share_of_reads_that_resident_blocks_answered(told):
    found = re.search(r"block cache hits ([\d.]+)% of ([\d,]+) reads", told("place=disk, block_cache='2MB'"))
    assert 0 < float(found[1]) < 100
    assert int(found[2].replace(",", "")) > 0
