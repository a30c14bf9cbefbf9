"""Bodies of requests, within bounds of size, number of values and depth."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any

from starlette.requests import Request
from starlette.types import Message

from keyhole.serving.http.errors import ApiError

MOST_DEPTH = 64
MOST_VALUES = 2_000_000  # a prompt of a million token ids is within it
_LARGE = 1 << 16  # bytes that are parsed beside the event loop
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # may be half a character


class Bounded(Request):
    """A request whose body is at most `most` bytes.

    Raises:
        ApiError: from whatever reads the body, where it is longer (413).
    """

    def __init__(self, request: Request, most: int) -> None:
        super().__init__(request.scope, self._bounded, request._send)
        self._inner, self._most, self._got = request.receive, most, 0
        stated = request.headers.get("content-length", "")
        if stated.isascii() and stated.isdigit() and int(stated[:20]) > most:
            raise _too_large(most)

    async def _bounded(self) -> Message:
        message = await self._inner()
        self._got += len(message.get("body", b""))
        if self._got > self._most:
            raise _too_large(self._most)
        return message


async def read_json(request: Request, most: int) -> Any:
    """The JSON value of a request's body.

    Raises:
        ApiError: it is none, or too large (413), too deep, of another type (415).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ApiError(
            "send the body as JSON, with the header 'Content-Type: application/json'",
            status=415,
            code="unsupported_media_type",
        )
    check_encoding(request)
    body = await Bounded(request, most).body()
    return await asyncio.to_thread(parse, body) if len(body) > _LARGE else parse(body)


def check_encoding(request: Request) -> None:
    """Refuse compressed bodies, whose size says nothing of what they become."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise ApiError(
            "compressed bodies are not accepted; leave out Content-Encoding",
            status=415,
            code="unsupported_media_type",
        )


def parse(body: bytes) -> Any:
    """JSON of bounded depth and number of values, all of whose text is Unicode and numbers are finite."""
    _check_shape(body)
    try:
        value = json.loads(body.decode(), parse_constant=_no_number, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise _invalid(f"it is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise _invalid(f"it is nested deeper than {MOST_DEPTH} levels") from error
    except ValueError as error:
        raise _invalid("a number is too long or not finite") from error
    if _HALF.search(body):
        _check_characters(value)
    return value


def _check_shape(body: bytes) -> None:
    """Refuse what would take far more memory than its bytes, before it is parsed."""
    openers, commas = body.count(b"[") + body.count(b"{"), body.count(b",")
    if openers <= MOST_DEPTH and commas <= MOST_VALUES:
        return
    shape = _STRING.sub(b"", body)
    if shape.count(b"[") + shape.count(b"{") + shape.count(b",") > MOST_VALUES:
        raise _invalid(f"it has more than {MOST_VALUES:,} values")
    depth = 0
    for bracket in _BRACKET.finditer(shape):
        depth += 1 if bracket[0] in b"[{" else -1
        if depth > MOST_DEPTH:
            raise _invalid(f"it is nested deeper than {MOST_DEPTH} levels")


def _check_characters(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _invalid("a string has half a character (a lone surrogate)") from error


def _no_number(name: str) -> None:
    raise ValueError(name)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(digits)
    return number


def _invalid(why: str) -> ApiError:
    return ApiError(f"the body is not usable JSON: {why}", code="invalid_json")


def _too_large(most: int) -> ApiError:
    return ApiError(
        f"the body is larger than {most:,} bytes",
        status=413,
        code="request_too_large",
        headers={"Connection": "close"},
    )
