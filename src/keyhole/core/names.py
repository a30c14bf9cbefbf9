"""What a document may be called."""

from __future__ import annotations

from unicodedata import category

_UNFIT = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of characters, ends of lines


def fits(char: str) -> bool:
    """Whether a character may be part of a name."""
    return category(char) not in _UNFIT


def check_name(name: str) -> None:
    """Raises ValueError for a name that would break a list of names."""
    if not name or not all(map(fits, name)):
        raise ValueError(f"a document's name must be one line without control characters, not {name!r}")
