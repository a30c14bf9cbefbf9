"""Operands of the native functions of a decode step; each mirrors a structure in native/*.hpp."""

from __future__ import annotations

import ctypes

from torch import Tensor

from keyhole.kernels.backend.c_types import double as _double
from keyhole.kernels.backend.c_types import float_ as _float
from keyhole.kernels.backend.c_types import int_ as _int
from keyhole.kernels.backend.c_types import long_ as _long
from keyhole.kernels.backend.c_types import pointer as _pointer
from keyhole.kernels.backend.native import status_of
from keyhole.kernels.backend.signatures import CodeSide, Pages, Side


class RowsOf(ctypes.Structure):
    """Rows `[B, H, T]` of numbers side by side: address, and strides in bytes."""

    _fields_ = (("data", _pointer), ("batch", _long), ("head", _long), ("token", _long))


class AppendCall(ctypes.Structure):
    """Operands of `append_tokens`."""

    _fields_ = (
        ("keys", RowsOf),
        ("values", RowsOf),
        ("key_to", RowsOf),
        ("value_to", RowsOf),
        ("batches", _long),
        ("heads", _long),
        ("tokens", _long),
        ("key_size", _int),
        ("value_size", _int),
        ("type", _int),
    )


class CodedIndex(ctypes.Structure):
    """Codebooks, and codes of them."""

    _fields_ = (
        ("books", _pointer),
        ("book_row", _long),
        ("subspaces", _int),
        ("centroids", _int),
        ("subspace_size", _int),
        ("codes", _pointer),
        ("code_row", _long),
        ("code_block", _long),
    )

    def place(self, books: Tensor, codes: Tensor) -> None:
        """Be codebooks `[R, M, C, width]` and codes as `allocate_codes` makes them; neither may be moved."""
        self.books, self.book_row = books.data_ptr(), books.stride(0)
        self.subspaces, self.centroids, self.subspace_size = books.shape[1:]
        self.codes, self.code_row, self.code_block = codes.data_ptr(), codes.stride(0), codes.stride(1)


class AttentionCall(ctypes.Structure):
    """Operands of attention over chosen slots."""

    _fields_ = (
        ("query", _pointer),
        ("keys", Side),
        ("values", Side),
        ("key_codes", CodeSide),
        ("value_codes", CodeSide),
        ("grouped", _long),
        ("type", _int),
        ("pages", Pages),
        ("slots", _pointer),
        ("counts", _pointer),
        ("slots_stride", _long),
        ("capacity", _long),
        ("sinks", _pointer),
        ("rows", _long),
        ("heads", _int),
        ("size", _int),
        ("scale", _float),
        ("softcap", _float),
        ("out", _pointer),
        ("lse", _pointer),
        ("logits", _pointer),
        ("width", _long),
        ("asked", _int),
        ("before", _pointer),
        ("before_lse", _pointer),
    )


class PqStepCall(ctypes.Structure):
    """Operands of `pq_step`."""

    _fields_ = (
        ("query", _pointer),
        ("asked", _int),
        ("largest", _float),
        ("rotation", _pointer),
        ("moment", _pointer),
        ("index", CodedIndex),
        ("rows", _long),
        ("heads", _int),
        ("first", _pointer),
        ("stop", _pointer),
        ("anchors", _pointer),
        ("scale", _double),
        ("softcap", _double),
        ("mass", _double),
        ("floor", _long),
        ("cap", _long),
        ("slots", _pointer),
        ("counts", _pointer),
        ("masses", _pointer),
    )


class BoxesCall(ctypes.Structure):
    """Operands of `box_scores`."""

    _fields_ = (
        ("query", _pointer),
        ("ends", _pointer),
        ("asked", _int),
        ("type", _int),
        ("row_stride", _long),
        ("page_stride", _long),
        ("rows", _long),
        ("kv_heads", _long),
        ("heads", _int),
        ("size", _int),
        ("pages", _long),
        ("page", _long),
        ("first", _pointer),
        ("stop", _pointer),
        ("anchors", _pointer),
        ("scale", _float),
        ("softcap", _float),
        ("spread", _float),
        ("scores", _pointer),
        ("shares", _pointer),
        ("anchored", _pointer),
        ("index", CodedIndex),
        ("largest", _float),
    )


class PickingCall(ctypes.Structure):
    """Operands of `pick_pages`."""

    _fields_ = (
        ("scores", _pointer),
        ("shares", _pointer),
        ("anchored", _pointer),
        ("batches", _long),
        ("lists", _long),
        ("kv_heads", _long),
        ("pages", _long),
        ("page", _long),
        ("first", _pointer),
        ("stop", _pointer),
        ("limits", _pointer),
        ("mass", _double),
        ("floor", _long),
        ("count", _long),
        ("width", _long),
        ("slots", _pointer),
        ("counts", _pointer),
        ("held", _pointer),
    )


class BlocksCall(ctypes.Structure):
    """Operands of `pick_blocks`."""

    _fields_ = (
        ("logits", _pointer),
        ("matter", _pointer),
        ("matter_row", _long),
        ("anchors", _pointer),
        ("batches", _long),
        ("kv_heads", _long),
        ("heads", _long),
        ("strides", _long),
        ("stride", _long),
        ("block", _long),
        ("length", _long),
        ("starts", _pointer),
        ("ends", _pointer),
        ("first", _pointer),
        ("stop", _pointer),
        ("limits", _pointer),
        ("blocks", _pointer),
        ("recalled", _pointer),
        ("init", _long),
        ("local", _long),
        ("width", _long),
        ("slots", _pointer),
        ("counts", _pointer),
        ("held", _pointer),
    )


def run(name: str, operands: ctypes.Structure) -> int:
    """The status of a native function of such operands."""
    return status_of(name, ctypes.addressof(operands))
