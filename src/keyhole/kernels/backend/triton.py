"""What the Triton kernels share."""

import os

import triton
import triton.language as tl
from torch import Tensor

# The interpreter multiplies the bits of bfloat16 numbers as integers, and sums halves in half precision.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
EXACT = tl.constexpr("tf32x3")
LEAST = 16  # rows and columns of the least matrix product


@triton.jit
def product(a, b, precision: tl.constexpr = EXACT):
    """a [M, K] times b [K, N] in float32, both of one dtype; little of float32 is lost on tensor cores.

    With "tf32" numbers of float32 have 11 bits there, for operands that stand for halves.
    """
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=precision)


@triton.jit
def bound(number):
    """A number that bounds a loop. The interpreter's are arrays, which numpy 2.4 takes for no bounds."""
    return number.handle.data.item() if INTERPRETED else number


@triton.jit
def capped(logits, softcap):
    """softcap * tanh(logits / softcap), float32; `softcap` may be None."""
    if softcap is not None:
        x = logits / softcap
        square = x * x
        # The difference of exponentials cancels near 0.
        near = x * (1 + square * (-1 / 3 + square * (2 / 15 - square * (17 / 315))))
        far = 1 - 2 / (tl.exp(2 * tl.abs(x)) + 1)
        logits = softcap * tl.where(square < 0.01, near, tl.where(x < 0, -far, far))
    return logits


@triton.jit
def products(left, right, some, others, size: tl.constexpr, SIZE: tl.constexpr):
    """Of vectors of `size` numbers at left [M] and right [N], where the masks hold: [M, N], float32."""
    total = tl.zeros((left.shape[0], right.shape[0]), tl.float32)
    # Float32 takes registers for parts of each number: not all of a long vector at once.
    STEP: tl.constexpr = min(SIZE, 128)
    for start in tl.static_range(0, SIZE, STEP):
        channel = start + tl.arange(0, STEP)[None, :]
        a = tl.load(left[:, None] + channel, mask=some[:, None] & (channel < size), other=0.0)
        b = tl.load(right[:, None] + channel, mask=others[:, None] & (channel < size), other=0.0)
        total += product(a, tl.trans(b.to(a.dtype)))
    return total


@triton.jit
def block_of(table, slot, there, count, PAGE: tl.constexpr):
    """The blocks (int64) of slots [S] by a row of a block table, and which of them are there at all."""
    block = tl.load(table + slot // PAGE, mask=there, other=-1).to(tl.int64)
    return block, there & (block >= 0) & (block < count)


def padded(size: int, least: int = LEAST) -> int:
    """The power of two that holds `size`, as tiles have to be."""
    return max(least, triton.next_power_of_2(size))


def rows_first(tensor: Tensor) -> Tensor:
    """The tensor with its last dimension dense; a copy only where it is not."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
