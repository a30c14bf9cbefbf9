"""Argument types of the native functions; native/kernels.cpp has the declarations. All return a status."""

import ctypes

from keyhole.kernels.backend.c_types import double as _double
from keyhole.kernels.backend.c_types import float_ as _float
from keyhole.kernels.backend.c_types import int_ as _int
from keyhole.kernels.backend.c_types import long_ as _long
from keyhole.kernels.backend.c_types import pointer as _pointer

ABI_VERSION = 10

# rows, heads, codebooks, codebook row stride, subspaces, centroids, width, buffer, its row and block strides
_index = [_long, _int, _pointer, _long, _int, _int, _int, _pointer, _long, _long]

SIGNATURES = {
    "kh_cpu_level": [],
    "kh_write_codes": [_pointer, _long, _long, _long, _pointer, _long, _long, _int, _int, _int],
    "kh_assign": [
        _pointer, _int, _long, _long, _pointer, _long, _long, _int, _int, _int, _pointer, _int, _int,
    ],
    "kh_pq_scores": [_pointer, *_index, _long, _double, _double, _pointer, _int],
    "kh_pq_select": [
        _pointer, *_index, _pointer, _pointer, _pointer, _double, _double, _double, _long, _long,
        _pointer, _pointer, _pointer, _int,
    ],
    "kh_gather_attention": [
        _pointer, _long, _int, _int, _pointer, _pointer, _int, _pointer, _long, _pointer, _long, _long,
        _pointer, _pointer, _float, _float, _pointer, _pointer, _pointer, _int,
    ],
    "kh_packed_attention": [
        _pointer, _long, _int, _int, _pointer, _pointer, _int, _long, _long, _pointer, _long, _long,
        _pointer, _float, _float, _pointer, _pointer, _int,
    ],
    "kh_pooled_attention": [_pointer, _int],
    "kh_top_slots": [_pointer, _long, _long, _long, _pointer, _int],
    "kh_add_columns": [
        _pointer, _long, _int, _long, _long, _pointer, _pointer, _pointer, _long, _pointer, _float,
        _pointer, _long, _int,
    ],
    "kh_decode": [_pointer, _int],
    "kh_step": [_pointer, _int],
    "kh_drop_slots": [_pointer, _long, _long, _long, _long, _pointer, _int],
    "kh_exact_scores": [
        _pointer, _long, _int, _int, _pointer, _int, _pointer, _long, _long, _float, _pointer, _int,
    ],
    "kh_matvec_skip_rows": [_pointer, _int, _long, _pointer, _pointer, _long, _long, _pointer, _int],
    "kh_matvec_skip_columns": [_pointer, _int, _long, _pointer, _long, _long, _pointer, _int],
    "kh_sale_attention": [_pointer, _int, _int],
    "kh_multiply": [_pointer, _int, _pointer, _long, _int, _pointer, _int],
    "kh_unpack": [_pointer, _pointer, _long, _long, _int, _pointer, _int],
    "kh_append": [_pointer, _int],
    "kh_attend": [_pointer, _int],
    "kh_pq_step": [_pointer, _int],
    "kh_box_scores": [_pointer, _int],
    "kh_pick_pages": [_pointer, _int],
    "kh_pick_blocks": [_pointer, _int],
    "kh_bfloat16_unit": [],
    "kh_prompt_attention": [_pointer, _int],
}  # fmt: skip


class Side(ctypes.Structure):
    """Keys or values: address, address of int8 scales, and strides in elements."""

    _fields_ = (
        ("data", _pointer),
        ("scales", _pointer),
        ("row_stride", _long),
        ("slot_stride", _long),
        ("block_stride", _long),
        ("scale_row", _long),
        ("scale_slot", _long),
        ("scale_block", _long),
    )


class Pages(ctypes.Structure):
    """Block table of a paged cache; no table means that slots are contiguous."""

    _fields_ = (
        ("table", _pointer),
        ("table_stride", _long),
        ("block_size", _long),
        ("blocks", _long),
        ("heads", _long),
    )


class CodeSide(ctypes.Structure):
    """Keys or values as codes: addresses of codes, scales and lows, strides in bytes and in numbers."""

    _fields_ = (
        ("codes", _pointer),
        ("scale", _pointer),
        ("low", _pointer),
        ("row", _long),
        ("group", _long),
        ("token", _long),
        ("range_row", _long),
        ("range_group", _long),
    )


class PoolingCall(ctypes.Structure):
    """Operands of `pooled_attention`."""

    _fields_ = (
        ("query", _pointer),
        ("keys", _pointer),
        ("type", _int),
        ("batch_stride", _long),
        ("head_stride", _long),
        ("slot_stride", _long),
        ("block_stride", _long),
        ("pages", Pages),
        ("batches", _long),
        ("kv_heads", _int),
        ("heads", _int),
        ("size", _int),
        ("begin", _pointer),
        ("end", _pointer),
        ("first", _pointer),
        ("stop", _pointer),
        ("slots", _long),
        ("last", _long),
        ("page", _long),
        ("scale", _float),
        ("softcap", _float),
        ("sharpness", _float),
        ("per_head", ctypes.c_bool),
        ("largest", ctypes.c_bool),
        ("score_extra", _pointer),
        ("share_extra", _pointer),
        ("scores", _pointer),
        ("shares", _pointer),
        ("lse", _pointer),
    )


class MatrixCall(ctypes.Structure):
    """A matrix of `multiply`."""

    _fields_ = (
        ("packing", _int),
        ("rows", _long),
        ("columns", _long),
        ("weights", _pointer),
        ("stride", _long),
        ("scales", _pointer),
        ("minima", _pointer),
        ("bias", _pointer),
    )
