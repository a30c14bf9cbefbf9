"""A prompt that a model computes exactly, while each served layer is watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from keyhole.engines.transformers.cache import KeyholeLayer, adopt
from keyhole.engines.transformers.registration import switched
from keyhole.engines.transformers.support import check_supported
from keyhole.methods.recipe import Recipe
from keyhole.prefill import Prefill


@torch.no_grad()
def record(model: PreTrainedModel, ids: Tensor, recorder: Callable[[int], Prefill]) -> None:
    """Run token ids `[1, T]` through a model whose served layers compute their prompt by recorders.

    Args:
        recorder: gives the recorder of a layer, by its place in the model; asked in ascending order.

    Raises:
        UnsupportedModelError: the model cannot be served.
    """
    check_supported(model)
    with switched(model):
        cache = DynamicCache(config=model.config)
        adopt(cache, Recipe.parse("dense"), model)
        for place, layer in enumerate(cache.layers):
            if isinstance(layer, KeyholeLayer):
                layer.inner.prefill = recorder(place)
        forward = cast(Callable[..., Any], model.base_model.forward)
        forward(input_ids=ids.to(model.device), past_key_values=cache, use_cache=True)
