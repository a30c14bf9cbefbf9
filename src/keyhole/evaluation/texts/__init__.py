"""Real English texts that are shipped, so that what is measured on them is the same on every machine.

Excerpts of works in the public domain, of different kinds, each longer than 8,352 tokens of SmolLM2.
`sources.json` names for each the package and file that it was taken from by `tools/texts/make.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Text:
    """One excerpt.

    Attributes:
        name: short, as a row or a file may name it.
        text: paragraphs with an empty line between them.
        licence: why it may be shipped.
        source: the work: author, title, year.
        kind: of writing.
    """

    name: str
    text: str
    licence: str
    source: str
    kind: str


def texts() -> list[Text]:
    """All of them, always in the same order."""
    return list(_texts())


def text_named(name: str) -> Text:
    """One of them; ValueError lists the names."""
    for text in _texts():
        if text.name == name:
            return text
    raise ValueError(f"no text named {name!r}; there are {', '.join(text.name for text in _texts())}")


@cache
def _texts() -> tuple[Text, ...]:
    folder = files(__name__)
    records = json.loads(folder.joinpath("sources.json").read_text(encoding="utf-8"))
    return tuple(
        Text(
            name,
            folder.joinpath(f"{name}.txt").read_bytes().decode("utf-8"),
            record["licence"],
            record["title"],
            record["kind"],
        )
        for name, record in records.items()
    )
