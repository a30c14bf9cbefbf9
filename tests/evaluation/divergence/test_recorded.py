"""Rows that were measured once are found again, whatever else is installed: SmolLM2 on the shipped texts."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from keyhole.cli import app
from keyhole.core.model_files import find_model
from keyhole.evaluation.divergence import read_rows

RECORDED = Path(__file__).parent / "recorded.json"
COMMAND = (
    "compare --model smollm2 --tasks kl --context 1024 --texts 2 --tokens 16 "
    "--methods oracle,pqcache,snapkv --budgets 0.1 --threads 1 --json"
)
# In nats. Other versions and processors round differently, which may turn a token away that ranks last.
CLOSE = 1e-4


@pytest.mark.slow
def test_recorded_rows_are_found_again(tmp_path):
    try:
        find_model("smollm2")
    except ValueError as error:
        pytest.skip(str(error))
    file = tmp_path / "rows.json"
    result = CliRunner().invoke(app, [*shlex.split(COMMAND), str(file)])
    assert result.exit_code == 0, result.output
    recorded, found = read_rows(RECORDED), read_rows(file)
    assert [(row.method, row.budget) for row in found] == [(row.method, row.budget) for row in recorded]
    for before, now in zip(recorded, found, strict=True):
        # The weights, the texts, and the tokens they become.
        assert now.settings == replace(before.settings, version=now.settings.version)
        for old, new in zip(before.by_text, now.by_text, strict=True):
            assert new.kl == pytest.approx(old.kl, abs=CLOSE)
            assert (new.read, new.device) == (old.read, old.device)
            assert new.agreed == old.agreed
