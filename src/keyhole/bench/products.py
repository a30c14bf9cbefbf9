"""`bench products`: the products of a model's layers in each form of weights, against torch's.

Legend: M rows, N columns of a matrix, B vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole.bench.checks import check_close
from keyhole.bench.result import Result, Sizes, compare
from keyhole.bench.shapes import Shape
from keyhole.kernels.products.matrix import GROUP, Matrix, Packing, dense
from keyhole.kernels.products.multiply import VECTORS, multiply
from keyhole.kernels.products.packing import quantise
from keyhole.kernels.products.unpacking import unpack_rows
from keyhole.tuning.machine import implementation, require_memory
from keyhole.tuning.timing import CacheFlusher, Candidate

_BYTES = 25  # of a weight in all forms and torch's, while they are made


class _Layer(NamedTuple):
    """Matrices that take the same vectors stand together."""

    groups: tuple[tuple[tuple[int, int], ...], ...]


def _layer(shape: Shape) -> _Layer:
    hidden, wide = shape.hidden, shape.intermediate
    queries, keys = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return _Layer(
        (
            ((queries, hidden), (keys, hidden), (keys, hidden)),
            ((hidden, queries),),
            ((wide, hidden), (wide, hidden)),
            ((hidden, wide),),
        )
    )


@torch.no_grad()
def products(
    shape: Shape, *, vectors: int, rounds: int, flusher: CacheFlusher, seed: int = 0
) -> list[Result]:
    """Time all products of a shape's layers, native in each form and torch's where it has one.

    Raises:
        ValueError: more vectors than the native code takes, or too little memory.
        CheckFailedError: a product is wrong.
    """
    if not 1 <= vectors <= VECTORS:
        raise ValueError(f"{vectors} vectors are out of range; give 1 to {VECTORS}")
    layer = _layer(shape)
    count = shape.layers * sum(rows * columns for group in layer.groups for rows, columns in group)
    require_memory(f"{count:,} weights in every form", _BYTES * count)
    torch.manual_seed(seed)
    weights = [[[torch.randn(pair) for pair in group] for group in layer.groups] for _ in range(shape.layers)]
    flat = [group for one in weights for group in one]
    inputs = {group[0].shape[1]: torch.randn(vectors, group[0].shape[1]) for group in flat}
    ours = [_native(form, flat, inputs) for form in ("float32", "bfloat16", "int8", "int4")]
    theirs = _torch(flat, inputs)
    sizes = Sizes(count, None, None, None, "weights", vectors)
    notes = [f"{shape.layers} layers, {count:,} weights, {vectors} vectors; tokens: weights"]
    return [compare("products", sizes, ours, theirs, rounds=rounds, flusher=flusher, notes=notes)]


def _matrix(form: str, weight: Tensor) -> Matrix:
    if form in ("float32", "bfloat16"):
        return dense(weight.to(getattr(torch, form)))
    return quantise(weight, Packing.INT8 if form == "int8" else Packing.INT4_MIN)


def _native(form: str, groups: Sequence[list[Tensor]], inputs: dict[int, Tensor]) -> Candidate:
    held = [[_matrix(form, weight) for weight in group] for group in groups]
    first = held[0][0]
    x = inputs[first.columns]
    exact = x.double() @ unpack_rows(first, range(first.rows)).double().T
    kind = torch.bfloat16 if first.packing.packed else torch.float32
    check_close(f"multiply, {form}", multiply([first], x)[0], exact, kind)

    def run() -> None:
        for matrices in held:
            multiply(matrices, inputs[matrices[0].columns])

    size = sum(matrix.nbytes for group in held for matrix in group)
    count = sum(matrix.rows * matrix.columns for group in held for matrix in group)
    return Candidate(f"products({form})", implementation(), run, size, count)


def _torch(groups: Sequence[list[Tensor]], inputs: dict[int, Tensor]) -> list[Candidate]:
    """torch's own: linear in two precisions, int8 by row, int4 in groups of 32."""
    flat, ops = [weight for group in groups for weight in group], torch.ops.aten
    narrow = {columns: x.bfloat16() for columns, x in inputs.items()}
    count, rows = sum(w.numel() for w in flat), sum(w.shape[0] for w in flat)
    wide, half = [(w,) for w in flat], [(w.bfloat16(),) for w in flat]
    found = [
        _candidate("torch linear float32", flat, wide, F.linear, 4 * count, inputs),
        _candidate("torch linear bfloat16", flat, half, F.linear, 2 * count, narrow),
    ]
    int8 = [_by_row(w) for w in flat]
    size = count + 2 * rows
    found.append(_candidate("torch int8, by row", flat, int8, ops._weight_int8pack_mm, size, narrow))
    if not any(length % 64 for w in flat for length in w.shape):  # it takes no other sizes
        int4, size = [_int4(w) for w in flat], count * (0.5 + 4 / GROUP)
        found.append(_candidate("torch int4", flat, int4, ops._weight_int4pack_mm_for_cpu, size, narrow))
    return found


def _candidate(
    name: str,
    weights: Sequence[Tensor],
    held: Sequence[tuple],
    product: Callable,
    size: float,
    vectors: dict[int, Tensor],
) -> Candidate:
    work = [(vectors[weight.shape[1]], parts) for weight, parts in zip(weights, held, strict=True)]

    def run() -> None:
        for x, parts in work:
            product(x, *parts)

    return Candidate(name, "torch", run, size, sum(weight.numel() for weight in weights))


def _by_row(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().amax(1) / 127
    return (weight / scale.unsqueeze(1)).round().to(torch.int8), scale.bfloat16()


def _int4(weight: Tensor) -> tuple[Tensor, int, Tensor]:
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    scale = (high - low) / 15
    codes = ((groups - low.unsqueeze(-1)) / scale.unsqueeze(-1)).round().to(torch.int32).flatten(1)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
    ranges = torch.stack([scale, low + 8 * scale], dim=-1).transpose(0, 1).contiguous().bfloat16()
    return packed, GROUP, ranges
