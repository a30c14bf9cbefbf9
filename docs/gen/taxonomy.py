"""The page of the survey's tree, and where each method stands in it. Used by docs/gen/build.py."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from keyhole.evaluation.divergence.records import read_rows
from keyhole.evaluation.divergence.rows import DivergenceRow
from keyhole.methods import METHODS
from keyhole.methods.taxonomy import LEVELS, Leaf, System, leaf_of, leaves

MEASURED = Path(__file__).parents[1] / "results" / "real-model" / "kl-4096-8-texts.json"
_HEAD = """\
# The survey's tree

Every leaf of Li et al., "A Survey on Large Language Model Acceleration based on KV Cache Management" (arXiv 2412.19442), with what serves each
published system here, or the reason why nothing does. A method may serve a system only in part; what differs is beside it. Made from the code;
`keyhole methods --tree` prints it.
"""
_METHODS = """
## Our methods

Bytes are for one KV head of one layer and one batch row; letters as on each method's page. KL: SmolLM2 after 4,096 tokens of eight texts, at a budget of
10%, [a real model](../results/real-model.md); `-`: not measured there.

| method | leaf | paper | held per token | index per token | read to select | KL |
|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The Markdown of the page."""
    levels = ["\n".join([f"\n## {name}", *map(_leaf, _of_level(key))]) for key, name in LEVELS.items()]
    measured = _divergences()
    return _HEAD + "\n".join(levels) + "\n" + _METHODS + "".join(_method(name, measured) for name in METHODS)


def _of_level(key: str) -> Iterable[Leaf]:
    return (leaf for leaf in leaves() if leaf.key.startswith(key))


def _leaf(leaf: Leaf) -> str:
    heads = ["", f"### {leaf.key} {leaf.title}", "", f"{leaf.what[0].upper()}{leaf.what[1:]}.", ""]
    return "\n".join([*heads, "| system | Keyhole | |", "|---|---|---|", *map(_system, leaf.systems)])


def _system(system: System) -> str:
    by = ", ".join(f"`{spec}`" for spec in system.by) or "no"
    return f"| {system.name} | {by} | {system.why} |"


def _method(name: str, measured: dict[str, float]) -> str:
    kind, leaf = METHODS[name], leaf_of(name)
    facts, place = kind.facts, "another package's" if leaf is None else leaf.key
    divergence = f"{measured[name]:.4f}".lstrip("0") if name in measured else "-"
    formulas = (f"`{formula}`" for formula in (facts.kept, facts.index, facts.scan))
    cells = (f"[{name}]({name}.md)", place, kind.paper, *formulas, divergence)
    return "| " + " | ".join(cells) + " |\n"


def _divergences() -> dict[str, float]:
    """Mean KL at a budget of 10% by method."""
    return {row.method: row.summary.kl_mean for row in read_rows(MEASURED) if _is_at_a_tenth(row)}


def _is_at_a_tenth(row: DivergenceRow) -> bool:
    return row.budget == "0.1" and row.complete
