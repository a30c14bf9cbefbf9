"""`bench memory`: what a long prompt does to the memory of a process, with and without dropping tokens.

Each method runs in a process of its own, so that nothing it left behind is counted to the next.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from keyhole.bench.case import DTYPES, check_dtype
from keyhole.bench.shapes import Shape
from keyhole.engines.transformers import footprint, make_cache
from keyhole.generation.decoding import prefill
from keyhole.methods.recipe import Recipe

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


@dataclass(frozen=True)
class Memory:
    """One prompt, by one method; bytes.

    Attributes:
        kept: what the tokens that the budget allows take, by arithmetic: keys and values, nothing else.
        held: what the cache holds after the prompt, tables and spare room included.
        peak: the most that the process grew by while the prompt was computed, activations included.
        left: by how much it is larger afterwards.
    """

    method: str
    tokens: int
    piece: int
    kept: int
    held: int
    peak: int
    left: int
    seconds: float


def memory(
    shape: Shape, methods: Sequence[str], *, tokens: int, piece: int, dtype: str, threads: int, seed: int = 0
) -> list[Memory]:
    """A prompt of so many random tokens on random weights, computed `piece` tokens at a time, by each method.

    Raises:
        ValueError: a method cannot be read, or the system does not tell what a process takes.
    """
    check_dtype(dtype)
    recipes = [str(Recipe.parse(method)) for method in methods]
    if not (_STATUS.exists() and _CLEAR.exists()):
        raise ValueError("this system does not report the peak memory of a process; run it on Linux")
    found = []
    for recipe in recipes:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            found.append(alone.submit(_run, shape, recipe, tokens, piece, dtype, threads, seed).result())
    return found


@torch.inference_mode()
def _run(shape: Shape, method: str, tokens: int, piece: int, dtype: str, threads: int, seed: int) -> Memory:
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model, recipe = shape.model(DTYPES[dtype], tokens), Recipe.parse(method)
    drawn = torch.randint(shape.vocabulary, (1, tokens))
    # Once before, so that what libraries take at first use is not counted.
    prefill(model, drawn[:, : min(piece, tokens)], make_cache(model, method), chunk=piece)
    before, cache = _resident("VmRSS"), make_cache(model, method)
    _CLEAR.write_text(_RESET_PEAK)
    started = time.perf_counter()
    prefill(model, drawn, cache, chunk=piece)
    seconds = time.perf_counter() - started
    limit = tokens if recipe.eviction is None else min(recipe.eviction.budget.limit(tokens), tokens)
    token_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * DTYPES[dtype].itemsize
    peak, left = _resident("VmHWM") - before, _resident("VmRSS") - before
    held = footprint(cache).device
    return Memory(method, tokens, piece, limit * token_bytes, held, peak, left, seconds)


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
