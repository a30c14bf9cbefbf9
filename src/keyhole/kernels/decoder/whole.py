"""A whole decode step by one native call: what `native.NativeStep` computes, and attention in between.

Legend as in `types`; R = B * K rows, G = H / K query heads of each, N tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.kernels.attention.prepared import PreparedAttention
from keyhole.kernels.backend.calls import AttentionCall, PqStepCall
from keyhole.kernels.backend.native import status_of
from keyhole.kernels.decoder.native import DecoderOperands, NativeStep
from keyhole.kernels.decoder.types import DecoderSizes
from keyhole.kernels.pq.step import PreparedScan

_UNIT = 16  # numbers of a head come in such


class Reads(NamedTuple):
    """How a layer of a step attends.

    Attributes:
        held: its keys and values, with room for another token.
        scale: what products of query and key are multiplied by.
        index: what chooses what is read beside `sinks` and `window`; None reads everything.
        largest: of a query's numbers, which the index takes no greater ones of.
    """

    held: PreparedAttention
    scale: float
    index: PreparedScan | None = None
    largest: float = 0.0
    sinks: int = 0
    window: int = 0


class _StepLayer(ctypes.Structure):
    """kh::StepLayer of native/step_attention.hpp."""

    _fields_ = (
        ("layer", ctypes.c_void_p),
        ("read", AttentionCall),
        ("chooses", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("sinks", "window", "budget")),
        ("counts", ctypes.c_void_p),
        ("masses", ctypes.c_void_p),
    )


class _StepCall(ctypes.Structure):
    """kh::StepCall of native/step.hpp."""

    _fields_ = (
        ("decode", DecoderOperands),
        ("layers", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("length", ctypes.c_int64),
    )


class Chosen(NamedTuple):
    """What layers that choose have read beside sinks and window, those of other layers without meaning.

    Attributes:
        counts: `[L][R]`, slots.
        masses: `[L][R]`, the share of attention that they and what is always read are estimated to hold.
    """

    counts: list[list[int]]
    masses: list[list[float]]


class WholeStep:
    """Steps of a decoder over layers that stay where they are.

    Keys and values of a new token are written behind the others, where nothing is held yet: the caller counts
    them in once a step has succeeded. A step serves one thread at a time.
    """

    def __init__(self, step: NativeStep, layers: Sequence[Reads]) -> None:
        self._step = step
        rows = layers[0].held.rows
        self._counts = torch.zeros(len(layers), rows, dtype=torch.int32)
        self._masses = torch.zeros(len(layers), rows)
        self._layers = (_StepLayer * len(layers))()
        self._indexes: list[PqStepCall | None] = []
        for place, (reads, to) in enumerate(zip(layers, self._layers, strict=True)):
            to.layer, to.read = step.places[place], reads.held.operands(step.sizes.heads, reads.scale)
            to.sinks, to.window = reads.sinks, reads.window
            to.counts, to.masses = self._counts[place].data_ptr(), self._masses[place].data_ptr()
            index = reads.index and reads.index.operands(to.read.heads, reads.largest, reads.scale)
            self._indexes.append(index)
            to.chooses = None if index is None else ctypes.addressof(index)
        self._call = _StepCall(layers=ctypes.addressof(self._layers), count=len(layers))
        self._address = ctypes.addressof(self._call)

    def budget(self, layer: int, slots: int) -> None:
        """Let a layer that chooses read so many slots beside sinks and window."""
        self._layers[layer].budget = slots

    def run(self, embeddings: Tensor, cos: Tensor, sin: Tensor, length: int) -> Tensor | None:
        """Hidden states `[B, E]` after the last norm; None where something is not answered here.

        Then nothing has changed. That is so for keys, values and queries that are not finite, and for
        queries that an index does not take.

        Args:
            embeddings, cos, sin: as `DecoderStep.begin` takes them.
            length: tokens of each row, the new one among them.
        """
        call, sizes = self._call, self._step.sizes
        embeddings = embeddings.contiguous()
        self._step.place(embeddings, cos, sin, call.decode)
        out = torch.empty(len(embeddings), sizes.hidden, dtype=sizes.dtype)
        call.decode.input, call.decode.out, call.length = embeddings.data_ptr(), out.data_ptr(), length
        return out if status_of("kh_step", self._address) == 0 else None

    def chosen(self) -> Chosen:
        """Of the latest step."""
        return Chosen(self._counts.tolist(), self._masses.tolist())


def serves(sizes: DecoderSizes, held: PreparedAttention) -> bool:
    """Whether a step reads such keys and values, whose next ones are of the decoder's dtype."""
    size = sizes.head_size
    return held.keys.dtype == sizes.dtype and held.keys.shape[-1] == size and size % _UNIT == 0
