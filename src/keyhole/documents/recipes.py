"""Methods as documents are stored by them: in which form, and where what is read lies."""

from __future__ import annotations

from dataclasses import fields, replace

from keyhole import storage
from keyhole.core.errors import SpecError
from keyhole.engines.transformers.persist import unplaced
from keyhole.methods import Method, Quantised, Recipe
from keyhole.methods.recipe import answers
from keyhole.storage import PLACES

KV_DTYPES = ("full", *storage.KV_DTYPES[1:])
_VERSION = "blocks 2"


def stored_recipe(method: str | Method | Recipe, kv_dtype: str | None = None) -> Recipe:
    """The recipe by which a document is read and stored: without places, in one of KV_DTYPES.

    Raises:
        SpecError: the method cannot be read, or has no such form.
    """
    recipe = Recipe(tuple(unplaced(stage) for stage in Recipe.parse(method).stages))
    if kv_dtype is None:
        return recipe
    if kv_dtype not in KV_DTYPES:
        raise SpecError(f"kv_dtype={kv_dtype} is out of range; give {', '.join(KV_DTYPES)}")
    form = "auto" if kv_dtype == "full" else kv_dtype
    stages = [stage for stage in recipe.stages if "kv_dtype" in stage.options()]
    if stages:
        changed = replace(stages[0], kv_dtype=form)  # type: ignore[call-arg]
        return Recipe(tuple(changed if stage is stages[0] else stage for stage in recipe.stages))
    if form == "auto":
        return recipe
    added = Recipe.parse(f"quantised(bits={form.removeprefix('int')})")
    return Recipe((*recipe.stages, *added.stages))


def placed(recipe: Recipe, place: str) -> Recipe:
    """The recipe with keys and values on one of PLACES, where a stage of it says so."""
    if place not in PLACES:
        raise SpecError(f"place={place} is out of range; give {', '.join(PLACES)}")
    return Recipe(tuple(_placed(stage, place) for stage in recipe.stages))


def _placed(stage: Method, place: str) -> Method:
    known = {field.name for field in fields(stage)}  # type: ignore[arg-type]
    return replace(stage, place=place) if "place" in known else stage  # type: ignore[type-var, call-arg]


def form_of(recipe: Recipe) -> str:
    """In which form keys and values are stored, as text."""
    for stage in recipe.stages:
        if isinstance(stage, Quantised):
            return f"int{stage.bits}" + ("" if stage.rotation == "auto" else f" {stage.rotation}")
        form = getattr(stage, "kv_dtype", "auto")
        if form != "auto":
            return str(form)
    return "full"


def fingerprint_of(recipe: Recipe, model: str, *, whole: bool) -> str:
    """What is stored of a document depends on beside its tokens, as text.

    Args:
        model: the identity of the model.
        whole: a state that is one whole is stored, which is the method's own; else keys and values.
    """
    computed = [str(stage) for stage in recipe.stages if answers(stage, "prefill")]
    parts = [_VERSION, f"form {form_of(recipe)}", f"compute {' + '.join(computed) or 'dense'}", model]
    return "; ".join([*parts, f"method {recipe}"] if whole else parts)
