"""New tokens on their way into a cache, looked at and written by one native call.

Shapes: B batch, Hkv KV heads, T new tokens, D and E size of keys and of values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.kernels.backend.calls import AppendCall, RowsOf, run
from keyhole.kernels.backend.library import current
from keyhole.kernels.backend.native import FLOATS, TYPES

FEW = 16  # tokens; more are looked at by torch, on all threads


class PreparedAppend:
    """Writes behind the tokens that memory `keys [B, Hkv, cap, D]` and `values [B, Hkv, cap, E]` holds."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self._kind = (keys.dtype, values.dtype, keys.shape[:2], keys.shape[3], values.shape[3])
        call = self._call = AppendCall()
        call.batches, call.heads = keys.shape[:2]
        call.key_size, call.value_size = keys.shape[3], values.shape[3]
        call.type = TYPES[keys.dtype]
        call.key_to, call.value_to = _rows(keys), _rows(values)
        self._steps = call.key_to.token, call.value_to.token
        self._begins = keys.data_ptr(), values.data_ptr()

    def takes(self, keys: Tensor, values: Tensor) -> bool:
        """Whether `append` writes such tokens: few, of the kind that is held, each side by side."""
        learns = torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad)
        few = not learns and keys.shape[2] <= FEW and keys.shape[:3] == values.shape[:3]
        plain = keys.stride(3) == values.stride(3) == 1 and keys.is_cpu and values.is_cpu
        kind = (keys.dtype, values.dtype, keys.shape[:2], keys.shape[3], values.shape[3])
        return few and plain and kind == self._kind

    def append(self, keys: Tensor, values: Tensor, slot: int) -> bool:
        """Write `keys [B, Hkv, T, D]` and `values [B, Hkv, T, E]` from `slot` on.

        Returns False where NaN or infinity is among them; nothing is written then.
        """
        call = self._call
        call.tokens, (key_step, value_step), (key_at, value_at) = keys.shape[2], self._steps, self._begins
        call.key_to.data, call.value_to.data = key_at + slot * key_step, value_at + slot * value_step
        _place(call.keys, keys)
        _place(call.values, values)
        return run("kh_append", call) == 0


def prepared_append(keys: Tensor, values: Tensor) -> PreparedAppend | None:
    """The native call for such memory; None where the native library does not write it."""
    ready = current() is not None and keys.is_cpu and values.is_cpu
    plain = keys.stride(3) == values.stride(3) == 1 and keys.dtype == values.dtype
    return PreparedAppend(keys, values) if ready and plain and keys.dtype in FLOATS else None


def _rows(memory: Tensor) -> RowsOf:
    rows = RowsOf()
    _place(rows, memory)
    return rows


def _place(rows: RowsOf, tensor: Tensor) -> None:
    size, (batch, head, token, _) = tensor.element_size(), tensor.stride()
    rows.data, rows.batch, rows.head, rows.token = tensor.data_ptr(), batch * size, head * size, token * size
