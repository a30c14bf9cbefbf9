"""A decode step in plain torch, in float32; legend as in `types`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole.kernels.decoder.types import Decoder, DecoderLayer, Linear, Norm
from keyhole.kernels.products.unpacking import unpack_rows


class ReferenceStep:
    """As `DecoderStep`."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._x = torch.empty(0)
        self._angles = (self._x, self._x)

    def begin(self, embeddings: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        self._x = embeddings.float() * self.decoder.sizes.embedding
        self._angles = cos.unsqueeze(1), sin.unsqueeze(1)
        return self._heads(self.decoder.layers[0])

    def attended(self, layer: int, out: Tensor) -> Tensor:
        self._finish(self.decoder.layers[layer], out.flatten(1).float())
        if layer + 1 < len(self.decoder.layers):
            return self._heads(self.decoder.layers[layer + 1])
        return normed(self.decoder.last, self._x).to(self.decoder.sizes.dtype)

    def _finish(self, layer: DecoderLayer, out: Tensor) -> None:
        residual = self.decoder.sizes.residual
        self._x = self._x + residual * normed(layer.after_attention, project(layer.output, out))
        x = normed(layer.before_forward, self._x)
        wide = F.silu(project(layer.gate, x)) * project(layer.up, x)
        self._x = self._x + residual * normed(layer.after_forward, project(layer.down, wide))

    def _heads(self, layer: DecoderLayer) -> Tensor:
        sizes, x = self.decoder.sizes, normed(layer.before_attention, self._x)
        parts = [project(linear, x) for linear in (layer.query, layer.key, layer.value)]
        if sizes.clip:
            parts = [part.clamp(-sizes.clip, sizes.clip) for part in parts]
        for place, norm in enumerate((layer.query_norm, layer.key_norm)):
            parts[place] = self._normed_heads(norm, parts[place])
        turned, values = torch.cat(parts[:2], dim=-1), parts[2]
        turned, values = (part.unflatten(-1, (-1, sizes.head_size)) for part in (turned, values))
        if layer.rotates:
            turned = rotated(turned, *self._angles)
        return torch.cat([turned, values], dim=1).unsqueeze(2).to(sizes.dtype)

    def _normed_heads(self, norm: Norm | None, x: Tensor) -> Tensor:
        if self.decoder.sizes.norms_all_heads:
            return normed(norm, x)
        return normed(norm, x.unflatten(-1, (-1, self.decoder.sizes.head_size))).flatten(-2)


def project(linear: Linear, x: Tensor) -> Tensor:
    """A product with a projection's weights, in float32."""
    held = linear.matrix
    y = F.linear(x, unpack_rows(held, range(held.rows), impl="reference"), held.bias)
    return y if linear.bias is None else y + linear.bias.float()


def normed(norm: Norm | None, x: Tensor) -> Tensor:
    """`x [..., N]` after a norm over its last dimension."""
    if norm is None:
        return x
    x = x - x.mean(-1, keepdim=True) if norm.centred else x
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps)
    return x if norm.weight is None else x * norm.weight.float()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The first channels of `x [..., D]` rotated by cosines and sines `[..., R]`; the others as they are."""
    turning, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
    low, high = turning.chunk(2, dim=-1)
    return torch.cat([turning * cos + torch.cat([-high, low], dim=-1) * sin, rest], dim=-1)
