"""Tokens per second of a whole model in vLLM after a long prompt: stock, and by Keyhole's methods.

    python tools/vllm_speed.py --tokens 32768 --method "pqcache(budget=2048)" --method "quest(budget=2048)"

A model of one of Keyhole's shapes with random weights is written to a temporary folder. Each engine is a
process of its own that reads the prompt once; its prefix cache then gives it to a request of one token and
one of more, in turns, and the difference is what a step takes. Random weights say nothing of answers.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from statistics import median
from typing import Any

STOCK = "stock"


def main() -> int:
    asked = _arguments()
    if asked.model:
        print(f"{asked.method[0]}: {_milliseconds(asked):.1f} ms a step")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        layers = _write_model(asked, folder)
        print(
            f"{asked.shape} in bfloat16, {layers} layers, random weights, {asked.tokens} tokens", flush=True
        )
        for method in (STOCK, *asked.method):
            numbers = [f"--{name}={getattr(asked, name)}" for name in ("tokens", "steps", "rounds", "shape")]
            command = [sys.executable, __file__, f"--model={folder}", f"--method={method}", *numbers]
            said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            print(said.strip().splitlines()[-1], flush=True)
    return 0


def _write_model(asked: argparse.Namespace, folder: str) -> int:
    """The layers of a model with random weights, which is written."""
    import torch

    from keyhole.bench.shapes import SHAPES

    shape = SHAPES[asked.shape]
    shape = replace(shape, layers=asked.layers or shape.layers)
    torch.manual_seed(0)
    shape.model(torch.bfloat16, asked.tokens + 2 * asked.steps).save_pretrained(folder)
    return shape.layers


def _milliseconds(asked: argparse.Namespace) -> float:
    """Of one step after the prompt, the median of the rounds."""
    import random

    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    length = asked.tokens + 2 * asked.steps
    room = -(-length // 32) + 64  # blocks of vLLM's pool
    settings: dict[str, Any] = {} if asked.method[0] == STOCK else {"keyhole": {"method": asked.method[0]}}
    engine = LLM(
        asked.model, skip_tokenizer_init=True, dtype="bfloat16", max_model_len=length, block_size=32,
        num_gpu_blocks_override=room, enforce_eager=True, additional_config=settings,
    )  # fmt: skip
    draw = random.Random(0)
    prompt: Any = {"prompt_token_ids": [draw.randrange(4, 8_192) for _ in range(asked.tokens)]}

    def seconds(tokens: int) -> float:
        sampling = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.0, detokenize=False)
        begun = time.perf_counter()
        engine.generate(prompt, sampling, use_tqdm=False)
        return time.perf_counter() - begun

    seconds(2)
    rounds = [(seconds(1), seconds(1 + asked.steps)) for _ in range(asked.rounds)]
    return median(more - one for one, more in rounds) / asked.steps * 1e3


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="Llama-3.2-1B", help="a shape of keyhole.bench.shapes")
    parser.add_argument("--layers", type=int, default=0, help="only so many of its layers")
    parser.add_argument("--tokens", type=int, default=32_768, help="of the prompt")
    parser.add_argument("--steps", type=int, default=16, help="that are timed in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", action="append", default=[], help="of Keyhole; repeatable")
    parser.add_argument("--model", help="a folder: measure its only method, or `stock`, and nothing else")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
