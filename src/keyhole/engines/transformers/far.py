"""Whether a model can be given tokens at positions beyond its range, if their keys are moved back into it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from keyhole.core.errors import UnsupportedModelError
from keyhole.core.rope import Rope
from keyhole.engines.transformers.registration import text_config
from keyhole.engines.transformers.rope import LENGTH_DEPENDENT, layer_rope, lone_keys

# What code raises that has as many positions as a table was made for.
_NO_SUCH_POSITION = (IndexError, RuntimeError, ValueError)
_TOLERANCE = 0.05  # as a share of a key's length: angles of a million radians are rounded to 1 in 16


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


def _check_keys(model: PreTrainedModel, ropes: list[Rope | None], tokens: int) -> None:
    position = tokens - 1
    try:
        near, far = lone_keys(model, 0), lone_keys(model, position)
    except _NO_SUCH_POSITION as error:
        raise UnsupportedModelError(f"its code has no position {position:,}: {error}") from error
    for place, (rope, here, there) in enumerate(zip(ropes, near, far, strict=True)):
        if rope is None or here is None or there is None:
            continue
        if not (_turns(rope, here, there, position) and _turns(rope, there, here, -position)):
            raise UnsupportedModelError(
                f"the keys of layer {place} at position {position:,} are not those of position 0, rotated"
            )


def _turns(rope: Rope, keys: Tensor, wanted: Tensor, moves: int) -> bool:
    """Whether a rotation takes keys where they are wanted, in two parts, which only a rotation can."""
    half = moves // 2
    for part in (half, moves - half):
        try:
            keys = rope.rotate(keys, torch.full((1, 1), part, device=keys.device))
        except _NO_SUCH_POSITION:
            return False
    return bool((keys - wanted.float()).norm() <= _TOLERANCE * wanted.float().norm())
