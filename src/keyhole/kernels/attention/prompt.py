"""Exact causal attention of a prompt, or of its newest tokens, over what is cached.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, Q queries, N tokens, D and Dv sizes of a key and of
a value. Query head h reads KV head h // G; the last query is the newest token.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum

import torch
from torch import Tensor

from keyhole.kernels.backend.c_types import double as _double
from keyhole.kernels.backend.c_types import long_ as _long
from keyhole.kernels.backend.c_types import pointer as _pointer
from keyhole.kernels.backend.calls import run
from keyhole.kernels.backend.dispatch import use_native
from keyhole.kernels.backend.library import current
from keyhole.kernels.backend.native import TYPES, check

_DTYPES = (torch.float32, torch.bfloat16)
_LONGEST = 2**31 - 1
_LOGITS_AT_ONCE = 1 << 24


class Unit(IntEnum):
    """What multiplies bfloat16 numbers; native/amx.hpp has the same numbers."""

    WIDENED = 0  # float32 lanes, after conversion
    SQUARES = 1  # AMX's tiles


class Strided(ctypes.Structure):
    """Address, and strides in elements of batch rows, heads and tokens; kh::Strided of native/strided.hpp."""

    _fields_ = (("data", _pointer), ("batch", _long), ("head", _long), ("row", _long))

    @classmethod
    def of(cls, tensor: Tensor) -> Strided:
        """Of `[B, H, T, D]` with numbers of a token side by side; the caller keeps it alive."""
        return cls(tensor.data_ptr(), *tensor.stride()[:3])


class _Job(ctypes.Structure):
    """kh::prompt::Job of native/prompt.hpp."""

    _fields_ = (
        *((name, Strided) for name in ("query", "keys", "values", "out")),
        *((name, _long) for name in ("batch", "kv_heads", "groups", "queries", "tokens")),
        *((name, _long) for name in ("key_size", "value_size")),
        *((name, _pointer) for name in ("padding", "sinks")),
        *((name, _double) for name in ("scale", "softcap")),
        *((name, _long) for name in ("type", "unit")),
    )


def prompt_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    padding: tuple[int, ...] = (),
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    impl: str = "auto",
    unit: Unit = Unit.SQUARES,
) -> Tensor:
    """Attend the newest `query [B, H, Q, D]` to `keys [B, Hkv, N, D]`, `values [B, Hkv, N, Dv]`, N >= Q.

    Logits, softmax and sums are float32. Native code multiplies float32 inputs in float32; of bfloat16 inputs
    products are exact, and weights, at most 1, are rounded to bfloat16.

    Args:
        padding: unused slots at the start of each batch row, none by default; queries there give zeros.
        softcap: logits become `softcap * tanh(logits / softcap)`.
        sink_logits: `[H]`, one more logit of each head, which takes weight and gives nothing.
        unit: the most that native code may use; what the CPU lacks is passed over.

    Returns:
        `[B, H, Q, Dv]`, dtype of the query; in memory tokens come before heads.
    """
    padding = padding or (0,) * query.shape[0]
    _check(query, keys, values, scale, padding)
    if use_native(impl, query, keys, values, supported=_has_native(query, keys, values)):
        return _native(query, keys, values, scale, padding, softcap, sink_logits, unit)
    return _reference(query, keys, values, scale, padding, softcap, sink_logits)


def prompt_pays(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether native code computes it, and faster than torch: bfloat16, by AMX."""
    tensors = query, keys, values
    if (
        query.dtype != torch.bfloat16
        or query.shape[2] > keys.shape[2]
        or not use_native("auto", *tensors, supported=_has_native(*tensors))
    ):
        return False
    return best_unit() is Unit.SQUARES


def best_unit() -> Unit:
    """What the native library in use multiplies bfloat16 numbers with at best."""
    library = current()
    return Unit.WIDENED if library is None else Unit(library.kh_bfloat16_unit())


def _native(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    padding: tuple[int, ...],
    softcap: float | None,
    sink_logits: Tensor | None,
    unit: Unit,
) -> Tensor:
    batch, heads, queries, size = query.shape
    kv_heads, tokens, width = values.shape[1:]
    query, keys, values = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, keys, values))
    sinks = None if sink_logits is None else sink_logits.float().contiguous()
    unused = torch.tensor(padding)
    out = torch.empty(batch, queries, heads, width, dtype=query.dtype).transpose(1, 2)
    for row, slots in enumerate(padding):
        out[row, :, : max(slots - (tokens - queries), 0)] = 0.0
    job = _Job(
        *map(Strided.of, (query, keys, values, out)), batch, kv_heads, heads // kv_heads, queries, tokens,
        size, width, unused.data_ptr(), None if sinks is None else sinks.data_ptr(), scale, softcap or 0.0,
        TYPES[query.dtype], unit,
    )  # fmt: skip
    check(run("kh_prompt_attention", job))
    return out


def _reference(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    padding: tuple[int, ...],
    softcap: float | None,
    sink_logits: Tensor | None,
) -> Tensor:
    """The formula, some queries at a time."""
    batch, heads, queries, _ = query.shape
    tokens = keys.shape[2]
    slots, own = torch.arange(tokens, device=query.device), torch.arange(tokens - queries, tokens)
    starts = torch.tensor(padding, device=query.device).view(-1, 1, 1)
    values = values.float().masked_fill(slots.view(-1, 1) < starts.unsqueeze(-1), 0.0)
    step, parts = max(1, _LOGITS_AT_ONCE // max(1, batch * heads * tokens)), []
    for at in range(0, queries, step):
        rows = slice(at, at + step)
        place = own[rows].to(query.device).view(-1, 1)
        shown = ((slots <= place) & (slots >= starts))[:, None, None]
        grouped = query[:, :, rows].unflatten(1, (keys.shape[1], -1)).float()
        logits = grouped @ keys.unsqueeze(2).float().mT * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        logits = logits.masked_fill(~shown, -torch.inf)
        lse = logits.logsumexp(-1, keepdim=True)
        if sink_logits is not None:
            lse = torch.logaddexp(lse, sink_logits.float().view(keys.shape[1], -1, 1, 1))
        weights = (logits - lse).exp().masked_fill(~shown, 0.0)
        parts.append((weights @ values.unsqueeze(2)).to(query.dtype).flatten(1, 2))
    return torch.cat(parts, dim=2)


def _has_native(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    same = query.dtype == keys.dtype == values.dtype and query.dtype in _DTYPES
    learns = torch.is_grad_enabled() and (query.requires_grad or keys.requires_grad or values.requires_grad)
    return same and not learns and keys.shape[2] <= _LONGEST


def _check(query: Tensor, keys: Tensor, values: Tensor, scale: float, padding: tuple[int, ...]) -> None:
    batch, heads, queries, size = query.shape
    fits = keys.shape[0] == batch and keys.shape[3] == size and heads % keys.shape[1] == 0
    if not fits or values.shape[:3] != keys.shape[:3] or not 0 < queries <= keys.shape[2]:
        raise ValueError(
            f"keys {list(keys.shape)} and values {list(values.shape)} do not fit query {list(query.shape)}"
        )
    if len(padding) != batch or not all(0 <= slots <= keys.shape[2] for slots in padding):
        raise ValueError(f"padding {padding} must be {batch} numbers from 0 to {keys.shape[2]}")
    if not scale > 0:
        raise ValueError(f"scale {scale} must be above 0")
