"""Methods as text: `pqcache(subspaces=4, budget=0.1)`, and pipelines such as `sale + pqcache`."""

from __future__ import annotations

from typing import Any

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.core.method_text import nearest, read_terms
from keyhole.methods.base import Method
from keyhole.methods.registry import METHODS

_BUDGET_OPTIONS = ("mass", "error", "floor", "cap")


def parse_stages(spec: str) -> tuple[Method, ...]:
    """Read the stages of a pipeline.

    Raises:
        SpecError: not of that form, an unknown method or option, or a value out of range.
    """
    return tuple(_stage(name, options) for name, options in read_terms(spec))


def _stage(name: str, options: dict[str, Any]) -> Method:
    kind = METHODS.get(name)
    if kind is None:
        raise SpecError(f"unknown method {name!r}{nearest(name, METHODS)}")
    return make_method(kind, options)


def make_method(kind: type[Method], options: dict[str, Any]) -> Method:
    """Build a method from options as users write them; mass, error, floor and cap belong to its budget."""
    options = dict(options)
    known = list(kind.options())
    allowed = known + (list(_BUDGET_OPTIONS) if "budget" in known else [])
    for option, value in options.items():
        if option in kind.renamed:
            raise kind.renaming(option, value)
        if option not in allowed:
            raise SpecError(f"{kind.name} has no option {option!r}{nearest(option, allowed)}")
    given = {name: options.pop(name) for name in _BUDGET_OPTIONS if name in options}
    if given:
        if "budget" in options or ("mass" in given) == ("error" in given):
            raise SpecError(
                f"{kind.name}: mass and error each replace budget, and floor and cap need one of them; give "
                "one of the three"
            )
        options["budget"] = Budget(**given)
    return kind(**options)
