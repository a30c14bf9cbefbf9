"""The switch of one model to Keyhole's attention function, registered with transformers, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from keyhole.engines.transformers.attention import keyhole_attention

NAME = "keyhole"


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
