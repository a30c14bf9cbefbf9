"""Pages made from the code: one for each method, every option in a table, results as measured."""

import re

from keyhole.methods import METHODS
from keyhole.methods.taxonomy import leaf_of, leaves
from tests.docs import DOCS, script


def test_a_page_for_each_method():
    pages = script("methods").pages(measured=False)
    assert set(pages) == {f"methods/{name}.md" for name in [*METHODS, "index"]}
    for name, kind in METHODS.items():
        page = pages[f"methods/{name}.md"]
        assert page.startswith(f"# {name}\n")
        for text in (kind.paper, kind.facts.stored, kind.facts.best_for, kind.facts.weak_at):
            assert text in page
        told = page + pages["methods/index.md"]
        for option in kind.options():
            assert f"| `{option}` |" in told, (name, option)


def test_every_leaf_and_method_is_on_the_page_of_the_tree():
    page = script("taxonomy").page()
    for leaf in leaves():
        assert f"### {leaf.key} {leaf.title}\n" in page
        assert all(f"| {system.name} | " in page for system in leaf.systems)
    for name, kind in METHODS.items():
        assert f"| [{name}]({name}.md) | {leaf_of(name).key} | {kind.paper} |" in page
    assert re.search(r"\| \[pqcache\].*\| \.\d+ \|", page)


def test_every_table_has_rows_of_one_width():
    for page in (*script("methods").pages(measured=False).values(), script("taxonomy").page()):
        for table in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE):
            assert len({line.count("|") for line in table.splitlines()}) == 1, table


def test_the_results_are_those_of_the_figures():
    results = script("results")
    held = (DOCS / "results" / "speed.md").read_text(encoding="utf-8")
    assert held == results.page(results.rows()), "run: python docs/gen/results.py"


def test_every_measured_row_is_in_a_table():
    results = script("results")
    assert len(results.rows()) == (DOCS / "benchmarks.md").read_text(encoding="utf-8").count("x |\n")
    assert all(results.table_of(row) for row in results.rows())
