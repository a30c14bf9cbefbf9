"""`bench prefill`: attention over a model's prompt, all layers, on the model's own queries, keys and values.

Legend: H query heads, Hkv KV heads, G = H / Hkv, T tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from keyhole import kernels
from keyhole.attention import Logits
from keyhole.bench.checks import check_close
from keyhole.bench.result import Result, Sizes, compare
from keyhole.engines.transformers.cache import adopt, is_served
from keyhole.engines.transformers.calibrate.recording import record
from keyhole.kernels import Reach
from keyhole.kernels.sale.reference import left_out
from keyhole.kernels.sale.tiles import ROWS, tiles, unpack
from keyhole.methods.recipe import Recipe
from keyhole.prefill import DensePrefill, Prefill, SalePrefill
from keyhole.storage import DeviceStorage, Storage
from keyhole.tuning.machine import implementation
from keyhole.tuning.timing import CacheFlusher, Candidate

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class _Prompt(NamedTuple):
    """A prompt in one layer: `query [1, H, T, D]`, its stored tokens, and the method's answer to compute."""

    place: int
    query: Tensor
    storage: Storage
    logits: Logits
    prefill: Prefill

    def attend(self) -> Tensor:
        return self.prefill.attend(self.query, self.storage, self.logits, None)

    def sdpa(self) -> Tensor:
        keys, values, scale = self.storage.keys(), self.storage.values(), self.logits.scale
        return F.scaled_dot_product_attention(
            self.query, keys, values, is_causal=True, scale=scale, enable_gqa=True
        )

    def sdpa_by_group(self) -> Tensor:
        """A call for each of the G heads, so that torch need not repeat keys and values."""
        keys, values, scale = self.storage.keys(), self.storage.values(), self.logits.scale
        groups = self.query.shape[1] // keys.shape[1]
        parts = [
            F.scaled_dot_product_attention(
                self.query[:, g::groups], keys, values, is_causal=True, scale=scale
            )
            for g in range(groups)
        ]
        return torch.stack(parts, dim=2).flatten(1, 2)


class _Keeper(DensePrefill):
    """Computes densely, and keeps what it was asked."""

    def __init__(self, place: int, prefill: Prefill, kept: list[_Prompt]) -> None:
        self.place, self.prefill, self.kept = place, prefill, kept

    def attend(self, query: Tensor, storage: Storage, logits: Logits, mask: Tensor | None) -> Tensor:
        own = DeviceStorage()
        own.append(storage.keys().clone(), storage.values().clone())
        self.kept.append(_Prompt(self.place, query.clone(), own, logits, self.prefill))
        return super().attend(query, storage, logits, mask)


@torch.no_grad()
def prefill(
    model: PreTrainedModel,
    ids: Tensor,
    method: str,
    *,
    rounds: int,
    flusher: CacheFlusher,
    layers: Sequence[int] = (),
) -> list[Result]:
    """Time attention over the prompt `ids [1, T]`, in the layers named, or in all.

    Raises:
        ValueError: the method cannot be read, or a layer is not one that attends to the whole prompt.
        CheckFailedError: an output is not exact over the keys that were kept.
    """
    recipe = Recipe.parse(method)
    prompts = _prompts(model, ids, recipe, layers)
    notes = [_note(prompt) for prompt in prompts]
    first = prompts[0]
    sizes = Sizes(
        ids.shape[1],
        first.query.shape[1],
        first.storage.keys().shape[1],
        first.query.shape[3],
        _DTYPES[first.query.dtype],
    )
    moved = sum(p.storage.footprint.device + 2 * p.query.nbytes for p in prompts)

    def candidate(name: str, impl: str, attend: Callable[[_Prompt], Tensor]) -> Candidate:
        return Candidate(name, impl, lambda: [attend(p) for p in prompts], moved, ids.shape[1])

    ours = candidate(str(recipe), implementation(), _Prompt.attend)
    baselines = [
        candidate("sdpa enable_gqa", "torch", _Prompt.sdpa),
        candidate("sdpa by group", "torch", _Prompt.sdpa_by_group),
    ]
    return [compare("prefill", sizes, [ours], baselines, rounds=rounds, flusher=flusher, notes=notes)]


def _prompts(model: PreTrainedModel, ids: Tensor, recipe: Recipe, layers: Sequence[int]) -> list[_Prompt]:
    cache = DynamicCache(config=model.config)
    adopt(cache, recipe, model)
    served = {i: layer.inner.prefill for i, layer in enumerate(cache.layers) if is_served(layer)}
    wanted = tuple(layers) or tuple(served)
    missing = [place for place in wanted if place not in served]
    if missing:
        raise ValueError(f"layer {missing[0]} is not one of {', '.join(map(str, served))}; give one of these")
    kept: list[_Prompt] = []
    record(
        model,
        ids,
        lambda place: _Keeper(place, served[place], kept) if place in wanted else DensePrefill(),
    )
    return kept


def _note(prompt: _Prompt) -> str:
    """What a layer's output lacks, and how much of it was computed."""
    out, exact = prompt.attend().float(), prompt.sdpa().float()
    error = float((out - exact).norm() / exact.norm())
    heads = (out - exact).square().sum((0, 2, 3)).sqrt() / exact.square().sum((0, 2, 3)).sqrt()
    error_note = (
        f"layer {prompt.place}: relative output error {error:.2%}, of a head at most {float(heads.max()):.2%}"
    )
    density = _density(prompt, out)
    return (
        error_note
        if density is None
        else f"{error_note}; {density:.1%} of the keys before each group of queries are read"
    )


def _density(prompt: _Prompt, out: Tensor) -> float | None:
    """The share of keys that tiles read, some of them checked; None where prompts are computed whole."""
    rule, tokens = prompt.prefill, prompt.query.shape[2]
    if not isinstance(rule, SalePrefill) or tokens < max(rule.dense_below, ROWS):
        return None
    keys, values = prompt.storage.keys(), prompt.storage.values()
    heads = prompt.query.shape[1]
    found = kernels.sale_attention(
        prompt.query, keys, values, rule.tau.expand(heads), scale=prompt.logits.scale, reach=rule.reach,
        with_map=True,
    )  # fmt: skip
    assert found.map is not None
    for head in range(heads):
        number = found.map.shape[2] * head // heads
        expected = _exact(prompt, head, number, unpack(found.map[0, head, number], tokens), rule.reach)
        rows = slice(number * rule.reach.rows, (number + 1) * rule.reach.rows)
        check_close(
            f"layer {prompt.place}, group {number} of head {head}",
            out[0, head, rows],
            expected,
            prompt.query.dtype,
        )
    most = (torch.arange(1, found.kept.shape[2] + 1) * rule.reach.rows).clamp(max=tokens).sum() * heads
    return float(found.kept.sum() / most)


def _exact(prompt: _Prompt, head: int, number: int, reads: Tensor, reach: Reach) -> Tensor:
    """What a group of queries that reads the keys `reads [T]` answers."""
    groups = prompt.query.shape[1] // prompt.storage.keys().shape[1]
    keys, values = (
        side[0, head // groups].float() for side in (prompt.storage.keys(), prompt.storage.values())
    )
    start = number * reach.rows
    query = prompt.query[0, head, start : start + reach.rows].float() * prompt.logits.scale
    later = torch.arange(len(keys)) > torch.arange(start, start + len(query)).view(-1, 1)
    logits = (query @ keys.T).masked_fill(later | ~reads, -torch.inf)
    if reach.means:
        tile = tiles(len(keys), len(keys), 0, reach)[start // ROWS]
        mean_keys, mean_values, counts = left_out(keys, values, reads, tile)
        logits = torch.cat((logits, query @ mean_keys.T + counts.log()), -1)
        values = torch.cat((values, mean_values))
    return logits.softmax(-1) @ values
