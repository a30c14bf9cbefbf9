"""The map of the field: each published system on its leaf, with what serves it here, or the reason why not.

Leaves are those of Li et al., "A Survey on Large Language Model Acceleration based on KV Cache Management",
TMLR 2025, arXiv 2412.19442; systems that are younger were placed by what they do.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

LEVELS = {
    "A": "Token level",
    "B": "Model level",
    "C": "System level",
    "X": "Elsewhere",
}
_FILES = ("token.toml", "model.toml", "system.toml")


class System(NamedTuple):
    """A published system, or several that are answered alike.

    Attributes:
        name: as published.
        by: method strings that serve it, or the part of it that is a cache's; empty if nothing does.
        why: what differs, or why nothing serves it.
    """

    name: str
    by: tuple[str, ...]
    why: str


class Leaf(NamedTuple):
    """A leaf of the tree.

    Attributes:
        key: level, group and leaf, as A1c.
        title: its name.
        what: what its systems have in common.
        methods: those of ours that belong here; one that serves systems of other leaves is named there too.
        systems: all that was published and placed here.
    """

    key: str
    title: str
    what: str
    methods: tuple[str, ...]
    systems: tuple[System, ...]

    @property
    def level(self) -> str:
        """The name of its level."""
        return LEVELS[self.key[0]]


@cache
def leaves() -> tuple[Leaf, ...]:
    """All leaves in order: token level, model level, system level, and what is outside the tree."""
    here = files(__name__)
    read = (tomllib.loads((here / name).read_text(encoding="utf-8")) for name in _FILES)
    return tuple(_leaf(key, table) for tables in read for key, table in tables.items())


def leaf_of(method: str) -> Leaf | None:
    """The leaf that a method belongs to; None for one of another package."""
    return next((leaf for leaf in leaves() if method in leaf.methods), None)


def _leaf(key: str, table: Mapping[str, Any]) -> Leaf:
    systems = (_system(name, entry) for name, entry in table["systems"].items())
    return Leaf(key, table["title"], table["what"], tuple(table.get("methods", ())), tuple(systems))


def _system(name: str, entry: Mapping[str, Any]) -> System:
    by = entry.get("by", ())
    return System(name, (by,) if isinstance(by, str) else tuple(by), entry.get("why", ""))
