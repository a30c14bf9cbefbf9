"""Random weights as GGUF stores them: codes uniform around zero, with scales that give a deviation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

_DEVIATION = 0.02  # what models are initialised with
_BLOCK = 32  # weights of a block
_CODES = (15**2 - 1) / 12  # variance of 4-bit codes, uniform from -7 to 7
_CODES_8 = (255**2 - 1) / 12  # from -127 to 127
_AT_ONCE = 1 << 22  # weights

Draw = Callable[[int, np.random.Generator], np.ndarray]


def random_weights(kind: str, count: int, generator: np.random.Generator) -> np.ndarray:
    """So many weights of a type as the bytes of their blocks, `[bytes]` of uint8."""
    parts = [min(_AT_ONCE, count - start) for start in range(0, count, _AT_ONCE)]
    return np.concatenate([DRAWN[kind](part, generator).reshape(-1).view(np.uint8) for part in parts])


def _four_bits(with_minimum: bool) -> Draw:
    scale = np.float16(_DEVIATION / _CODES**0.5)
    fields: list[Any] = [("d", np.float16), ("m", np.float16)] if with_minimum else [("d", np.float16)]
    block = np.dtype([*fields, ("codes", np.uint8, _BLOCK // 2)])

    def draw(count: int, generator: np.random.Generator) -> np.ndarray:
        blocks = np.zeros(count // _BLOCK, block)
        low, high = generator.integers(1, 16, (2, len(blocks), _BLOCK // 2), np.uint8)
        blocks["d"], blocks["codes"] = scale, low | high << 4
        if with_minimum:
            blocks["m"] = -8 * scale
        return blocks

    return draw


def _eight_bits(count: int, generator: np.random.Generator) -> np.ndarray:
    blocks = np.zeros(count // _BLOCK, [("d", np.float16), ("codes", np.int8, _BLOCK)])
    blocks["d"] = np.float16(_DEVIATION / _CODES_8**0.5)
    blocks["codes"] = generator.integers(-127, 128, (len(blocks), _BLOCK), np.int8)
    return blocks


def _floats(kind: str) -> Draw:
    def draw(count: int, generator: np.random.Generator) -> np.ndarray:
        drawn = generator.standard_normal(count, np.float32) * np.float32(_DEVIATION)
        if kind == "bf16":  # the upper half of each
            return (drawn.view(np.uint32) >> 16).astype(np.uint16)
        return drawn.astype({"f16": np.float16, "f32": np.float32}[kind])

    return draw


DRAWN = {
    "q4_0": _four_bits(False),
    "q4_1": _four_bits(True),
    "q8_0": _eight_bits,
    **{kind: _floats(kind) for kind in ("f16", "bf16", "f32")},
}
