"""Whether the plain fields of a record's file are what they should be, before anything is decoded."""

from __future__ import annotations

from typing import Any

_TEXTS = ("model", "method", "question", "text")
_COUNTS = {"prompt": 0, "heads": 1, "block": 1, "sinks": 0, "window": 0}  # with the least of each
_MOST = 1 << 31  # of a number of tokens


def check_fields(held: dict[str, Any]) -> None:
    """Raise ValueError for a field that is of another kind, or out of range."""
    for name in _TEXTS:
        if not isinstance(held[name], str):
            raise ValueError(f"{name} is no text")
    for name, least in _COUNTS.items():
        _check_number(name, held[name], least, _MOST)
    begin, end = _list("document", held["document"])
    _check_number("the end of the document", end, 0, _MOST)
    _check_number("the begin of the document", begin, 0, end)
    for layer in _list("layers", held["layers"]):
        _check_number("a layer", layer, 0, _MOST)
    tiers = _list("tiers", held["tiers"])
    if len(tiers) != len(held["layers"]) or not all(isinstance(tier, str) for tier in tiers):
        raise ValueError("tiers are not one text for each layer")
    for step in _list("steps", held["steps"]):
        _check_step(step)


def _check_step(step: Any) -> None:
    _check_number("first", step["first"], 0, _MOST)
    _check_number("queries", step["queries"], 1, _MOST)
    length = step["first"] + step["queries"]
    if step["token"] is not None:
        _check_number("token", step["token"], 0, _MOST)
    for name in ("best", "absent"):
        for position, share in _list(name, step[name]):
            _check_number(f"a position of {name}", position, 0, length - 1)
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 2:
                raise ValueError(f"a share of {name} is out of range")


def _check_number(what: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{what} is {str(value)[:30]}, not a whole number from {least} to {most}")


def _list(what: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is no list")
    return value
