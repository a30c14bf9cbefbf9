"""Random operands for kernel tests, with poison wherever an operation must not look."""

from dataclasses import dataclass

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.kernels.pq.scores import table_sums
from keyhole.kernels.pq.tables import pq_tables, softcapped


@dataclass
class Index:
    """A query with an index of n slots; what lies beyond them in the buffer is poison."""

    query: Tensor
    codebooks: Tensor
    buffer: Tensor
    codes: Tensor
    scale: float

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.codebooks, self.buffer


def make_index(
    *, rows: int = 2, heads: int = 4, n: int = 300, subspaces: int = 8, bits: int = 4, width: int = 4,
    spread: float = 2.0, seed: int = 0,
) -> Index:  # fmt: skip
    make = torch.Generator().manual_seed(seed)
    query = torch.randn(rows, heads, subspaces * width, generator=make)
    codebooks = torch.randn(rows, subspaces, 1 << bits, width, generator=make)
    codes = torch.randint(0, 1 << bits, (rows, n, subspaces), generator=make, dtype=torch.uint8)
    buffer = kernels.allocate_codes(rows, n + 70, subspaces, bits).fill_(255)
    kernels.write_codes(buffer, 0, codes, bits=bits, impl="reference")
    return Index(query, codebooks, buffer, codes, spread * (subspaces * width) ** -0.5)


def shares(
    index: Index, row: int, first: int, last: int, anchor_lse: Tensor, softcap: float | None
) -> tuple[Tensor, float, float]:
    """Share of attention mass (float64) of each slot in [first, last) and of the anchors, by definition.

    The third number is the largest logit in size: float32 rounding of shares grows with it.
    """
    tables = pq_tables(index.query, index.codebooks, scale=index.scale)
    sums = table_sums(tables, index.buffer, last)[row, :, first:]
    logits = softcapped(tables.base[row][:, None] + tables.step[row][:, None] * sums, softcap)
    anchors = anchor_lse[row].double()
    lse = torch.cat([logits, anchors[:, None]], 1).logsumexp(1)
    reach = torch.cat([logits, anchors[:, None]], 1).abs()
    reach = float(reach.masked_fill(reach.isinf(), 0).max())
    return (logits - lse[:, None]).exp().mean(0), float((anchors - lse).exp().mean()), reach


def strided(tensor: Tensor) -> Tensor:
    """The same values with odd row and slot strides, an odd offset, and NaN (or 127) in between."""
    rows, slots, size = tensor.shape
    poison = 127 if tensor.dtype == torch.int8 else float("nan")
    wide = torch.full((rows, slots + 3, size + 5), poison, dtype=tensor.dtype)
    wide[:, 2 : slots + 2, 1 : size + 1] = tensor
    return wide[:, 2 : slots + 2, 1 : size + 1]


def in_blocks(
    tensor: Tensor, begin: list[int], end: list[int], *, block_size: int, layout: str = "slots", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The tokens of `tensor [B, H, N, D]` in [begin, end) of each row as a paged cache, and its block table.

    Whatever else a block holds is NaN, blocks are shuffled, and those that a row does not need are no blocks.

    Args:
        layout: in memory: "slots" before heads, "heads" before slots, "beside" others in wider rows.
    """
    make = torch.Generator().manual_seed(seed)
    batch, heads, tokens, size = tensor.shape
    starts = torch.arange(0, tokens + block_size, block_size)
    first, stop = torch.tensor(begin).unsqueeze(1), torch.tensor(end).unsqueeze(1)
    needed = (starts < stop) & (starts + block_size > first) & (first < stop)
    count = int(needed.sum()) + 3
    table = torch.randint(0, 2, needed.shape, generator=make) * (count + 7) - 3
    table[needed] = torch.randperm(count, generator=make)[: count - 3]
    shape = (count, block_size, heads) if layout == "slots" else (count, heads, block_size)
    width = 2 * size + 3 if layout == "beside" else size
    cache = torch.full((*shape, width), torch.nan, dtype=tensor.dtype)[..., -size:]
    cache = cache if layout == "slots" else cache.transpose(1, 2)
    for row in range(batch):
        slots = torch.arange(begin[row], end[row])
        cache[table[row, slots // block_size], slots % block_size] = tensor[row, :, slots].transpose(0, 1)
    return cache, table.int()


LAYOUTS = ["slots", "heads", "beside"]
