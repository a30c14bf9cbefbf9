"""Which characters of a text each token stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_INCOMPLETE = "\ufffd"  # what a tokenizer makes of the first bytes of a character
_MOST_BYTES = 8  # tokens that one character may be made of


def spell(tokenizer: Any, ids: Sequence[int], written: str | None) -> tuple[str, np.ndarray]:
    """The text of `ids` and where each stands in it, int64 `[T, 2]` in characters.

    With a fast tokenizer that is `written`, the text the ids were made of, by its offsets. Ids that it would
    not make of it, at a seam of two parts or a special token in front, are decoded to find their share of the
    characters between their neighbours. Without, all of the ids are decoded. Where `written` is not known, it
    is taken to be what all of the ids decode to.
    """
    if not tokenizer.is_fast:
        return decoded(tokenizer, ids)
    written = _decode(tokenizer, list(ids)) if written is None else written
    found = tokenizer(written, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    own, theirs = np.asarray(ids), np.asarray(found.input_ids)
    offsets = np.asarray(found.offset_mapping, np.int64).reshape(-1, 2)
    before = _equal(own, theirs)
    after = _equal(own[before:][::-1], theirs[before:][::-1])
    start = int(offsets[before - 1, 1]) if before else 0
    stop = int(offsets[len(theirs) - after, 0]) if after else len(written)
    middle = _shared(tokenizer, own[before : len(own) - after].tolist(), start, max(start, stop))
    return written, np.concatenate([offsets[:before], middle, offsets[len(theirs) - after :]])


def decoded(tokenizer: Any, ids: Sequence[int]) -> tuple[str, np.ndarray]:
    """As `spell`, by decoding; tokens that make one character together all stand for it."""
    ids, parts, spans = list(ids), [], np.zeros((len(ids), 2), np.int64)
    length = start = 0
    for stop in range(1, len(ids) + 1):
        before = _decode(tokenizer, ids[max(start - 1, 0) : start])
        piece = _decode(tokenizer, ids[max(start - 1, 0) : stop])[len(before) :]
        if piece.endswith(_INCOMPLETE) and stop < len(ids) and stop - start < _MOST_BYTES:
            continue
        spans[start:stop] = length, length + len(piece)
        parts.append(piece)
        length, start = length + len(piece), stop
    return "".join(parts), spans


def as_units(text: str, spans: np.ndarray) -> np.ndarray:
    """Spans in characters as spans in UTF-16 code units, which browsers count."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return np.concatenate([[0], np.cumsum(1 + (codes > 0xFFFF))])[spans]


def _equal(one: np.ndarray, other: np.ndarray) -> int:
    """How many of the first ids are the same."""
    common = min(len(one), len(other))
    differing = np.flatnonzero(one[:common] != other[:common])
    return int(differing[0]) if len(differing) else common


def _shared(tokenizer: Any, ids: list[int], start: int, stop: int) -> np.ndarray:
    """Spans of `ids` between two characters of the text, by what they decode to; the last has the rest."""
    _, spans = decoded(tokenizer, ids)
    spans = np.minimum(spans + start, stop)
    if len(spans):
        spans[-1, 1] = stop
    return spans


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
