"""Whether all parts of a decoder have the sizes that its buffers are made for; legend as in `types`."""

from __future__ import annotations

from collections.abc import Iterator

from keyhole.kernels.decoder.types import Decoder, DecoderSizes


def misfit(decoder: Decoder) -> str | None:
    """The first part of another size, in words; None where all fit."""
    for name, found, wanted in _sizes(decoder):
        if found != wanted:
            return f"{name} is {found}, not {wanted}, as sizes of the decoder ask for"
    return None


def _sizes(decoder: Decoder) -> Iterator[tuple[str, list[int], list[int]]]:
    """Names of parts, their shapes, and those that they should have."""
    sizes = decoder.sizes
    matrices, norms = _matrices(sizes), _norms(sizes)
    for place, layer in enumerate(decoder.layers):
        for name, (rows, columns) in matrices.items():
            linear = getattr(layer, name)
            yield f"{name} of layer {place}", [linear.matrix.rows, linear.matrix.columns], [rows, columns]
            if linear.bias is not None:
                yield f"the bias of {name} of layer {place}", list(linear.bias.shape), [rows]
        for name, width in norms.items():
            norm = getattr(layer, name)
            if norm is not None and norm.weight is not None:
                yield f"{name} of layer {place}", list(norm.weight.shape), [width]
    if decoder.last.weight is not None:
        yield "the last norm", list(decoder.last.weight.shape), [sizes.hidden]


def _matrices(sizes: DecoderSizes) -> dict[str, tuple[int, int]]:
    width, narrow = sizes.heads * sizes.head_size, sizes.kv_heads * sizes.head_size
    return {
        "query": (width, sizes.hidden),
        "key": (narrow, sizes.hidden),
        "value": (narrow, sizes.hidden),
        "output": (sizes.hidden, width),
        "gate": (sizes.forward, sizes.hidden),
        "up": (sizes.forward, sizes.hidden),
        "down": (sizes.hidden, sizes.forward),
    }


def _norms(sizes: DecoderSizes) -> dict[str, int]:
    every = sizes.norms_all_heads
    outer = ("before_attention", "after_attention", "before_forward", "after_forward")
    return dict.fromkeys(outer, sizes.hidden) | {
        "query_norm": sizes.head_size * (sizes.heads if every else 1),
        "key_norm": sizes.head_size * (sizes.kv_heads if every else 1),
    }
