"""`keyhole methods --tree`."""

from keyhole.methods.taxonomy import leaves


def test_the_tree_is_printed(keyhole, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    result = keyhole("methods", "--tree")
    assert result.exit_code == 0
    told = " ".join(result.stdout.split())
    for leaf in leaves():
        assert f"{leaf.key} {leaf.title}: {leaf.what}" in told
        assert all(f"{system.name}: {' or '.join(system.by) or 'no'}" in told for system in leaf.systems)
    assert max(map(len, result.stdout.splitlines())) <= 60


def test_one_form_at_a_time(refused):
    assert "give one of them" in " ".join(refused("methods", "--tree", "--json-schema").split())
