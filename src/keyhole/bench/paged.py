"""`bench paged`: one layer's decode step over an inference engine's pages, against dense calls over pages."""

from __future__ import annotations

import torch

from keyhole.attention import Logits
from keyhole.bench.case import Case
from keyhole.bench.checks import check_close, check_selective_step
from keyhole.bench.layers import fill, layer_sizes, new_token, require_layer_memory, step_candidate
from keyhole.bench.result import Result, compare
from keyhole.bench.vllm_kernel import VLLM, vllm_candidate
from keyhole.cache.layer import LayerCache
from keyhole.methods.recipe import Recipe
from keyhole.storage import DeviceStorage, PagedStorage, into_huge_pages, split_pages
from keyhole.tuning.machine import implementation
from keyhole.tuning.timing import CacheFlusher, Candidate, clock

DENSE = "dense over pages"


@torch.no_grad()
def paged(
    case: Case, method: str | Recipe, *, block_size: int, rounds: int, flusher: CacheFlusher
) -> list[Result]:
    """Time appending one token and attending to it. The baselines attend only, to the same tokens.

    vLLM's own kernel for CPUs is one of them where vLLM is installed.

    Raises:
        ValueError: the method cannot be read, or not over pages, or the case does not fit into memory.
        CheckFailedError: the step is not exact over what it reads, or vLLM's kernel answers something else.
    """
    recipe, source = case.recipe(method), case.source()
    require_layer_memory(case, copies=3)  # as drawn, in our pages and in vLLM's
    layer = _layer(recipe)
    table = _table(case, block_size)
    layer.storage = _storage(case, block_size, table)
    keys, values = source.keys_values(case.tokens)
    fill(layer, keys, values, case, source)
    built = clock(layer.prepare)
    token = new_token(case, source)
    check_selective_step(layer, token.query, case.logits)
    step = step_candidate(case, recipe, layer, token)
    dense = _dense(layer, token.query, case.logits)
    theirs = vllm_candidate(token.query, keys, values, table, block_size, case.logits.scale)
    notes = [f"building the index once took {built * 1e3:.0f} ms, not counted"] if layer.indexed else []
    if theirs is None:
        notes.append(f"vLLM is not installed, so that {VLLM} was not measured")
    else:
        check_close(f"{VLLM}, or {DENSE},", _answer(theirs), _answer(dense), case.torch_dtype)
    baselines = [dense] if theirs is None else [dense, theirs]
    return [
        compare("paged", layer_sizes(case), [step], baselines, rounds=rounds, flusher=flusher, notes=notes)
    ]


def _answer(candidate: Candidate) -> torch.Tensor:
    out = candidate.run()
    assert isinstance(out, torch.Tensor)
    return out


def _layer(recipe: Recipe) -> LayerCache:
    layer = recipe.layers(1)[0]
    if recipe.drops or type(layer.storage) is not DeviceStorage:
        raise ValueError(
            f"{recipe} drops tokens or holds them in a form of its own, which an engine's pages cannot; "
            "give a method that selects, with place=device and no kv_dtype"
        )
    return layer


def _table(case: Case, block_size: int) -> torch.Tensor:
    """A block table, int32 `[width]`, in no order, with room for one token more."""
    generator = torch.Generator().manual_seed(case.seed)
    return torch.randperm(case.tokens // block_size + 1, generator=generator).int()


def _storage(case: Case, block_size: int, table: torch.Tensor) -> PagedStorage:
    shape = (len(table), case.kv_heads, block_size, 2 * case.head_dim)
    pool = torch.zeros(shape, dtype=case.torch_dtype)
    into_huge_pages(pool)  # as where vLLM's pages are served
    pages = split_pages(pool, case.head_dim, planar=True)
    storage = PagedStorage(pages.keys, pages.values)
    storage.at(table, 0)
    return storage


def _dense(layer: LayerCache, query: torch.Tensor, logits: Logits) -> Candidate:
    storage, tokens = layer.storage, layer.length
    moved = tokens * storage.token_bytes
    return Candidate(DENSE, implementation(), lambda: storage.attend_all(query, logits, None), moved, tokens)
