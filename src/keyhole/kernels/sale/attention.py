"""Block-sparse attention of a prompt: exact over the keys that an estimate says matter (SALE).

Source: "SALE: Low-bit Estimation for Efficient Sparse Attention in Long-context LLM Prefilling",
arXiv 2505.24179.

Shapes: B batch, H query heads, Hkv KV heads, Q newest queries, N tokens, D and Dv sizes of keys and values,
T = ceil(Q / rows) groups of queries that read the same keys, W = ceil(N / 32) words of a group's map.
"""

import torch
from torch import Tensor

from keyhole.kernels.attention.prompt import prompt_pays
from keyhole.kernels.backend.dispatch import use_native, use_triton
from keyhole.kernels.backend.native import FLOATS
from keyhole.kernels.sale.native import attend_native
from keyhole.kernels.sale.reference import attend_reference
from keyhole.kernels.sale.tiles import SHARING, WIDTHS, Reach, Rounding, SparseAttended, levels

_LARGEST = 512  # bytes of a row that a GPU's kernels hold in registers


def sale_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tau: Tensor,
    *,
    scale: float,
    reach: Reach,
    padding: tuple[int, ...] | None = None,
    with_map: bool = False,
    impl: str = "auto",
) -> SparseAttended:
    """Causal attention of the newest queries [B, H, Q, D] over keys and values [B, Hkv, N, D or Dv].

    A tile of 64 queries of one head reads the first `reach.sinks` tokens and everything from `reach.window`
    tokens before its first query on. Each `reach.rows` queries of it read those runs of `reach.width` keys
    between of which one may have a share of attention above tau [H] (float32) for one of them; a tau of 0
    reads everything. Shares are estimated from small integers, and are relative to what is always read and,
    if `reach.pooled`, to the least that the rest can have. Keys that are left out of a block of 32 count for
    nothing or, if `reach.means`, as their mean. Slots before `padding` of a batch row are neither read nor
    answered: the output of queries there is 0. A query that is not finite gives NaN.

    A GPU rounds with more levels than a CPU, and keys in longer runs (`Rounding`): with one tau both keep
    nearly the same. There nothing waits to look at tau; negative or NaN, it keeps what is always read.

    Raises:
        ValueError: shapes do not fit, or a number is out of range.
    """
    _check(query, keys, values, tau, reach)
    padding = padding or (0,) * query.shape[0]
    if len(padding) != query.shape[0] or not all(0 <= unused < keys.shape[2] for unused in padding):
        raise ValueError(f"padding {padding} does not fit {query.shape[0]} rows of {keys.shape[2]} tokens")
    operands = (query, keys, values, tau, scale, reach, padding, with_map)
    if use_triton(impl, query, keys, values, tau, supported=_has_triton(query, keys, values)):
        from keyhole.kernels.sale.triton.attention import sale_attention as on_gpu

        return on_gpu(*operands)
    if not (tau >= 0).all():
        raise ValueError(f"tau {tau.tolist()} must be at least 0; 0 reads everything")
    if use_native(impl, query, keys, values, tau, supported=_has_native(query, keys, values)):
        return attend_native(*operands)
    return attend_reference(*operands, Rounding(levels(query.shape[3])))


def sale_pays(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether native or Triton code would compute it, and is not known to be slower than dense attention.

    The reference is; so is native code in bfloat16 on a CPU whose tiles (AMX) compute dense attention.
    """
    if prompt_pays(query, keys, values):
        return False
    return use_native("auto", query, keys, values, supported=_has_native(query, keys, values)) or use_triton(
        "auto", query, keys, values, supported=_has_triton(query, keys, values)
    )


def _has_native(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    return query.dtype == keys.dtype == values.dtype and query.dtype in FLOATS


def _has_triton(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    fits = query.element_size() * max(query.shape[3], values.shape[3]) <= _LARGEST
    return fits and _has_native(query, keys, values)


def _check(query: Tensor, keys: Tensor, values: Tensor, tau: Tensor, reach: Reach) -> None:
    batch, heads, queries, size = query.shape
    fits = keys.shape[0] == batch and keys.shape[3] == size and heads % keys.shape[1] == 0
    if not fits or values.shape[:3] != keys.shape[:3] or not 0 < queries <= keys.shape[2]:
        raise ValueError(
            f"keys {list(keys.shape)} and values {list(values.shape)} do not fit query {list(query.shape)}"
        )
    if tau.shape != (heads,) or tau.dtype != torch.float32:
        raise ValueError(f"tau {list(tau.shape)} must be float32 numbers, one for each of {heads} heads")
    if reach.width not in WIDTHS:
        raise ValueError(f"width={reach.width} is not one of {', '.join(map(str, WIDTHS))}")
    if reach.rows not in SHARING:
        raise ValueError(f"rows={reach.rows} is not one of {', '.join(map(str, SHARING))}")
    if reach.sinks < 0 or reach.window < 0:
        raise ValueError(f"sinks={reach.sinks} and window={reach.window} must be at least 0")
