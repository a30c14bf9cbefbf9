"""What a client sends to be stored: JSON with a text, or a form with a file."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest

from keyhole.core.names import fits
from keyhole.documents.paths import name_of
from keyhole.documents.recipes import KV_DTYPES
from keyhole.serving.http.body import Bounded, check_encoding, read_json
from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.extract import text_within
from keyhole.serving.http.fields import Fields
from keyhole.serving.http.options import method_of
from keyhole.serving.http.service import Service
from keyhole.serving.requests import NewDocument

LONGEST_TTL = 100 * 365 * 86400.0  # seconds
_MOST_FIELDS = 16
_LONGEST_FIELD = 1 << 16  # bytes
_LONGEST_NAME = 80
_WORDS = {"true": True, "false": False, "null": None}
_NOT_TEXT = ("chat", "beyond_range", "pinned", "stream", "ttl")


async def read_upload(request: HttpRequest, service: Service) -> tuple[NewDocument, bool]:
    """The document to be stored, and whether its progress is streamed.

    Raises:
        ApiError: it cannot be read, or an option is out of range.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return _new(*await _form(request, service), "a file")
    fields = Fields(await read_json(request, service.settings.most_file))
    for field in ("name", "text"):
        fields.required(field)
    return _new(fields, fields.text("text") or "", fields.text("name") or "", "text")


async def _form(request: HttpRequest, service: Service) -> tuple[Fields, str, str]:
    check_encoding(request)
    bounded = Bounded(request, service.settings.most_file)
    async with bounded.form(max_files=1, max_fields=_MOST_FIELDS, max_part_size=_LONGEST_FIELD) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ApiError(
                "'file' is missing: send a file in a field of that name",
                param="file",
                code="missing_required_parameter",
            )
        fields = Fields({name: _value(name, form[name]) for name in form if name != "file"})
        stem, suffix = _parts(file.filename or "")
        async with service.parsers:
            text = await text_within(suffix, await file.read())
    return fields, text, fields.text("name") or stem


def _new(fields: Fields, text: str, name: str, source: str) -> tuple[NewDocument, bool]:
    if not text.strip():
        raise ApiError("the document is empty; give some text", param="text", code="invalid_value")
    fields.any("name")
    try:
        called = name_of(name, None)
        _check_path(called)
    except ValueError as error:
        raise ApiError(str(error), param="name", code="invalid_value") from error
    new = NewDocument(
        name=called,
        text=text,
        recipe=method_of(fields),
        kv_dtype=fields.word("kv_dtype", KV_DTYPES),
        chat=fields.maybe("chat"),
        beyond_range=fields.flag("beyond_range"),
        pinned=fields.maybe("pinned"),
        ttl=ttl_of(fields),
        source=source,
    )
    streamed = fields.flag("stream")
    fields.finish()
    return new, streamed


def _check_path(name: str) -> None:
    """Raise ValueError for a name that no path can have here: clients and proxies resolve dots in paths."""
    parts = name.split("/")
    if "." in parts or ".." in parts or parts[1:][-1:] == ["text"]:
        raise ValueError(
            f"the name {name!r} cannot stand in a path; give one without '.' and '..' between slashes, and "
            "without '/text' at its end"
        )


def ttl_of(fields: Fields) -> float | None:
    """Seconds after its last use at which a document may go."""
    return None if fields.any("ttl") is None else fields.number("ttl", 0, LONGEST_TTL, 0)


def _value(name: str, value: Any) -> Any:
    """A field of a form, which has text alone, as JSON would have it."""
    if name not in _NOT_TEXT or not isinstance(value, str):
        return value if isinstance(value, str) else ""
    if value in _WORDS:
        return _WORDS[value]
    try:
        return float(value)
    except ValueError:
        return value


def _parts(filename: str) -> tuple[str, str]:
    """A document's name, and the suffix, from the name of a client's file; its folders are not looked at."""
    last = PurePath(filename.replace("\\", "/").rsplit("/", 1)[-1])
    stem = "".join(char if fits(char) else "_" for char in last.stem)[:_LONGEST_NAME].strip()
    return stem or "document", last.suffix.lower()[:16]
