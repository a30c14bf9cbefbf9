"""A prompt that a model computes exactly, while each served layer is watched."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from keyhole.engines.transformers.cache import adopt, is_served
from keyhole.engines.transformers.compat import cache_argument
from keyhole.engines.transformers.devices import input_device
from keyhole.engines.transformers.registration import switched
from keyhole.engines.transformers.support import check_supported
from keyhole.methods.recipe import Recipe
from keyhole.prefill import Prefill

_Recorder = TypeVar("_Recorder", bound=Prefill)


def recorded(
    model: PreTrainedModel, prompts: Iterable[Tensor], make: Callable[[int], _Recorder]
) -> dict[int, _Recorder]:
    """A recorder for each served layer, by its place in the model, that has seen all prompts.

    Args:
        prompts: token ids `[1, T]`, each run through the model by itself; those of one token are passed over.
        make: gives the recorder of a layer.

    Raises:
        UnsupportedModelError: the model cannot be served.
    """
    found: dict[int, _Recorder] = {}

    def recorder(place: int) -> _Recorder:
        if place not in found:
            found[place] = make(place)
        return found[place]

    for ids in prompts:
        if ids.shape[1] > 1:
            record(model, ids, recorder)
    return found


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
            if is_served(layer):
                layer.inner.use_prefill(recorder(place))
        forward = cast(Callable[..., Any], model.base_model.forward)
        forward(input_ids=ids.to(input_device(model)), use_cache=True, **{cache_argument(forward): cache})
