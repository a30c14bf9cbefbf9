"""What the kernels of sparse prompts share: operands, where a tile of queries is, how keys are rounded.

A unit is a tile of one query head. Those of a KV head are numbered by tile, then by head: U of them, with
some to spare, are a piece of the prompt.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import INTERPRETED, LEAST, padded
from keyhole.kernels.sale.tiles import BLOCK, ROWS, SHARING, Reach, Rounding

ROUNDING = Rounding(127, 64)  # sums of 32 bits hold any product of bytes; a scale for each tile of keys
CHUNK = tl.constexpr(ROUNDING.run)  # keys of a step of the estimate
FEW = tl.constexpr(8)  # entries of a block in lists of what attention reads little of
READERS = tl.constexpr(ROWS // min(SHARING))  # parts of a tile at most: a bit for each tells who reads a key
ALL = tl.constexpr((1 << READERS.value) - 1)  # of these bits
QUERIES, WORD = tl.constexpr(ROWS), tl.constexpr(BLOCK)
_TILE = 16 << 10  # bytes of the keys of a step of exact attention


class Prompt(NamedTuple):
    """Operands of `keyhole.kernels.sale.attention`, last dimensions dense; unused slots of each row."""

    query: Tensor
    keys: Tensor
    values: Tensor
    tau: Tensor
    scale: float
    reach: Reach
    unused: Tensor

    @property
    def groups(self) -> int:
        """Query heads of a KV head."""
        return self.query.shape[1] // self.keys.shape[1]

    @property
    def parts(self) -> int:
        """Parts of a tile, the queries of each of which read the same keys."""
        return ROWS // self.reach.rows

    @property
    def lengths(self) -> tuple[int, int, int, int]:
        """Queries, tokens, where candidates begin, the window: the arguments of `place`."""
        return (
            self.query.shape[2],
            self.keys.shape[2],
            -(-self.reach.sinks // BLOCK) * BLOCK,
            self.reach.window,
        )

    @property
    def tiling(self) -> dict[str, int]:
        """Queries and keys of a step of exact attention, and warps, so that registers hold a thread's part.

        Steps are of whole blocks; means take registers, too. Products of float32 take an operand in parts;
        the interpreter's time goes by the number of steps.
        """
        row = padded(max(self.keys.shape[3], self.values.shape[3])) * self.keys.element_size()
        if self.keys.element_size() == 4 and not INTERPRETED.value:
            return {"ROWS": LEAST, "KEYS": BLOCK, "num_warps": 4}
        return {
            "ROWS": ROWS,
            "KEYS": max(BLOCK, min(ROWS, _TILE // (1 + self.reach.means) // row)),
            "num_warps": 4 if row * ROWS <= _TILE else 8,
        }


@triton.jit
def place(unused, tile, queries, tokens, begin, window):
    """Of a tile: its first row among the queries, that row's position, and where candidates end.

    Candidates are the positions from `begin`, where whole blocks of sinks end; an end of 0 says that there
    are none, and that everything is read.
    """
    start = tl.maximum(queries - tokens + unused, 0) + tile * QUERIES
    first = tokens - unused - queries + start
    end = tl.maximum(first - window, 0) // WORD * WORD
    return start, first, tl.where(end > begin, end, 0)


@triton.jit
def rounded(x, step):
    """x / step as the nearest integer, the even one of two, as torch rounds."""
    shifted = x / step + 12582912.0  # 1.5 * 2 ** 23: no fraction fits beside it
    return (shifted - 12582912.0).to(tl.int8)
