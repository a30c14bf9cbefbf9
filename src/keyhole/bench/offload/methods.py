"""One layer of a method whose keys and values lie behind a link."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from keyhole.attention import Logits, dense_attention
from keyhole.bench.case import Case
from keyhole.bench.offload.tier import Link, Tier
from keyhole.cache.layer import LayerCache
from keyhole.methods import Dense, Method, Nosa, Recipe
from keyhole.selection.importance import ImportanceHead, write_heads
from keyhole.storage import BiasedStorage, DeviceStorage, Footprint, LowRankStorage
from keyhole.storage.basis import default_rank
from keyhole.storage.formats.base import Full
from keyhole.storage.placed import PlacedStorage
from keyhole.storage.resident.blocks import ResidentBlocks
from keyhole.storage.resident.fetched import FetchedRows

SLOT = 64  # tokens of a block


class StreamedStorage(DeviceStorage):
    """Everything is read in each step, and crosses a link but for `resident` bytes; nothing is copied."""

    def __init__(self, link: Link, resident: int) -> None:
        super().__init__()
        self._link, self._resident = link, resident

    def attend_all(self, query: Tensor, logits: Logits, mask: Tensor | None) -> Tensor:
        self._link.cross(self.footprint.host)
        return super().attend_all(query, logits, mask)

    @property
    def footprint(self) -> Footprint:
        held = self.keys().nbytes + self.values().nbytes
        here = min(held, self._resident)
        return Footprint(device=here, host=held - here)


class ReadStorage(PlacedStorage):
    """All rows are read from their place in each step, once; nothing is resident."""

    def attend_all(self, query: Tensor, logits: Logits, mask: Tensor | None) -> Tensor:
        keys, values = self.rows().split(query.shape[-1], dim=-1)
        return dense_attention(query, keys, values, mask=mask, **logits._asdict())


def linked_layer(method: str, case: Case, link: Tier, resident: int) -> LayerCache:
    """A fresh layer, `resident` bytes of whose keys and values may stay on the device.

    Raises:
        SpecError: the method cannot be read.
        ValueError: it does not place keys and values.
    """
    (stage,) = Recipe.parse(method).stages
    if isinstance(stage, Dense):
        layer = Recipe((stage,)).layers(1)[0]
        linked = isinstance(link, Link)
        layer.storage = StreamedStorage(link, resident) if linked else ReadStorage(Full(), link.buffer(SLOT))
        return layer
    layer = _layers(_placed(stage, resident), case)
    _link(layer, link, case, resident)
    return layer


def plain_layer(method: str, case: Case) -> LayerCache:
    """The same with everything on the device."""
    (stage,) = Recipe.parse(method).stages
    return _layers(stage, case)


def _placed(stage: Method, resident: int) -> Method:
    """The method on the host, with slots where it can have some."""
    known: Any = stage
    if "place" not in {field.name for field in fields(known)}:
        raise ValueError(f"{stage.name} has no place=; give methods that place keys and values")
    slots = {} if stage.name == "shadowkv" else {"resident": "slots"}
    return replace(known, place="host", block_cache=resident, **slots)


def _layers(stage: Method, case: Case) -> LayerCache:
    if not isinstance(stage, Nosa) or stage.head is not None:
        return Recipe((stage,)).layers(1)[0]
    with TemporaryDirectory() as folder:
        _random_head(Path(folder), case)
        return Recipe((replace(stage, head=folder),)).layers(1)[0]


def _random_head(folder: Path, case: Case) -> None:
    """For speed any head is as good as another: what it says of a token stays."""
    generator = torch.Generator().manual_seed(case.seed)
    head = ImportanceHead.initial(case.kv_heads, case.head_dim, bias=False, generator=generator)
    write_heads(folder, {0: head._replace(scale=torch.ones(case.kv_heads))}, model="random")


def _link(layer: LayerCache, link: Tier, case: Case, resident: int) -> None:
    """Let what is on the host cross the link."""
    storage = layer.storage
    inner = storage.inner if isinstance(storage, BiasedStorage) else storage
    if isinstance(inner, PlacedStorage):
        inner.buffer = link.buffer(1)
    elif isinstance(inner, LowRankStorage):
        layer.storage = _values_linked(inner, link, case, resident)
    else:
        raise ValueError(f"a {type(inner).__name__} has nothing on the host; give methods that place rows")


def _values_linked(storage: LowRankStorage, link: Tier, case: Case, resident: int) -> LowRankStorage:
    """Values behind the link; of the resident bytes the keys of low rank take theirs first."""
    rank = storage.rank or default_rank(case.kv_heads, case.head_dim)
    left = resident - case.batch * case.tokens * rank * case.torch_dtype.itemsize
    blocks = ResidentBlocks(left, "lru", 1) if left > 0 else None
    values = FetchedRows(link.buffer(SLOT), blocks)
    options = {"rank": storage.rank, "chunk": storage.chunk, "outliers": storage.outliers}
    return LowRankStorage(storage.rope, **options, values=values)
