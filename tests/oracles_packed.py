"""GGUF's blocks of 32 numbers as its documentation has them, number by number; imports nothing of Keyhole."""

import numpy as np

HEADS = {"INT8": 1, "INT4": 1, "INT4_MIN": 2}  # float16 numbers before the codes
CODES = {"INT8": 32, "INT4": 16, "INT4_MIN": 16}


def random_blocks(packing: str, rows: int, groups: int, seed: int = 0) -> np.ndarray:
    """uint8 [rows, groups, bytes]: any codes, scales of either sign."""
    rng = np.random.default_rng(seed)
    heads = rng.standard_normal((rows, groups, HEADS[packing])).astype(np.float16)
    codes = rng.integers(0, 256, (rows, groups, CODES[packing]), dtype=np.uint8)
    return np.concatenate([heads.view(np.uint8), codes], axis=-1)


def decoded(packing: str, blocks: np.ndarray) -> np.ndarray:
    """float64 [rows, groups * 32]."""
    size = 2 * HEADS[packing]
    heads = np.ascontiguousarray(blocks[..., :size]).view(np.float16).astype(np.float64)
    scale, codes = heads[..., :1], blocks[..., size:]
    if packing == "INT8":
        numbers = scale * codes.view(np.int8)
    else:
        halves = np.concatenate([codes & 15, codes >> 4], axis=-1).astype(np.float64)
        numbers = scale * (halves - 8) if packing == "INT4" else scale * halves + heads[..., 1:]
    return numbers.reshape(len(blocks), -1)


def bound(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """[B, M]: how far products with x [B, N] in int8 may be from exact ones, float32 sums included.

    A group of numbers below 2e-36 counts as 0.
    """
    sizes, inputs = np.abs(weights), np.abs(x)
    edges = np.arange(0, x.shape[1], 32)
    most = np.maximum.reduceat(inputs, edges, axis=1)
    sums = np.add.reduceat(sizes, edges, axis=1)
    return most @ sums.T / 254 + float_bound(weights, x, len(edges) + 8) + 2e-36 * sizes.sum(1)


def float_bound(weights: np.ndarray, x: np.ndarray, terms: int) -> np.ndarray:
    """[B, M]: rounding of float32 sums of so many terms one after the other."""
    most = np.maximum.reduceat(np.abs(x), np.arange(0, x.shape[1], 32), axis=1).repeat(32, axis=1)
    return most[:, : x.shape[1]] @ np.abs(weights).T * terms * 2.0**-23
