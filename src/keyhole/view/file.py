"""A record as a file of JSON, and back; `docs/reference/record.md` has the format and its bound."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keyhole.core.files import write_whole
from keyhole.view.checks import check_fields
from keyhole.view.coding import decode_set, from_text, read_varints, split_sets, to_text, varints
from keyhole.view.record import Record, Step, coarser

FORMAT, VERSION = "keyhole-record", 1
MOST = 32 << 20  # bytes of a file
_NUMBERS = {"counts": "<u4", "held": "<u4", "missed": "<f4", "exact": "<f4"}
_BY_LAYER = {"nbytes": "<f8", "cached": "<f4"}
_PLAIN = ("model", "method", "question", "text", "prompt", "heads", "block", "sinks", "window")


class RecordError(ValueError):
    """A file is no record, or a damaged one."""


def to_json(record: Record, most: int = MOST) -> bytes:
    """The file of a record, of at most so many bytes; blocks become longer until it fits.

    Raises:
        ValueError: it does not fit at any length of blocks.
    """
    while len(data := _json(record)) > most:
        if record.block >= len(record.spans):
            raise ValueError(
                f"the record of {len(record.steps):,} steps takes {len(data):,} bytes, more than {most:,}; "
                "generate fewer tokens"
            )
        record = coarser(record)
    return data


def from_json(data: bytes) -> Record:
    """The record of a file.

    Raises:
        RecordError: it is none, or damaged, with what is wrong.
    """
    try:
        held = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"this is no record of a run: {error}") from error
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise RecordError("this is no record of a run; `keyhole ask ... --record FILE` writes one")
    if held.get("version") != VERSION:
        raise RecordError(
            f"a record of version {held.get('version')!r}; this Keyhole reads version {VERSION}"
        )
    try:
        check_fields(held)
        return _checked(_record(held))
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, MemoryError) as error:
        raise RecordError(f"the record is damaged: {type(error).__name__}: {error}") from error


def write_record(record: Record, path: str | Path, most: int = MOST) -> None:
    """Write a record to a file, whole or not at all."""
    data = to_json(record, most)
    write_whole(Path(path).expanduser(), lambda temporary: temporary.write_bytes(data))


def read_record(path: str | Path) -> Record:
    """The record of a file; raises as `from_json`, with the path."""
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise RecordError(f"cannot read {str(path)!r}: {error.strerror}") from error
    try:
        return from_json(data)
    except RecordError as error:
        raise RecordError(f"{str(path)!r}: {error}") from error


def _json(record: Record) -> bytes:
    steps = record.steps
    plain = {name: getattr(record, name) for name in _PLAIN}
    spans = {
        "starts": to_text(varints(np.diff(record.spans[:, 0], prepend=0))),
        "lengths": to_text(varints(record.spans[:, 1] - record.spans[:, 0])),
    }
    held: dict[str, Any] = {"format": FORMAT, "version": VERSION} | plain | spans
    held |= {"document": list(record.document), "layers": list(record.layers), "tiers": list(record.tiers)}
    held["steps"] = [_facts(step) for step in steps]
    held["sets"] = to_text(b"".join(b"".join(step.sets) for step in steps))
    held["unions"] = to_text(b"".join(step.union for step in steps))
    for name, kind in (_NUMBERS | _BY_LAYER).items():
        parts = [getattr(step, name) for step in steps]
        whole = all(part is not None for part in parts)
        held[name] = to_text(np.asarray(parts, kind).tobytes()) if whole else None
    return json.dumps(held, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _facts(step: Step) -> dict[str, Any]:
    facts: dict[str, Any] = {"first": step.first, "queries": step.queries, "token": step.token}
    for name in ("best", "absent"):
        facts[name] = [[position, round(share, 7)] for position, share in getattr(step, name)]
    return facts


def _record(held: dict[str, Any]) -> Record:
    starts = np.cumsum(read_varints(from_text(held["starts"])))
    spans = np.stack([starts, starts + read_varints(from_text(held["lengths"]))], axis=1)
    layers, count = tuple(held["layers"]), len(held["steps"])
    shape = (count, len(layers), held["heads"])
    arrays = _arrays(held, _NUMBERS, lambda found: found.reshape(shape))
    arrays |= _arrays(held, _BY_LAYER, lambda found: found.reshape(shape[:2]))
    each = shape[1] * shape[2]
    sets = split_sets(from_text(held["sets"]), count * each)
    unions = split_sets(from_text(held["unions"]), count)
    steps = []
    for number, facts in enumerate(held["steps"]):
        given: dict[str, Any] = {name: facts[name] for name in ("first", "queries", "token")}
        given |= {name: None if found is None else found[number] for name, found in arrays.items()}
        given |= {name: tuple((at, share) for at, share in facts[name]) for name in ("best", "absent")}
        coded = tuple(sets[number * each : (number + 1) * each])
        steps.append(Step(sets=coded, union=unions[number], **given))
    plain = {name: held[name] for name in _PLAIN}
    begin, end = held["document"]
    return Record(
        **plain,
        spans=spans,
        document=(begin, end),
        layers=layers,
        tiers=tuple(held["tiers"]),
        steps=tuple(steps),
    )


def _arrays(
    held: dict[str, Any], kinds: dict[str, str], shaped: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    def one(name: str, kind: str) -> np.ndarray | None:
        if held[name] is None and name == "exact":
            return None
        return shaped(np.frombuffer(from_text(held[name]), kind))

    return {name: one(name, kind) for name, kind in kinds.items()}


def _checked(record: Record) -> Record:
    """Raise ValueError for what is whole JSON, and cannot be a record."""
    units = len(record.text.encode("utf-16-le", "surrogatepass")) // 2
    tokens, given = len(record.spans), [step.token for step in record.steps if step.token is not None]
    if tokens and (int(record.spans[:, 1].max()) > units or int(record.spans.min()) < 0):
        raise ValueError("a token ends behind the text, or begins before it")
    if record.document[1] > units:
        raise ValueError("the document ends behind the text")
    if record.prompt > tokens or max(given, default=-1) >= tokens:
        raise ValueError("the prompt, or an answer, has more tokens than the text")
    if any(not 0 < step.length <= len(record.spans) for step in record.steps):
        raise ValueError("a step is outside the text")
    for step in record.steps:
        tops = [block * record.block for coded in step.sets for block in decode_set(coded)[-1:]]
        if max([*tops, *decode_set(step.union)[-1:]], default=0) >= step.length:
            raise ValueError("a step read tokens that were not there")
    return record
