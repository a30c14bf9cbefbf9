"""What a vLLM configuration asks of Keyhole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from keyhole.core.errors import SpecError

if TYPE_CHECKING:
    from keyhole.methods.recipe import Recipe

KEY = "keyhole"
_OPTIONS = ("method", "offload")
_OFFLOADS = (None, "host")
_EXAMPLE = '{"keyhole": {"method": "quest(budget=0.1)"}}'


@dataclass(frozen=True)
class Settings:
    """How requests are served.

    Attributes:
        recipe: the method.
        mirrored: Keyhole keeps keys and values, and vLLM's pages are given back, so that a request may be
            longer than the pool: where that is asked for, and where a method drops tokens or stores them in a
            form or place of its own. Else they stay in vLLM's pages.
    """

    recipe: Recipe
    mirrored: bool


def settings_of(vllm_config: Any) -> Settings | None:
    """The settings in `additional_config`; None where Keyhole is not asked for.

    Raises:
        SpecError: they cannot be read.
    """
    asked: Any = getattr(vllm_config, "additional_config", None)
    if not isinstance(asked, Mapping):
        return None
    if KEY not in asked:
        _check_spelling(asked)
        return None
    given = asked[KEY]
    if not isinstance(given, Mapping):
        raise SpecError(f"additional_config: {KEY!r} is {given!r}, not an object; write {_EXAMPLE}")
    unknown = [name for name in given if name not in _OPTIONS]
    if unknown:
        raise SpecError(
            f"additional_config: {KEY!r} has no option {unknown[0]!r}; there are {', '.join(_OPTIONS)}"
        )
    method, offload = given.get("method"), given.get("offload")
    if not isinstance(method, str):
        raise SpecError(
            f"additional_config: {KEY!r} needs a method, a string, not {method!r}; write {_EXAMPLE}"
        )
    if offload not in _OFFLOADS:
        raise SpecError(
            f'additional_config: offload is {offload!r}; give "host", or leave it out to keep keys and '
            "values in vLLM's pages"
        )
    return _settings(method, offload)


def _check_spelling(asked: Mapping[str, Any]) -> None:
    """The dictionary is open to other plug-ins; what differs from ours in case alone was meant for us."""
    for name in asked:
        if str(name).casefold() == KEY:
            raise SpecError(f"additional_config: the setting is {KEY!r}, not {name!r}; write {_EXAMPLE}")


@lru_cache(maxsize=8)
def _settings(method: str, offload: str | None) -> Settings:
    from keyhole.engines.vllm.requests import must_mirror  # imports torch
    from keyhole.methods.recipe import Recipe

    recipe = Recipe.parse(method)
    return Settings(recipe, offload == "host" or must_mirror(recipe, 1))
