"""The greatest of many scores, without sorting them."""

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import use_native, use_triton
from keyhole.kernels.backend.native import call


def top_slots(scores: Tensor, count: int, *, impl: str = "auto") -> Tensor:
    """Places int64 [..., count] of the greatest of `scores [..., N]` (float32), ascending.

    Of equal scores the lower place is taken first; NaN counts as -inf.
    """
    if not 0 <= count <= scores.shape[-1]:
        raise ValueError(f"count={count}, expected 0 to {scores.shape[-1]}, the scores there are")
    if use_native(impl, scores, supported=scores.dtype == torch.float32):
        rows = scores.reshape(-1, scores.shape[-1]).contiguous()
        places = torch.empty(rows.shape[0], count, dtype=torch.int64)
        call("kh_top_slots", rows.data_ptr(), *rows.shape, count, places.data_ptr())
        return places.view(*scores.shape[:-1], count)
    if count in (0, scores.shape[-1]):
        return torch.arange(count, device=scores.device).expand(*scores.shape[:-1], count)
    if use_triton(impl, scores, supported=scores.dtype == torch.float32):
        from keyhole.kernels.ranking.triton.top_slots import top_slots as on_gpu

        return on_gpu(scores, count)
    scores = scores.masked_fill(scores.isnan(), -torch.inf)
    least = scores.topk(count).values[..., -1:]
    above, equal = scores > least, scores == least
    chosen = above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdim=True)))
    return chosen.nonzero()[:, -1].view(*scores.shape[:-1], count)
