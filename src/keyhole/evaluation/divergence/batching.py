"""How many texts are computed at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from keyhole.engines.transformers import make_cache, served_layers
from keyhole.generation.decoding import prefill
from keyhole.methods import Recipe
from keyhole.tuning.machine import free_bytes

_COPIES = 4  # of keys and values: dense, the method's, its index or packed form, and a copy of that
_ACTIVATIONS = 6  # of the width of a feed-forward layer, while a prompt is computed
_SHARE = 0.6  # of the free memory
_FLOAT32 = 4

Each = TypeVar("Each")


def batches(items: Sequence[Each], most: int) -> list[list[Each]]:
    """As few batches as possible of at most so many items, of equal size as far as possible.

    Raises:
        ValueError: `most` is not positive.
    """
    if most < 1:
        raise ValueError(f"batch={most} is out of range; give at least 1")
    count = -(-len(items) // most)
    bounds = [len(items) * i // count for i in range(count + 1)]
    return [list(items[start:end]) for start, end in pairwise(bounds)]


def fitting(model: PreTrainedModel, context: int, tokens: int, *, queries: bool) -> int:
    """Texts that fit into free memory together, at least one.

    Args:
        queries: whether a prompt's queries are held too.
    """
    per_text = _bytes_of_text(model, context, tokens, queries=queries)
    return max(1, int(_SHARE * free_bytes(model.device) / per_text))


def _bytes_of_text(model: PreTrainedModel, context: int, tokens: int, *, queries: bool) -> float:
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None) or 1
    grouped = heads / (getattr(config, "num_key_value_heads", None) or heads)
    keys = _key_bytes(model)
    cached = keys * (2 * _COPIES + grouped * queries)
    width = max(getattr(config, "intermediate_size", 0) or 0, config.hidden_size)
    computing = _ACTIVATIONS * width * model.dtype.itemsize
    return (cached + computing) * (context + tokens) + tokens * config.vocab_size * _FLOAT32


def _key_bytes(model: PreTrainedModel) -> int:
    """Bytes of the keys of one token in all layers."""
    cache = make_cache(model, Recipe.parse("dense"))
    prefill(model, torch.zeros(1, 2, dtype=torch.long, device=model.device), cache)
    return sum(layer.newest.nbytes for layer in served_layers(cache))
