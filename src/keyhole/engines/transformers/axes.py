"""Positions of several axes (M-RoPE): in a text all are the same, in images and videos they differ."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, PreTrainedModel

from keyhole.core.errors import UnsupportedModelError
from keyhole.core.rope import Rope
from keyhole.engines.transformers.compat import given_cache
from keyhole.kernels import RotaryFrequencies

# Whether the running call is of a request whose axes differ; the caches of such requests.
_differ: ContextVar[bool] = ContextVar("keyhole_axes_differ", default=False)
_requests: WeakSet[Cache] = WeakSet()


class OneAxisRope(Rope):
    """A rotation of several axes, for requests in which all have the same position."""

    def __init__(self, rope: Rope) -> None:
        self.rope = rope

    def rotate(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """As `Rope.rotate`.

        Raises:
            UnsupportedModelError: the request has tokens whose axes differ.
        """
        if _differ.get():
            raise UnsupportedModelError(
                "the request has images or videos, whose tokens have multi-axis positions, so rotary "
                "embeddings cannot be undone; use a method that works on keys as they are cached"
            )
        return self.rope.rotate(vectors, positions)

    def turning(self, size: int, device: torch.device) -> RotaryFrequencies | None:
        return self.rope.turning(size, device)


def has_axes(module: nn.Module) -> bool:
    """Whether a rotary module takes a position for each of several axes."""
    parameters = getattr(getattr(module, "config", None), "rope_parameters", None) or {}
    return hasattr(module, "mrope_section") or (hasattr(module, "inv_freq") and "mrope_section" in parameters)


def axes_hooks(model: PreTrainedModel) -> list[RemovableHandle]:
    """Hooks by which the rotations of a model notice requests with several axes."""
    decoder = model.get_decoder()
    if not any(has_axes(module) for module in decoder.modules()):
        return []
    return [
        decoder.register_forward_pre_hook(_begin, with_kwargs=True),
        decoder.register_forward_hook(_end, always_call=True),
    ]


def _begin(_decoder: nn.Module, _args: tuple, kwargs: dict[str, Any]) -> None:
    positions, cache = kwargs.get("position_ids"), given_cache(kwargs)
    axes = positions[-3:] if isinstance(positions, Tensor) and positions.dim() == 3 else None
    differ = axes is not None and not bool((axes == axes[:1]).all())
    if differ and cache is not None:
        _requests.add(cache)
    # Behind an image all axes are the same again, but are no longer the place in the cache.
    _differ.set(differ or cache in _requests)


def _end(*_call: object) -> None:
    _differ.set(False)
