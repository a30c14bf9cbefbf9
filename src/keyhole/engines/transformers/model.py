"""What Keyhole knows of one model."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

_T = TypeVar("_T")


class ModelAdapter:
    """What was found out about one model, as long as the model lives.

    It holds no reference to the model, and must be given none: the model could never be freed.

    Attributes:
        supported: whether the model passed the checks of `support`.
        probed: whether it is known from an earlier process that it passes the one that runs it.
        switch: weak reference to what serves the model's caches, while that is in place (`registration`).
    """

    def __init__(self) -> None:
        self.supported = False
        self.probed = False
        self.switch: Callable[[], Any] = lambda: None
        self._memo: dict[Hashable, Any] = {}

    def memo(self, key: Hashable, find: Callable[[], _T]) -> _T:
        """What `find` returned when this key was asked for first, such as the rotations of the layers."""
        if key not in self._memo:
            self._memo[key] = find()
        return self._memo[key]


_adapters: WeakKeyDictionary[PreTrainedModel, ModelAdapter] = WeakKeyDictionary()


def adapter_of(model: PreTrainedModel) -> ModelAdapter:
    """The adapter of a model, the same one each time."""
    return _adapters.setdefault(model, ModelAdapter())
