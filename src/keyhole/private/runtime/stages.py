"""The compiled programs of a run, each made once from public sizes and reused by all layers and prompts."""

from __future__ import annotations

# pyright: reportMissingImports=false
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any

import numpy as np
from jax import ShapeDtypeStruct as Shape

from keyhole.private import sizes
from keyhole.private.files import Run
from keyhole.private.runtime.program import Program, Shapes, compiled
from keyhole.private.secure import programs

_BY_LAYER = ("k", "v", "fine", "coarse")


class Stages:
    """Programs for a folder's model and settings. Parties that are threads may have one together."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._made: dict[object, Program] = {}
        self._lock = Lock()

    def prompt(self, tokens: int) -> Iterator[Program]:
        """The programs of a prompt of so many tokens, in order."""
        yield self._embed(tokens, 0)
        for layer in range(self.run.shape.layers):
            yield self._named(self._prompt_layer(layer, tokens), layer)
        yield self._head(tokens)

    def step(self, prompt: int, step: sizes.Step) -> Iterator[Program]:
        """The programs of one decode step after a prompt of so many tokens, in order."""
        yield self._embed(1, step.position)
        for layer in range(self.run.shape.layers):
            yield self._named(self._step_layer(layer, prompt, step), layer)
        yield self._head(1)

    def _named(self, program: Program, layer: int) -> Program:
        def rename(name: str) -> str:
            if name.startswith("w."):
                return f"w.{layer}.{name.removeprefix('w.')}"
            return f"{name}.{layer}" if name in _BY_LAYER else name

        return program.renamed(rename)

    def _embed(self, tokens: int, first: int) -> Program:
        given = {"tokens": Shape((tokens, self.run.shape.vocabulary), np.int32)} | self._weights(
            "embed", "positions"
        )
        key = first if self.run.shape.learned_positions else None
        return self._get(
            "embed", (tokens, key), given, lambda given: programs.embed(given, self.run.shape, first)
        )

    def _head(self, tokens: int) -> Program:
        last = self._weights("norm.w", "norm.b", "embed" if self.run.shape.tied else "head")
        given = {"hidden": self._hidden(tokens)} | last
        return self._get("head", tokens, given, lambda given: programs.head(given, self.run.shape))

    def _prompt_layer(self, layer: int, tokens: int) -> Program:
        leads = self.run.settings.leads(layer)
        given = {"hidden": self._hidden(tokens)} | self._layer_weights(layer)
        if not leads:
            given |= _only(self._prompt_layer(layer - 1, tokens).outputs, "marks")
        return self._get(
            "prompt",
            (tokens, leads),
            given,
            lambda given: programs.prompt_layer(given, self.run.shape, self.run.settings, leads),
        )

    def _step_layer(self, layer: int, prompt: int, step: sizes.Step) -> Program:
        leads = self.run.settings.leads(layer)
        earlier = sizes.steps(self.run.settings, prompt, step.position - prompt)
        before = (
            self._step_layer(layer, prompt, earlier[-1]) if earlier else self._prompt_layer(layer, prompt)
        )
        given = {"hidden": self._hidden(1)} | self._layer_weights(layer) | _only(before.outputs, *_BY_LAYER)
        if not leads and step.reading is not None:
            given |= _only(self._step_layer(layer - 1, prompt, step).outputs, "chosen.hot", "chosen.hidden")
        return self._get(
            "step",
            (prompt, step, leads),
            given,
            lambda given: programs.step_layer(given, self.run.shape, self.run.settings, leads, step),
        )

    def _hidden(self, tokens: int) -> Shape:
        return Shape((tokens, self.run.shape.hidden), np.float32)

    def _weights(self, *names: str) -> Shapes:
        return {
            f"w.{name}": Shape(self.run.tensors[name], np.float32)
            for name in names
            if name in self.run.tensors
        }

    def _layer_weights(self, layer: int) -> Shapes:
        prefix = f"{layer}."
        return {
            f"w.{name.removeprefix(prefix)}": Shape(size, np.float32)
            for name, size in self.run.tensors.items()
            if name.startswith(prefix)
        }

    def _get(self, name: str, key: object, given: Shapes, function: Callable[[Any], Any]) -> Program:
        with self._lock:
            if (name, key) not in self._made:
                self._made[name, key] = compiled(name, function, given)
            return self._made[name, key]


def _only(shapes: Shapes, *names: str) -> Shapes:
    return {name: size for name, size in shapes.items() if name in names}
