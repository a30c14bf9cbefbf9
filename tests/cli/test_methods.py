import json
from pathlib import Path

import pytest

from keyhole.cli.markdown import COMMAND
from keyhole.cli.methods import answers_of
from keyhole.methods import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_every_method_with_paper_and_answers(keyhole):
    result = keyhole("methods")
    assert result.exit_code == 0
    told = " ".join(result.stdout.split())
    for name, method in METHODS.items():
        assert name in told
        assert method.paper.split(",")[0] in told


def test_the_answers():
    assert answers_of(METHODS["dense"]) == ("dense", "everything", "device", "everything", "everything")
    assert answers_of(METHODS["pqcache"]) == ("dense", "everything", "device", "product", "everything")
    assert answers_of(METHODS["chess"]) == ("dense", "everything", "device", "everything", "channels")


def test_the_json_schema(keyhole):
    result = keyhole("methods", "--json-schema")
    assert result.exit_code == 0
    described = json.loads(result.stdout)["$defs"]
    assert set(described) == set(METHODS)
    assert described["quest"]["properties"]["page"]["minimum"] == 1
    assert described["quest"]["additionalProperties"] is False


@pytest.mark.slow
def test_the_page_of_methods_is_up_to_date(keyhole):
    result = keyhole("methods", "--markdown")
    assert result.exit_code == 0, result.output
    told = f"{PAGE.name} is not what the code says; make it anew: {COMMAND}"
    assert result.stdout == PAGE.read_text(encoding="utf-8"), told
