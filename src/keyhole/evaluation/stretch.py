"""How well methods hold at a length: the loss of the text that follows, and sentences found in it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from keyhole.engines.transformers import KeyholeCache, attach, footprint, served_layers, usage
from keyhole.engines.transformers.cache import end_prompt
from keyhole.engines.transformers.compat import cache_argument
from keyhole.evaluation.prompts import take_over
from keyhole.generation.decoding import build_index, decode, prefill
from keyhole.methods import Recipe
from keyhole.methods.renumbering import Renumbering


class Needle(NamedTuple):
    """A sentence at a depth of the text: `asked` continues with `answer`."""

    depth: float
    asked: str
    answer: str


NEEDLES = (
    Needle(0.1, "The favourite fruit of the lighthouse keeper in Varberg is the", "quince"),
    Needle(0.5, "The password of the harbour office in Bergen is", "marigold"),
    Needle(0.9, "The night train to Lisbon leaves from platform", "seventeen"),
)


class Stretch(NamedTuple):
    """A text `tokens [1, T]` with needles in it, and what follows in it, `following [1, N]`."""

    tokens: Tensor
    following: Tensor


class Held(NamedTuple):
    """What a method made of a stretch.

    Attributes:
        losses: of each token that follows, in nats.
        found: for each needle, whether the model continued its sentence with the answer.
        prompt_seconds: computing the text.
        index_seconds: indexing it.
        cpu_seconds: processor time of both, of all threads: what counts on a machine that is shared.
        step_seconds: mean of a decode step.
        read: mean tokens that a step read in a layer.
        nbytes: bytes held after the text, keys, values and index.
    """

    losses: tuple[float, ...]
    found: tuple[bool, ...]
    prompt_seconds: float
    index_seconds: float
    cpu_seconds: float
    step_seconds: float
    read: float
    nbytes: int

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses)


class _Begun(NamedTuple):
    recipe: Recipe
    cache: KeyholeCache
    prompt_seconds: float
    prompt_cpu: float
    index_seconds: float
    index_cpu: float


def stretch(tokenizer: PreTrainedTokenizerBase, text: str, tokens: int, following: int = 32) -> Stretch:
    """So many tokens from the start of a text, the needles among them, and the tokens that follow.

    Raises:
        ValueError: the text is too short.
    """
    needles = [tokenizer(f" {n.asked} {n.answer}.", add_special_tokens=False).input_ids for n in NEEDLES]
    own = tokens - sum(map(len, needles))
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids[: own + following]
    if own < 1 or len(ids) < own + following:
        raise ValueError(
            f"the text has {len(ids):,} tokens, where {own + following:,} are needed; "
            "give a longer text, or fewer tokens"
        )
    found: list[int] = []
    begun = 0
    for needle, sentence in zip(NEEDLES, needles, strict=True):
        end = round(needle.depth * own)
        found += ids[begun:end] + sentence
        begun = end
    return Stretch(torch.tensor([found + ids[begun:own]]), torch.tensor([ids[own:]]))


@torch.no_grad()
def hold(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipes: Iterable[Recipe],
    text: Stretch,
    *,
    chunk: int = 1024,
) -> Iterator[Held]:
    """Read a stretch by each recipe in turn, continue it, and ask for each needle.

    A recipe that computes prompts exactly as the one before takes over its keys and values.
    """
    begun: _Begun | None = None
    for recipe in recipes:
        with attach(model, recipe):
            begun = _begin(model, recipe, text.tokens[:, :-1].to(model.device), chunk, begun)
            end_prompt(begun.cache)
            losses = _losses(model, begun.cache, text)
            nbytes, counted = sum(footprint(begun.cache)), usage(begun.cache)
            asked = [_find(model, tokenizer, begun.cache, text.tokens, needle) for needle in NEEDLES]
            _crop(begun.cache, text.tokens.shape[1] - 1)
        found, seconds = zip(*asked, strict=True)
        read, step = counted.read / max(1, counted.steps), sum(seconds) / len(seconds)
        cpu = begun.prompt_cpu + begun.index_cpu
        yield Held(losses, found, begun.prompt_seconds, begun.index_seconds, cpu, step, read, nbytes)


def _begin(
    model: PreTrainedModel, recipe: Recipe, tokens: Tensor, chunk: int, before: _Begun | None
) -> _Begun:
    cache, started = KeyholeCache(model, recipe), time.process_time()
    if before is None or not _same_prompts(before.recipe, recipe):
        seconds = prefill(model, tokens, cache, chunk=chunk)
        cpu = time.process_time() - started
    else:
        seconds, cpu = before.prompt_seconds, before.prompt_cpu
        take_over(before.cache, cache)
    started = time.process_time()
    indexing = build_index(model, cache)
    return _Begun(recipe, cache, seconds, cpu, indexing, time.process_time() - started)


def _same_prompts(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes compute prompts alike, for all that is known here."""
    ways = []
    for recipe in (one, other):
        stage = recipe.retrieval
        if not isinstance(stage, Renumbering) or len(recipe.stages) > 1:
            return False
        options = [getattr(stage, name) for name in Renumbering.options()]
        ways.append((options, stage.vote.per_head, stage.vote.scaled))
    return ways[0] == ways[1]


def _losses(model: PreTrainedModel, cache: Cache, text: Stretch) -> tuple[float, ...]:
    """Of each token that follows a text of which all but the last token is in the cache."""
    tokens = torch.cat([text.tokens[:, -1:], text.following], dim=1).to(model.device)
    options, losses = {cache_argument(model): cache, "use_cache": True}, []
    for place in range(tokens.shape[1] - 1):
        logits = model(input_ids=tokens[:, place : place + 1], **options).logits[0, -1]
        losses.append(-float(logits.float().log_softmax(-1)[tokens[0, place + 1]]))
    return tuple(losses)


def _find(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, tokens: Tensor, needle: Needle
) -> tuple[bool, float]:
    """Whether a needle is found behind all but the last of `tokens`, and the seconds of a step."""
    _crop(cache, tokens.shape[1] - 1)
    asked = tokenizer(f"\n{needle.asked}", add_special_tokens=False, return_tensors="pt").input_ids
    behind = torch.cat([tokens[:, -1:], asked], dim=1).to(model.device)
    prefill(model, behind[:, :-1], cache)
    wanted = tokenizer(f" {needle.answer}", add_special_tokens=False).input_ids
    said = list(decode(model, int(behind[0, -1]), cache, limit=len(wanted)))
    return [token.id for token in said] == wanted, sum(token.seconds for token in said) / len(said)


def _crop(cache: Cache, length: int) -> None:
    for layer in served_layers(cache):
        layer.crop(length)
