"""Many requests at a time to a vLLM server, by the official client: is each answer the same as alone?

    python -m vllm.entrypoints.openai.api_server --model MODEL --additional-config CONFIG
    python tools/vllm_load.py --requests 64

Needs `openai`. Ends with status 1 where an answer differs, or the server's pool is not empty afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import time
from dataclasses import dataclass
from urllib.request import urlopen

from openai import AsyncOpenAI


@dataclass(frozen=True)
class Answer:
    """The tokens of an answer, and their log-probabilities."""

    tokens: list[str]
    logprobs: list[float]

    def differs(self, other: Answer, tolerance: float) -> bool:
        """Whether tokens are others, or a log-probability is further off."""
        gaps = (abs(a - b) for a, b in zip(self.logprobs, other.logprobs, strict=False))
        return self.tokens != other.tokens or max(gaps, default=0.0) > tolerance


async def main() -> int:
    asked = _arguments()
    client = AsyncOpenAI(base_url=f"{asked.server}/v1", api_key="none", timeout=3600)
    model = (await client.models.list()).data[0].id
    prompts = _prompts(asked)
    begun = time.monotonic()
    together = await asyncio.gather(*(_answer(client, model, prompt, asked.tokens) for prompt in prompts))
    seconds = time.monotonic() - begun
    print(f"{len(prompts)} requests at a time: {len(prompts) * asked.tokens / seconds:.1f} tokens/s")
    alone = [await _answer(client, model, prompt, asked.tokens) for prompt in prompts]
    pairs = zip(together, alone, strict=True)
    other = [place for place, (one, two) in enumerate(pairs) if one.differs(two, asked.tolerance)]
    left = _left(asked.server)
    print(f"{len(prompts) - len(other)} answers as alone, {len(other)} others: {other}")
    print(f"left in the pool: {left:.4%}")
    return 1 if other or left else 0


def _prompts(asked: argparse.Namespace) -> list[list[int]]:
    draw = random.Random(asked.seed)
    lengths = [draw.randint(1, asked.longest) for _ in range(asked.requests)]
    return [[draw.randrange(4, asked.vocabulary) for _ in range(length)] for length in lengths]


async def _answer(client: AsyncOpenAI, model: str, prompt: list[int], tokens: int) -> Answer:
    """A greedy answer of so many tokens, streamed, as most users ask for it."""
    found, logprobs = [], []
    stream = await client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=tokens,
        temperature=0,
        logprobs=1,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        for choice in chunk.choices:
            if choice.logprobs is not None:
                found += choice.logprobs.tokens or []
                logprobs += choice.logprobs.token_logprobs or []
    return Answer(found, logprobs)


def _left(server: str) -> float:
    """The share of the pool that is taken, as the server says."""
    with urlopen(f"{server}/metrics") as answer:
        metrics = answer.read().decode()
    found = re.search(r"^vllm:kv_cache_usage_perc\{.*\} (\S+)$", metrics, re.MULTILINE)
    if found is None:
        raise ValueError(f"{server}/metrics says nothing of the pool; is it a vLLM server?")
    return float(found[1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--server", default="http://127.0.0.1:8000", help="its address, without /v1")
    parser.add_argument("--requests", type=int, default=64, help="how many at a time")
    parser.add_argument("--longest", type=int, default=1500, help="prompts have 1 to so many tokens")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--vocabulary", type=int, default=280, help="token ids below this are drawn")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of log-probabilities")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
