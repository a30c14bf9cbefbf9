"""Short names of C's types, for signatures and structures."""

import ctypes

int_, long_, float_, double, pointer = (
    ctypes.c_int,
    ctypes.c_int64,
    ctypes.c_float,
    ctypes.c_double,
    ctypes.c_void_p,
)
