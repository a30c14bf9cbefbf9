"""Numbers as users write them: how large they may be, and how messages show them."""

from __future__ import annotations

import re
from typing import Any

from keyhole.core.errors import SpecError

# Slots are 32-bit integers, and so are sums of two numbers of tokens.
MOST_TOKENS = 2**30
GREATEST = 1e38  # of options that are not whole numbers: computations are in float32
_MOST_BYTES = 2**62
_LONGEST = 40  # characters of a value that a message shows
_DIGITS_A_BIT = 0.30103


def shown(value: Any) -> str:
    """A value as messages show it: in full where it is short.

    Python does not print integers of more than 4,300 digits, and hundreds of digits help no reader.
    """
    if isinstance(value, int) and abs(value) >= 10**_LONGEST:
        sign = "-" if value < 0 else ""
        return f"{sign}(an integer of about {round(value.bit_length() * _DIGITS_A_BIT)} digits)"
    try:
        text = repr(value)
    except ValueError:  # it holds an integer that Python does not print
        text = f"a {type(value).__name__}"
    return text if len(text) <= 2 * _LONGEST else text[: 2 * _LONGEST] + "..."


def parse_bytes(what: str, value: Any) -> int:
    """Read a number of bytes: 1000000, "64MB", "1.5GiB".

    Raises:
        SpecError: it is none, or out of range.
    """
    if isinstance(value, str) and (read := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", value.strip())):
        base = 1024 if read[3] else 1000
        size = float(read[1]) * base ** " KMGT".index(read[2] or " ")
    else:
        size = value
    if isinstance(size, bool) or not isinstance(size, int | float) or isinstance(value, float) or size < 0:
        raise SpecError(f'{what}={shown(value)} is not a number of bytes; write 1000000, "64MB" or "1GiB"')
    if size > _MOST_BYTES:
        raise SpecError(f"{what}={shown(value)} is out of range; give at most {_MOST_BYTES} bytes")
    return int(size)
