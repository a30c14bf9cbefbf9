"""Calls into the native library: status codes, dtypes and addresses."""

import torch

from keyhole.kernels.backend.library import native

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
ASKED = (torch.float32, torch.bfloat16)  # of queries of prepared calls
OUT_OF_RANGE = 5  # the status of numbers that a call does not answer for, which is no error

_ERRORS = {
    1: (
        ValueError,
        "query, codebooks or anchor_lse hold values that are not finite (anchor_lse may be -inf)",
    ),
    2: (ValueError, "a count is outside 0 .. the width of slots"),
    3: (ValueError, "a slot is outside the cache"),
    4: (MemoryError, "no memory for scratch"),
}


def status_of(name: str, *arguments: object) -> int:
    """Run a native function, which takes as many of torch's threads as its work is worth."""
    return getattr(native(), name)(*arguments, torch.get_num_threads())


def call(name: str, *arguments: object) -> None:
    """Run a native function on all of torch's threads and raise what its status means.

    Tensors behind addresses among the arguments must stay bound to a name until this returns.
    """
    check(status_of(name, *arguments))


def check(status: int) -> None:
    """Raise what the status of a native function means."""
    if status:
        error, message = _ERRORS[status]
        raise error(message)
