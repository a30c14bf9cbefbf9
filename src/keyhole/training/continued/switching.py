"""A model whose attention is computed by ours while it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.transformers.implementation import text_config

NAME = "keyhole_training"
# What a layer may be told that the attention here does not follow.
_FOREIGN = ("softcap", "s_aux", "position_bias", "sliding_window", "sinks", "indices", "block_indices")


class TrainedAttention(Protocol):
    """Causal attention of one layer, with gradients."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """`query [B, H, L, D]`, `key [B, Hkv, L, D]`, `value [B, Hkv, L, Dv]` to `[B, H, L, Dv]`."""
        ...


@dataclass
class _Call:
    """What attends, and the layers that asked it to."""

    attention: TrainedAttention
    layers: set[int] = field(default_factory=set)


_current: ContextVar[_Call] = ContextVar(NAME)


@contextmanager
def attending(model: PreTrainedModel, attention: TrainedAttention) -> Iterator[None]:
    """Let a model's layers attend by `attention` inside the block, in this thread; it runs at least once.

    Raises:
        UnsupportedModelError: a layer is no plain causal attention over the whole row, or is not called
            through transformers' AttentionInterface.
    """
    before: Any = model.config._attn_implementation
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    call = _Call(attention)
    token = _current.set(call)
    try:
        model.set_attn_implementation(NAME)
        yield
    finally:
        _current.reset(token)
        model.set_attn_implementation(before)
    layers = text_config(model).num_hidden_layers
    if len(call.layers) != layers:
        raise UnsupportedModelError(
            f"{len(call.layers)} of the {layers} layers of this {type(model).__name__} call their attention "
            "through transformers' AttentionInterface; it can only be trained with --selection full"
        )


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers calls. Rows are whole and without padding, so that the mask is the causal one."""
    foreign = [name for name in _FOREIGN if options.get(name) is not None] + ["dropout"] * bool(dropout)
    if foreign:
        raise UnsupportedModelError(
            f"{type(module).__name__} has {foreign[0]!r} in its attention, which cannot be trained with "
            "selected blocks; give --selection full"
        )
    layer: Any = module.layer_idx
    call = _current.get()
    call.layers.add(layer)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return call.attention.attend(layer, query, key, value, scale).transpose(1, 2).contiguous(), None
