"""Whether a model can be given tokens at positions beyond its range, if their keys are moved back into it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.transformers.registration import text_config
from keyhole.engines.transformers.rope import LENGTH_DEPENDENT, fits, layer_rope, lone_keys

# What code raises that has as many positions as a table was made for.
_NO_SUCH_POSITION = (IndexError, RuntimeError, ValueError)


def check_far(model: PreTrainedModel, tokens: int) -> None:
    """Raise unless all that a model does at positions up to `tokens` is to rotate queries and keys.

    A lone token is run at the first position and at the last. Sliding layers see true positions, of which
    only differences matter to them.

    Raises:
        UnsupportedModelError: with the reason.
    """
    try:
        _check_rotations(model)
        _check_scales(model)
        ropes = [None if keys is None else layer_rope(model, i) for i, keys in enumerate(lone_keys(model, 0))]
        _check_keys(model, ropes, tokens)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"texts beyond the range of this {type(model).__name__} cannot be read: {error}"
        ) from error


def _check_rotations(model: PreTrainedModel) -> None:
    for module in model.get_decoder().modules():
        form: Any = getattr(module, "rope_type", "default")
        forms = form.values() if isinstance(form, dict) else (form,)
        changing = [str(form) for form in forms if any(word in str(form) for word in LENGTH_DEPENDENT)]
        if changing:
            raise UnsupportedModelError(
                f"its rotary embedding is of type {changing[0]!r}, which changes with the length of the text"
            )


def _check_scales(model: PreTrainedModel) -> None:
    config = text_config(model)
    rotation = getattr(config, "rope_parameters", None) or {}
    if getattr(config, "attn_temperature_tuning", False):
        raise UnsupportedModelError("attn_temperature_tuning scales its queries by their positions")
    if rotation.get("llama_4_scaling_beta") is not None:
        raise UnsupportedModelError("llama_4_scaling_beta scales its queries by their positions")


def _check_keys(model: PreTrainedModel, ropes: list[Any], tokens: int) -> None:
    position = tokens - 1
    try:
        near, far = lone_keys(model, 0), lone_keys(model, position)
    except _NO_SUCH_POSITION as error:
        raise UnsupportedModelError(f"its code has no position {position:,}: {error}") from error
    for place, (rope, here, there) in enumerate(zip(ropes, near, far, strict=True)):
        if rope is not None and not _turned(rope, here, there, position):
            raise UnsupportedModelError(
                f"the keys of layer {place} at position {position:,} are not those of position 0, rotated"
            )


def _turned(rope: Any, here: Tensor | None, there: Tensor | None, position: int) -> bool:
    return here is not None and there is not None and fits(rope, here, there, position)
