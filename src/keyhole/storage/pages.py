"""Where keys and values are in the pages of an inference engine's cache.

Legend: Hkv KV heads, D and Dv sizes of keys and values, W numbers of a token in a page.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Pages(NamedTuple):
    """Views of an engine's pages.

    Attributes:
        keys: `[blocks, block size, Hkv, D]`.
        values: `[blocks, block size, Hkv, Dv]`.
        rest: what else a page has room for: `[blocks, Hkv, block size, W - D - Dv]`, of planar pages
            `[blocks, Hkv, block size * (W - D - Dv)]`.
    """

    keys: Tensor
    values: Tensor
    rest: Tensor


def split_pages(
    pages: Tensor, head_size: int, head_size_v: int | None = None, *, planar: bool = False
) -> Pages:
    """Keys and values in `pages [blocks, Hkv, block size, W]`, vLLM's logical layout, without a copy.

    Args:
        planar: a page has, for each head, all keys, then all values, then the rest, so that rows are aligned
            and keys alone can be streamed; else each token's row has these three, as FlashAttention reads it.

    Raises:
        ValueError: W is too small, or a head's page is not contiguous, which planar ones must be.
    """
    values_size = head_size if head_size_v is None else head_size_v
    blocks, heads, size, width = pages.shape
    sizes = (head_size, values_size, width - head_size - values_size)
    if sizes[2] < 0:
        raise ValueError(
            f"pages {list(pages.shape)} have {width} numbers a token, too few for a key of {head_size} and a "
            f"value of {values_size}"
        )
    if not planar:
        keys, values, rest = pages.split(sizes, dim=-1)
        return Pages(keys.transpose(1, 2), values.transpose(1, 2), rest)
    if pages.stride()[2:] != (width, 1):
        raise ValueError(f"planar pages must be contiguous for each head, not of strides {pages.stride()}")
    whole = pages.as_strided((blocks, heads, size * width), (*pages.stride()[:2], 1))
    keys, values, rest = whole.split([size * each for each in sizes], dim=-1)
    keys, values = (part.unflatten(-1, (size, -1)).transpose(1, 2) for part in (keys, values))
    return Pages(keys, values, rest)
