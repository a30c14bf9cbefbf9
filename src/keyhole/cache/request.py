"""What all layers of a request share: what is prompt, what is generated, what is visible, where parts lie."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from keyhole.cache.listening import ReadListener
from keyhole.cache.position import DecodePosition
from keyhole.core.layout import Constants, Regions, regions
from keyhole.core.masks import Visible, boolean

_STATE = ("prompt_length", "_generated", "_may_end", "_in_pieces")
_STEPS = 16  # answers that are held; layers of one step ask for few different ones


class Request:
    """One batch of sequences on its way through a model, shared by the layers of its cache.

    A model call that brings several tokens brings a prompt, or a piece of one. Of a single token the engine
    may know, or the caller says it by `prompt_length`; else it is the last piece of a prompt if no other
    single token came since the last piece of several, and generated if one did. A sequence that began with
    single tokens is a prompt until several come, or something is known.

    Without an engine (`begin` is never called) single tokens are generated.

    Attributes:
        prompt_length: tokens of the text, padding among them, up to which it is a prompt; single tokens
            after it are generated. None where the caller does not say.
        together: prompts behind the first are read selectively: the tokens of a call share one selection. Set
            by the caller, and not saved.
        position: where the step is, on the device, while steps are of fixed size; else None, and Python
            numbers say it.
        listener: told what each layer reads; None in copies.
    """

    def __init__(self) -> None:
        self.prompt_length: int | None = None
        self.together = False
        self.position: DecodePosition | None = None
        self.listener: ReadListener | None = None
        self._generated: bool | None = None  # the call that is being served; None is by its size
        self._may_end = True  # a single token may be the last piece of the prompt
        self._in_pieces = True  # several tokens came at once
        self._constants = Constants()
        self._regions: dict[tuple[Any, ...], Regions] = {}
        self._converted: tuple[Callable[[], Tensor | None], Tensor | None] | None = None
        self._visible: tuple[Callable[[], Tensor | None], int, Visible] | None = None

    def generates(self, tokens: int) -> bool:
        """Whether the tokens of the call that is being served are generated ones."""
        return tokens == 1 if self._generated is None else self._generated

    def begin(self, length: int, tokens: int, known: bool | None) -> None:
        """The model is called with so many `tokens` after `length` others.

        Args:
            known: whether they are generated; None where the engine does not know.
        """
        generated = self.decide(length, tokens, known)
        self._in_pieces = generated or tokens > 1 or (self._in_pieces and length > 0)
        self._may_end = not generated and (tokens > 1 or not self._in_pieces)
        if self.prompt_length is not None and length >= self.prompt_length:
            self.prompt_length = None
        self._generated = generated

    def decide(self, length: int, tokens: int, known: bool | None) -> bool:
        """Whether so many `tokens` after `length` others are generated; as `begin`, which also notes it."""
        if self.prompt_length is not None:
            if length < self.prompt_length:
                return False
            if tokens == 1:
                return True
        if length == 0 or known is False:
            return False
        # Drafts of assisted decoding follow generated tokens; else several tokens are another turn's prompt.
        if tokens > 1:
            return bool(known and self._generated)
        return bool(known) or not self._may_end

    def state(self) -> dict[str, int | bool | None]:
        """What is known of prompt and generated tokens so far; `restore` takes it."""
        return {name.removeprefix("_"): getattr(self, name) for name in _STATE}

    def restore(self, state: dict[str, int | bool | None]) -> None:
        """Continue where `state` was taken."""
        for name in _STATE:
            setattr(self, name, state[name.removeprefix("_")])

    def look(self, mask: Tensor | None, batch: int) -> Visible:
        """What a mask shows, found out once for all layers that are given the same one."""
        if self._visible is not None:
            held, rows, visible = self._visible
            if rows == batch and held() is mask:
                return visible
        visible = Visible(mask, batch)
        self._visible = (_nothing if mask is None else weakref.ref(mask)), batch, visible
        return visible

    def boolean(self, mask: Tensor) -> Tensor | None:
        """A mask as one of true and false; None where it does more than to hide."""
        if mask.dtype == torch.bool:
            return mask
        if self._converted is None or self._converted[0]() is not mask:
            self._converted = weakref.ref(mask), boolean(mask)
        return self._converted[1]

    def regions(
        self,
        length: int,
        seen: Visible,
        sinks: int,
        window: int,
        device: torch.device,
        context: tuple[int, ...] | None = None,
    ) -> Regions:
        """The parts of a sequence of `length` slots; layers that ask alike are given the same."""
        asked = length, seen.padding, sinks, window, device, context, id(seen.hidden)
        found = self._regions.get(asked)
        if found is None or found.hidden is not seen.hidden:
            if len(self._regions) >= _STEPS:
                self._regions.clear()
            found = regions(
                length, seen.padding, sinks, window, device, context, seen.hidden, self._constants
            )
            self._regions[asked] = found
        return found

    def __getstate__(self) -> dict[str, Any]:
        # What is held of a mask is of use to the running step only, and cannot be copied.
        return self.__dict__ | {"_visible": None, "_converted": None, "listener": None}


def _nothing() -> None:
    return None
