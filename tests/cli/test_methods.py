import json

from keyhole.cli.methods import answers_of
from keyhole.methods import METHODS


def test_every_method_with_paper_and_answers(keyhole):
    result = keyhole("methods")
    assert result.exit_code == 0
    told = " ".join(result.stdout.split())
    for name, method in METHODS.items():
        assert name in told
        assert method.paper.split(",")[0] in told


def test_a_list_on_a_narrow_terminal(keyhole, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    result = keyhole("methods")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 60
    assert "quest (Quest, arXiv 2406.10774)" in result.stdout
    assert "(select: coded box)" in " ".join(result.stdout.split())


def test_the_answers():
    assert answers_of(METHODS["dense"]) == ("dense", "everything", "device", "everything", "everything")
    assert answers_of(METHODS["pqcache"]) == ("dense", "everything", "device", "product", "everything")
    assert answers_of(METHODS["chess"]) == ("dense", "everything", "device", "everything", "channels")


def test_the_json_schema(keyhole):
    result = keyhole("methods", "--json-schema")
    assert result.exit_code == 0
    described = json.loads(result.stdout)["$defs"]
    assert set(described) == set(METHODS)
    assert described["quest"]["properties"]["window"]["minimum"] == 1
    assert described["quest"]["additionalProperties"] is False
