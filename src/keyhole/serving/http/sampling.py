"""The fields that say how an answer is decoded, which all routes share."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Any

from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.fields import Fields, wrong_type
from keyhole.serving.http.options import Options
from keyhole.serving.requests import Request

MOST_CHOICES = 16  # answers to one request
USUAL_TOKENS = 1024  # of an answer, where the client says nothing
MOST_TOKENS = 2**31 - 1
_MOST_STOPS = 16
_LONGEST_STOP = 256
_SEEDS = 1 << 63


@dataclass(frozen=True)
class Sampling:
    """How answers are decoded.

    Attributes:
        max_tokens: None is the usual number of the route.
        logprobs: as in `keyhole.serving.requests.Request`.
    """

    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int
    stop: tuple[str, ...]
    logprobs: int | None = None

    def request(
        self, prompt: tuple[int, ...], options: Options, number: int, usual: int, room: int | None
    ) -> Request:
        """The request for the answer of a number to a prompt; each has a seed of its own.

        Args:
            usual: tokens of an answer where the client says nothing.
            room: tokens that an answer can have.
        """
        limit = self.max_tokens or (usual if room is None else min(usual, room))
        return Request(
            prompt=prompt,
            recipe=options.recipe,
            max_tokens=limit,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=(self.seed + number) % _SEEDS,
            stop=self.stop,
            logprobs=self.logprobs,
            document=options.document,
            exact=options.exact,
            record=options.record,
        )

    def with_logprobs(self, count: int | None) -> Sampling:
        return replace(self, logprobs=count)


def sampling_of(fields: Fields, *limits: str) -> Sampling:
    """Read them; `limits` are the names of the field that bounds the answer, the first one counts most.

    An answer is greedy where no temperature is given, as everywhere in Keyhole.
    """
    given = [each for name in limits if (each := fields.integer(name, 1, MOST_TOKENS)) is not None]
    seed = fields.integer("seed", -_SEEDS, _SEEDS - 1)
    return Sampling(
        max_tokens=given[0] if given else None,
        temperature=fields.number("temperature", 0, 2, 0.0),
        top_p=_share(fields, "top_p"),
        seed=secrets.randbelow(_SEEDS) if seed is None else seed % _SEEDS,
        stop=_stops(fields),
    )


def choices_of(fields: Fields) -> int:
    """How many answers are wanted."""
    return fields.integer("n", 1, MOST_CHOICES) or 1


def streaming_of(fields: Fields) -> tuple[bool, bool]:
    """Whether the answer is streamed, and whether a last piece has the usage."""
    streamed = fields.flag("stream")
    options = fields.inner("stream_options")
    if options is None:
        return streamed, False
    if not streamed:
        raise ApiError(
            "'stream_options' is for streams; give 'stream': true too, or leave it out",
            param="stream_options",
            code="invalid_value",
        )
    usage = options.flag("include_usage")
    options.only("include_obfuscation", False)
    options.finish()
    return streamed, usage


def _share(fields: Fields, name: str) -> float:
    share = fields.number(name, 0, 1, 1.0)
    if share == 0:
        raise ApiError(f"{name!r} is 0; give more than 0, up to 1", param=name, code="invalid_value")
    return share


def _stops(fields: Fields) -> tuple[str, ...]:
    value: Any = fields.any("stop")
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(each, str) for each in strings):
        raise wrong_type("stop", "a string or an array of strings", value)
    if len(strings) > _MOST_STOPS or any(not 0 < len(each) <= _LONGEST_STOP for each in strings):
        raise ApiError(
            f"'stop' takes at most {_MOST_STOPS} strings of 1 to {_LONGEST_STOP} characters",
            param="stop",
            code="invalid_value",
        )
    return tuple(strings)
