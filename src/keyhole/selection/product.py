"""Product quantiser (PQCache): each key is a few small codes, a query ranks all keys by table look-ups.

Source: "PQCache: Product Quantization-based KVCache for Long Context LLM Inference", arXiv 2407.12820.

Legend: B batch, Hkv KV heads, R = B * Hkv rows, T tokens, D head size,
M sub-spaces, C = 2 ** bits centroids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.kernels.codes import BLOCK
from keyhole.selection.base import Selection, Selector, Step
from keyhole.selection.drift import DriftWatch
from keyhole.selection.kmeans import kmeans
from keyhole.selection.rotation import balanced_rotation

_SEED = 0
_CHUNK = 8192  # tokens encoded at a time, to bound temporary memory
_REFIT = 4  # a refit waits for a quarter as many new tokens as it fits, so that its cost is spread


class ProductSelector(Selector):
    """Codebooks fitted on the prompt's own keys, codes addressed by slot."""

    def __init__(self, *, subspaces: int, bits: int, rotate: bool, iterations: int, sample: int) -> None:
        self.subspaces, self.bits, self.rotate = subspaces, bits, rotate
        self.iterations, self.sample = iterations, sample
        self._codebooks: Tensor | None = None  # [B, Hkv, M, C, D / M] float32
        self._rotation: Tensor | None = None  # [B, Hkv, D, D] float32
        self._codes: Tensor | None = None  # [B, Hkv, blocks, bytes], as keyhole.kernels.codes lays them out
        self._drift = DriftWatch()
        self._built = 0  # tokens there were at the last build

    @property
    def minimum(self) -> int:
        return 2**self.bits + 1

    @property
    def stale(self) -> bool:
        return self._drift.exceeded and self.length >= self._built + min(self._built, self.sample) // _REFIT

    def build(self, keys: Tensor, first: Tensor) -> None:
        if keys.shape[-1] % self.subspaces:
            raise ValueError(
                f"keys of size {keys.shape[-1]} cannot be cut into {self.subspaces} equal sub-spaces; "
                "give a number of subspaces that divides the head size"
            )
        sample = self._training_rows(keys, first)
        if self.rotate:
            self._rotation = balanced_rotation(sample.flatten(0, 1), self.subspaces).unflatten(
                0, sample.shape[:2]
            )
        pieces = self._rotated(sample).unflatten(-1, (self.subspaces, -1)).transpose(2, 3)
        generator = torch.Generator().manual_seed(_SEED)
        centroids = kmeans(
            pieces.flatten(0, 2).contiguous(),
            2**self.bits,
            iterations=self.iterations,
            generator=generator,
        )
        self._codebooks = centroids.unflatten(0, pieces.shape[:3])
        self.length, self._codes, self._built = 0, None, keys.shape[2]
        errors = self._encode(keys)
        padding = torch.arange(keys.shape[2], device=keys.device) < first.view(-1, 1, 1)
        self._drift = DriftWatch()
        self._drift.learn(errors.masked_fill(padding, 0.0))

    def append(self, keys: Tensor) -> None:
        self._drift.watch(self._encode(keys))

    def select(self, step: Step) -> Selection:
        batch, kv_heads = step.keys.shape[:2]
        rows = batch * kv_heads
        query = step.query.unflatten(1, (kv_heads, -1)).float()
        first = step.first.repeat_interleave(kv_heads)
        budget, limit = step.budget, step.budget.limit(step.keys.shape[2])
        picked = kernels.pq_select(
            self._rotated(query).flatten(0, 1),
            self._fitted().flatten(0, 1),
            self._written().flatten(0, 1),
            first,
            first.clamp(min=step.last),
            k=limit if budget.mass is None else None,
            mass=budget.mass,
            floor=min(budget.floor, limit),
            cap=limit,
            anchor_lse=step.anchor_lse.reshape(rows, -1),
            scale=step.scale,
            softcap=step.softcap,
        )
        # As wide as the longest choice: a mass budget may allow the whole context and take little of it.
        width = max(1, int(picked.counts.max()))
        picked = picked._replace(slots=picked.slots[:, :width])
        return Selection(*(field.unflatten(0, (batch, kv_heads)) for field in picked))

    def bytes_read(self, step: Step) -> int:
        fitted = self._fitted()[0, 0].nbytes
        if self._rotation is not None:
            fitted += self._rotation[0, 0].nbytes
        return step.last * (self._written().shape[-1] // BLOCK) + fitted

    def state(self) -> dict[str, Tensor]:
        held = {"codebooks": self._codebooks, "rotation": self._rotation, "codes": self._codes}
        return {name: tensor for name, tensor in held.items() if tensor is not None} | self._drift.state()

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        self.length = self._built = length
        self._codebooks, self._rotation = state.get("codebooks"), state.get("rotation")
        codes = state.get("codes")
        # Codes are written to; whoever else takes this state must not see that.
        self._codes = None if codes is None else codes.clone()
        self._drift = DriftWatch()
        self._drift.restore(state)

    def crop(self, length: int) -> None:
        super().crop(length)
        self._built = min(self._built, length)

    def reorder(self, rows: Tensor) -> None:
        def take(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.index_select(0, rows.to(tensor.device))

        self._codebooks, self._codes = take(self._codebooks), take(self._codes)
        self._rotation = take(self._rotation)
        self._drift.reorder(rows)

    def _training_rows(self, keys: Tensor, first: Tensor) -> Tensor:
        """A random sample of the real tokens of each batch row, float32 `[B, Hkv, T, D]`."""
        tokens = keys.shape[2]
        size = max(min(self.sample, tokens - int(first.min())), 2**self.bits)
        drawn = []
        for row, start in enumerate(first.tolist()):
            # Seeded anew, so that a row does not depend on its siblings.
            generator = torch.Generator().manual_seed(_SEED)
            order = start + torch.randperm(tokens - start, generator=generator)
            # A row with much padding repeats its tokens to be as long as its siblings.
            repeats = -(-size // order.numel())
            drawn.append(keys[row, :, order.repeat(repeats)[:size].to(keys.device)])
        return torch.stack(drawn).float()

    def _encode(self, keys: Tensor) -> Tensor:
        """Write the codes of `keys [B, Hkv, T, D]` at `length`, advance it; squared errors `[B, Hkv, T]`."""
        books, errors = self._fitted().flatten(0, 1), []
        codes_held = self._reserve(self.length + keys.shape[2]).flatten(0, 1)
        for part in keys.split(_CHUNK, dim=2):
            rows = self._rotated(part.float()).flatten(0, 1)
            codes = kernels.pq_encode(rows, books)
            kernels.write_codes(codes_held, self.length, codes, bits=self.bits)
            errors.append((rows - _decode(codes, books)).square().sum(-1))
            self.length += part.shape[2]
        return torch.cat(errors, dim=1).unflatten(0, keys.shape[:2])

    def _rotated(self, vectors: Tensor) -> Tensor:
        """Vectors `[B, Hkv, ..., D]` in the axes that are quantised."""
        return vectors if self._rotation is None else vectors @ self._rotation

    def _reserve(self, tokens: int) -> Tensor:
        """The code buffer, grown to hold so many tokens."""
        old, books = self._codes, self._fitted()
        if old is not None and tokens <= old.shape[2] * BLOCK:
            return old
        capacity = tokens if old is None else max(tokens, 2 * old.shape[2] * BLOCK)
        batch, kv_heads = books.shape[:2]
        grown = kernels.allocate_codes(
            batch * kv_heads, capacity, self.subspaces, self.bits, device=books.device
        ).unflatten(0, (batch, kv_heads))
        if old is not None:
            grown[:, :, : old.shape[2]] = old
        self._codes = grown
        return grown

    def _fitted(self) -> Tensor:
        if self._codebooks is None:
            raise ValueError("the product quantiser has no codebooks yet; call build first")
        return self._codebooks

    def _written(self) -> Tensor:
        if self._codes is None:
            raise ValueError("the product quantiser has no codes yet; call build first")
        return self._codes

    @property
    def nbytes(self) -> int:
        held = (self._codebooks, self._rotation, self._codes)
        return sum(tensor.nbytes for tensor in held if tensor is not None)


def _decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    """The vectors `[R, T, D]` that codes `[R, T, M]` stand for."""
    index = codes.long().transpose(1, 2).unsqueeze(-1).expand(-1, -1, -1, codebooks.shape[-1])
    return codebooks.gather(2, index).transpose(1, 2).flatten(2)
