"""Random numbers by counter: each entry of a block of logits has its own, whatever the block.

Shapes: R rows (batch x KV heads), G query heads of a KV head, Q queries, N slots.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

NOISES = ("gumbel", "gaussian", "constant")
_MEAN = 0.5772156649  # of Gumbel(0, 1)
_SPREAD = math.pi / math.sqrt(6)


class Noise(NamedTuple):
    """What is to be added to logits `[R, G, Q, N]`.

    The number of an entry is a function of two words of its query, of the position of its key, and of the
    kind: "gumbel" of location 0 and scale 1, "gaussian" of the same mean and variance, or their mean as a
    "constant".

    Attributes:
        words: int32 `[R, G, Q, 2]`, as `query_words` makes them.
        places: int32 `[R, N]`, the positions of the keys.
    """

    words: Tensor
    places: Tensor
    kind: str = "gumbel"

    def of(self, start: int, stop: int, slots: int) -> Noise:
        """What some of the queries, and the first slots, have of it."""
        return self._replace(words=self.words[:, :, start:stop], places=self.places[:, :slots])

    def sample(self) -> Tensor:
        """Float32 `[R, G, Q, N]`, or something that broadcasts to it."""
        if self.kind == "constant":
            return torch.full((1,), _MEAN, device=self.places.device)
        uniform = self._uniform()
        if self.kind == "gaussian":
            return _MEAN + _SPREAD * math.sqrt(2) * torch.erfinv(2 * uniform - 1)
        return uniform.log_().neg_().log_().neg_()

    def _uniform(self) -> Tensor:
        """Odd multiples of 2^-24 between 0 and 1."""
        first, second = self.words.unsqueeze(-2).unbind(-1)
        mixed = self.places[:, None, None] * _signed(0x9E3779B9) + first
        mixed = (mixed ^ _shifted(mixed, 16)).mul_(_signed(0x7FEB352D)) ^ second
        mixed = (mixed ^ _shifted(mixed, 15)).mul_(_signed(0x846CA68B))
        mixed ^= _shifted(mixed, 16)
        return _shifted(mixed, 9).float().add_(0.5).mul_(2**-23)


@lru_cache(maxsize=1024)
def head_words(seed: int, layer: int, heads: int, device: torch.device) -> Tensor:
    """Two words for each of a layer's query heads, int32 `[heads, 2]`."""
    digest = hashlib.blake2b(f"{seed} {layer}".encode(), digest_size=8).digest()
    begin = torch.frombuffer(bytearray(digest), dtype=torch.int32)
    return _mixed(begin + torch.arange(heads, dtype=torch.int32).unsqueeze(-1)).to(device)


def query_words(heads: Tensor, positions: Tensor) -> Tensor:
    """Two words for each query: int32, the shape of heads and positions broadcast, and 2.

    Args:
        heads: int32 `[..., 2]`, the words of the queries' heads.
        positions: int32, of the queries, in the text.
    """
    return _mixed(heads + positions.unsqueeze(-1))


def _mixed(words: Tensor) -> Tensor:
    """A one-to-one map of 32-bit words whose every bit depends on all (Wellons' lowbias32)."""
    words = (words ^ _shifted(words, 16)) * 0x7FEB352D
    words = (words ^ _shifted(words, 15)) * _signed(0x846CA68B)
    return words ^ _shifted(words, 16)


def _shifted(words: Tensor, by: int) -> Tensor:
    """To the right, zeros from the left."""
    return (words >> by) & ((1 << (32 - by)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word
