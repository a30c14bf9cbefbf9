"""The `forward` of a decoder and of its output layer, while decode steps are computed by native code.

The modules stay what they are, so hooks on them are called as ever. Everything but steps goes to the
forward of their classes.
"""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from keyhole.engines.transformers.sparse_ffn.obstacles import Substitute, own_forward
from keyhole.engines.transformers.steps.families import family_of
from keyhole.engines.transformers.steps.fused import FusedSteps


class _Forward(Substitute):
    """In copies of the module it is the forward of its class."""

    def __init__(self, module: nn.Module, steps: FusedSteps) -> None:
        self.module: Any = module
        self.steps = steps
        self.__signature__ = inspect.signature(MethodType(type(module).forward, module))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return MethodType(type(self.module).forward, memo.get(id(self.module), self.module))

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.module, "forward")  # of a module whose attributes are not there yet


class _DecoderForward(_Forward):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = None if args else self.steps.step(kwargs)
        return type(self.module).forward(self.module, *args, **kwargs) if found is None else found


class _HeadForward(_Forward):
    def __call__(self, x: Tensor) -> Tensor:
        found = self.steps.project(self.module, x)
        return type(self.module).forward(self.module, x) if found is None else found


class StepForwards:
    """What is put into a model for its steps, and taken out again."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._replaced: list[nn.Module] = []
        decoder: Any = model.get_decoder()
        if family_of(decoder) is None or own_forward(decoder) is not None:
            return
        steps = FusedSteps(model)
        self._put(decoder, _DecoderForward(decoder, steps))
        head = model.get_output_embeddings()
        if head is not None and own_forward(head) is None:
            self._put(head, _HeadForward(head, steps))

    def _put(self, module: Any, forward: _Forward) -> None:
        module.forward = forward
        self._replaced.append(module)

    def remove(self) -> None:
        """Leave the modules as they were; what a user put in its place stays."""
        for module in self._replaced:
            if isinstance(vars(module).get("forward"), _Forward):
                del module.forward
        self._replaced.clear()
