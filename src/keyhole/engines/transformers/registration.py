"""Switch a model to Keyhole, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import ref

from transformers import PreTrainedModel

from keyhole.engines.transformers.context import Serving
from keyhole.engines.transformers.implementation import NAME, text_config
from keyhole.engines.transformers.model import adapter_of
from keyhole.engines.transformers.switch import Switch, switching
from keyhole.feedforward import FeedForward

__all__ = ["NAME", "detach", "keep_switched", "record_hidden_states", "switched", "text_config"]


@contextmanager
def switched(
    model: PreTrainedModel, feedforward: FeedForward | None = None, attachment: Serving | None = None
) -> Iterator[None]:
    """Let `model` call Keyhole's attention function, and skip weights, inside the block.

    Blocks may nest and overlap. An `attachment` is notified of calls that it does not see.
    """
    watching = [] if attachment is None else [attachment]
    with switching:
        switch = _switch(model, feedforward)
        switch.blocks += 1
        switch.attachments += watching
    try:
        yield
    finally:
        with switching:
            switch.blocks -= 1
            switch.attachments = [each for each in switch.attachments if each is not attachment]
            switch.forget_interrupted()
            switch.restore_unneeded()


def keep_switched(model: PreTrainedModel, feedforward: FeedForward | None = None) -> None:
    """Let `model` call Keyhole's attention function, and skip weights, until `detach`."""
    with switching:
        _switch(model, feedforward).kept = True


def detach(model: PreTrainedModel) -> None:
    """Restore the attention function and the modules a model had before `make_cache`.

    Nothing happens to a model that was not switched; inside an `attach` block, the block's end restores it.
    """
    with switching:
        switch = adapter_of(model).switch()
        if switch is not None:
            switch.kept = False
            switch.forget_interrupted()
            switch.restore_unneeded()


def is_serving(model: PreTrainedModel) -> bool:
    """Whether caches of the model can be used now, in this thread."""
    switch = adapter_of(model).switch()
    return switch is not None and switch.serving


def record_hidden_states(model: PreTrainedModel, layers: list[int]) -> None:
    """Show the inputs of attention to caches that ask for them, as long as the model is switched.

    Raises:
        UnsupportedModelError: the attention module of a layer cannot be found.
    """
    with switching:
        switch = adapter_of(model).switch()
        if switch is not None and layers:
            switch.record_hidden_states(layers)


def _switch(model: PreTrainedModel, feedforward: FeedForward | None) -> Switch:
    adapter = adapter_of(model)
    switch = adapter.switch()
    if switch is None:
        switch = Switch(model)
        adapter.switch = ref(switch)
    try:
        switch.skip(feedforward)
    except BaseException:
        switch.restore_unneeded()
        raise
    return switch
