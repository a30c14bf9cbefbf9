"""Take one slot out of each head's rows, in place.

Shapes: B batch, H heads, N slots, W width of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import use_native
from keyhole.kernels.backend.native import call


def drop_slots(held: Tensor, gone: Tensor, *, impl: str = "auto") -> None:
    """Move the rows behind slot gone[b, h] of `held` [B, H, N, W] up by one; the last slot keeps no meaning.

    gone is int64 [B, H]. Raises ValueError if a slot is not one of 0 .. N - 1.
    """
    if held.dim() != 4 or gone.shape != held.shape[:2] or gone.dtype != torch.int64:
        raise ValueError(
            f"gone is {gone.dtype} {list(gone.shape)}, expected int64 {list(held.shape[:2])} for rows "
            f"{list(held.shape)}"
        )
    packed = held.stride()[2:] == (held.shape[3], 1) and held.stride(0) == held.shape[1] * held.stride(1)
    if use_native(impl, held, gone, supported=packed):
        gone, size = gone.contiguous(), held.element_size()
        call(
            "kh_drop_slots", held.data_ptr(), gone.numel(), held.stride(1) * size, held.shape[2],
            held.shape[3] * size, gone.data_ptr(),
        )  # fmt: skip
        return
    if not ((gone >= 0) & (gone < held.shape[2])).all():
        raise ValueError(f"a slot is outside the cache, 0..{held.shape[2] - 1}")
    left = torch.arange(held.shape[2] - 1, device=held.device).unsqueeze(-1)
    after = left >= gone[..., None, None]
    held[:, :, :-1] = torch.where(after, held[:, :, 1:], held[:, :, :-1])
