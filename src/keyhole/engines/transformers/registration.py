"""Keyhole's attention function, registered with transformers, and the switch of one model to it and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from keyhole.attention import Logits, dense_attention
from keyhole.engines.transformers.handle import KVHandle
from keyhole.errors import UnsupportedModelError

NAME = "keyhole"

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
    attention: transformers' own, or ours where soft-capping or sink logits rule that out.

    Raises:
        UnsupportedModelError: the model asks for other than causal attention over all that is cached.
    """
    foreign = [name for name in _FOREIGN if kwargs.get(name) is not None]
    if foreign:
        raise _refused(module, f"gives its attention {foreign[0]!r}, which Keyhole does not know")
    logits = Logits(query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if isinstance(key, KVHandle):
        _check_served(module, query, attention_mask, causal)
        out = key.layer.attend(query, logits, mask=attention_mask)
    elif softcap is None and s_aux is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
        )
    else:
        out = dense_attention(query, key, value, mask=attention_mask, causal=causal, **logits._asdict())
    return out.transpose(1, 2).contiguous(), None


def _check_served(module: nn.Module, query: Tensor, mask: Tensor | None, causal: bool) -> None:
    if mask is None and query.shape[2] > 1 and not causal:
        raise _refused(module, "lets tokens attend to later ones")
    if mask is not None and mask.is_floating_point():
        raise _refused(module, "adds numbers to its logits; Keyhole takes masks of true and false")


def _refused(module: nn.Module, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"{type(module).__name__} {reason}, so its attention cannot be served")


@dataclass
class _Switch:
    """A configuration whose attention is Keyhole's: for so many open blocks, or `kept` so until `detach`."""

    config: PreTrainedConfig
    previous: str
    blocks: int = 0
    kept: bool = False


# Keyed by the id of a configuration, which models may share; the entry keeps it alive.
_switches: dict[int, _Switch] = {}
_lock = RLock()


@contextmanager
def switched(model: PreTrainedModel) -> Iterator[None]:
    """Let `model` call Keyhole's attention function inside the block; blocks may nest and overlap."""
    with _lock:
        switch = _switch(model)
        switch.blocks += 1
    try:
        yield
    finally:
        with _lock:
            switch.blocks -= 1
            _restore_unneeded(model, switch)


def keep_switched(model: PreTrainedModel) -> None:
    """Let `model` call Keyhole's attention function until `detach`."""
    with _lock:
        _switch(model).kept = True


def detach(model: PreTrainedModel) -> None:
    """Restore the attention function a model had before `make_cache`.

    Nothing happens to a model that was not switched; inside an `attach` block, the block's end restores it.
    """
    with _lock:
        switch = _switches.get(id(text_config(model)))
        if switch is not None:
            switch.kept = False
            _restore_unneeded(model, switch)


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the model's text decoder, which is its own unless it has others beside it."""
    return model.config.get_text_config(decoder=True)


def _switch(model: PreTrainedModel) -> _Switch:
    config = text_config(model)
    switch = _switches.get(id(config))
    if switch is None:
        AttentionInterface.register(NAME, keyhole_attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        switch = _switches[id(config)] = _Switch(config, str(config._attn_implementation))
        _set_attention(model, NAME)
    return switch


def _restore_unneeded(model: PreTrainedModel, switch: _Switch) -> None:
    if not switch.blocks and not switch.kept:
        _set_attention(model, switch.previous)
        del _switches[id(switch.config)]


def _set_attention(model: PreTrainedModel, name: str) -> None:
    """Set the attention of the text decoder, and of nothing beside it."""
    config = text_config(model)
    parts = [key for key in model.config.sub_configs if getattr(model.config, key) is config]
    model.set_attn_implementation({parts[0]: name} if parts else name)
