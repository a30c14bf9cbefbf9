"""`/v1/chat/completions`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from keyhole.serving.http import unsupported
from keyhole.serving.http.body import read_json
from keyhole.serving.http.choices import FINGERPRINT, Choice, Shape, respond
from keyhole.serving.http.fields import Fields
from keyhole.serving.http.logprobs import Spelled
from keyhole.serving.http.messages import messages_of
from keyhole.serving.http.options import Options, options_of
from keyhole.serving.http.prompts import prompt_of
from keyhole.serving.http.sampling import (
    USUAL_TOKENS,
    Sampling,
    choices_of,
    sampling_of,
    streaming_of,
)
from keyhole.serving.http.service import Service, service_of, submitted
from keyhole.serving.http.tools import Call, CallReader, tools_of
from keyhole.serving.requests import MOST_LOGPROBS, Logprob


@dataclass(frozen=True)
class Asked:
    """A chat request."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    sampling: Sampling
    options: Options
    choices: int
    stream: bool
    include_usage: bool

    @classmethod
    def read(cls, body: Any, service: Service) -> Asked:
        """Raises ApiError for what cannot be answered."""
        fields = Fields(body)
        service.check_model(fields)
        messages, document = messages_of(fields)
        unsupported.chat(fields)
        sampling = sampling_of(fields, "max_completion_tokens", "max_tokens")
        stream, include_usage = streaming_of(fields)
        asked = cls(
            messages=messages,
            tools=tools_of(fields, service.prompter),
            sampling=sampling.with_logprobs(_logprobs(fields)),
            options=options_of(fields, records=service.settings.records).behind(document, "messages"),
            choices=choices_of(fields),
            stream=stream,
            include_usage=include_usage,
        )
        fields.finish()
        return asked


async def chat_completions(request: HttpRequest) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    asked = Asked.read(await read_json(request, service.settings.most_prompt), service)
    spelled = Spelled.where_asked(service.prompter.tokenizer, asked.sampling.logprobs)
    shape = Shape(
        head=_head(service, "chat.completion.chunk" if asked.stream else "chat.completion"),
        piece=partial(_piece_items, spelled),
        last=_last_items,
        whole=partial(_whole_item, spelled),
        sized=asked.choices,
        include_usage=asked.include_usage,
    )
    return await respond(request, _begun(service, asked), shape, stream=asked.stream)


async def _begun(service: Service, asked: Asked) -> tuple[list[Any], list[Choice]]:
    prompt = await prompt_of(service, asked.messages, asked.tools, asked.options, "messages")
    room = service.room(len(prompt))
    requests = [
        asked.sampling.request(prompt, asked.options, number, USUAL_TOKENS, room)
        for number in range(asked.choices)
    ]
    tickets = await submitted(
        service, [partial(service.scheduler.submit, each) for each in requests], "messages"
    )
    readers = [CallReader.for_tools(asked.tools, service.prompter) for _ in requests]
    return tickets, [Choice(number, reader) for number, reader in enumerate(readers)]


def _logprobs(fields: Fields) -> int | None:
    wanted = fields.flag("logprobs")
    top = fields.integer("top_logprobs", 0, MOST_LOGPROBS)
    if top and not wanted:
        # As OpenAI's API has it.
        fields.only("top_logprobs", 0)
    return (top or 0) if wanted else None


def _head(service: Service, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": service.settings.model,
        "system_fingerprint": FINGERPRINT,
    }


def _item(choice: Choice, delta: dict[str, Any], logprobs: Any = None) -> dict[str, Any]:
    return {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _piece_items(
    spelled: Spelled | None, choice: Choice, words: str, logprobs: Sequence[Logprob]
) -> list[dict[str, Any]]:
    shown = None if spelled is None else {"content": spelled.chat(logprobs), "refusal": None}
    return [*_opening(choice), _item(choice, {"content": words}, shown)]


def _last_items(choice: Choice) -> list[dict[str, Any]]:
    deltas = [{"tool_calls": [{"index": at} | _called(call)]} for at, call in enumerate(choice.reader.calls)]
    calls = [_item(choice, delta) for delta in deltas]
    return [*_opening(choice), *calls, _item(choice, {}) | {"finish_reason": choice.reason}]


def _opening(choice: Choice) -> list[dict[str, Any]]:
    """The first item of a choice, which says who speaks."""
    if choice.opened:
        return []
    choice.opened = True
    return [_item(choice, {"role": "assistant", "content": "", "refusal": None})]


def _called(call: Call) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _whole_item(spelled: Spelled | None, choice: Choice) -> dict[str, Any]:
    calls = choice.reader.calls
    text = None if calls and not choice.text.strip() else choice.text
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    if calls:
        message["tool_calls"] = [_called(call) for call in calls]
    shown = None if spelled is None else {"content": spelled.chat(choice.logprobs), "refusal": None}
    return {"index": choice.index, "message": message, "logprobs": shown, "finish_reason": choice.reason}
