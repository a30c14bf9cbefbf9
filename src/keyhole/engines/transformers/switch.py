"""What is done to a model whose caches are served: its attention, hooks of its calls, skipping modules."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock, get_ident
from typing import Any

from transformers import PreTrainedModel

from keyhole.engines.transformers.axes import axes_hooks
from keyhole.engines.transformers.calls import ServedCache
from keyhole.engines.transformers.compat import cache_argument, given_cache, with_cache
from keyhole.engines.transformers.context import Serving, current
from keyhole.engines.transformers.hidden_states import HiddenStates
from keyhole.engines.transformers.implementation import hold, release, wants_cache
from keyhole.engines.transformers.model import adapter_of
from keyhole.engines.transformers.sparse_ffn.skipping import SkippingModules, sparse_steps
from keyhole.engines.transformers.steps.forwards import StepForwards
from keyhole.feedforward import FeedForward

switching = RLock()  # held while a model is switched, or switched back


@dataclass
class _Call:
    """A call of the model that goes on, with its cache; `missed` are blocks of other threads."""

    cache: Any = None
    attachment: Serving | None = None
    missed: list[Serving] = field(default_factory=list)

    def finish(self) -> None:
        served = isinstance(self.cache, ServedCache) and self.cache.end_call()
        if self.attachment is not None:
            self.attachment.finish(served)
        for attachment in self.missed:
            attachment.miss()


class Switch:
    """A model that calls Keyhole's attention: for so many open blocks, `kept` so until `detach`.

    A mask and the attention function that reads it belong together, so calls that began under a switch keep
    it. Only hooks of the model and open blocks refer to it: it goes with the model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.blocks, self.kept = 0, False
        self.attachments: list[Serving] = []
        self._calls: dict[int, list[_Call]] = {}  # by thread
        self._skipping: SkippingModules | None = None
        self._hidden_states = HiddenStates()
        self._parameters = list(inspect.signature(model.forward).parameters)
        self._cache_argument = cache_argument(model)
        # Hooks first, so that no call that is switched goes uncounted.
        self._handles = [
            model.register_forward_pre_hook(_Hook(self._begin), with_kwargs=True, prepend=True),
            model.register_forward_hook(_Hook(self._end), always_call=True),
            *axes_hooks(model),
        ]
        hold(model)
        self._steps = StepForwards(model)

    @property
    def serving(self) -> bool:
        """Whether caches can be used now, in this thread."""
        return bool(self.blocks or self.kept or get_ident() in self._calls)

    def skip(self, feedforward: FeedForward | None) -> None:
        """Put in the modules that skip weights by these thresholds."""
        if feedforward is not None and feedforward.thresholds:
            if self._skipping is None:
                self._skipping = SkippingModules(self.model)
            self._skipping.put(feedforward)

    def record_hidden_states(self, layers: list[int]) -> None:
        """Show the inputs of these layers' attention to the caches that ask for them."""
        self._hidden_states.record(self.model, layers)

    def restore_unneeded(self) -> None:
        """Leave the model as it was, if nothing needs the switch."""
        if self.blocks or self.kept or self._calls:
            return
        for handle in self._handles:
            handle.remove()
        if self._skipping is not None:
            self._skipping.remove()
        self._hidden_states.remove()
        self._steps.remove()
        release(self.model)
        adapter_of(self.model).switch = lambda: None

    def forget_interrupted(self) -> None:
        """Forget calls of this thread, and of threads that ended: after an interrupt no hook is called."""
        others = set(sys._current_frames()) - {get_ident()}
        self._calls = {thread: calls for thread, calls in self._calls.items() if thread in others}

    def _begin(
        self, model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]]:
        """A forward pre-hook, which gives the call its cache."""
        call = _Call()
        with switching:
            self._calls.setdefault(get_ident(), []).append(call)
        given = dict(zip(self._parameters, args, strict=False)) | kwargs
        cache = given_cache(given)
        if cache is None and not wants_cache(model, given):
            return args, kwargs
        call.cache = self._admit(call, cache, given)
        if call.cache is not cache:
            args, kwargs = (), with_cache(given, self._cache_argument, call.cache)
        if isinstance(call.cache, ServedCache):
            call.cache.begin_call(model)
            self._skip_late(call.cache, args, kwargs)
        return args, kwargs

    def _admit(self, call: _Call, cache: Any, given: dict[str, Any]) -> Any:
        """The cache that a call is to use; a thread or a task without an attachment keeps its own."""
        call.attachment = current(self.model)
        if call.attachment is not None:
            return call.attachment.receive(self.model, cache, _tokens(given))
        if not isinstance(cache, ServedCache):
            call.missed = list(self.attachments)
        return cache

    def _skip_late(self, cache: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Put in what skips weights for a cache that no block named; its hooks have yet to see the call."""
        steps = sparse_steps(cache)
        if steps is not None:
            known = set(self.model._forward_pre_hooks)
            with switching:
                self.skip(steps.feedforward)
            for key, hook in list(self.model._forward_pre_hooks.items()):
                if key not in known:
                    hook(self.model, args, kwargs)

    def _end(self, _model: PreTrainedModel, _args: tuple, result: object) -> None:
        """A forward hook, called after errors too, without a result then."""
        with switching:
            calls = self._calls.get(get_ident(), [_Call()])
            call = calls.pop()
            if not calls:
                self._calls.pop(get_ident(), None)
            self.restore_unneeded()
        if result is not None:
            call.finish()


def _tokens(given: dict[str, Any]) -> int:
    """Tokens of each sequence in a call; several where that is not known."""
    inputs = (given.get(name) for name in ("input_ids", "inputs_embeds"))
    return next((tokens.shape[1] for tokens in inputs if tokens is not None), 2)


class _Hook:
    """A hook of a model, which does nothing in copies of the model."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __deepcopy__(self, _memo: dict[int, object]) -> Callable[..., None]:
        return copied_hook

    def __reduce__(self) -> tuple[Callable[..., Any], tuple]:
        return _copied, ()


def copied_hook(*_call: object) -> None:
    """What is left of a hook in a copy of the model."""


def _copied() -> Callable[..., None]:
    return copied_hook
