"""Whether the arithmetic of a step gives what a model's own modules give."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from keyhole.engines.transformers.compat import cache_argument
from keyhole.engines.transformers.steps.families import Understood
from keyhole.kernels.decoder.api import decoder_step
from keyhole.kernels.decoder.types import Linear

_TOKENS, _FAR = 4, 100  # of a text that begins at that position
# Of the length of a vector. Modules in bfloat16 round often; products of packed weights round their inputs
# to 8 bits, which carries a difference in the last bit further.
_EXACT, _ROUNDED = 1e-3, 0.1


@torch.no_grad()
def differs(model: PreTrainedModel, understood: Understood) -> str | None:
    """What is not as the model's own modules have it, for a few tokens; None where all is.

    The last of them is a step by the arithmetic, with keys and values that the modules made of the others.
    """
    decoder: Any = model.get_decoder()
    ids = torch.arange(1, _TOKENS + 1).unsqueeze(0) * (decoder.embed_tokens.num_embeddings // (_TOKENS + 1))
    # Within the model's range: rotations that grow with a text keep the length of the longest one.
    far = max(0, min(_FAR, decoder.config.max_position_embeddings - _TOKENS))
    positions = torch.arange(far, far + _TOKENS).unsqueeze(0)
    forward, cache = type(decoder).forward, DynamicCache(config=decoder.config)
    given = {"position_ids": positions, "use_cache": True, cache_argument(forward): cache}
    wanted = forward(decoder, input_ids=ids, **given).last_hidden_state[:, -1]
    step, sizes = decoder_step(understood.decoder), understood.decoder.sizes
    cos, sin = decoder.rotary_emb(torch.empty(0), positions[:, -1:])
    allowed = _ROUNDED if sizes.dtype == torch.bfloat16 or _is_packed(understood) else _EXACT
    heads = step.begin(decoder.embed_tokens(ids[:, -1]), cos[0], sin[0])
    for layer, (place, logits) in enumerate(understood.attention):
        query, *found = heads.split([sizes.heads, sizes.kv_heads, sizes.kv_heads], dim=1)
        held: Any = cache.layers[place]
        keys, values = held.keys, held.values
        for name, own, new in zip(("keys", "values"), (keys, values), found, strict=True):
            if not _close(new, own[:, :, -1:], allowed):
                return f"{name} of layer {place} differ from those of the model's own modules"
        out = F.scaled_dot_product_attention(query, keys, values, scale=logits.scale, enable_gqa=True)
        heads = step.attended(layer, out)
    return (
        None
        if _close(heads, wanted, allowed)
        else "hidden states differ from those of the model's own modules"
    )


def _is_packed(understood: Understood) -> bool:
    """Whether any of the products is of packed weights."""
    linears = (part for layer in understood.decoder.layers for part in layer if isinstance(part, Linear))
    return any(linear.matrix.packing.packed for linear in linears)


def _close(found: Tensor, wanted: Tensor, allowed: float) -> bool:
    error = (found.float() - wanted.float()).norm() / wanted.float().norm()
    return bool(error <= allowed)
