"""How many tokens are kept, compared and read at each step: functions of public lengths alone.

They follow `keyhole.methods.mpcache` and `keyhole.methods.streamingllm` token by token. All is of one
sequence.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from keyhole.private.settings import Settings

_PART, _PART_OF_LONG, _LONG = 5, 10, 24_000


class Eviction(NamedTuple):
    """What the prompt's end keeps: sinks, window, and `picked` of the `competing` tokens between them.

    Attributes:
        queries: the newest tokens, whose attention decides.
    """

    picked: int
    competing: int
    queries: int


class Reading(NamedTuple):
    """One step's selection.

    Attributes:
        first: where competing slots begin.
        stop: where the window begins.
        budget: tokens read of those between.
        ranked: clusters read, the last of them in part.
        edge: tokens of the last cluster that compete; `fine` where all of it does.
        survivors: coarse clusters whose fine ones are ranked; 0 ranks all fine ones.
    """

    first: int
    stop: int
    budget: int
    ranked: int
    edge: int
    survivors: int


class Step(NamedTuple):
    """One decode step.

    Attributes:
        position: of the new token in the text.
        kept: slots there are, the new one among them.
        dropped: slots after the sinks that are dropped when the step is over.
        reading: what is selected; None reads all.
    """

    position: int
    kept: int
    dropped: int
    reading: Reading | None


def eviction(settings: Settings, prompt: int) -> Eviction | None:
    """What the end of a prompt of so many tokens evicts by attention; None is nothing."""
    limit = _limit(settings, prompt)
    if not settings.evicts or prompt <= limit:
        return None
    always = settings.sinks + settings.window
    part = _PART if prompt <= _LONG else _PART_OF_LONG
    return Eviction(limit - always, prompt - always, -(-prompt // part))


def dropped(settings: Settings, prompt: int) -> int:
    """Slots after the sinks that StreamingLLM drops at the end of a prompt."""
    return max(prompt - _limit(settings, prompt), 0) if settings.method == "streamingllm" else 0


def kept(settings: Settings, prompt: int) -> int:
    """Tokens kept at the end of a prompt of so many."""
    return min(prompt, _limit(settings, prompt)) if settings.method != "dense" else prompt


def steps(settings: Settings, prompt: int, count: int) -> list[Step]:
    """The decode steps after a prompt of so many tokens."""
    made, slots = [], kept(settings, prompt)
    for position in range(prompt, prompt + count):
        slots += 1
        gone = max(slots - _limit(settings, position + 1), 0) if settings.method == "streamingllm" else 0
        made.append(Step(position, slots, gone, reading(settings, slots, position + 1)))
        slots -= gone
    return made


def reading(settings: Settings, slots: int, context: int) -> Reading | None:
    """The selection among so many slots, of a context of so many tokens; None where all is read."""
    if settings.method != "mpcache" or not settings.selects:
        return None
    candidates = slots - settings.sinks - settings.window
    budget = settings.budget.of(context)
    if candidates <= budget or candidates < settings.coarse or slots < settings.dense_below:
        return None
    fine, first, stop = settings.fine, settings.sinks, slots - settings.window
    edge = stop % fine or fine
    clusters = math.ceil(stop / fine) - first // fine
    ranked = math.ceil(budget / fine) if edge == fine else math.ceil((budget - min(edge, budget)) / fine) + 1
    return Reading(
        first, stop, budget, min(ranked, clusters), edge, _survivors(settings, first, stop, budget)
    )


def _survivors(settings: Settings, first: int, stop: int, budget: int) -> int:
    if settings.survivors >= 1:
        return 0
    coarse = math.ceil(stop / settings.coarse) - first // settings.coarse
    examined = max(math.ceil(coarse * settings.survivors), math.ceil(budget / settings.coarse) + 2)
    return examined if examined < coarse else 0


def _limit(settings: Settings, context: int) -> int:
    if settings.method == "dense":
        return context
    amount = settings.keep if settings.method == "mpcache" else settings.budget
    return max(amount.of(context), settings.sinks + settings.window)
