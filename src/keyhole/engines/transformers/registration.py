"""The switch of one model to Keyhole's attention function, registered with transformers, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from keyhole.engines.transformers.attention import keyhole_attention
from keyhole.engines.transformers.sparse_ffn.skipping import SkippingModules
from keyhole.feedforward import FeedForward

NAME = "keyhole"


@dataclass
class _Switch:
    """A configuration whose attention is Keyhole's: for so many open blocks, or `kept` so until `detach`.

    `skipping` are the modules that skip weights in models of this configuration, by the models' ids.
    """

    config: PreTrainedConfig
    previous: str
    blocks: int = 0
    kept: bool = False
    skipping: dict[int, SkippingModules] = field(default_factory=dict)


# Keyed by the id of a configuration, which models may share; the entry keeps it alive.
_switches: dict[int, _Switch] = {}
_lock = RLock()


@contextmanager
def switched(model: PreTrainedModel, feedforward: FeedForward | None = None) -> Iterator[None]:
    """Let `model` call Keyhole's attention function, and skip weights, inside the block.

    Blocks may nest and overlap.
    """
    with _lock:
        switch = _switch(model, feedforward)
        switch.blocks += 1
    try:
        yield
    finally:
        with _lock:
            switch.blocks -= 1
            _restore_unneeded(model, switch)


def keep_switched(model: PreTrainedModel, feedforward: FeedForward | None = None) -> None:
    """Let `model` call Keyhole's attention function, and skip weights, until `detach`."""
    with _lock:
        _switch(model, feedforward).kept = True


def detach(model: PreTrainedModel) -> None:
    """Restore the attention function and the modules a model had before `make_cache`.

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


def _switch(model: PreTrainedModel, feedforward: FeedForward | None) -> _Switch:
    config = text_config(model)
    switch = _switches.get(id(config))
    if switch is None:
        AttentionInterface.register(NAME, keyhole_attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        switch = _switches[id(config)] = _Switch(config, str(config._attn_implementation))
        _set_attention(model, NAME)
    if feedforward is not None and feedforward.thresholds:
        try:
            if id(model) not in switch.skipping:
                switch.skipping[id(model)] = SkippingModules(model)
            switch.skipping[id(model)].put(feedforward)
        except BaseException:
            _restore_unneeded(model, switch)
            raise
    return switch


def _restore_unneeded(model: PreTrainedModel, switch: _Switch) -> None:
    if not switch.blocks and not switch.kept:
        _set_attention(model, switch.previous)
        for modules in switch.skipping.values():
            modules.remove()
        del _switches[id(switch.config)]


def _set_attention(model: PreTrainedModel, name: str) -> None:
    """Set the attention of the text decoder, and of nothing beside it."""
    config = text_config(model)
    parts = [key for key in model.config.sub_configs if getattr(model.config, key) is config]
    model.set_attn_implementation({parts[0]: name} if parts else name)
