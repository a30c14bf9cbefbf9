"""The route of the Responses API."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from keyhole.serving.http.answer import EventStream, comment, json_answer
from keyhole.serving.http.backend import Ticket
from keyhole.serving.http.body import read_json
from keyhole.serving.http.choices import Choice, collected, note, waiting
from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.logprobs import Spelled
from keyhole.serving.http.prompts import prompt_of
from keyhole.serving.http.responses.asked import Asked
from keyhole.serving.http.responses.story import Story
from keyhole.serving.http.sampling import USUAL_TOKENS
from keyhole.serving.http.service import (
    Service,
    cancel,
    merged,
    service_of,
    submitted,
    unless_gone,
)
from keyhole.serving.http.tools import CallReader
from keyhole.serving.requests import Piece


async def responses(request: HttpRequest) -> Response:
    """Answer input items."""
    service = service_of(request)
    asked = Asked.read(await read_json(request, service.settings.most_prompt), service)
    spelled = Spelled.where_asked(service.prompter.tokenizer, asked.sampling.logprobs)
    story = Story(service.settings.model, asked.said, spelled)
    if not asked.stream:
        return await unless_gone(request, _whole(request, service, asked, story))
    tickets, choice = await _begun(service, asked)
    return EventStream(_streamed(request, tickets, choice, story), partial(cancel, tickets))


async def _whole(request: HttpRequest, service: Service, asked: Asked, story: Story) -> Response:
    tickets, choice = await _begun(service, asked)
    await collected(tickets, [choice])
    note(request, [choice], 1)
    return json_answer(story.response(choice))


async def _begun(service: Service, asked: Asked) -> tuple[list[Ticket], Choice]:
    prompt = await prompt_of(service, asked.messages, asked.tools, asked.options, "input")
    one = asked.sampling.request(prompt, asked.options, 0, USUAL_TOKENS, service.room(len(prompt)))
    tickets = await submitted(service, [partial(service.scheduler.submit, one)], "input")
    return tickets, Choice(0, CallReader.for_tools(asked.tools, service.prompter))


async def _streamed(
    request: HttpRequest, tickets: list[Ticket], choice: Choice, story: Story
) -> AsyncGenerator[str, None]:
    for text in story.begin():
        yield text
    try:
        async with aclosing(merged(tickets, service_of(request).settings.keep_alive)) as events:
            async for found in events:
                for text in [comment("keep-alive")] if found is None else _told(story, choice, found[1]):
                    yield text
    except ApiError as error:
        for text in story.failed(error):
            yield text
        return
    note(request, [choice], 1)


def _told(story: Story, choice: Choice, each: Any) -> list[str]:
    said = waiting(each)
    if said is not None:
        return [said]
    words = choice.take(each)
    logprobs = each.logprobs if isinstance(each, Piece) else ()
    told = story.more(words, logprobs) if words or logprobs else []
    return told if choice.finished is None else [*told, *story.end(choice)]
