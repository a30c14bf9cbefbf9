"""Prefill and decoding of one request, step by step and timed."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from keyhole.engines.transformers import served_layers
from keyhole.engines.transformers.cache import end_prompt
from keyhole.engines.transformers.compat import cache_argument
from keyhole.generation.sampling import Sampler, greedy

CHUNK = 8192


class Token(NamedTuple):
    """A generated token, whether it is a stop token, and the seconds its step took."""

    id: int
    ends: bool
    seconds: float


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    tokens: Tensor,
    cache: Cache,
    *,
    chunk: int = CHUNK,
    progress: Callable[[int], None] | None = None,
) -> float:
    """Append the prompt `tokens [1, T]` to the cache in chunks of at most `chunk`; returns seconds.

    Chunks are of equal size as far as possible.

    Args:
        progress: called with the number of tokens of each chunk when it is done.
    """
    if not tokens.shape[1]:
        return 0.0
    forward = forward_of(model, cache)
    started = time.perf_counter()
    for part in tokens.tensor_split(-(-tokens.shape[1] // chunk), dim=1):
        forward(part)
        if progress is not None:
            progress(part.shape[1])
    synchronize(tokens.device)
    return time.perf_counter() - started


def build_index(model: PreTrainedModel, cache: Cache) -> float:
    """Build the indexes of a cache now, not in the first decode step; returns seconds."""
    started = time.perf_counter()
    for layer in served_layers(cache):
        layer.prepare()
    synchronize(model.device)
    return time.perf_counter() - started


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    last: int | Tensor,
    cache: Cache,
    *,
    limit: int,
    stops: frozenset[int] = frozenset(),
    pick: Sampler | None = None,
) -> Iterator[Token]:
    """Generate after a prompt of which all tokens but the `last` are in the cache.

    The prompt's last token is the first decode step, so every generated token comes from a selective read.

    Args:
        last: one token, or the last tokens `[1, T]` of the prompt, which one call reads as a prompt's.
        limit: tokens at most.
        stops: token ids after which generation ends.
        pick: from the logits `[V]` to the next token; greedy by default.
    """
    if not isinstance(last, Tensor):
        end_prompt(cache)
    forward, choose = forward_of(model, cache), pick or greedy
    asked = last if isinstance(last, Tensor) else torch.tensor([[last]])
    for _ in range(limit):
        started = time.perf_counter()
        logits = forward(asked.to(model.device))
        token = choose(logits[0, -1])
        yield Token(token, token in stops, time.perf_counter() - started)
        if token in stops:
            return
        asked = torch.tensor([[token]])


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator to finish, so that a clock read next is right."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forward_of(model: PreTrainedModel, cache: Cache) -> Callable[[Tensor], Tensor]:
    """From token ids to logits, of the last token only where the model can leave the others out."""
    known = inspect.signature(model.forward).parameters
    options: dict[str, object] = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    options[cache_argument(model)] = cache
    return lambda tokens: model(input_ids=tokens, use_cache=True, **options).logits
