"""Fields of OpenAI's API that this server cannot honour, and those that change nothing here.

The former are refused unless they say what holds anyway; the latter are read, and that is all.
"""

from __future__ import annotations

from typing import Any

from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.fields import Fields, wrong_type

_LONGEST = 1024
_PENALTIES: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
}
_CHAT: dict[str, tuple[Any, ...]] = _PENALTIES | {
    "audio": (),
    "function_call": (),
    "functions": (),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "prompt_cache_options": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_COMPLETIONS = _PENALTIES | {"best_of": (1,), "echo": (False,), "suffix": ("",)}
_RESPONSES: dict[str, tuple[Any, ...]] = {
    "access_programs": (),
    "background": (False,),
    "background_options": (),
    "context_management": (),
    "conversation": (),
    "image": (),
    "max_tool_calls": (),
    "moderation": (),
    "prompt": (),
    "prompt_cache_options": (),
    "reasoning": ({}, {"effort": None, "summary": None}, {"effort": None}, {"effort": "none"}),
    "service_tier": ("auto", "default"),
    "truncation": ("disabled",),
}
_WITHOUT_EFFECT = ("prompt_cache_key", "safety_identifier", "user", "prompt_cache_retention")


def chat(fields: Fields) -> None:
    _refuse(fields, _CHAT)


def completions(fields: Fields) -> None:
    _refuse(fields, _COMPLETIONS)


def responses(fields: Fields) -> None:
    if fields.any("previous_response_id") is not None:
        raise ApiError(
            "answers are not kept by this server; send the whole conversation as 'input', of which what was "
            "read before is not computed again",
            param="previous_response_id",
            code="unsupported_parameter",
        )
    _refuse(fields, _RESPONSES)


def _refuse(fields: Fields, table: dict[str, tuple[Any, ...]]) -> None:
    for name, neutral in table.items():
        fields.only(name, *neutral)
    for name in _WITHOUT_EFFECT:
        fields.text(name, most=_LONGEST)
    fields.flag("store")
    metadata = fields.any("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise wrong_type("metadata", "an object", metadata)
