"""One layer's decode attention on random shares: what it sends, how long it takes, how far off it is."""

from __future__ import annotations

# pyright: reportMissingImports=false
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jax import ShapeDtypeStruct as Shape

from keyhole.private import cost, sizes
from keyhole.private.rates import Sent
from keyhole.private.runtime.links import CLIENT
from keyhole.private.runtime.party import Party
from keyhole.private.runtime.program import Program, compiled
from keyhole.private.secure import attention, selection
from keyhole.private.secure.softmax import key_scale
from keyhole.private.settings import Settings, SettingsError

RUNS = 2  # the first one sets things up, and is not timed


class Layer(NamedTuple):
    """A layer's attention after a prompt of so many tokens.

    Attributes:
        slots: tokens kept, the new one among them.
    """

    heads: cost.Heads
    settings: Settings
    tokens: int
    slots: int
    reading: sizes.Reading | None

    @property
    def gather(self) -> str:
        """How a selection is read; "all" without one."""
        if self.reading is None:
            return "all"
        return cost.cheaper_gather(self.settings, self.reading, self.heads, self.slots)

    @property
    def predicted(self) -> Sent:
        """Bytes of all parties and messages of one, by the cost model."""
        return cost.predicted(self.heads, self.settings, self.reading, self.slots)


def layer_of(heads: cost.Heads, settings: Settings, tokens: int) -> Layer:
    """The first decode step after a prompt of so many tokens.

    Raises:
        SettingsError: heads that do not fit each other.
    """
    if min(heads) < 1 or tokens < 1:
        raise SettingsError(f"heads {tuple(heads)} and {tokens} tokens must all be at least 1")
    step = sizes.steps(settings, tokens, 1)[0]
    return Layer(heads, settings, tokens, step.kept, step.reading)


def inputs_of(layer: Layer, seed: int) -> dict[str, np.ndarray]:
    """Random queries, keys and values, the first two scaled as a model's are, and points of clusters."""
    heads, random, scale = layer.heads, np.random.default_rng(seed), key_scale(layer.heads.head_dim**-0.5)
    rows = (heads.kv_heads, layer.slots, heads.head_dim)
    query, keys = (random.normal(size=size) * scale for size in ((heads.kv_heads, *heads[1:]), rows))
    given = {"q": query, "k": keys, "v": random.normal(size=rows)}
    if layer.reading is not None:
        for name, size in (("fine", layer.settings.fine), ("coarse", layer.settings.coarse)):
            given[name] = np.asarray(selection.points(keys, size, layer.settings.alpha))
    return {name: value.astype(np.float32) for name, value in given.items()}


def attention_of(layer: Layer) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The step as a function of `inputs_of`; the result is `out`."""

    def attend(given: dict[str, Any]) -> dict[str, Any]:
        query, keys, values = (given[name] for name in "qkv")
        if layer.reading is None:
            return {"out": attention.attend_all(query, keys, values)}
        chosen = selection.choose(query, given["fine"], given["coarse"], layer.reading, layer.settings)
        way = attention.attend_rows if layer.gather == "rows" else attention.attend_logits
        return {"out": way(query, keys, values, chosen, layer.reading, layer.settings.fine)}

    return attend


@lru_cache(maxsize=8)
def program_of(layer: Layer) -> Program:
    """Compiled once in a process, whose threads may all be parties."""
    given = {name: Shape(value.shape, np.float32) for name, value in inputs_of(layer, 0).items()}
    return compiled(layer.gather, attention_of(layer), given)


class Measured(NamedTuple):
    """Seconds of one run, and the largest error against the same in the clear, which only the client
    knows."""

    seconds: float
    error: float | None


def measure(party: Party, layer: Layer, seed: int = 0, runs: int = RUNS) -> Measured:
    """Every party calls it; the client has the inputs."""
    program, given = program_of(layer), inputs_of(layer, seed)
    for name, value in given.items():
        party.share(name, value if party.rank == CLIENT else None, CLIENT)
    seconds = 0.0
    for _ in range(runs):
        begun = time.perf_counter()
        party.run(program)
        seconds = time.perf_counter() - begun
    opened = party.open("out")
    if opened is None:
        return Measured(seconds, None)
    return Measured(seconds, float(np.abs(opened - np.asarray(attention_of(layer)(given)["out"])).max()))
