"""The rotations of a model's layers: its own code, checked against what it caches."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from keyhole.core.errors import UnsupportedModelError
from keyhole.core.rope import FrequencyRope, NoRope, Rope
from keyhole.engines.transformers.axes import OneAxisRope, has_axes
from keyhole.engines.transformers.compat import cache_argument
from keyhole.engines.transformers.devices import input_device
from keyhole.engines.transformers.implementation import text_config
from keyhole.engines.transformers.model import adapter_of
from keyhole.kernels import RotaryFrequencies, apply_rotary

_APPLY = ("apply_rotary_pos_emb", "apply_rotary_emb")
_FAR = 100  # the position at which rotations are compared
_ROUNDING, _EXACT = 0.02, 1e-3  # half precision rounds a channel by up to 1 in 256
# What a model's code raises that is called with less than it needs.
_MISFITS = (RuntimeError, IndexError, TypeError, ValueError, AttributeError, KeyError, StopIteration)
LENGTH_DEPENDENT = ("dynamic", "longrope")
_WAY_OUT = "take a method that works on keys as they are cached"


class ModelRope(Rope):
    """A model's rotary module, and the function by which its attention applies what that makes.

    Args:
        kinds: the kind of layer, for a module that serves several.
    """

    def __init__(self, module: nn.Module, apply: Callable[..., Any], kinds: tuple[str, ...]) -> None:
        self.module, self.apply, self.kinds = module, apply, kinds
        parameters = list(inspect.signature(apply).parameters)
        # Query and key, or one of them; then cosine and sine, or complex numbers.
        self.turned = next(i for i, name in enumerate(parameters) if name in ("cos", "freqs_cis"))
        origin = self._angles(torch.zeros(1, 1, dtype=torch.long))
        # No turn: the cosine is the factor by which the model scales what it rotates.
        self.scaling = float(origin[0].abs().flatten()[0])

    def rotate(self, vectors: Tensor, positions: Tensor) -> Tensor:
        angles = [part / self.scaling for part in self._angles(positions.to(vectors.device))]
        complex_ = angles[0].is_complex()  # applied with heads behind tokens
        vectors = vectors.float().transpose(1, 2) if complex_ else vectors.float()
        out = self.apply(*[vectors] * self.turned, *angles)
        out = out if isinstance(out, Tensor) else out[0]
        return out.transpose(1, 2) if complex_ else out

    def turning(self, size: int, device: torch.device) -> RotaryFrequencies | None:
        """By the module's frequencies, paired in one of the two known ways, where that is what it does."""
        frequencies = getattr(self.module, "_".join([*self.kinds, "inv_freq"]), None)
        if not isinstance(frequencies, Tensor) or 2 * len(frequencies) > size:
            return None
        known = (RotaryFrequencies(frequencies.float().to(device), adjacent) for adjacent in (False, True))
        return next((turning for turning in known if self._is(turning, size)), None)

    def _is(self, turning: RotaryFrequencies, size: int) -> bool:
        positions = torch.tensor([[0, 1, _FAR]], device=turning.frequencies.device)
        vectors = torch.arange(3.0 * size, device=positions.device).cos().view(1, 1, 3, size)
        found = apply_rotary(vectors, positions.unsqueeze(1), turning)
        return torch.allclose(found, self.rotate(vectors, positions), atol=1e-3)

    def _angles(self, positions: Tensor) -> tuple[Tensor, ...]:
        like = torch.empty(0, device=positions.device)
        angles = self.module(like, positions, *self.kinds)
        return (angles,) if isinstance(angles, Tensor) else angles


def layer_rope(model: PreTrainedModel, place: int) -> Rope:
    """The rotation of the model's layer at that place, `NoRope` where it does not rotate.

    The first call runs one token through the model, twice. Alone it attends to itself wherever it stands, so
    its keys at two positions differ by the rotation only: that shows which layers rotate, and how.

    Raises:
        UnsupportedModelError: the rotation depends on the length of the text, or is not understood.
    """
    rope = adapter_of(model).memo("rope", lambda: _find(model))[place]
    if rope is None:
        raise UnsupportedModelError(
            f"layer {place} of this {type(model).__name__} encodes positions in an unknown way, "
            f"so its rotary embedding cannot be undone; {_WAY_OUT}"
        )
    return rope


def _find(model: PreTrainedModel) -> list[Rope | None]:
    near, far = lone_keys(model, 0), lone_keys(model, _FAR)
    return [_fitting(model, place, *pair) for place, pair in enumerate(zip(near, far, strict=True))]


@torch.no_grad()
def lone_keys(model: PreTrainedModel, position: int) -> list[Tensor | None]:
    """Each layer's cached key `[1, Hkv, 1, D]` of a lone token; None for layers without."""
    at = torch.full((1, 1), position, device=input_device(model))
    # Some common token: the first ones are special, and the embedding of padding is zero.
    token = torch.full_like(at, cast(nn.Embedding, model.get_input_embeddings()).num_embeddings // 2)
    cache = DynamicCache(config=model.config)
    # Not the module itself: hooks of an open `attach` would take this for a request.
    forward = cast(Callable[..., Any], model.base_model.forward)
    forward(input_ids=token, position_ids=at, use_cache=True, **{cache_argument(forward): cache})
    return [getattr(layer, "keys", None) for layer in cache.layers]


def _fitting(model: PreTrainedModel, place: int, near: Tensor | None, far: Tensor | None) -> Rope | None:
    """The first rotation that takes a layer's key at position 0 to where it was found at `_FAR`."""
    if near is None or far is None or not far.any():
        return None
    return next((rope for rope in _candidates(model, place) if _fits(rope, near, far)), None)


def _fits(rope: Rope, near: Tensor, far: Tensor) -> bool:
    moved = torch.full((1, 1), _FAR, device=near.device)
    try:
        found = rope.rotate(near, moved)
    except _MISFITS:
        return False
    return found.shape == far.shape and bool(
        (found - far.float()).norm() <= _tolerance(far) * far.float().norm()
    )


def _candidates(model: PreTrainedModel, place: int) -> Iterator[Rope]:
    """By the model's own code first, then by its frequencies alone, then none.

    The frequencies serve where attention rotates a part of the channels that it cuts out itself, and where
    positions have several axes, which in a text are all the same.
    """
    for module in model.get_decoder().modules():
        if "RotaryEmbedding" not in type(module).__name__:
            continue
        kinds = _kinds(model, module, place)
        _check_constant(model, module, kinds)
        for rope in _readings(module, kinds):
            yield OneAxisRope(rope) if has_axes(module) else rope
    yield NoRope()


def _readings(module: nn.Module, kinds: tuple[str, ...]) -> Iterator[Rope]:
    """What a rotary module may do."""
    yield from filter(None, (_own(module, apply, kinds) for apply in _apply_functions(module)))
    name = "_".join([*kinds, "inv_freq"])
    yield from (FrequencyRope(partial(getattr, module, name), adjacent=each) for each in (False, True))


def _own(module: nn.Module, apply: Callable[..., Any], kinds: tuple[str, ...]) -> Rope | None:
    """The rotation by a module's own code; None where that takes more than positions."""
    try:
        return ModelRope(module, apply, kinds)
    except _MISFITS:
        return None


def _apply_functions(module: nn.Module) -> list[Callable[..., Any]]:
    """How the attention beside a rotary module applies what it makes."""
    home = sys.modules[type(module).__module__]
    return [getattr(home, name) for name in _APPLY if hasattr(home, name)]


def _kinds(model: PreTrainedModel, module: nn.Module, place: int) -> tuple[str, ...]:
    """The kind of a layer, for a module that serves several."""
    if "layer_type" not in inspect.signature(module.forward).parameters:
        return ()
    kinds = getattr(text_config(model), "layer_types", None) or ()
    return tuple(kinds[place : place + 1])


def _check_constant(model: PreTrainedModel, module: nn.Module, kinds: tuple[str, ...]) -> None:
    form: Any = getattr(module, "rope_type", "default")
    if isinstance(form, dict):
        form = next((form[kind] for kind in kinds if kind in form), "default")
    if any(word in str(form) for word in LENGTH_DEPENDENT):
        raise UnsupportedModelError(
            f"the rotary embedding of this {type(model).__name__} is of type {form!r}: it depends on "
            f"the length of the text, so it cannot be undone; {_WAY_OUT}"
        )


def _tolerance(keys: Tensor) -> float:
    """How far a key may be off, as a share of its length."""
    return _ROUNDING if keys.dtype in (torch.float16, torch.bfloat16) else _EXACT
