"""Methods times budgets: what is to be compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from typing import Any, NamedTuple

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.methods import METHODS, Method, Recipe
from keyhole.methods.recipe import alone

FULL = "full"
ALL = "all"
LeftOut = Callable[[str, str, str], None]  # method, budget, the reason


class Candidate(NamedTuple):
    """A recipe at one budget, with the words it goes by; `budget` is `full` for a recipe without one."""

    method: str
    budget: str
    recipe: Recipe

    @property
    def mass(self) -> float | None:
        """The share of attention mass it is asked to read, where its budget is one."""
        return next((budget.mass for budget in _budgets(self.recipe)), None)

    @property
    def error(self) -> float | None:
        """The relative error it is asked to keep within, where its budget is one."""
        return next((budget.error for budget in _budgets(self.recipe)), None)


DENSE = Candidate("dense", FULL, Recipe.parse("dense"))


def candidates(
    methods: Iterable[str | Method | Recipe],
    budgets: Iterable[str | float | Budget],
    *,
    left_out: LeftOut | None = None,
) -> list[Candidate]:
    """Every method at every budget, dense first: it is what the others are measured against.

    A specification that names a budget, such as `pqcache(budget=64)`, is taken at that budget only, and one
    of several stages with budgets as it is written. Methods that cannot promise a mass, or an error, are left
    out at such budgets. `all` stands for every registered method with its defaults, but for those
    that need an option.

    Args:
        left_out: called for each method and budget that is left out.

    Raises:
        SpecError: a method or budget that cannot be read, or none at all.
    """
    grid = [Budget.parse(budget) for budget in budgets]
    found = [DENSE]
    for method in _named(methods):
        recipe = Recipe.parse(method)
        own = _budgets(recipe)
        named = isinstance(method, str) and re.search(r"\b(budget|mass|error)\s*=", method)
        if not own:
            found.append(Candidate(str(recipe), FULL, _always_selecting(recipe)))
        elif len(own) > 1:
            found.append(_as_written(recipe, own))
        else:
            found += [_at(recipe, budget) for budget in (own if named else _possible(recipe, grid, left_out))]
    if len(found) == 1:
        raise SpecError(
            "nothing to compare; give at least one method, and at least one budget if it takes budgets"
        )
    return list(dict.fromkeys(found))


def _named(methods: Iterable[str | Method | Recipe]) -> Iterator[str | Method | Recipe]:
    for method in methods:
        if method == ALL:
            kinds = [kind for kind in METHODS.values() if kind.name != DENSE.method and not kind.required]
            yield from (alone(kind()) for kind in kinds)
        else:
            yield method


def _as_written(recipe: Recipe, budgets: list[Budget]) -> Candidate:
    """A recipe whose stages have budgets of their own."""
    named = Candidate(str(recipe), " + ".join(map(str, budgets)), _always_selecting(recipe))
    return named._replace(method=str(_with(recipe, budget=None)))


def _possible(recipe: Recipe, grid: list[Budget], left_out: LeftOut | None) -> list[Budget]:
    """The budgets a recipe can keep to: not every method or option can promise a mass, or an error."""
    found = []
    for budget in grid:
        reason = _why_not(recipe, budget) if budget.varies else None
        if reason is None:
            found.append(budget)
        elif left_out is not None:
            left_out(str(_with(recipe, budget=None)), str(budget), reason)
    return found


def _why_not(recipe: Recipe, budget: Budget) -> str | None:
    """Why a recipe cannot promise a share of attention mass, or an error; None if it can."""
    try:
        _at(recipe, budget)
    except SpecError as error:
        return str(error)
    return None


def _at(recipe: Recipe, budget: Budget) -> Candidate:
    """The recipe at a budget. It selects at any length, unless it says otherwise: that is what is judged."""
    unnamed = _with(recipe, budget=None)
    return Candidate(str(unnamed), str(budget), _with(_always_selecting(recipe), budget=budget))


def _always_selecting(recipe: Recipe) -> Recipe:
    """The recipe with `dense_below=0` in the stages that say nothing else of it."""
    stages = (
        _stage_with(stage, {"dense_below": 0})
        if getattr(stage, "dense_below", None) == _default(stage, "dense_below")
        else stage
        for stage in recipe.stages
    )
    return Recipe(tuple(stages))


def _default(stage: Method, option: str) -> object:
    return next((field.default for field in fields(stage) if field.name == option), None)


def _with(recipe: Recipe, **options: object) -> Recipe:
    """The recipe with options changed in the stages that have them; None is a stage's default."""
    return Recipe(tuple(_stage_with(stage, options) for stage in recipe.stages))


def _stage_with(stage: Method, options: dict[str, Any]) -> Method:
    defaults = {field.name: field.default for field in fields(stage)}
    changed = {name: value for name, value in options.items() if name in defaults}
    return replace(stage, **{n: defaults[n] if value is None else value for n, value in changed.items()})


def _budgets(recipe: Recipe) -> list[Budget]:
    found = (getattr(stage, "budget", None) for stage in recipe.stages)
    return [budget for budget in found if budget is not None]
