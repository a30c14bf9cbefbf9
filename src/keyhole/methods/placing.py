"""The options that place keys and values, and the storages made from them."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.storage import BLOCK_EVICTIONS, PLACES, RESIDENT, Storage, make_storage

_SLOT = 64  # tokens of a resident slot, for methods whose own units are smaller than
_LEAST = 4

RENAMED = {"cache": "block_cache", "eviction": "block_eviction"}


class Placing(Protocol):
    """A method with these options."""

    name: ClassVar[str]

    @property
    def place(self) -> str: ...
    @property
    def block_cache(self) -> int | str: ...
    @property
    def block_eviction(self) -> str: ...


def place() -> Any:
    """The option `place`."""
    return options.choice(
        "device", PLACES, help='Where keys and values are stored: "device" memory, "host" memory, or "disk".'
    )


def block_cache() -> Any:
    """The option `block_cache`."""
    return options.nbytes(
        0,
        help='Size of the resident block cache in front of host or disk, for all layers together; "64MB" is '
        "accepted. On a GPU, place=host with unquantised keys and values has a cache of single tokens on "
        "the GPU instead; 0 sizes it for twice the tokens of a step.",
    )


def block_eviction() -> Any:
    """The option `block_eviction`."""
    return options.choice(
        "lfu",
        BLOCK_EVICTIONS,
        help='Eviction policy of the block cache: least frequently ("lfu") or least recently used ("lru"). '
        'Single tokens always use "lru".',
    )


def resident() -> Any:
    """The option `resident`."""
    return options.choice(
        "blocks",
        RESIDENT,
        help='What stays on the device of a slower place: "blocks" of 128 tokens, the same for all heads, '
        'fetched after the read that missed them; or "slots", in which each KV head has the blocks it chose, '
        "fetched before they are read, so that steps that choose alike fetch little. `block_cache` is the "
        "size of either; 0 is none, or as many slots as a step reads. On a GPU, place=host with unquantised "
        "keys always has single tokens.",
    )


def check_blocks(method: Placing) -> None:
    """Raise SpecError for a block cache without a slower tier behind it."""
    if method.block_cache and method.place == "device":
        raise SpecError(f"{method.name}: block_cache={method.block_cache} needs place=host or place=disk")


def storages(
    method: Placing,
    info: ModelInfo,
    kv_dtype: str,
    window: int = 0,
    slot_tokens: int = 0,
    rotation: str = "auto",
) -> list[Storage]:
    """A storage for each served layer, whose `window` newest tokens are always read.

    Args:
        slot_tokens: of a resident slot; 0 has resident blocks that all heads share.
        rotation: one of ROTATIONS, for quantised keys and values.
    """
    share = info.share(int(method.block_cache))
    return [
        make_storage(
            method.place, kv_dtype, share, method.block_eviction, info.device, window, slot_tokens, rotation
        )
        for _ in info.layers
    ]


def slot_tokens(method: Placing) -> int:
    """Tokens of a resident slot: as many as the method reads together, if it does; 0 without."""
    if getattr(method, "resident", "blocks") != "slots":
        return 0
    unit = getattr(method, "block", None) or getattr(method, "page", None) or 0
    return unit if unit >= _LEAST else _SLOT
