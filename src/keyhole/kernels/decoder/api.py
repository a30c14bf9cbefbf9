"""What is left and right of attention in a decode step; legend as in `types`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import use_native
from keyhole.kernels.decoder.fit import misfit
from keyhole.kernels.decoder.native import NativeStep
from keyhole.kernels.decoder.reference import ReferenceStep
from keyhole.kernels.decoder.types import Decoder, DecoderStep

_DTYPES = (torch.float32, torch.bfloat16)


def decoder_step(decoder: Decoder, *, impl: str = "auto") -> DecoderStep:
    """A step of a decoder, with buffers of its own, accumulated in float32.

    A product of a packed matrix rounds what it multiplies as `products.multiply` says. Nothing else is
    rounded between what goes in and what comes out.

    Raises:
        ValueError: no layers, a dtype other than float32 and bfloat16, or a part of another size.
    """
    if not decoder.layers or decoder.sizes.dtype not in _DTYPES:
        raise ValueError(
            f"a decoder has layers and is float32 or bfloat16, got {len(decoder.layers)} layers of "
            f"{decoder.sizes.dtype}"
        )
    unlike = misfit(decoder)
    if unlike is not None:
        raise ValueError(unlike)
    native = use_native(impl, *_tensors(decoder))
    return NativeStep(decoder) if native else ReferenceStep(decoder)


def decoder_is_native(decoder: Decoder) -> bool:
    """Whether native code computes the steps of a decoder."""
    return decoder.sizes.dtype in _DTYPES and use_native("auto", *_tensors(decoder))


def _tensors(decoder: Decoder) -> Iterator[Tensor]:
    """The weights of all products."""
    for layer in decoder.layers:
        for linear in (layer.query, layer.key, layer.value, layer.output, layer.gate, layer.up, layer.down):
            yield linear.matrix.weights
