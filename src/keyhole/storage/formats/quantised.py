"""Keys and values in 2, 3, 4 or 8 bits: keys by channel, values by token.

Source: Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", arXiv 2402.02750. Keys
have channels that are large for all tokens, so each channel of a group of tokens gets a range of its own;
values have none, so each token does.

Legend: B batch, H KV heads, n rows, g tokens of a row, S slots, D size of keys or of values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.attention import Logits, Part
from keyhole.kernels.attention.bits import pack_codes
from keyhole.kernels.attention.packed import decoded, keys_at, values_at
from keyhole.storage.formats import hadamard
from keyhole.storage.formats.base import Form, TokenSpec

_FLOAT = torch.float32.itemsize


class Quantised(Form):
    """Codes of `bits` bits, their scales beside them in the row, `group` tokens in each.

    The error of a number is at most half its scale, the range of its channel or token over 2 ** bits - 1;
    where it is `rotated`, that holds for numbers after the rotation. Attention rotates the query and what
    comes out instead of the keys and values. The first tokens stay as they came: they are attention sinks.
    """

    group = 64
    first = 4

    def __init__(self, bits: int, rotated: bool = False) -> None:
        self.bits, self.rotated = bits, rotated

    def pack(self, tokens: Tensor, kind: TokenSpec) -> Tensor:
        grouped = tokens.unflatten(2, (-1, self.group)).float()
        keys, values = (self._turn(part) for part in grouped.split([kind.keys, kind.values], dim=-1))
        parts = [*self._encode(keys, dim=-2), *self._encode(values, dim=-1)]
        return torch.cat([part.contiguous().view(torch.uint8).flatten(3) for part in parts], dim=-1)

    def keys(self, rows: Tensor, kind: TokenSpec, slots: Tensor | None = None) -> Tensor:
        held = self._sides(rows, kind)[0]
        if slots is not None:
            return self._turn(keys_at(held, self._layout(kind), slots))
        held = held._replace(scale=held.scale.unsqueeze(-2), low=held.low.unsqueeze(-2))
        return self._turn(decoded(held, self.bits, kind.keys).flatten(2, 3))

    def values(self, rows: Tensor, kind: TokenSpec, slots: Tensor | None = None) -> Tensor:
        held = self._sides(rows, kind)[1]
        if slots is not None:
            return self._turn(values_at(held, self._layout(kind), slots))
        held = held._replace(scale=held.scale.unsqueeze(-1), low=held.low.unsqueeze(-1))
        return self._turn(decoded(held, self.bits, kind.values).flatten(2, 3))

    def attend(
        self, query: Tensor, rows: Tensor, kind: TokenSpec, slots: Tensor, counts: Tensor, logits: Logits
    ) -> Part:
        turned = self._turn(query.float()) if self.rotated else query
        attended = kernels.packed_attention(
            turned.reshape(-1, query.shape[1] // kind.heads, kind.keys),
            *self._sides(rows, kind),
            self._layout(kind),
            slots.flatten(0, 1),
            counts.flatten(),
            scale=logits.scale,
            softcap=logits.softcap,
        )
        out = self._turn(attended.out).to(query.dtype)
        return Part(out.view(*query.shape[:2], -1), attended.lse.view(query.shape[:2]))

    def token_bytes(self, kind: TokenSpec) -> float:
        return sum(self._widths(kind)) / self.group

    def _turn(self, vectors: Tensor) -> Tensor:
        return hadamard.rotated(vectors) if self.rotated else vectors

    def _widths(self, kind: TokenSpec) -> list[int]:
        """Bytes in a row of the codes, scales and lows of keys, then those of values."""
        keys, values = (self.group * -(-size * self.bits // 8) for size in (kind.keys, kind.values))
        return [keys, *[_FLOAT * kind.keys] * 2, values, *[_FLOAT * self.group] * 2]

    def _layout(self, kind: TokenSpec) -> kernels.Layout:
        return kernels.Layout(self.bits, kind.keys, kind.values)

    def _sides(self, rows: Tensor, kind: TokenSpec) -> tuple[kernels.Codes, kernels.Codes]:
        """Keys and values of `rows [B, H, n, W]`, as views."""
        parts = rows.split(self._widths(kind), dim=-1)
        keys, values = (
            kernels.Codes(codes.unflatten(-1, (self.group, -1)), *(part.view(torch.float) for part in ranges))
            for codes, *ranges in (parts[:3], parts[3:])
        )
        return keys, values

    def _encode(self, numbers: Tensor, dim: int) -> kernels.Codes:
        """Codes of `numbers [B, H, n, g, D]`, with one range over dimension `dim`."""
        low, high = numbers.aminmax(dim=dim, keepdim=True)
        scale = (high - low) / (2**self.bits - 1)
        codes = ((numbers - low) / scale).nan_to_num(0.0).round().clamp(0, 2**self.bits - 1).to(torch.uint8)
        packed = codes if self.bits == 8 else pack_codes(codes, self.bits)
        return kernels.Codes(packed, scale.squeeze(dim), low.squeeze(dim))
