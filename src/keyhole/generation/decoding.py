"""Prefill and decoding of one request, step by step and timed."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from keyhole.engines.transformers.cache import end_prompt

Sampler = Callable[[Tensor], int]


class Token(NamedTuple):
    """A new token, whether it ends the text, and the seconds its step took."""

    id: int
    ends: bool
    seconds: float


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    tokens: Tensor,
    cache: Cache,
    *,
    chunk: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> float:
    """Append the prompt `tokens [1, T]` to the cache, at most `chunk` at a time; returns the seconds it took.

    Chunks are of equal size as far as may be.
    """
    forward = _forward(model, cache)
    started = time.perf_counter()
    for part in tokens.tensor_split(-(-tokens.shape[1] // chunk), dim=1):
        forward(part)
        if progress is not None:
            progress(part.shape[1])
    synchronize(tokens.device)
    return time.perf_counter() - started


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    last: int,
    cache: Cache,
    *,
    limit: int,
    stops: frozenset[int] = frozenset(),
    pick: Sampler | None = None,
) -> Iterator[Token]:
    """Continue a prompt whose tokens but the `last` are in the cache, for `limit` tokens or to a stop token.

    So the prompt's last token is the first decode step, and every new token is found by reading a selection.

    Args:
        pick: from the logits `[V]` to the next token; the likeliest where not given.
    """
    end_prompt(cache)
    forward, choose, token = _forward(model, cache), pick or greedy, last
    for _ in range(limit):
        started = time.perf_counter()
        logits = forward(torch.tensor([[token]], device=model.device))
        token = choose(logits[0, -1])
        yield Token(token, token in stops, time.perf_counter() - started)
        if token in stops:
            return


def greedy(logits: Tensor) -> int:
    return int(logits.argmax())


def sampler(temperature: float, seed: int) -> Sampler:
    """Draw from the softmax at a temperature; the likeliest token at 0."""
    if not temperature >= 0:
        raise ValueError(f"temperature {temperature:g} is out of range; give 0 (the likeliest token) or more")
    if temperature == 0:
        return greedy
    generator = torch.Generator().manual_seed(seed)

    def draw(logits: Tensor) -> int:
        shares = (logits.float().cpu() / temperature).softmax(-1)
        return int(torch.multinomial(shares, 1, generator=generator))

    return draw


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens after which the model says no more."""
    named = getattr(model.generation_config, "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return frozenset(token for token in [*several, tokenizer.eos_token_id] if isinstance(token, int))


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: list[Token]) -> str:
    """The text of new tokens, without what ends it."""
    ids = [token.id for token in tokens if not token.ends]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def position_range(model: PreTrainedModel) -> int | None:
    """The longest sequence the model was made for, None where its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def synchronize(device: torch.device) -> None:
    """Let an accelerator finish, so that a clock read next is right."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forward(model: PreTrainedModel, cache: Cache) -> Callable[[Tensor], Tensor]:
    """From token ids to logits, of the last token only where the model can leave the others out."""
    known = inspect.signature(model.forward).parameters
    options = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
    return lambda tokens: model(input_ids=tokens, past_key_values=cache, use_cache=True, **options).logits
