"""Texts longer than a model's range: which recipes can read them, and which to take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.methods.recipe import Recipe, answers
from keyhole.methods.registry import METHODS
from keyhole.methods.renumbering import Renumbering
from keyhole.methods.tokenselect import TokenSelect

_UNIT = 512  # tokens of window and chunk as TokenSelect has them, with a budget of 4 and sinks of 1 / 4
_LEAST = 16  # units in a model's range, at least


def renumbers(recipe: Recipe) -> bool:
    """Whether prompts and steps are computed at positions within a model's range."""
    stage = recipe.retrieval
    return isinstance(stage, Renumbering) and stage.renumber and stage.sparse_prefill


def check_beyond(recipe: Recipe, positions: int, tokens: int) -> None:
    """Raise unless a text of so many tokens is read within the `positions` of a model's range.

    Raises:
        SpecError: the recipe does not renumber, or reads too much at once; with the way out.
    """
    stage = recipe.retrieval
    if not isinstance(stage, Renumbering):
        kinds = ", ".join(name for name, kind in METHODS.items() if issubclass(kind, Renumbering))
        raise SpecError(
            f"{recipe} does not renumber positions; give beyond_range=True (--beyond-range), or "
            f"renumber=true and sparse_prefill=true of one of {kinds}"
        )
    missing = [name for name in ("renumber", "sparse_prefill") if not getattr(stage, name)]
    if missing:
        options = " and ".join(f"{name}=true" for name in missing)
        raise SpecError(f"{stage.name} needs {options}; give that, or beyond_range=True (--beyond-range)")
    _check_reads(stage, positions, tokens)


def beyond_recipe(recipe: Recipe, positions: int, tokens: int) -> Recipe:
    """The recipe for a text of so many tokens, more than the `positions` of a model's range.

    The stage that selects renumbers if it can, else TokenSelect takes its place, with what that reads in
    place of defaults, made smaller for ranges of fewer than 8,192 positions. Beside it only stages that read
    fewer weights stay, not those that drop tokens or compute prompts.

    Raises:
        SpecError: options that were given do not go with that.
    """
    stage = recipe.retrieval
    able = stage if isinstance(stage, Renumbering) else TokenSelect()
    weights = [other for other in recipe.stages if answers(other, "feedforward")]
    found = Recipe((*weights, _extended(able, positions)))
    check_beyond(found, positions, tokens)
    return found


def _extended(stage: Renumbering, positions: int) -> Renumbering:
    """A stage that renumbers; options that are not at their defaults stay."""
    unit = max(2, min(_UNIT, positions // _LEAST))
    wanted: dict[str, Any] = {
        "budget": Budget(tokens=4 * unit),
        "sinks": max(1, unit // 4),
        "window": unit,
        "chunk": unit,
    }
    defaults = {name: default for name, (_, default) in stage.options().items()}
    taken = {name: value for name, value in wanted.items() if getattr(stage, name) == defaults[name]}
    window = taken.get("window", stage.window)
    distance = window if stage.distance is None else stage.distance
    return replace(stage, **taken, distance=distance, renumber=True, sparse_prefill=True)


def _check_reads(stage: Renumbering, positions: int, tokens: int) -> None:
    around = stage.sinks + stage.window + stage.chunk
    read = around + stage.budget.limit(tokens)
    if read > positions:
        most = positions - around
        way_out = f"a budget of at most {most:,} tokens" if most > 0 else "fewer sinks, window and chunk"
        raise SpecError(
            f"{stage.name}: budget={stage.budget} with sinks, window and chunk is {read:,} tokens read at "
            f"once in a text of {tokens:,}, more than the model's {positions:,} positions; give {way_out}"
        )
    if stage.distance is not None and stage.distance + stage.chunk > positions:
        raise SpecError(
            f"{stage.name}: distance={stage.distance} is beyond the model's {positions:,} positions; "
            f"give at most {positions - stage.chunk:,}"
        )
