"""Prompts from a shipped text, exported with a model and a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from keyhole.evaluation.texts import text_named
from keyhole.generation import Loaded
from keyhole.private.cost import Heads, plan
from keyhole.private.network import Network
from keyhole.private.plain.export import shape_of
from keyhole.private.plain.folder import write
from keyhole.private.settings import Settings


def exported(
    folder: Path,
    loaded: Loaded,
    method: str,
    settings: Settings,
    text: str,
    prompts: int,
    tokens: Sequence[int],
    new: int,
    network: Network | None,
) -> str:
    """Write a folder, and say what is in it and what the planner decided.

    Args:
        tokens: lengths, which prompts have in turn.
        network: what the planner decides for, by the shortest prompt; None selects as the method says.

    Raises:
        ValueError: the text has too few tokens, or the model too few positions.
    """
    shape = shape_of(loaded.model.config)
    if max(tokens) + new > shape.positions:
        raise ValueError(
            f"{max(tokens)} and {new} tokens are more than the model's {shape.positions}; give fewer"
        )
    pieces = _pieces(loaded.tokenizer(text_named(text).text)["input_ids"], text, prompts, tokens)
    heads = Heads(shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)
    says = "nothing was planned"
    if network is not None:
        settings, says = plan(heads, settings, min(tokens), network)
    method = _as_planned(method, settings)
    write(folder, loaded.model, method, settings, pieces, new)
    lengths = ", ".join(map(str, tokens))
    return f"{folder}: {method}, {prompts} prompts of {lengths} tokens and {new} more each; {says}"


def _pieces(ids: list[int], text: str, prompts: int, tokens: Sequence[int]) -> list[list[int]]:
    pieces, begin = [], 0
    for place in range(prompts):
        end = begin + tokens[place % len(tokens)]
        pieces.append(ids[begin:end])
        begin = end
    if begin > len(ids):
        raise ValueError(f"{text!r} has {len(ids)} tokens, not {begin}; give fewer prompts or tokens")
    return pieces


def _as_planned(method: str, settings: Settings) -> str:
    """The method that plaintext decoding runs: without a length below which all is read, unless it was given
    one, and reading all it keeps where the planner decided so."""
    from keyhole.methods.mpcache import MPCache
    from keyhole.methods.recipe import Recipe

    found = Recipe.parse(method).stages[0]
    if not isinstance(found, MPCache):
        return method
    changed: dict[str, Any] = {"dense_below": settings.dense_below}
    if not settings.selects:
        changed["budget"] = 1.0
    return str(replace(found, **changed))
