"""Tools: from OpenAI's form to that of chat templates, and from the text of an answer to calls of them.

Calls are found in the answers of models whose chat template shows the form of Hermes and Qwen,
`<tool_call>{"name": ..., "arguments": ...}</tool_call>`; those of other models stay text.
"""

from __future__ import annotations

import json
import uuid
from typing import Any, NamedTuple

from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.fields import Fields
from keyhole.serving.http.prompter import Prompter

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MOST = 128
_LONGEST_NAME = 64


class Call(NamedTuple):
    """A call of a tool; `arguments` are JSON in a string, as OpenAI's API has them."""

    id: str
    name: str
    arguments: str


def tools_of(fields: Fields, prompter: Prompter, *, flat: bool = False) -> list[dict[str, Any]]:
    """The tools that the model is told of; none where `tool_choice` is "none".

    Args:
        flat: a function's fields stand beside its `type`, as in the Responses API.

    Raises:
        ApiError: a tool is not usable, or the model's chat template takes none.
    """
    tools = [
        _tool(Fields(each, f"tools[{number}]."), flat)
        for number, each in enumerate(fields.items("tools", _MOST) or [])
    ]
    choice = fields.any("tool_choice")
    if choice not in (None, "none", "auto"):
        raise ApiError(
            "a tool cannot be forced here; give 'auto' or 'none' as 'tool_choice'",
            param="tool_choice",
            code="unsupported_parameter",
        )
    fields.only("parallel_tool_calls", True, *([] if tools else [False]))
    if not tools or choice == "none":
        return []
    if not prompter.takes_tools:
        raise ApiError(
            "the model's chat template takes no tools; leave 'tools' out, or describe them in a message",
            param="tools",
            code="unsupported_parameter",
        )
    return tools


def _tool(fields: Fields, flat: bool) -> dict[str, Any]:
    fields.required("type")
    if fields.text("type") != "function":
        raise ApiError(
            "only tools of the type 'function' are supported",
            param=fields.name("type"),
            code="unsupported_parameter",
        )
    function = fields if flat else fields.required_inner("function")
    function.required("name")
    found: dict[str, Any] = {"name": function.text("name", most=_LONGEST_NAME)}
    description = function.text("description")
    parameters = function.inner("parameters")
    found["description"] = description or ""
    found["parameters"] = {} if parameters is None else function.any("parameters")
    function.only("strict", False)  # nothing constrains what a model writes here
    function.finish()
    fields.finish()
    return {"type": "function", "function": found}


class CallReader:
    """Divides the text of an answer into words and calls, piece by piece.

    Args:
        active: look for calls; else everything is words.

    Attributes:
        calls: those found so far.
    """

    def __init__(self, active: bool) -> None:
        self.calls: list[Call] = []
        self._active, self._held = active, ""

    @classmethod
    def for_tools(cls, tools: list[dict[str, Any]], prompter: Prompter) -> CallReader:
        return cls(bool(tools) and _OPEN in str(prompter.tokenizer.chat_template))

    def put(self, text: str) -> str:
        """The words in what came so far that no later text can make part of a call."""
        if not self._active:
            return text
        self._held += text
        words = ""
        while True:
            before, opened, rest = self._held.partition(_OPEN)
            if not opened:
                keep = _beginning(before)
                self._held = before[len(before) - keep :]
                return words + before[: len(before) - keep]
            words += before
            inside, closed, behind = rest.partition(_CLOSE)
            if not closed:
                self._held = opened + rest
                return words
            words += self._found(opened + inside + closed, inside)
            self._held = behind

    def end(self) -> str:
        """The words that waited for more; a call that was not closed counts if it is whole."""
        held, self._held = self._held, ""
        return self._found(held, held.removeprefix(_OPEN)) if held.startswith(_OPEN) else held

    def _found(self, whole: str, inside: str) -> str:
        """Take note of a call; what cannot be read as one stays words."""
        call = _call(inside)
        if call is None:
            return whole
        self.calls.append(call)
        return ""


def _call(text: str) -> Call | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", {})
    if not isinstance(arguments, dict):
        return None
    return Call(f"call_{uuid.uuid4().hex}", found["name"], json.dumps(arguments, ensure_ascii=False))


def _beginning(text: str) -> int:
    """The longest end of the text that begins a call."""
    return next((n for n in range(min(len(text), len(_OPEN) - 1), 0, -1) if text.endswith(_OPEN[:n])), 0)
