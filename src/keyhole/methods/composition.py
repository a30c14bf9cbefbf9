"""Which stages go together: what dropping tokens asks of the others."""

from __future__ import annotations

from keyhole.core.errors import SpecError
from keyhole.methods.base import Method, RetrievalMethod
from keyhole.methods.eviction import EvictionMethod
from keyhole.methods.registry import METHODS


def check_evicting(evicting: Method, others: list[Method]) -> None:
    """Raise unless the other stages of a recipe can work on what one stage has left.

    Raises:
        SpecError: one cannot; it names what to give instead.
    """
    for other in others:
        if other.needs_positions:
            raise SpecError(
                f"{other.name} takes slots for places in the text, or for the same tokens in all heads and "
                f"layers, and {evicting.name} drops tokens; compose it with {_composable()}, or give options "
                "by which heads and layers do not share"
            )
    if not others or not isinstance(evicting, EvictionMethod):
        return
    names = " and ".join(other.name for other in others)
    if evicting.ragged:
        raise SpecError(
            f"{evicting.name}: heads=adaptive leaves heads of different lengths, which {names} cannot work "
            f"on; give {evicting.name}(heads=uniform)"
        )
    if evicting.every and any(isinstance(other, RetrievalMethod) for other in others):
        raise SpecError(
            f"{evicting.name}: every={evicting.every} drops tokens while generating, and {names} would index "
            f"anew each time; give {evicting.name}(every=0)"
        )


def check_placing(evicting: Method, placing: list[Method]) -> None:
    """Raise unless keys and values may lie where one stage puts them while another drops tokens.

    Raises:
        SpecError: what is left would be packed again with every few tokens.
    """
    every = evicting.every if isinstance(evicting, EvictionMethod) else 0
    for stage in placing:
        if every and not isinstance(stage, RetrievalMethod):
            raise SpecError(
                f"{evicting.name}: every={every} drops tokens while generating, and {stage.name} would pack "
                f"the rest again each time; give {evicting.name}(every=0)"
            )


def _composable() -> str:
    kinds = [kind for kind in METHODS.values() if issubclass(kind, RetrievalMethod)]
    *names, last = [kind.name for kind in kinds if not kind().needs_positions]
    return f"{', '.join(names)} or {last}"
