"""The attention function that transformers calls in place of a model's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from keyhole.attention import Logits, dense_attention
from keyhole.cache.request import Request
from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.transformers.context import opened
from keyhole.engines.transformers.handle import KVHandle

# What some models tell their attention function that changes its result, and that is not understood here.
_FOREIGN = ("position_bias", "indices", "block_indices", "sinks")


def keyhole_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | KVHandle,
    value: Any,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """The attention function transformers calls for each layer; returns `[B, Q, H, Dv]` and no weights.

    A handle is answered by its layer. Plain tensors, from sliding layers or another cache, get exact
    attention: transformers' own, or ours where soft-capping or sink logits rule that out. A mask of another
    kind is of a call that began before the model was switched: the function it was made for answers.

    Raises:
        UnsupportedModelError: the model asks for other than causal attention over all that is cached.
        ValueError: later, where a gradient is asked for through what a handle stands for.
    """
    foreign = [name for name in _FOREIGN if kwargs.get(name) is not None]
    if foreign:
        raise _refused(module, f"passes {foreign[0]!r} to its attention, which Keyhole does not support")
    logits = Logits(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if not isinstance(key, KVHandle) and key.shape[2] > query.shape[2]:
        for attachment in opened():
            attachment.pass_by(module)
    if isinstance(key, KVHandle):
        mask = _served_mask(module, query, attention_mask, key.layer.request, causal=causal)
        out = _without_gradient(key.layer.attend(query, logits, mask=mask), query)
    elif attention_mask is not None and attention_mask.dtype is not torch.bool:
        options = {"scaling": scaling, "softcap": softcap, "s_aux": s_aux, "is_causal": is_causal}
        given = {name: option for name, option in options.items() if option is not None}
        own = _own_attention(module)
        return own(module, query, key, value, attention_mask, dropout=dropout, **given, **kwargs)
    elif softcap is None and s_aux is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
        )
    else:
        out = dense_attention(query, key, value, mask=attention_mask, causal=causal, **logits._asdict())
    return out.transpose(1, 2).contiguous(), None


def _own_attention(module: Any) -> Callable[..., Any]:
    """What a module called before its model was switched."""
    name = module.config._attn_implementation
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", sdpa_attention_forward)
    return ALL_ATTENTION_FUNCTIONS.get_interface(getattr(name, "previous", name), eager)


def _served_mask(
    module: nn.Module, query: Tensor, mask: Tensor | None, request: Request, *, causal: bool
) -> Tensor | None:
    """The mask as one of true and false."""
    if mask is None:
        if query.shape[2] > 1 and not causal:
            raise _refused(module, "lets tokens attend to later ones")
        return None
    shown = request.boolean(mask)
    if shown is None:
        raise _refused(
            module, "adds an attention bias; Keyhole supports boolean masks, or masks of 0 and -inf"
        )
    return shown


def _refused(module: nn.Module, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{type(module).__name__} {reason}, so its attention cannot be served")


def _without_gradient(out: Tensor, query: Tensor) -> Tensor:
    return _Constant.apply(out.detach(), query) if query.requires_grad else out


class _Constant(torch.autograd.Function):
    """Passes `out` on. What is cached has no history, so a gradient through it would be a wrong one."""

    @staticmethod
    def forward(_context: Any, out: Tensor, _query: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(_context: Any, *_gradients: Tensor) -> NoReturn:
        raise ValueError(
            "gradients do not flow through a KeyholeCache; train with use_cache=False, or without attaching"
        )
