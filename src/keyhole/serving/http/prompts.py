"""The prompt of a conversation, behind a stored document where one is named."""

from __future__ import annotations

from functools import partial
from typing import Any

from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.options import Options
from keyhole.serving.http.service import Service, in_store

_SIMPLE = ("system", "user", "assistant")


async def prompt_of(
    service: Service,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    options: Options,
    param: str,
) -> tuple[int, ...]:
    """Token ids of a conversation up to where the next answer begins.

    Raises:
        ApiError: the document is unknown, or the model cannot be asked so.
    """
    if options.document is None:
        if options.exact:
            raise ApiError(
                "'exact' is about a document; name one as x_keyhole.document",
                param="x_keyhole.exact",
                code="invalid_value",
            )
        most = service.most(options.recipe)
        ids = partial(service.prompter.chat, messages, tools or None, param, most)
        return await service.prompter.beside(ids)
    if tools:
        raise ApiError(
            "a document was read without tools, so that none can be given now; leave 'tools' out",
            param="tools",
            code="unsupported_parameter",
        )
    for message in messages:
        if message["role"] not in _SIMPLE or "tool_calls" in message or "name" in message:
            raise ApiError(
                "about a document, messages are of system, user and assistant, and have content alone",
                param=param,
                code="invalid_value",
            )
    ask = partial(service.scheduler.document_prompt, options.document, messages)
    return await in_store(service, ask, param)
