"""Keys and values in 4 or 8 bits: keys by channel, values by token.

Source: Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", arXiv 2402.02750. Keys
have channels that are large for all tokens, so each channel of a group of tokens gets a range of its own;
values have none, so each token does.

Legend: B batch, H KV heads, n rows, g tokens of a row, S slots, D size of keys or of values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.storage.form import Form, Kind, at

_FLOAT = torch.float32.itemsize


class _Codes(NamedTuple):
    """A number x is stored as round((x - low) / scale).

    Attributes:
        codes: uint8 `[B, H, n, g, bytes]`.
        scale: float32 `[B, H, n, D]` for each channel, or `[B, H, n, g]` for each token.
        low: as `scale`.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor


class Quantised(Form):
    """Codes of `bits` bits, their scales beside them in the row, `group` tokens in each.

    The error of a number is at most half its scale, the range of its channel or token over 2 ** bits - 1.
    """

    group = 64

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def pack(self, tokens: Tensor, kind: Kind) -> Tensor:
        grouped = tokens.unflatten(2, (-1, self.group)).float()
        keys, values = grouped.split([kind.keys, kind.values], dim=-1)
        parts = [*self._encode(keys, dim=-2), *self._encode(values, dim=-1)]
        return torch.cat([part.contiguous().view(torch.uint8).flatten(3) for part in parts], dim=-1)

    def keys(self, rows: Tensor, kind: Kind, slots: Tensor | None = None) -> Tensor:
        codes, scale, low = self._fields(rows, kind)[0]
        if slots is None:
            return self._decode(codes, scale.unsqueeze(-2), low.unsqueeze(-2), kind.keys).flatten(2, 3)
        row, token = slots // self.group, slots % self.group
        return self._decode(at(codes, row, token), at(scale, row), at(low, row), kind.keys)

    def values(self, rows: Tensor, kind: Kind, slots: Tensor | None = None) -> Tensor:
        codes, scale, low = self._fields(rows, kind)[1]
        if slots is None:
            return self._decode(codes, scale.unsqueeze(-1), low.unsqueeze(-1), kind.values).flatten(2, 3)
        row, token = slots // self.group, slots % self.group
        scale, low = (at(part.unsqueeze(-1), row, token) for part in (scale, low))
        return self._decode(at(codes, row, token), scale, low, kind.values)

    def token_bytes(self, kind: Kind) -> float:
        return sum(self._widths(kind)) / self.group

    def _widths(self, kind: Kind) -> list[int]:
        """Bytes in a row of the codes, scales and lows of keys, then those of values."""
        keys, values = (self.group * -(-size * self.bits // 8) for size in (kind.keys, kind.values))
        return [keys, *[_FLOAT * kind.keys] * 2, values, *[_FLOAT * self.group] * 2]

    def _fields(self, rows: Tensor, kind: Kind) -> tuple[_Codes, _Codes]:
        """Keys and values of `rows [B, H, n, W]`, as views."""
        key_codes, key_scale, key_low, codes, scale, low = rows.split(self._widths(kind), dim=-1)
        group = (self.group, -1)
        return (
            _Codes(key_codes.unflatten(-1, group), key_scale.view(torch.float), key_low.view(torch.float)),
            _Codes(codes.unflatten(-1, group), scale.view(torch.float), low.view(torch.float)),
        )

    def _encode(self, numbers: Tensor, dim: int) -> _Codes:
        """Codes of `numbers [B, H, n, g, D]`, with one range over dimension `dim`."""
        low, high = numbers.aminmax(dim=dim, keepdim=True)
        scale = (high - low) / (2**self.bits - 1)
        codes = ((numbers - low) / scale).nan_to_num(0.0).round().clamp(0, 2**self.bits - 1).to(torch.uint8)
        if self.bits == 4:
            even, odd = (
                torch.nn.functional.pad(codes, (0, codes.shape[-1] % 2)).unflatten(-1, (-1, 2)).unbind(-1)
            )
            codes = even | odd << 4
        return _Codes(codes, scale.squeeze(dim), low.squeeze(dim))

    def _decode(self, codes: Tensor, scale: Tensor, low: Tensor, size: int) -> Tensor:
        """The float32 numbers `[..., size]` that codes stand for."""
        if self.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)[..., :size]
        return torch.addcmul(low, scale, codes.float())
