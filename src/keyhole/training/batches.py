"""What every stage's generator returns, and the first lesson: repeats of a random period."""

from typing import NamedTuple

import numpy as np
import torch

LABELS = (
    "none",
    "form",
    "repeat",
    "multikey",
    "multivalue",
    "multiquery",
    "variables",
    "common_words",
    "frequent_words",
)


class Batch(NamedTuple):
    """All arrays are [B, L]; `asked` says what a token answers, an index of LABELS; "none" has no loss."""

    tokens: torch.Tensor
    positions: torch.Tensor
    asked: torch.Tensor


def pack(tokens: np.ndarray, positions: np.ndarray, asked: np.ndarray) -> Batch:
    return Batch(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (tokens, positions, asked)))


def repeats(rng: np.random.Generator, batch: int, length: int, vocabulary: int, begin: int) -> Batch:
    """Random tokens repeated with a period drawn for each row, so that distance alone cannot help."""
    tokens = np.full((batch, length), begin, dtype=np.int64)
    asked = np.zeros((batch, length), dtype=np.int64)
    for row in range(batch):
        period = int(rng.integers(4, length // 2 + 1))
        cycle = rng.integers(0, vocabulary, period)
        tokens[row, 1:] = np.resize(cycle, length - 1)
        asked[row, 1 + period :] = LABELS.index("repeat")
    positions = np.broadcast_to(np.arange(length), (batch, length))
    return pack(tokens, positions, asked)


def skipping_positions(
    rng: np.random.Generator, joints: list[int], length: int, span: int, jumps: int = 3
) -> np.ndarray:
    """Positions [L] that jump at a few of the `joints`, up to `span` (PoSE, Zhu et al. 2023)."""
    steps = np.ones(length, dtype=np.int64)
    steps[0] = 0
    room = span - length
    if room > 0:
        total = rng.integers(0, room + 1) if rng.random() < 0.7 else 0
        cuts = np.sort(rng.integers(0, total + 1, jumps - 1))
        gaps = np.diff(cuts, prepend=0, append=total)
        np.add.at(steps, rng.choice(joints[1:], size=jumps), gaps)
    return np.cumsum(steps)
