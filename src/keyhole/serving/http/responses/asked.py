"""A request of the Responses API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keyhole.serving.http import unsupported
from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.fields import Fields
from keyhole.serving.http.options import Options, options_of
from keyhole.serving.http.responses.items import messages_of
from keyhole.serving.http.sampling import Sampling, sampling_of
from keyhole.serving.http.service import Service
from keyhole.serving.http.tools import tools_of
from keyhole.serving.requests import MOST_LOGPROBS

_LOGPROBS = "message.output_text.logprobs"
_MOST_INCLUDED = 20


@dataclass(frozen=True)
class Asked:
    """What is asked.

    Attributes:
        said: the fields that the response repeats.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    sampling: Sampling
    options: Options
    stream: bool
    said: dict[str, Any]

    @classmethod
    def read(cls, body: Any, service: Service) -> Asked:
        """Raises ApiError for what cannot be answered."""
        fields = Fields(body)
        service.check_model(fields)
        unsupported.responses(fields)
        messages, document = messages_of(fields)
        sampling = sampling_of(fields, "max_output_tokens")
        stream = _stream(fields)
        tools = tools_of(fields, service.prompter, flat=True)
        _check_text(fields)
        asked = cls(
            messages=messages,
            tools=tools,
            sampling=sampling.with_logprobs(_logprobs(fields)),
            options=options_of(fields, records=service.settings.records).behind(document, "input"),
            stream=stream,
            said=_said(body, sampling),
        )
        fields.finish()
        return asked


def _stream(fields: Fields) -> bool:
    options = fields.inner("stream_options")
    if options is not None:
        options.only("include_obfuscation", False)
        options.finish()
    return fields.flag("stream")


def _check_text(fields: Fields) -> None:
    text = fields.inner("text")
    if text is not None:
        text.only("format", {"type": "text"})
        text.only("verbosity", "medium")
        text.finish()


def _logprobs(fields: Fields) -> int | None:
    included = fields.items("include", _MOST_INCLUDED) or []
    if any(each != _LOGPROBS for each in included):
        raise ApiError(
            f"of 'include', this server has {_LOGPROBS!r} only",
            param="include",
            code="unsupported_parameter",
        )
    top = fields.integer("top_logprobs", 0, MOST_LOGPROBS)
    return (top or 0) if included or top else None


def _said(body: dict[str, Any], sampling: Sampling) -> dict[str, Any]:
    """What the response repeats of a body that has been read."""
    return {
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata") or {},
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "prompt_cache_key": body.get("prompt_cache_key"),
        "safety_identifier": body.get("safety_identifier"),
        "temperature": sampling.temperature,
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_logprobs": body.get("top_logprobs") or 0,
        "top_p": sampling.top_p,
        "user": body.get("user"),
    }
