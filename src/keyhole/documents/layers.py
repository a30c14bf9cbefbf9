"""Keys and values of a cache as tensors of blocks, and caches over such tensors.

A block has, for each served layer i, `rows.i [Hkv, n, W]`: tokens as they came, keys beside values, or rows
of a packed form. A last block of a packed form that is not whole also has `recent.i [Hkv, t, D + E]`, the
tokens that fill no row; the first one may have `first.i`, tokens that are kept whole beside the rows.

Legend: Hkv KV heads, D and E size of keys and of values, n rows, W width of a row, t tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from keyhole.cache.layer import LayerCache
from keyhole.core.needs import Needs
from keyhole.documents.store import Entry
from keyhole.engines.transformers import KeyholeCache, served_layers
from keyhole.engines.transformers.cache import KeyholeLayer
from keyhole.storage import DeviceStorage, PinnedStorage
from keyhole.storage.formats.base import Form, Full, TokenSpec
from keyhole.storage.placed import PlacedStorage
from keyhole.storage.tiers.stored import StoredBuffer

_AS_THEY_ARE = Full()
_SPARE = 1 << 15  # tokens that may follow a document before its memory moves
_IN_BLOCKS = (DeviceStorage, PlacedStorage, PinnedStorage)


def whole_because(cache: KeyholeCache) -> str | None:
    """Why what a cache holds cannot be stored in blocks of tokens; None if it can."""
    for layer in cache.layers:
        if not isinstance(layer, KeyholeLayer):
            return f"a {type(layer).__name__} of the model is not kept by Keyhole"
        if type(layer.inner) is not LayerCache:
            return "the method drops tokens"
        if not isinstance(layer.inner.storage, _IN_BLOCKS):
            return f"its {type(layer.inner.storage).__name__} holds what depends on the whole text"
    return None


def reads_from_disk(cache: KeyholeCache) -> bool:
    """Whether a document can be attended to where it is stored."""
    kinds = (DeviceStorage, PlacedStorage)
    return whole_because(cache) is None and all(type(one.storage) in kinds for one in served_layers(cache))


def wants_every_query(cache: KeyholeCache) -> bool:
    """Whether the index is made of all queries, so that a text must be read from its beginning."""
    return any(Needs.ALL_QUERIES in layer.needs for layer in served_layers(cache))


def seal(cache: KeyholeCache) -> None:
    """A block is whole: what comes behind does not change its rows any more."""
    for layer in served_layers(cache):
        if isinstance(layer.storage, PlacedStorage):
            layer.storage.seal()


def block_tensors(cache: KeyholeCache, begin: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of the block of a cache's tokens from `begin` to its end."""
    tensors: dict[str, Tensor] = {}
    specs = []
    for number, layer in enumerate(served_layers(cache)):
        storage = layer.storage
        form = _form(layer)
        newest = storage.keys(storage.length - 1)
        sizes = [newest.shape[1], newest.shape[3], storage.values(storage.length - 1).shape[3]]
        specs.append([*sizes, str(newest.dtype).removeprefix("torch.")])
        if form.in_place or not isinstance(storage, PlacedStorage):
            tokens = torch.cat([storage.keys(begin), storage.values(begin)], dim=-1)
            tensors[f"rows.{number}"] = _plain(tokens)
            continue
        first = begin // form.group
        if storage.buffer.length > first:
            tensors[f"rows.{number}"] = _plain(storage.rows(first))
        for name, whole in (("first", storage.first() if not first else None), ("recent", storage.recent())):
            if whole is not None and whole.shape[2]:
                tensors[f"{name}.{number}"] = _plain(whole)
    return tensors, {"layers": specs}


def _plain(rows: Tensor) -> Tensor:
    return rows[0].detach().cpu().contiguous()


def _form(layer: LayerCache) -> Form:
    """In which form a layer's tokens are stored in blocks."""
    form = layer.storage.form if isinstance(layer.storage, PlacedStorage) else _AS_THEY_ARE
    return _AS_THEY_ARE if form.lossless else form


def load_blocks(cache: KeyholeCache, blocks: tuple[Entry, ...], device: torch.device) -> None:
    """Let the storages of a fresh cache hold the tokens of blocks, where its recipe places them."""
    if not blocks:
        return
    for number, layer in enumerate(served_layers(cache)):
        kind = _kind(blocks[0], number, device)
        rows = [block.tensor(f"rows.{number}") for block in blocks if f"rows.{number}" in block.names]
        held = torch.cat(rows, dim=1)[None].to(device) if rows else None
        if _form(layer).in_place:
            assert held is not None
            layer.storage.append(held[..., : kind.keys], held[..., kind.keys :])
            continue
        whole = torch.cat(
            [_whole(blocks[0], f"first.{number}", kind), _whole(blocks[-1], f"recent.{number}", kind)], 2
        )
        state = {"keys": whole[..., : kind.keys], "values": whole[..., kind.keys :]}
        layer.storage.restore(state if held is None else state | {"rows": held})


def stored_storages(
    cache: KeyholeCache, blocks: tuple[Entry, ...], device: torch.device, *, memory: int
) -> list[PlacedStorage]:
    """Storages that read the tokens of blocks where they are stored, with about `memory` bytes in front."""
    layers, storages = served_layers(cache), []
    for number, layer in enumerate(layers):
        form, kind = _form(layer), _kind(blocks[0], number, device)
        parts = [_Rows(block, f"rows.{number}") for block in blocks if f"rows.{number}" in block.names]
        like = parts[0].mapped[:, :0] if parts else form.pack(_nothing(kind, form), kind)[0]
        buffer = StoredBuffer(parts, like, most=memory // len(layers), spare=_SPARE // form.group)
        storage = PlacedStorage(form, buffer)
        storage.hold(kind, _whole(blocks[0], f"first.{number}", kind))
        recent = _whole(blocks[-1], f"recent.{number}", kind)
        if recent.shape[2]:
            storage.append(recent[..., : kind.keys], recent[..., kind.keys :])
        storages.append(storage)
    return storages


def _nothing(kind: TokenSpec, form: Form) -> Tensor:
    return torch.zeros(1, kind.heads, form.group, kind.keys + kind.values, dtype=kind.dtype)


def _kind(block: Entry, number: int, device: torch.device) -> TokenSpec:
    heads, keys, values, dtype = block.facts["layers"][number]
    return TokenSpec(heads, keys, values, getattr(torch, dtype), device)


def _whole(block: Entry, name: str, kind: TokenSpec) -> Tensor:
    """Tokens of a block that are as they came, `[1, Hkv, t, D + E]`, perhaps none."""
    if name not in block.names:
        return torch.zeros(1, kind.heads, 0, kind.keys + kind.values, dtype=kind.dtype, device=kind.device)
    return block.tensor(name)[None].to(kind.device)


class _Rows:
    """The rows of one layer in a stored block."""

    def __init__(self, block: Entry, name: str) -> None:
        self._block, self._name = block, name
        self.mapped = block.mapped(name)

    @property
    def length(self) -> int:
        return self.mapped.shape[1]

    def some(self, heads: Tensor, rows: Tensor) -> Tensor:
        self._block.check(self._name, heads * self.length + rows)
        return self.mapped[heads, rows]

    def whole(self) -> Tensor:
        self._block.check(self._name)
        return self.mapped
