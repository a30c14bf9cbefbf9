"""What the cache hands to the model in place of key and value tensors."""

from __future__ import annotations

from typing import NoReturn, Protocol

import torch
from torch import Tensor

from keyhole.attention import Logits
from keyhole.cache.request import Request
from keyhole.core.errors import UnsupportedModelError


class Answering(Protocol):
    """A layer that a handle stands for."""

    @property
    def request(self) -> Request:
        """What the layers of its cache share."""
        ...

    @property
    def newest(self) -> Tensor:
        """The newest token's keys."""
        ...

    def attend(self, query: Tensor, logits: Logits, *, mask: Tensor | None = None) -> Tensor:
        """Attention of the newest tokens' `query [B, H, Q, D]`; returns `[B, H, Q, Dv]`."""
        ...


class KVHandle:
    """Stands for all keys, or all values, of a layer on the way from the cache to the attention function.

    A model that touches keys or values in between (to expand or rotate them) cannot be served: any use of
    the handle as a tensor raises UnsupportedModelError.
    """

    __slots__ = ("layer",)

    def __init__(self, layer: Answering) -> None:
        self.layer = layer

    def to(self, place: object) -> KVHandle:
        """Some models move what they were given to where it is already; all else is refused."""
        if not isinstance(place, torch.device) or place != self.layer.newest.device:
            _refuse(f"moves them to {place}")
        return self

    def __getattr__(self, name: str) -> NoReturn:
        _refuse(f"reads their {name!r}")

    def __getitem__(self, index: object) -> NoReturn:
        _refuse("indexes them")

    def _compute(self, *_operands: object) -> NoReturn:
        _refuse("computes with them")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _compute
    __matmul__ = __rmatmul__ = __pow__ = __neg__ = __len__ = __iter__ = __bool__ = _compute

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None) -> NoReturn:
        _refuse(f"calls {getattr(func, '__name__', func)} on them")


def _refuse(what: str) -> NoReturn:
    raise UnsupportedModelError(
        "this model's code changes keys or values after the cache and before attention "
        f"(it {what}), so Keyhole cannot serve it; Keyhole serves models that pass them on unchanged, "
        "inside `with keyhole.attach(model):` of the model that the cache was made for"
    )
