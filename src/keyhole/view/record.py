"""What a run read: the record of one answer.

Legend: S steps, L layers that Keyhole serves, H KV heads, T tokens of prompt and answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from keyhole.view.coding import decode_set, encode_set


@dataclass(frozen=True)
class Step:
    """One call of the model, all its layers.

    Attributes:
        first: position of its first query.
        queries: how many there are; the newest is the one that gives the token.
        token: position of the token it gave; None for a call that read tokens of the question.
        sets: for each layer and KV head the blocks it read, coded by `coding.encode_set`.
        union: the positions that any of them read, coded so, token by token.
        counts: uint32 `[L, H]`, tokens read.
        held: uint32 `[L, H]`, tokens that were there to be read.
        missed: float32 `[L, H]`, the share of attention that was missed, of what is held, as estimated.
        exact: the same as computed from all keys that are held; None where that was not asked for.
        nbytes: float64 `[L]`, bytes of keys, values and index that were read, all heads.
        cached: float32 `[L]`, share of the reads past the index that a block cache answered.
        best: positions with the most attention and their share of it, mean over layers and heads, among what
            was read; measured where `exact` is.
        absent: the same among what was not.
    """

    first: int
    queries: int
    token: int | None
    sets: tuple[bytes, ...]
    union: bytes
    counts: np.ndarray
    held: np.ndarray
    missed: np.ndarray
    exact: np.ndarray | None
    nbytes: np.ndarray
    cached: np.ndarray
    best: tuple[tuple[int, float], ...] = ()
    absent: tuple[tuple[int, float], ...] = ()

    @property
    def length(self) -> int:
        """Positions there were, the newest query's among them."""
        return self.first + self.queries


@dataclass(frozen=True)
class Record:
    """One question, its answer, and what each step, layer and KV head read for it.

    Attributes:
        text: prompt and answer as text, the chat template's parts among it.
        spans: int64 `[T, 2]`, the characters of each token, in UTF-16 code units of `text`.
        prompt: tokens of the prompt; those from there on are the answer.
        document: where the document is in `text`, in UTF-16 code units.
        layers: the model's numbers of the L layers.
        heads: H.
        block: tokens to a block of `Step.sets`.
        sinks, window: first and newest tokens that are always read.
        tiers: where each layer's keys and values are: device, host or disk.
    """

    model: str
    method: str
    question: str
    text: str
    spans: np.ndarray
    prompt: int
    document: tuple[int, int]
    layers: tuple[int, ...]
    heads: int
    block: int
    sinks: int
    window: int
    tiers: tuple[str, ...]
    steps: tuple[Step, ...] = field(repr=False)

    def positions(self, step: int, layer: int, head: int) -> np.ndarray:
        """Positions, ascending, that a KV head read; whole blocks where `block` is more than 1.

        Args:
            layer: place in `layers`.
        """
        taken = self.steps[step]
        blocks = decode_set(taken.sets[layer * self.heads + head])
        if self.block == 1:
            return blocks
        spread = (blocks[:, None] * self.block + np.arange(self.block)).ravel()
        return spread[spread < taken.length]

    def union(self, step: int) -> np.ndarray:
        """Positions, ascending, that any layer and KV head of a step read; single tokens in any case."""
        return decode_set(self.steps[step].union)

    def token_text(self, position: int) -> str:
        """The characters of a token."""
        start, stop = self.spans[position]
        units = self.text.encode("utf-16-le", "surrogatepass")
        return units[2 * start : 2 * stop].decode("utf-16-le", "replace")


def coarser(record: Record) -> Record:
    """The same with blocks twice as long; unions and numbers stay."""
    steps = [replace(step, sets=tuple(_halved(one) for one in step.sets)) for step in record.steps]
    return replace(record, block=2 * record.block, steps=tuple(steps))


def _halved(coded: bytes) -> bytes:
    return encode_set(np.unique(decode_set(coded) // 2))
