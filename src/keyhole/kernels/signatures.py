"""Argument types of the native functions; native/kernels.cpp has the declarations. All return a status."""

import ctypes

ABI_VERSION = 1

_int, _long, _float, _double, _pointer = (
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_float,
    ctypes.c_double,
    ctypes.c_void_p,
)
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
    "kh_add_columns": [
        _pointer, _long, _int, _long, _long, _pointer, _pointer, _pointer, _long, _pointer, _float,
        _pointer, _long, _int,
    ],
    "kh_drop_slots": [_pointer, _long, _long, _long, _long, _pointer, _int],
    "kh_exact_scores": [
        _pointer, _long, _int, _int, _pointer, _int, _long, _long, _long, _float, _pointer, _int,
    ],
    "kh_matvec_skip_rows": [_pointer, _int, _long, _pointer, _pointer, _long, _long, _pointer, _int],
    "kh_matvec_skip_columns": [_pointer, _int, _long, _pointer, _long, _long, _pointer, _int],
    "kh_int8_dot": [_pointer, _pointer, _long, _long, _long, _int, _pointer, _int],
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
