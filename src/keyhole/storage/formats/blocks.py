"""Blocks of tokens as the model makes them, so that a slower tier is read in long runs.

Legend: B batch, H KV heads, n blocks, g tokens of a block, D and E size of keys and of values.
"""

from __future__ import annotations

from torch import Tensor

from keyhole.storage.formats.base import Full, TokenSpec, at


class Blocks(Full):
    """Rows `[B, H, n, g * (D + E)]`: the tokens of a block one after the other, each as it came."""

    in_place = False

    def __init__(self, group: int) -> None:
        self.group = group

    def pack(self, tokens: Tensor, kind: TokenSpec) -> Tensor:  # noqa: ARG002
        return tokens.unflatten(2, (-1, self.group)).flatten(3)

    def keys(self, rows: Tensor, kind: TokenSpec, slots: Tensor | None = None) -> Tensor:
        return self._tokens(rows, slots)[..., : kind.keys]

    def values(self, rows: Tensor, kind: TokenSpec, slots: Tensor | None = None) -> Tensor:
        return self._tokens(rows, slots)[..., kind.keys :]

    def _tokens(self, rows: Tensor, slots: Tensor | None) -> Tensor:
        tokens = rows.unflatten(-1, (self.group, rows.shape[-1] // self.group)).flatten(2, 3)
        return tokens if slots is None else at(tokens, slots)
