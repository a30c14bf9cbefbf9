"""`/v1/completions`."""

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
from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.fields import Fields, wrong_type
from keyhole.serving.http.logprobs import Spelled
from keyhole.serving.http.options import Options, options_of
from keyhole.serving.http.sampling import (
    MOST_CHOICES,
    Sampling,
    choices_of,
    sampling_of,
    streaming_of,
)
from keyhole.serving.http.service import Service, service_of, submitted
from keyhole.serving.http.tools import CallReader
from keyhole.serving.requests import Logprob

_USUAL_TOKENS = 16  # as OpenAI's API has it
_MOST_LOGPROBS = 5
Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """A request to continue prompts."""

    prompts: list[Prompt]
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
        unsupported.completions(fields)
        stream, include_usage = streaming_of(fields)
        sampling = sampling_of(fields, "max_tokens")
        asked = cls(
            prompts=prompts_of(fields),
            sampling=sampling.with_logprobs(fields.integer("logprobs", 0, _MOST_LOGPROBS)),
            options=options_of(fields, records=service.settings.records),
            choices=choices_of(fields),
            stream=stream,
            include_usage=include_usage,
        )
        fields.finish()
        asked.check()
        return asked

    def check(self) -> None:
        if len(self.prompts) * self.choices > MOST_CHOICES:
            raise ApiError(
                f"{len(self.prompts)} prompts with {self.choices} answers each are too many; at most "
                f"{MOST_CHOICES} answers are given at once",
                param="prompt",
                code="invalid_value",
            )
        if self.options.document is not None or self.options.exact:
            raise ApiError(
                "a document is asked by /v1/chat/completions or /v1/responses",
                param="x_keyhole.document",
                code="unsupported_parameter",
            )


def prompts_of(fields: Fields) -> list[Prompt]:
    """Read `prompt`: a text, token ids, or a list of either."""
    value = fields.required("prompt")
    if isinstance(value, str) or _is_ids(value):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(each, str) or _is_ids(each) for each in value):
        raise wrong_type("prompt", "a string, an array of token ids, or an array of either", value)
    if not value:
        raise ApiError("'prompt' is empty; give some text", param="prompt", code="invalid_value")
    return [each if isinstance(each, str) else tuple(each) for each in value]


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


async def completions(request: HttpRequest) -> Response:
    """Continue prompts."""
    service = service_of(request)
    asked = Asked.read(await read_json(request, service.settings.most_prompt), service)
    spelled = Spelled.where_asked(service.prompter.tokenizer, asked.sampling.logprobs)
    shape = Shape(
        head=_head(service),
        piece=partial(_pieces, spelled),
        last=_last,
        whole=partial(_whole_item, spelled),
        sized=asked.choices,
        include_usage=asked.include_usage,
    )
    return await respond(request, _begun(service, asked), shape, stream=asked.stream)


async def _begun(service: Service, asked: Asked) -> tuple[list[Any], list[Choice]]:
    requests, most = [], service.most(asked.options.recipe)
    for prompt in asked.prompts:
        ids = prompt
        if isinstance(ids, str):
            ids = await service.prompter.beside(partial(service.prompter.text, ids, "prompt", most))
        room = service.room(len(ids))
        for _ in range(asked.choices):
            requests.append(asked.sampling.request(ids, asked.options, len(requests), _USUAL_TOKENS, room))
    tickets = await submitted(
        service, [partial(service.scheduler.submit, each) for each in requests], "prompt"
    )
    return tickets, [Choice(number, CallReader(active=False)) for number in range(len(requests))]


def _head(service: Service) -> dict[str, Any]:
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": service.settings.model,
        "system_fingerprint": FINGERPRINT,
    }


def _item(choice: Choice, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
    return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _pieces(
    spelled: Spelled | None, choice: Choice, words: str, logprobs: Sequence[Logprob]
) -> list[dict[str, Any]]:
    shown = None if spelled is None else spelled.completion(logprobs, choice.spans[-len(logprobs) :])
    return [_item(choice, words, shown, None)]


def _last(choice: Choice) -> list[dict[str, Any]]:
    return [_item(choice, "", None, choice.reason)]


def _whole_item(spelled: Spelled | None, choice: Choice) -> dict[str, Any]:
    shown = None if spelled is None else spelled.completion(choice.logprobs, choice.spans)
    return _item(choice, choice.text, shown, choice.reason)
