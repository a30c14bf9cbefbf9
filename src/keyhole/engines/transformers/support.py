"""Whether a model can be served, found out before any work is done."""

from __future__ import annotations

from weakref import WeakSet

import torch
from transformers import DynamicCache, PreTrainedModel

from keyhole.engines.transformers.registration import NAME, detach, switch_attention
from keyhole.errors import UnsupportedModelError

_served: WeakSet[PreTrainedModel] = WeakSet()


def check_supported(model: PreTrainedModel) -> None:
    """Raise unless Keyhole can serve the model; the answer is kept as long as the model lives.

    The last test is two tokens through the model: what a class does between cache and attention shows only there.

    Raises:
        UnsupportedModelError: with the reason.
    """
    if model in _served:
        return
    name = type(model).__name__
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} is an encoder-decoder; Keyhole serves decoder-only models")
    if getattr(config, "kv_lora_rank", None):
        raise UnsupportedModelError(
            f"{name} uses multi-head latent attention (kv_lora_rank={config.kv_lora_rank}): it expands keys and "
            "values after the cache, so a part of them cannot be read for it"
        )
    attached = model.config._attn_implementation == NAME
    try:
        _probe(model, name)
    finally:
        if not attached:
            detach(model)
    _served.add(model)


def _probe(model: PreTrainedModel, name: str) -> None:
    # Imported here because making a cache checks the model first.
    from keyhole.engines.transformers.cache import adopt, served_layers
    from keyhole.methods.recipe import Recipe

    switch_attention(model)
    if model.config.get_text_config()._attn_implementation != NAME:
        raise UnsupportedModelError(
            f"{name} does not call its attention through transformers' AttentionInterface"
        )
    cache = DynamicCache(config=model.config)
    adopt(cache, Recipe.parse("dense"), model)
    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    with torch.no_grad():
        model(input_ids=tokens, past_key_values=cache, use_cache=True)
    if any(layer.length != tokens.shape[1] for layer in served_layers(cache)):
        raise UnsupportedModelError(f"{name} does not store all its layers' keys in the cache it is given")
