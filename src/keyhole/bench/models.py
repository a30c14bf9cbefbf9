"""Whole models as candidates: caches with synthetic tokens put in, one forward call as the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from keyhole.bench.case import Case
from keyhole.bench.shapes import Shape
from keyhole.cache.layer import LayerCache
from keyhole.core.model_info import ModelInfo
from keyhole.engines.transformers.cache import KeyholeLayer, setting_of
from keyhole.engines.transformers.compat import cache_argument
from keyhole.engines.transformers.registration import detach, keep_switched
from keyhole.engines.transformers.sparse_ffn.activations import fit_activations
from keyhole.feedforward import Fitted, Rule, Steps
from keyhole.tuning.synthetic import Synthetic

SDPA = "transformers sdpa"
_CALIBRATION = 32  # tokens, each of which shows thousands of channels


def shape_case(shape: Shape, tokens: int, dtype: str, read_tokens: int, seed: int) -> Case:
    """One layer of a model of this shape."""
    return Case(tokens, shape.query_heads, shape.kv_heads, shape.head_dim, dtype, read_tokens, seed)


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of weights a decode step reads: all but an input embedding that is no output layer."""
    whole: Any = model
    held = _weights(whole)
    only_looked_up = set(_weights(whole.get_input_embeddings())) - set(
        _weights(whole.get_output_embeddings())
    )
    return sum(held.values()) - sum(held[each] for each in only_looked_up)


def _weights(module: nn.Module) -> dict[int, int]:
    """Bytes by address: parameters, and what packed modules have in their place."""
    return {weight.data_ptr(): weight.nbytes for weight in module.state_dict().values()}


def sources_of_layers(case: Case, layers: int) -> Iterator[Synthetic]:
    """A stream of tokens for each layer in turn; the same whenever it is asked."""
    for index in range(layers):
        yield case.source(index)


def random_setting(model: PreTrainedModel) -> ModelInfo:
    """What methods know of a model of random weights, whose activations any tokens show."""
    tokens = torch.randint(
        model.config.vocab_size, (1, _CALIBRATION), generator=torch.Generator().manual_seed(0)
    )

    def activations(rule: Rule, attention: bool) -> dict[str, Fitted]:
        return fit_activations(model, [tokens], rule=rule, attention=attention)

    return replace(setting_of(model), activations=activations)


def plain_cache(model: PreTrainedModel) -> DynamicCache:
    """transformers' own cache."""
    return DynamicCache(config=model.config)


def keyhole_cache(
    model: PreTrainedModel, layers: list[LayerCache], steps: Steps | None = None
) -> DynamicCache:
    """A cache of Keyhole's layers, whose steps may skip weights."""
    cache: Any = DynamicCache(config=model.config)
    cache.layers = [KeyholeLayer(layer, steps) for layer in layers]
    for layer in cache.layers:
        layer.is_initialized = layer.get_seq_length() > 0
    return cache


def forward(
    model: PreTrainedModel, tokens: Tensor, cache: Callable[[], Cache], *, predictions: int = 1
) -> Callable[[], Tensor]:
    """A call of the model on `tokens [1, T]` that returns the logits `[predictions, V]` of the last ones."""

    name = cache_argument(model)

    def run() -> Tensor:
        out = model(input_ids=tokens, use_cache=True, logits_to_keep=predictions, **{name: cache()})
        return out.logits[0]

    return run


def use_sdpa(model: PreTrainedModel) -> None:
    """Let the model compute as transformers does."""
    detach(model)
    model.set_attn_implementation("sdpa")


def use_keyhole(model: PreTrainedModel, steps: Steps | None = None) -> None:
    """Let the model's attention ask Keyhole's layers, and its modules skip weights where steps do."""
    keep_switched(model, steps.feedforward if steps else None)
