"""Keyhole's attention function, registered with transformers, and the switch of one model to it and back."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from keyhole.attention import Logits, dense_attention
from keyhole.engines.transformers.handle import KVHandle

NAME = "keyhole"

_replaced: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


def keyhole_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | KVHandle,
    value: Tensor | KVHandle,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The attention function transformers calls for each layer; returns `[B, Q, H, Dv]` and no weights.

    A handle is answered by its layer. Plain tensors, from sliding layers or another cache, get exact
    attention: transformers' own, or ours where soft-capping or sink logits rule that out.
    """
    logits = Logits(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)
    if isinstance(key, KVHandle):
        out = key.layer.attend(query, logits, mask=attention_mask)
    elif softcap is None and s_aux is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    else:
        out = dense_attention(query, key, value, mask=attention_mask, **logits._asdict())
    return out.transpose(1, 2).contiguous(), None


def switch_attention(model: PreTrainedModel) -> None:
    """Let `model` call Keyhole's attention function; `detach` restores the one it had."""
    AttentionInterface.register(NAME, keyhole_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    current = model.config._attn_implementation
    if current != NAME:
        _replaced[model] = current
        model.set_attn_implementation(NAME)


def detach(model: PreTrainedModel) -> None:
    """Restore the attention function a model had before Keyhole; nothing happens to a model it was not on."""
    previous = _replaced.pop(model, None)
    if previous is not None:
        model.set_attn_implementation(previous)
