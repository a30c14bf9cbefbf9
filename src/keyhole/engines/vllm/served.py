"""One request of an engine at work in its layer caches; imports nothing of vLLM.

Legend: H query heads, Hkv KV heads, T tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.attention import Logits
from keyhole.cache.evicting import EvictingLayer
from keyhole.cache.layer import LayerCache
from keyhole.engines.vllm.rows import Row
from keyhole.engines.vllm.usage import RequestUsage, usage_of
from keyhole.storage import Footprint, PagedStorage, Pages

_NULL = 0  # the block of a pool that stands for those that were given back
_WEIGH = 256  # generated tokens after which what is held is counted again


class Fresh(NamedTuple):
    """Of new tokens `query [T, H, D]`, after RoPE, `key [T, Hkv, D]` and `value [T, Hkv, Dv]`."""

    query: Tensor
    key: Tensor
    value: Tensor

    def of(self, begin: int, end: int) -> Fresh:
        """Those of some of the tokens."""
        return Fresh(*(part[begin:end] for part in self))


class ServedRequest:
    """The layer caches of one request, from its first piece on until it is finished or preempted.

    Tokens of the prompt are attended to in the pieces in which they come; those after it are decode steps,
    one by one within each layer, also where an engine that has preempted a request brings many at once.

    Attributes:
        end: tokens there are after the steps that were begun.
        failed: why it has no more answers; empty while it has.
    """

    def __init__(self, layers: list[LayerCache], *, mirrored: bool) -> None:
        self.layers, self.mirrored = layers, mirrored
        self.end = 0
        self.failed = ""
        self._steps = 1  # decode steps that each layer takes in a row
        self._held = Footprint()
        for layer in layers:
            if isinstance(layer, EvictingLayer):
                layer.hold_prompts()

    def begin(self, row: Row) -> None:
        """A step brings `row`, to all layers in turn."""
        self.end = row.end
        if row.begin < row.prompt:
            self.layers[0].request.prompt_length = row.prompt
        steps = max(row.end - max(row.begin, row.prompt), 1)
        if steps != self._steps:
            self._steps = steps
            for layer in self.layers:
                layer.expect(steps)

    def reads_all(self, place: int, row: Row, pages: Pages) -> bool:
        """Whether a layer's step does no more than to read all tokens in the pages; it is then counted."""
        if self.mirrored or self.failed or row.count > 1 or row.begin < row.prompt:
            return False
        layer = self.layers[place]
        self._paged(layer, pages).at(row.table, row.end)
        if layer.selects or layer.leads:
            return False
        layer.usage.record_everything(row.end, row.end, layer.storage.token_bytes)
        return True

    def attend(self, place: int, row: Row, fresh: Fresh, pages: Pages, logits: Logits) -> Tensor:
        """Attention of a row's `fresh` tokens in a layer, `[T, H, Dv]`.

        Their keys and values are in the `pages`, and so are those of all tokens before them at the first row
        of a request.

        Raises:
            NonFiniteError: NaN or infinity among keys or values.
        """
        layer, parts = self.layers[place], []
        if self.mirrored and not layer.length and row.begin:
            _adopt(layer, row, pages)
        for begin, end in _calls(row):
            layer.request.begin(begin, end - begin, begin >= row.prompt)
            own = fresh.of(begin - row.begin, end - row.begin)
            if self.mirrored:
                layer.append(_by_head(own.key), _by_head(own.value))
            else:
                self._paged(layer, pages).at(row.table, end)
            parts.append(layer.attend(_by_head(own.query), logits)[0].transpose(0, 1))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def weigh(self, row: Row) -> None:
        """Count what is held beside the pages, now and then: it takes longer than what is read."""
        if row.begin < row.prompt <= row.end or row.end % _WEIGH == 0:
            self._held = self.footprint

    def usage(self) -> RequestUsage:
        """What the steps so far read; what is held as last counted."""
        return usage_of(self.layers, self._held)

    @property
    def footprint(self) -> Footprint:
        """Bytes held beside the engine's pages."""
        held = (layer.footprint for layer in self.layers)
        if not self.mirrored:
            held = (Footprint(device=layer.selector.nbytes) for layer in self.layers if layer.selector)
        return sum(held, Footprint())

    def _paged(self, layer: LayerCache, pages: Pages) -> PagedStorage:
        if not isinstance(layer.storage, PagedStorage):
            layer.storage = PagedStorage(pages.keys, pages.values)
        return layer.storage


def _calls(row: Row) -> Iterator[tuple[int, int]]:
    """[begin, end) of the row's piece of the prompt, then of each generated token."""
    if row.begin < row.prompt:
        yield row.begin, min(row.end, row.prompt)
    for token in range(max(row.begin, row.prompt), row.end):
        yield token, token + 1


def _by_head(tokens: Tensor) -> Tensor:
    """`[T, heads, D]` as `[1, heads, T, D]`."""
    return tokens.transpose(0, 1).unsqueeze(0)


def _adopt(layer: LayerCache, row: Row, pages: Pages) -> None:
    """Copy the keys and values of the tokens before a request's first row, a prefix that others computed."""
    storage = PagedStorage(pages.keys, pages.values)
    storage.at(row.table, row.begin)
    held = row.table[: -(-row.begin // storage.block_size)]
    if bool((held == _NULL).any()):
        raise ValueError(f"request {row.request} begins behind blocks that were given back")
    layer.request.begin(0, row.begin, False)
    layer.append(storage.keys(), storage.values())
