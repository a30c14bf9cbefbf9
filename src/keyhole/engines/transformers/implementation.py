"""The attention implementation of a configuration: Keyhole's, while anything needs it."""

from __future__ import annotations

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from keyhole.engines.transformers.attention import keyhole_attention

NAME = "keyhole"


class ServedAttention(str):
    """Keyhole's name in a configuration. Copies of the configuration get the name that was there before.

    Models may share a configuration, so it counts who needs it.
    """

    def __new__(cls, previous: str) -> ServedAttention:
        name = super().__new__(cls, NAME)
        name.previous, name.holders = previous, 0
        return name

    previous: str
    holders: int

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (self.previous,)


def text_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the model's text decoder, which is its own unless it has others beside it."""
    return model.config.get_text_config(decoder=True)


def wants_cache(model: PreTrainedModel, arguments: dict) -> bool:
    """Whether a call without a cache asks for one."""
    asked = arguments.get("use_cache")
    return bool(getattr(text_config(model), "use_cache", False) if asked is None else asked)


def hold(model: PreTrainedModel) -> None:
    """Switch the model's configuration to Keyhole's attention, until as many `release` it."""
    config = text_config(model)
    if not isinstance(config._attn_implementation, ServedAttention):
        AttentionInterface.register(NAME, keyhole_attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        served = ServedAttention(str(config._attn_implementation))
        _set_attention(model, NAME)
        if config._attn_implementation != NAME:
            return  # a model without the choice; `support` refuses it
        config._attn_implementation_internal = served
    held = config._attn_implementation
    if isinstance(held, ServedAttention):
        held.holders += 1


def release(model: PreTrainedModel) -> None:
    """Undo a `hold`."""
    served = text_config(model)._attn_implementation
    if isinstance(served, ServedAttention):
        served.holders -= 1
        if served.holders <= 0:
            _set_attention(model, served.previous)


def _set_attention(model: PreTrainedModel, name: str) -> None:
    """Set the attention of the text decoder, and of nothing beside it."""
    config = text_config(model)
    parts = [key for key in model.config.sub_configs if getattr(model.config, key) is config]
    model.set_attn_implementation({parts[0]: name} if parts else name)
