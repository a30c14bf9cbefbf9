"""The messages of a chat request, as chat templates take them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.fields import Fields, out_of_range, wrong_type

MOST_MESSAGES = 10_000
_MOST_PARTS = 1_000
_ROLES = ("system", "developer", "user", "assistant", "tool")
_LONGEST_NAME = 200
_ELSEWHERE = "this server takes text; add other files by POST /v1/documents"


class Content(NamedTuple):
    """Text, and the document that stands before it."""

    text: str
    document: str | None = None


class Messages(NamedTuple):
    """Messages, and the document that the first one of the user begins with."""

    messages: list[dict[str, Any]]
    document: str | None


def messages_of(fields: Fields) -> Messages:
    """Read `messages`.

    Raises:
        ApiError: one is not usable, or a document stands elsewhere than before the user's first words.
    """
    fields.required("messages")
    raw = fields.items("messages", MOST_MESSAGES)
    if not raw:
        raise ApiError("'messages' is empty; give at least one", param="messages", code="invalid_value")
    found: list[dict[str, Any]] = []
    document = None
    for number, each in enumerate(raw):
        message, named = _message(Fields(each, f"messages[{number}]."))
        if named is not None:
            check_first(message["role"], found, f"messages[{number}].content")
            document = named
        found.append(message)
    return Messages(found, document)


def check_first(role: str, before: list[dict[str, Any]], param: str) -> None:
    """Refuse a document elsewhere than in the user's first message, where alone what is stored serves."""
    if role != "user" or any(message["role"] not in ("system", "developer") for message in before):
        raise ApiError(
            "a document stands at the beginning of the first user message; name it there, or as "
            "x_keyhole.document",
            param=param,
            code="invalid_value",
        )


def _message(fields: Fields) -> tuple[dict[str, Any], str | None]:
    fields.required("role")
    role = fields.word("role", _ROLES)
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    content = content_of(fields, "content", optional=role == "assistant")
    message["content"] = content.text
    name = fields.text("name", most=_LONGEST_NAME)
    if name is not None:
        message["name"] = name
    if role == "assistant":
        calls = _calls(fields)
        if calls:
            message["tool_calls"] = calls
        for field in ("refusal", "audio", "function_call"):
            fields.only(field)
        fields.any("annotations")
    if role == "tool":
        fields.required("tool_call_id")
        message["tool_call_id"] = fields.text("tool_call_id", most=_LONGEST_NAME)
    fields.finish()
    return message, content.document


def content_of(fields: Fields, field: str, *, optional: bool = False) -> Content:
    """A text, or a list of parts, of which the first may be a document."""
    value = fields.any(field) if optional else fields.required(field)
    if value is None:
        return Content("")
    if isinstance(value, str):
        return Content(value)
    if not isinstance(value, list):
        raise wrong_type(fields.name(field), "a string or an array of parts", value)
    if len(value) > _MOST_PARTS:
        raise out_of_range(fields.name(field), f"{len(value)} parts", f"at most {_MOST_PARTS}")
    texts: list[str] = []
    document = None
    for number, part in enumerate(value):
        text, named = _part(Fields(part, f"{fields.name(field)}[{number}]."))
        if named is not None and number:
            raise ApiError(
                "a document is the first part of a message; put it there",
                param=f"{fields.name(field)}[{number}]",
                code="invalid_value",
            )
        document = named or document
        texts += [] if text is None else [text]
    return Content("\n".join(texts), document)


def _part(fields: Fields) -> tuple[str | None, str | None]:
    """The text of a part, or the document that it names."""
    fields.required("type")
    kind = fields.text("type")
    if kind in ("text", "input_text", "output_text"):
        fields.required("text")
        text = fields.text("text")
        # Earlier answers come back with what was said about them.
        fields.any("annotations")
        fields.any("logprobs")
        fields.only("prompt_cache_breakpoint")
        fields.finish()
        return text, None
    if kind in ("file", "input_file"):
        return None, _file(fields, kind)
    raise ApiError(
        f"parts of the type {str(kind)[:60]!r} are not supported; {_ELSEWHERE}",
        param=fields.name("type"),
        code="unsupported_parameter",
    )


def _file(fields: Fields, kind: str) -> str:
    """The id of a stored document: `{"type": "file", "file": {"file_id": ID}}`; Responses have no `file`."""
    holder = fields if kind == "input_file" else fields.inner("file")
    name = None if holder is None else holder.text("file_id", most=_LONGEST_NAME)
    if holder is None or not name:
        raise ApiError(
            f"{fields.name('file_id')!r} is missing: name a stored document; {_ELSEWHERE}",
            param=fields.name("file_id"),
            code="missing_required_parameter",
        )
    for field in ("file_data", "file_url", "filename"):
        holder.only(field)
    holder.finish()
    fields.finish()
    return name


def _calls(fields: Fields) -> list[dict[str, Any]]:
    """The tool calls of an earlier answer; templates take their arguments as an object."""
    calls: list[dict[str, Any]] = []
    for number, each in enumerate(fields.items("tool_calls", _MOST_PARTS) or []):
        call = Fields(each, f"{fields.name('tool_calls')}[{number}].")
        call.word("type", ("function",))
        identity = call.text("id", most=_LONGEST_NAME)
        function = call.required_inner("function")
        call.finish()
        calls.append({"id": identity, "type": "function", "function": _called(function)})
    return calls


def _called(function: Fields) -> dict[str, Any]:
    function.required("name")
    named = function.text("name", most=_LONGEST_NAME)
    arguments = arguments_of(function.text("arguments") or "{}", function.name("arguments"))
    function.finish()
    return {"name": named, "arguments": arguments}


def arguments_of(text: str, param: str) -> dict[str, Any]:
    """The arguments of a call, which are JSON in a string."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ApiError(f"{param!r} is no JSON object in a string", param=param, code="invalid_value")
    return found
