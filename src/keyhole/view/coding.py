"""Sets of positions as few bytes.

A set is coded as runs: for each run the varint `gap << 1 | longer`, gap being the positions left out since
the run before, and where `longer` is set the varint `length - 2`. Where a bitmap, least significant bit
first, is shorter, it is that. In front stands the varint `bytes << 1 | is_bitmap`, so that a set below M
takes at most `ceil(M / 8)` bytes and those of its length.
"""

from __future__ import annotations

import base64

import numpy as np

_SEVEN = 7
_MORE = 0x80


def varints(values: np.ndarray) -> bytes:
    """Numbers, least significant seven bits first, the high bit of a byte set where more follow."""
    values = values.astype(np.uint64)
    sizes = np.ones(len(values), np.int64)
    rest = values >> np.uint64(_SEVEN)
    while rest.any():
        sizes += rest > 0
        rest >>= np.uint64(_SEVEN)
    out = np.zeros(int(sizes.sum()), np.uint8)
    starts = np.cumsum(sizes) - sizes
    for place in range(int(sizes.max(initial=0))):
        has = sizes > place
        part = (values[has] >> np.uint64(_SEVEN * place)).astype(np.uint8) & (_MORE - 1)
        out[starts[has] + place] = part | np.where(sizes[has] > place + 1, _MORE, 0).astype(np.uint8)
    return out.tobytes()


def read_varints(data: bytes) -> np.ndarray:
    """The numbers, int64, that `varints` made of less than 2^63.

    Raises:
        ValueError: the data ends inside a number.
    """
    held = np.frombuffer(data, np.uint8)
    if not len(held):
        return np.zeros(0, np.int64)
    last = held < _MORE
    if not last[-1]:
        raise ValueError("the data ends inside a number")
    number = np.cumsum(last) - last
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    shifts = (np.arange(len(held)) - starts[number]) * _SEVEN
    parts = (held & (_MORE - 1)).astype(np.int64) << shifts
    return np.add.reduceat(parts, starts)


def encode_set(positions: np.ndarray) -> bytes:
    """A set of positions, ascending and each once, with its length in front."""
    starts, stops = runs(positions)
    gaps = starts - np.concatenate([[0], stops[:-1]])[: len(starts)]
    lengths = stops - starts
    longer = lengths > 1
    places = np.cumsum(1 + longer) - (1 + longer)
    numbers = np.zeros(len(starts) + int(longer.sum()), np.int64)
    numbers[places] = gaps << 1 | longer
    numbers[places[longer] + 1] = lengths[longer] - 2
    body, is_bitmap = varints(numbers), 0
    top = int(positions[-1]) + 1 if len(positions) else 0
    if len(body) > -(-top // 8):
        bits = np.zeros(top, bool)
        bits[positions] = True
        body, is_bitmap = np.packbits(bits, bitorder="little").tobytes(), 1
    return varints(np.array([len(body) << 1 | is_bitmap])) + body


def decode_set(data: bytes) -> np.ndarray:
    """The positions, int64, of one coded set.

    Raises:
        ValueError: that is not one whole set.
    """
    size = next((at + 1 for at, byte in enumerate(data[:5]) if byte < _MORE), 0)
    head = int(read_varints(data[:size])[0]) if size else -1
    body = data[size:]
    if head < 0 or head >> 1 != len(body):
        raise ValueError(f"a coded set of {len(data)} bytes is cut off or followed by something else")
    if head & 1:
        bits = np.unpackbits(np.frombuffer(body, np.uint8), bitorder="little")
        return np.flatnonzero(bits)
    return _positions(read_varints(body))


def split_sets(data: bytes, count: int) -> list[bytes]:
    """So many coded sets that stand one behind the other.

    Raises:
        ValueError: there are more or fewer.
    """
    sets, at = [], 0
    for _ in range(count):
        size, shift, stop = 0, 0, at
        while stop < len(data):
            byte = data[stop]
            size |= (byte & (_MORE - 1)) << shift
            shift, stop = shift + _SEVEN, stop + 1
            if byte < _MORE:
                break
        sets.append(data[at : stop + (size >> 1)])
        at = stop + (size >> 1)
    if at != len(data) or b"" in sets:
        raise ValueError(f"{len(data)} bytes do not hold {count} coded sets")
    return sets


def runs(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of ascending positions start and stop, int64."""
    positions = positions.astype(np.int64)
    breaks = np.flatnonzero(np.diff(positions) != 1) + 1
    edges = np.concatenate([[0], breaks, [len(positions)]]) if len(positions) else np.zeros(1, np.int64)
    return positions[edges[:-1]], positions[edges[1:] - 1] + 1 if len(positions) else positions


def to_text(data: bytes) -> str:
    """Bytes in base64."""
    return base64.b64encode(data).decode("ascii")


def from_text(text: str) -> bytes:
    """Raises ValueError where that is no base64."""
    return base64.b64decode(text, validate=True)


def _positions(numbers: np.ndarray) -> np.ndarray:
    spans, at, stop = [], 0, 0
    listed = numbers.tolist()
    while at < len(listed):
        gap, longer = listed[at] >> 1, listed[at] & 1
        if longer and at + 1 >= len(listed):
            raise ValueError("a coded set ends inside a run")
        length = listed[at + 1] + 2 if longer else 1
        spans.append(np.arange(stop + gap, stop + gap + length))
        stop += gap + length
        at += 1 + longer
    return np.concatenate(spans) if spans else np.zeros(0, np.int64)
