"""Many clients of one scheduler: is every answer the one that it is alone, how long is the wait for it?

    python tools/serve_load.py --clients 100 --seconds 300

A third of the clients asks with long prompts, the others with short ones, each again once it is answered;
a tenth of the requests is given up in the middle. Every answer is compared with that of `keyhole.generate`,
which is also the throughput of one at a time. Exit code 1: an answer differs, or a request was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

import keyhole
from keyhole.documents.library import Library
from keyhole.documents.models import model_name
from keyhole.generation import Loaded, load_model
from keyhole.methods import Recipe
from keyhole.serving.requests import Failed, Finished, OverloadedError, Piece, Request
from keyhole.serving.scheduler import Scheduler

_WORDS = (
    "The sea is calm tonight, the tide is full; a pilot who knows the harbour marks the {} buoys of gate {}. "
)


@dataclass(frozen=True)
class Known:
    """A prompt, and its answer alone."""

    ids: tuple[int, ...]
    text: str
    long: bool


@dataclass
class Seen:
    """What the clients saw; waits in seconds."""

    finished: int = 0
    left: int = 0
    refused: int = 0
    tokens: int = 0
    differing: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    short_waits: list[float] = field(default_factory=list)
    long_waits: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def main() -> int:
    options = _options()
    if options.threads:
        torch.set_num_threads(options.threads)
    loaded = load_model(options.model or keyhole.default_model())
    known, alone = _alone(loaded, options)
    with tempfile.TemporaryDirectory() as directory:
        library = Library(directory, quota=1 << 30) if options.store else None
        scheduler = Scheduler(
            loaded,
            model=model_name(options.model),
            library=library,
            recipe=options.method,
            slots=options.clients,
            queue=options.clients,
        )
        seen = Seen()
        began = time.perf_counter()
        asyncio.run(_run(scheduler, known, seen, options))
        seconds = time.perf_counter() - began
        drained = scheduler.close(patience=60)
    report = _report(seen, scheduler, alone, seconds) | {"drained": drained}
    print(json.dumps(report, indent=2))
    return int(bool(seen.differing or seen.failed or not drained))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="directory of a model; the embedded one by default")
    parser.add_argument("--method", default="pqcache")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--long", type=int, default=4000, help="tokens of a long prompt")
    parser.add_argument("--short", type=int, default=60, help="tokens of a short prompt")
    parser.add_argument("--answer", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--prompts", type=int, default=12, help="different prompts of each length")
    parser.add_argument("--leave", type=float, default=0.1, help="share of the requests that is given up")
    parser.add_argument("--store", action="store_true", help="keep beginnings of prompts in a store")
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


def _alone(loaded: Loaded, options: argparse.Namespace) -> tuple[list[Known], float]:
    """Prompts with their answers, and tokens a second of one at a time, in the mixture of the clients."""
    known, seconds = [], {True: 0.0, False: 0.0}
    for number in range(options.prompts):
        for long in (True, False):
            text = _text(loaded, number, options.long if long else options.short)
            began = time.perf_counter()
            answer = keyhole.generate(
                *loaded,
                context=text,
                questions="",
                method=Recipe.parse(options.method),
                chat=False,
                max_new_tokens=options.answer,
            )
            seconds[long] += time.perf_counter() - began
            known.append(Known(tuple(loaded.tokenizer(text).input_ids), answer.text, long))
    mean = (seconds[True] + 2 * seconds[False]) / 3 / options.prompts
    return known, (options.long + 2 * options.short + 3 * options.answer) / 3 / mean


def _text(loaded: Loaded, number: int, tokens: int) -> str:
    words = "".join(_WORDS.format(number * 1000 + place, place) for place in range(tokens // 8))
    ids = loaded.tokenizer(f"{number}: {words}", add_special_tokens=False).input_ids[:tokens]
    return str(loaded.tokenizer.decode(ids)).rstrip()


async def _run(scheduler: Scheduler, known: list[Known], seen: Seen, options: argparse.Namespace) -> None:
    until = time.perf_counter() + options.seconds
    watching = asyncio.create_task(_watch(seen))
    await asyncio.gather(
        *(
            _client(
                scheduler, [one for one in known if one.long == (place % 3 == 0)], seen, until, place, options
            )
            for place in range(options.clients)
        )
    )
    watching.cancel()


async def _watch(seen: Seen) -> None:
    process = psutil.Process()
    while True:
        seen.memory.append(process.memory_info().rss)
        await asyncio.sleep(1)


async def _client(
    scheduler: Scheduler,
    known: list[Known],
    seen: Seen,
    until: float,
    place: int,
    options: argparse.Namespace,
) -> None:
    draw = random.Random(place)
    while time.perf_counter() < until:
        one = draw.choice(known)
        pieces = draw.randint(0, options.answer // 2) if draw.random() < options.leave else None
        try:
            await _ask(scheduler, one, seen, pieces, options.answer)
        except OverloadedError as refused:
            seen.refused += 1
            await asyncio.sleep(min(refused.retry_after, max(until - time.perf_counter(), 0)))


async def _ask(scheduler: Scheduler, one: Known, seen: Seen, leave: int | None, answer: int) -> None:
    """One request, given up after so many pieces where that is said."""
    began, texts = time.perf_counter(), []
    events = scheduler.submit(Request(one.ids, max_tokens=answer)).events()
    async for event in events:
        if isinstance(event, Piece):
            if not texts:
                (seen.long_waits if one.long else seen.short_waits).append(time.perf_counter() - began)
            texts.append(event.text)
        if leave is not None and len(texts) >= leave:
            seen.left += 1
            await events.aclose()
            return
        if isinstance(event, Failed):
            seen.failed.append(event.error)
        if isinstance(event, Finished):
            seen.finished += 1
            seen.tokens += event.usage.prompt_tokens + event.usage.completion_tokens
            if "".join(texts) != one.text:
                seen.differing.append(f"{''.join(texts)!r} and not {one.text!r}")


def _report(seen: Seen, scheduler: Scheduler, alone: float, seconds: float) -> dict[str, object]:
    state = scheduler.state()
    quarter = max(len(seen.memory) // 4, 1)
    first, last = (
        statistics.median(part)
        for part in (seen.memory[quarter : 2 * quarter] or seen.memory, seen.memory[-quarter:])
    )
    short = _p95(seen.short_waits)
    return {
        "finished": seen.finished,
        "left": seen.left,
        "refused": seen.refused,
        "failed": seen.failed[:5],
        "differing": seen.differing[:5],
        "chunk seconds": round(state.chunk_seconds, 4),
        "first token of short prompts, p95 seconds": round(short, 4),
        "in chunks": round(short / state.chunk_seconds, 2) if state.chunk_seconds else None,
        "first token of long prompts, p95 seconds": round(_p95(seen.long_waits), 2),
        "tokens a second": round(seen.tokens / seconds, 1),
        "one at a time": round(alone, 1),
        "memory MB, second quarter": round(first / 1e6, 1),
        "memory MB, last quarter": round(last / 1e6, 1),
        "growth": round(last / first - 1, 4),
        "state": state.finished | state.tokens,
    }


def _p95(waits: list[float]) -> float:
    return sorted(waits)[int(0.95 * (len(waits) - 1))] if waits else 0.0


if __name__ == "__main__":
    sys.exit(main())
