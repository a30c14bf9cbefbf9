"""A decode step by the native library: one call from attention to attention. Legend as in `types`."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from keyhole.kernels.backend.c_types import float_ as _float
from keyhole.kernels.backend.c_types import int_ as _int
from keyhole.kernels.backend.c_types import long_ as _long
from keyhole.kernels.backend.c_types import pointer as _pointer
from keyhole.kernels.backend.native import TYPES, call
from keyhole.kernels.decoder.types import MOST_ROWS, Decoder, DecoderLayer, DecoderSizes, Linear, Norm

_PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")
_NORMS = (
    "before_attention", "query_norm", "key_norm", "after_attention", "before_forward", "after_forward",
)  # fmt: skip


class _Numbers(ctypes.Structure):
    _fields_ = (("data", _pointer), ("type", _int))


class _Norm(ctypes.Structure):
    _fields_ = (("kind", _int), ("eps", _float), ("weight", _Numbers))


class _Linear(ctypes.Structure):
    _fields_ = (("matrix", _pointer), ("bias", _Numbers))


class _Layer(ctypes.Structure):
    """kh::DecoderLayer of native/decoder.hpp."""

    _fields_ = (
        *((name, _Norm) for name in _NORMS),
        *((name, _Linear) for name in _PROJECTIONS),
        ("rotates", _int),
    )


class _Sizes(ctypes.Structure):
    """kh::DecoderSizes."""

    _fields_ = (
        *((name, _long) for name in ("hidden", "forward", "heads", "kv_heads", "head_size")),
        ("norms_all_heads", _int),
        ("type", _int),
        *((name, _float) for name in ("embedding", "residual", "clip")),
    )


class DecoderOperands(ctypes.Structure):
    """kh::DecoderCall."""

    _fields_ = (
        *((name, _pointer) for name in ("sizes", "finish", "start", "input", "out", "cos", "sin")),
        *((name, _long) for name in ("angle_stride", "rotary", "rows")),
        ("last", _Norm),
        *((name, _pointer) for name in ("x", "heads", "gate", "up", "sums")),
    )


class NativeStep:
    """As `DecoderStep`. It holds the addresses of weights, and the weights themselves.

    Attributes:
        places: addresses of the layers, and None behind them.
    """

    def __init__(self, decoder: Decoder) -> None:
        sizes = self.sizes = decoder.sizes
        self._held = decoder
        self._layers = [_layer(layer) for layer in decoder.layers]
        self._struct, self._last = _structured(sizes), _norm(decoder.last)
        self._scratch = {name: torch.empty(MOST_ROWS, width) for name, width in _scratch(sizes).items()}
        self.places = [ctypes.addressof(layer) for layer in self._layers] + [None]
        self._call = DecoderOperands()
        self._address = ctypes.addressof(self._call)
        self._rows = 0

    def begin(self, embeddings: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        self._rows = len(embeddings)
        self.place(embeddings, cos, sin, self._call)
        return self._run(None, 0, embeddings, self.sizes.hidden)

    def place(self, embeddings: Tensor, cos: Tensor, sin: Tensor, to: DecoderOperands) -> None:
        """Fill in what all calls of a step share; weights and angles are held until the next one."""
        sizes, rows, turned = self.sizes, len(embeddings), cos.shape[-1]
        angles = (1, turned), (rows, turned)
        if cos.shape != sin.shape or tuple(cos.shape) not in angles or turned > sizes.head_size or turned % 2:
            raise _unlike(f"angles {list(cos.shape)} and {list(sin.shape)} for {rows} rows", sizes)
        if rows > MOST_ROWS or not cos.dtype == sin.dtype == torch.float32:
            raise _unlike(f"{rows} rows with angles of {cos.dtype} and {sin.dtype}", sizes)
        if not to.sizes:
            to.sizes, to.last = ctypes.addressof(self._struct), self._last
            for name, piece in self._scratch.items():
                setattr(to, name, piece.data_ptr())
        self._angles = cos.contiguous(), sin.contiguous()
        to.rows, to.rotary = len(embeddings), cos.shape[1]
        to.cos, to.sin = (part.data_ptr() for part in self._angles)
        to.angle_stride = cos.shape[1] if len(cos) > 1 else 0

    def attended(self, layer: int, out: Tensor) -> Tensor:
        sizes = self.sizes
        return self._run(self.places[layer], layer + 1, out, sizes.heads * sizes.head_size)

    def _run(self, finish: int | None, start: int, given: Tensor, width: int) -> Tensor:
        sizes, to = self.sizes, self._call
        if given.dtype != sizes.dtype or given.numel() != self._rows * width:
            raise _unlike(f"{given.dtype} {list(given.shape)} for {self._rows} rows of {width}", sizes)
        given = given if given.is_contiguous() else given.contiguous()
        if start < len(self._layers):
            out = torch.empty(self._rows, sizes.all_heads, 1, sizes.head_size, dtype=sizes.dtype)
        else:
            out = torch.empty(self._rows, sizes.hidden, dtype=sizes.dtype)
        to.finish, to.start, to.input, to.out = finish, self.places[start], given.data_ptr(), out.data_ptr()
        call("kh_decode", self._address)
        return out


def _unlike(given: str, sizes: DecoderSizes) -> ValueError:
    return ValueError(
        f"a step of this decoder takes {sizes.dtype} embeddings [B, {sizes.hidden}] and attention [B, "
        f"{sizes.heads}, 1, {sizes.head_size}] of at most {MOST_ROWS} rows, with float32 angles [B or 1, R], "
        f"R even and at most {sizes.head_size}; got {given}"
    )


def _scratch(sizes: DecoderSizes) -> dict[str, int]:
    """Numbers of one row in each piece of scratch."""
    heads = sizes.all_heads * sizes.head_size
    return {
        "x": sizes.hidden,
        "heads": heads,
        "gate": sizes.forward,
        "up": sizes.forward,
        "sums": sizes.hidden,
    }


def _structured(sizes: DecoderSizes) -> _Sizes:
    return _Sizes(
        sizes.hidden, sizes.forward, sizes.heads, sizes.kv_heads, sizes.head_size, sizes.norms_all_heads,
        TYPES[sizes.dtype], sizes.embedding, sizes.residual, sizes.clip,
    )  # fmt: skip


def _layer(layer: DecoderLayer) -> _Layer:
    parts: dict[str, Any] = {name: _linear(getattr(layer, name)) for name in _PROJECTIONS}
    norms = {name: _norm(getattr(layer, name)) for name in _NORMS}
    return _Layer(**parts, **norms, rotates=layer.rotates)


def _linear(linear: Linear) -> _Linear:
    return _Linear(linear.matrix.address, _numbers(linear.bias))


def _norm(norm: Norm | None) -> _Norm:
    if norm is None:
        return _Norm()
    return _Norm(2 if norm.centred else 1, norm.eps, _numbers(norm.weight))


def _numbers(tensor: Tensor | None) -> _Numbers:
    return _Numbers() if tensor is None else _Numbers(tensor.data_ptr(), TYPES[tensor.dtype])
