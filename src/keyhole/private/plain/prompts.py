"""Prompts from a shipped text, exported with a model and a method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from keyhole.evaluation.texts import text_named
from keyhole.generation import Loaded
from keyhole.private.cost import Heads, plan
from keyhole.private.plain.export import shape_of
from keyhole.private.plain.folder import write
from keyhole.private.settings import Amount, Settings


def exported(
    folder: Path,
    loaded: Loaded,
    method: str,
    settings: Settings,
    text: str,
    prompts: int,
    tokens: int,
    new: int,
) -> str:
    """Write a folder, and say what is in it and what the planner decided.

    Raises:
        ValueError: the text has too few tokens, or the model too few positions.
    """
    shape = shape_of(loaded.model.config)
    if tokens + new > shape.positions:
        raise ValueError(f"{tokens} and {new} tokens are more than the model's {shape.positions}; give fewer")
    ids = loaded.tokenizer(text_named(text).text)["input_ids"]
    if len(ids) < prompts * tokens:
        raise ValueError(
            f"{text!r} has {len(ids)} tokens, not {prompts} times {tokens}; give fewer prompts or tokens"
        )
    pieces = [ids[place * tokens : (place + 1) * tokens] for place in range(prompts)]
    heads = Heads(shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)
    planned, says = plan(heads, settings, tokens)
    if planned != settings:
        method, settings = _static(method, planned)
    write(folder, loaded.model, method, settings, pieces, new)
    return f"{folder}: {method}, {prompts} prompts of {tokens} tokens and {new} more each; {says}"


def _static(method: str, planned: Settings) -> tuple[str, Settings]:
    """The method that reads all it keeps, as the planner decided."""
    from keyhole.methods.mpcache import MPCache
    from keyhole.methods.recipe import Recipe

    found = Recipe.parse(method).stages[0]
    assert isinstance(found, MPCache)
    whole = replace(found, budget=1.0)  # pyright: ignore[reportArgumentType]
    return str(whole), replace(planned, budget=Amount(fraction=1.0))
