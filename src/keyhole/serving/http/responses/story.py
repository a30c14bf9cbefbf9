"""The response object, and the events that tell how it comes about, in OpenAI's order."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from keyhole.serving.http.answer import event
from keyhole.serving.http.choices import Choice, read_of
from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.logprobs import Spelled
from keyhole.serving.http.tools import Call
from keyhole.serving.http.usage import response_usage
from keyhole.serving.requests import Logprob

# What is always so here.
_FIXED: dict[str, Any] = {
    "object": "response",
    "background": False,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": "default",
    "store": False,
    "text": {"format": {"type": "text"}},
    "truncation": "disabled",
}


class Story:
    """One response.

    Args:
        said: the fields of the request that it repeats.
        spelled: spells out log probabilities, where they were asked for.
    """

    def __init__(self, model: str, said: dict[str, Any], spelled: Spelled | None) -> None:
        self._head = {"id": _id("resp"), "created_at": int(time.time()), "model": model} | _FIXED | said
        self._spelled = spelled
        self._message = _id("msg")
        self._count = 0
        self._opened = False
        self._waiting: list[Logprob] = []  # of tokens before the first words, such as those of a call

    def response(self, choice: Choice) -> dict[str, Any]:
        """The response as it is when the answer has ended."""
        finished = choice.finished
        if finished is None:
            raise ValueError("the answer has not ended")
        cut = finished.reason == "length"
        status = "incomplete" if cut else "completed"
        items = [self._message_item(choice, status)] if choice.text or not choice.reader.calls else []
        items += [_call_item(call, "completed") for call in choice.reader.calls]
        return self._state(
            status,
            output=items,
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            completed_at=None if cut else int(time.time()),
            usage=response_usage(finished.usage),
            x_keyhole=read_of([choice]),
        )

    def begin(self) -> list[str]:
        state = self._state("in_progress")
        return [self._event(f"response.{kind}", response=state) for kind in ("created", "in_progress")]

    def more(self, words: str, logprobs: Sequence[Logprob]) -> list[str]:
        """New words. There is no message before the first ones: an answer may be calls alone."""
        self._waiting += logprobs
        if not words and not self._opened:
            return []
        logprobs, self._waiting = self._waiting, []
        spelled = [] if self._spelled is None else self._spelled.chat(logprobs)
        opening = [] if self._opened else self._open()
        place = self._place()
        return [*opening, self._event("response.output_text.delta", **place, delta=words, logprobs=spelled)]

    def end(self, choice: Choice) -> list[str]:
        """The answer has ended, and all its words were told."""
        response = self.response(choice)
        told: list[str] = []
        for at, item in enumerate(response["output"]):
            told += self._message_end(item) if item["type"] == "message" else self._call(at, item)
        return [*told, self._event(f"response.{response['status']}", response=response)]

    def failed(self, error: ApiError) -> list[str]:
        told = {"code": "server_error", "message": error.message}
        return [self._event("response.failed", response=self._state("failed", error=told))]

    def _open(self) -> list[str]:
        self._opened = True
        item = self._message_item(None, "in_progress")
        part = _part("", [])
        return [
            self._event("response.output_item.added", output_index=0, item=item),
            self._event("response.content_part.added", **self._place(), part=part),
        ]

    def _message_end(self, item: dict[str, Any]) -> list[str]:
        opening = [] if self._opened else self._open()
        part = item["content"][0]
        done = {"text": part["text"], "logprobs": part["logprobs"]}
        return [
            *opening,
            self._event("response.output_text.done", **self._place(), **done),
            self._event("response.content_part.done", **self._place(), part=part),
            self._event("response.output_item.done", output_index=0, item=item),
        ]

    def _call(self, at: int, item: dict[str, Any]) -> list[str]:
        place = {"item_id": item["id"], "output_index": at}
        begun = item | {"arguments": "", "status": "in_progress"}
        kind, arguments = "response.function_call_arguments", item["arguments"]
        return [
            self._event("response.output_item.added", output_index=at, item=begun),
            self._event(f"{kind}.delta", **place, delta=arguments),
            self._event(f"{kind}.done", **place, arguments=arguments, name=item["name"]),
            self._event("response.output_item.done", output_index=at, item=item),
        ]

    def _event(self, kind: str, **more: Any) -> str:
        number, self._count = self._count, self._count + 1
        return event({"type": kind, "sequence_number": number} | more, kind)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._message, "output_index": 0, "content_index": 0}

    def _state(self, status: str, **more: Any) -> dict[str, Any]:
        empty = {"error": None, "incomplete_details": None, "output": [], "usage": None}
        return self._head | {"status": status} | empty | more

    def _message_item(self, choice: Choice | None, status: str) -> dict[str, Any]:
        parts = []
        if choice is not None:
            spelled = [] if self._spelled is None else self._spelled.chat(choice.logprobs)
            parts.append(_part(choice.text, spelled))
        return {
            "id": self._message,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": parts,
        }


def _part(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _call_item(call: Call, status: str) -> dict[str, Any]:
    return {
        "id": f"fc_{call.id.removeprefix('call_')}",
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
        "status": status,
    }


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
