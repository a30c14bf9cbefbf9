"""Which stages can be combined with one that drops tokens."""

from __future__ import annotations

from keyhole.core.errors import SpecError
from keyhole.methods.base import Method, RetrievalMethod
from keyhole.methods.eviction import EvictionMethod
from keyhole.methods.registry import METHODS


def check_evicting(evicting: Method, others: list[Method]) -> None:
    """Raise unless the other stages of a recipe can work on the tokens that `evicting` keeps.

    Raises:
        SpecError: one cannot, with the alternative.
    """
    for other in others:
        if other.needs_positions:
            raise SpecError(
                f"{other.name} needs the positions of tokens, or the same tokens in all heads and layers, "
                f"and {evicting.name} drops tokens; combine {evicting.name} with {_composable()}, or set "
                f"the options of {other.name} so that heads and layers do not share"
            )
    if not others or not isinstance(evicting, EvictionMethod):
        return
    names = " and ".join(other.name for other in others)
    if evicting.ragged:
        raise SpecError(
            f"{evicting.name}: heads=adaptive keeps different numbers of tokens per head, which {names} "
            f"does not support; give {evicting.name}(heads=uniform)"
        )
    if evicting.every and any(isinstance(other, RetrievalMethod) for other in others):
        raise SpecError(
            f"{evicting.name}: every={evicting.every} drops tokens during generation, and {names} would "
            f"rebuild the index each time; give {evicting.name}(every=0)"
        )


def check_placing(evicting: Method, placing: list[Method]) -> None:
    """Raise unless the storage of one stage works while another drops tokens.

    Raises:
        SpecError: the kept tokens would be requantised repeatedly.
    """
    every = evicting.every if isinstance(evicting, EvictionMethod) else 0
    for stage in placing:
        if every and not isinstance(stage, RetrievalMethod):
            raise SpecError(
                f"{evicting.name}: every={every} drops tokens during generation, and {stage.name} would "
                f"requantise the rest each time; give {evicting.name}(every=0)"
            )


def _composable() -> str:
    kinds = [kind for kind in METHODS.values() if issubclass(kind, RetrievalMethod)]
    *names, last = [kind.name for kind in kinds if not kind().needs_positions]
    return f"{', '.join(names)} or {last}"
