"""Input of the Responses API as messages of a chat."""

from __future__ import annotations

from typing import Any

from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.fields import Fields, out_of_range, wrong_type
from keyhole.serving.http.messages import (
    MOST_MESSAGES,
    Messages,
    arguments_of,
    check_first,
    content_of,
)

_ROLES = ("system", "developer", "user", "assistant")
_LONGEST_NAME = 200
_STATUS = ("in_progress", "completed", "incomplete")


def messages_of(fields: Fields) -> Messages:
    """`instructions` and `input` as messages, and the document that the user's first one begins with."""
    instructions = fields.text("instructions")
    value = fields.required("input")
    found: list[dict[str, Any]] = []
    if instructions is not None:
        found.append({"role": "system", "content": instructions})
    if isinstance(value, str):
        return Messages([*found, {"role": "user", "content": value}], None)
    if not isinstance(value, list):
        raise wrong_type("input", "a string or an array of items", value)
    if not 0 < len(value) <= MOST_MESSAGES:
        raise out_of_range("input", f"{len(value)} items", f"1 to {MOST_MESSAGES:,}")
    document = None
    for number, item in enumerate(value):
        named = _add(found, Fields(item, f"input[{number}]."))
        document = named or document
    return Messages(found, document)


def _add(found: list[dict[str, Any]], fields: Fields) -> str | None:
    """Add an item to messages; returns the document that it names."""
    kind = fields.text("type") or "message"
    fields.text("id", most=_LONGEST_NAME)
    fields.word("status", _STATUS)
    if kind == "message":
        return _add_message(found, fields)
    if kind == "function_call":
        _add_call(found, fields)
    elif kind == "function_call_output":
        fields.required("call_id")
        call = fields.text("call_id", most=_LONGEST_NAME)
        output = content_of(fields, "output")
        if output.document is not None:
            check_first("tool", found, fields.name("output"))
        found.append({"role": "tool", "tool_call_id": call, "content": output.text})
    else:
        raise ApiError(
            f"items of the type {kind[:60]!r} are not supported",
            param=fields.name("type"),
            code="unsupported_parameter",
        )
    fields.finish()
    return None


def _add_message(found: list[dict[str, Any]], fields: Fields) -> str | None:
    fields.required("role")
    role = fields.word("role", _ROLES)
    content = content_of(fields, "content")
    fields.any("phase")
    fields.finish()
    if content.document is not None:
        check_first(str(role), found, fields.name("content"))
    found.append({"role": "system" if role == "developer" else role, "content": content.text})
    return content.document


def _add_call(found: list[dict[str, Any]], fields: Fields) -> None:
    """Add a call to the message of the assistant that it belongs to."""
    for field in ("call_id", "name"):
        fields.required(field)
    arguments = arguments_of(fields.text("arguments") or "{}", fields.name("arguments"))
    function = {"name": fields.text("name", most=_LONGEST_NAME), "arguments": arguments}
    call = {"id": fields.text("call_id", most=_LONGEST_NAME), "type": "function", "function": function}
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": ""})
    found[-1].setdefault("tool_calls", []).append(call)
