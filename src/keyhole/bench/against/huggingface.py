"""A model in transformers: as it is, or with Keyhole attached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, redirect_stderr
from io import StringIO
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from keyhole.bench.against.engine import Settings
from keyhole.bench.case import DTYPES, Case
from keyhole.bench.layers import fill
from keyhole.bench.models import sources_of_layers
from keyhole.core.version import __version__
from keyhole.engines.transformers import KeyholeCache, attach
from keyhole.engines.transformers.cache import is_served
from keyhole.engines.transformers.sizes import attention_sizes
from keyhole.generation.decoding import CHUNK, Token, build_index, decode, prefill
from keyhole.generation.loading import load_model
from keyhole.generation.reader import chunk_of
from keyhole.methods.recipe import Recipe
from keyhole.tuning.machine import isa_level, versions

_ENDLESS = 1 << 30  # steps


class HuggingFace:
    """A model in transformers with its own cache and `attention`, or with a method of Keyhole.

    Args:
        method: attaches Keyhole; `attention` is then without effect.
        loading: further options of `load_model`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        dtype: str,
        attention: str = "sdpa",
        method: str | None = None,
        loading: dict[str, Any] | None = None,
    ) -> None:
        torch.set_num_threads(settings.threads)
        with redirect_stderr(StringIO()):  # transformers has progress bars of its own
            self._model, self._tokenizer = load_model(settings.file, dtype=DTYPES[dtype], **(loading or {}))
        self._dtype, self._attached = dtype, ExitStack()
        self._weights = ", ".join([dtype, *(f"{name}={value}" for name, value in (loading or {}).items())])
        self._recipe = None if method is None else Recipe.parse(method)
        if self._recipe is None:
            self._model.set_attn_implementation(attention)
        else:
            self._attached.enter_context(attach(self._model, self._recipe))
        self._cache: Any = None
        self._steps: Iterator[Token] = iter(())
        self._logits: Any = None

    def about(self) -> str:
        if self._recipe is None:
            return f"transformers {versions()['transformers']}, torch {torch.__version__}, {self._dtype}"
        return (
            f"keyhole {__version__}, native kernels: {isa_level()}, torch {torch.__version__}, {self._dtype}"
        )

    def encode(self, text: str, tokens: int) -> list[int]:
        """The first tokens of a text.

        Raises:
            ValueError: it is too short.
        """
        ids = self._tokenizer(text, verbose=False).input_ids[:tokens]
        if len(ids) < tokens:
            raise ValueError(f"the text has {len(ids)} tokens, not {tokens}; give another --text")
        return ids

    def start(self, capacity: int) -> None:  # noqa: ARG002 - these caches grow
        self._cache = None
        self._cache = (
            DynamicCache(config=self._model.config)
            if self._recipe is None
            else KeyholeCache(self._model, self._recipe)
        )

    def read(self, ids: Sequence[int]) -> None:
        tokens = torch.tensor([ids])
        chunk = CHUNK if self._recipe is None else chunk_of(self._model, self._recipe)
        prefill(self._model, tokens[:, :-1], self._cache, chunk=chunk)
        build_index(self._model, self._cache)
        self._begin(int(tokens[0, -1]))

    def fill(self, tokens: int) -> None:
        sizes = attention_sizes(self._model.config)
        assert sizes is not None  # what can be served has heads
        case = Case(tokens - 1, *sizes, self._dtype)
        for index, source in enumerate(sources_of_layers(case, len(self._cache.layers))):
            layer, drawn = self._cache.layers[index], source.keys_values(case.tokens)
            if is_served(layer):
                fill(layer.inner, *drawn, case, source)
                layer.is_initialized = True
            else:
                self._cache.update(*drawn, index)
        build_index(self._model, self._cache)
        self._begin(0)

    def step(self) -> None:
        next(self._steps)

    def logits(self) -> np.ndarray:
        return self._logits.float().numpy()

    def _begin(self, last: int) -> None:
        """Take the first step, which reads `last`."""
        self._steps = decode(self._model, last, self._cache, limit=_ENDLESS, pick=self._pick)
        self.step()

    def _pick(self, logits: torch.Tensor) -> int:
        self._logits = logits
        return int(logits.argmax())
