"""What is asked of the scheduler, and what it reports: plain data, made and read in any thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from keyhole.documents.store import Document
    from keyhole.methods import Recipe

Reason = Literal["stop", "length"]
FailureKind = Literal["model", "document", "memory", "closed", "stopped"]
MOST_LOGPROBS = 20  # alternatives of a token
PROMPT = "a prompt"  # the source of what is kept of prompts, which is nobody's document


@dataclass(frozen=True)
class Request:
    """A prompt to continue.

    Without `document` the answer is that of `keyhole.generate` for this prompt with `question_aware=True`:
    all but the last token is read exactly, and each token of the answer comes from a step of the method.
    With `document` it is that of `keyhole.Library.ask`: the document's stored index is used, and what follows
    the document is read selectively.

    Attributes:
        prompt: token ids, at least one.
        recipe: the method; None is that of `document`, else the server's.
        max_tokens: tokens of the answer at most, an end-of-sequence token included.
        temperature: 0 is greedy decoding.
        top_p: as in `keyhole.generate`.
        seed: as in `keyhole.generate`.
        stop: strings that end the answer and are not part of it.
        logprobs: alternatives reported for each token, 0 to 20; None reports no log probabilities.
        document: the name of a stored document with whose token ids the prompt begins.
        exact: with `document`: what follows the document reads all of it (`Library.ask(exact=True)`).
        record: keep a record of what was read, which `Finished.record` has.
    """

    prompt: tuple[int, ...]
    recipe: Recipe | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    document: str | None = None
    exact: bool = False
    record: bool = False


@dataclass(frozen=True)
class NewDocument:
    """A text to be read and stored; the options are those of `keyhole.Library.add`.

    Attributes:
        source: where the text came from, in words.
    """

    name: str
    text: str
    recipe: Recipe | None = None
    kv_dtype: str | None = None
    chat: bool | None = None
    beyond_range: bool = False
    pinned: bool | None = None
    ttl: float | None = None
    source: str = "text"


@dataclass(frozen=True)
class Logprob:
    """A generated token's natural log probability (of the logits before temperature and top_p), and those of
    the most likely tokens, the likeliest first, as (token id, log probability)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class ServedUsage:
    """What an answer took.

    Attributes:
        prompt_tokens: tokens of the prompt.
        cached_tokens: those of them whose keys and values came from the store.
        cache_write_tokens: those of them that were written to the store.
        completion_tokens: generated tokens, an end-of-sequence token included.
        method: the method string with its options, as used.
        tokens_read: tokens that one layer and KV head read over all decode steps, in the mean.
        tokens_in_context: tokens that dense attention would have read, likewise.
        share: tokens_read / tokens_in_context; 1.0 where nothing was decoded.
        bytes_read: keys, values and index, of all layers.
        bytes_held: what the cache held at the end, by tier ("device", "host", "disk").
        missed_mass: attention mass that was not read, as the method estimates it, 0 to 1, in the mean over
            layers and steps; 0.0 where everything was read, None where the method gives no estimate.
    """

    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    completion_tokens: int
    method: str
    tokens_read: float
    tokens_in_context: float
    share: float
    bytes_read: float
    bytes_held: dict[str, int]
    missed_mass: float | None


@dataclass(frozen=True)
class Queued:
    """The request waits; `place` 1 is the next one. Reported again whenever the place changes."""

    place: int


@dataclass(frozen=True)
class Started:
    """Reading begins; the first `cached_tokens` of the prompt came from the store."""

    cached_tokens: int


@dataclass(frozen=True)
class Progress:
    """`done` of `total` prompt tokens are read."""

    done: int
    total: int


@dataclass(frozen=True)
class Piece:
    """More of the answer.

    Text is held back while it may be the beginning of a stop string or of a character, so a step may give no
    piece. `tokens` are the ids that `text` completes, without an end-of-sequence token; the last piece may
    have tokens and no text.

    Attributes:
        logprobs: one for each of `tokens`; empty where the request asks for none.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The answer is whole: ended by the model or a stop string ("stop"), or by `max_tokens` ("length").

    Attributes:
        record: what was read, where `Request.record` was set and the scheduler has a recorder.
        unrecorded: why there is no record, where one was asked for and could not be made.
    """

    reason: Reason
    usage: ServedUsage
    record: Any = field(default=None, compare=False)
    unrecorded: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Added:
    """A document is read and stored."""

    document: Document


@dataclass(frozen=True)
class Failed:
    """There will be no (more) answer.

    Attributes:
        error: for the user, in one sentence.
        kind: "model": the model or method raised, or the worker died (500); "document": it is not stored any
            more, cannot be used or cannot be stored (404 or 409); "memory": out of memory (503); "closed":
            the server stops (503); "stopped": the ticket was cancelled.
    """

    error: str
    kind: FailureKind


Event = Queued | Started | Progress | Piece | Finished | Added | Failed
LAST = (Finished, Added, Failed)  # exactly one of these is the last event of a ticket


class OverloadedError(RuntimeError):
    """The queue is full, or the server stops; try again after `retry_after` whole seconds (503)."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooLongError(ValueError):
    """Prompt and answer are beyond what is served: the context, or memory (400)."""
