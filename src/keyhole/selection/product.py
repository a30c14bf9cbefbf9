"""Product quantiser (PQCache): each key is a few small codes, a query ranks all keys by table look-ups.

Source: "PQCache: Product Quantization-based KVCache for Long Context LLM Inference", arXiv 2407.12820.

Legend: B batch, Hkv KV heads, R = B * Hkv rows, T tokens, D head size,
M sub-spaces, C = 2 ** bits centroids.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole import kernels
from keyhole.core.layout import Regions
from keyhole.kernels.pq.types import BLOCK
from keyhole.selection.base import Capturable, Selection, Step
from keyhole.selection.quantisers.drift import DriftWatch
from keyhole.selection.quantisers.product import Codes, Quantiser, decode, fit, fit_rotated
from keyhole.selection.quantisers.sample import sample_slots
from keyhole.selection.quantisers.uncertainty import cautious, logit_variance
from keyhole.storage import CapturableStorage

_TENSORS = ("codebooks", "residuals", "rotation", "codes")
_CHUNK = 8192  # tokens encoded at a time, to bound temporary memory
_REFIT = 4  # a refit waits for a quarter as many new tokens as it fits, so that its cost is spread


class ProductSelector(Capturable):
    """Codebooks fitted on the prompt's own keys, codes addressed by slot."""

    def __init__(
        self, *, subspaces: int | None, bits: int, rotate: bool, iterations: int, sample: int
    ) -> None:
        self.subspaces, self.bits, self.rotate = subspaces or 0, bits, rotate
        self.iterations, self.sample = iterations, sample
        # Once built: `codebooks [B, Hkv, M, C, D / M]`, `residuals [B, Hkv, D, D]` (their second moment) and,
        # where asked for, `rotation [B, Hkv, D, D]`, all float32; `codes [B, Hkv, blocks, bytes]`, packed.
        self._held: dict[str, Tensor] = {}
        self._queries: Tensor | None = None  # second moment `[B, Hkv, D, D]` of the latest seen
        self._drift = DriftWatch()
        self._built = 0  # tokens there were at the last build

    @property
    def minimum(self) -> int:
        return 2**self.bits + 1

    @property
    def stale(self) -> bool:
        return self._drift.exceeded and self.length >= self._built + min(self._built, self.sample) // _REFIT

    def see(self, queries: Tensor, kv_heads: int) -> None:
        grouped = queries.unflatten(1, (kv_heads, -1)).flatten(2, 3).float()
        self._queries = grouped.transpose(-1, -2) @ grouped / grouped.shape[2]

    def build(self, keys: Tensor, regions: Regions) -> None:
        first = regions.first
        self.subspaces = self.subspaces or default_subspaces(keys.shape[-1])
        if keys.shape[-1] % self.subspaces:
            raise ValueError(
                f"keys of size {keys.shape[-1]} cannot be cut into {self.subspaces} equal sub-spaces; "
                "give a number of subspaces that divides the head size"
            )
        sample = self._training_rows(keys, first)
        fitted = self._fit(sample.flatten(0, 1))._asdict()
        self._held = {n: t.unflatten(0, sample.shape[:2]) for n, t in fitted.items() if t is not None}
        self.length, self._built = 0, keys.shape[2]
        errors = self._encode(keys)
        padding = torch.arange(keys.shape[2], device=keys.device) < first.view(-1, 1, 1)
        self._drift = DriftWatch()
        self._drift.learn(errors.masked_fill(padding, 0.0))

    def append(self, keys: Tensor) -> None:
        self._drift.watch(self._encode(keys))

    def select(self, step: Step) -> Selection:
        batch, kv_heads = self._fitted("codebooks").shape[:2]
        query = self._rotated(step.query.unflatten(1, (kv_heads, -1)).float())
        variance = logit_variance(query, self._fitted("residuals"), step.logits.scale)
        # Rows of one budget are one call; a mass to reach depends on the uncertainty of its row.
        together = step.budget.mass is None and len(set(step.limits())) == 1
        calls = [slice(0, batch)] if together else [slice(b, b + 1) for b in range(batch)]
        picked = [self._pick(step, query[rows], variance[rows], rows) for rows in calls]
        # A mass budget may allow the whole context and take little of it, which only the device knows.
        by_mass = step.budget.mass is not None
        width = max(1, *(int(p.counts.max()) if by_mass else p.slots.shape[1] for p in picked))
        fields = zip(*(part._replace(slots=_as_wide(part.slots, width)) for part in picked), strict=True)
        return Selection(*(torch.cat(field).unflatten(0, (batch, kv_heads)) for field in fields))

    def _pick(self, step: Step, query: Tensor, variance: Tensor, rows: slice) -> kernels.Picked:
        """Pick for batch rows `rows`: `query [b, Hkv, G, D]` along quantised axes, `variance [b, Hkv, G]`."""
        budget, limit = step.budget, step.limits()[rows.start]
        first = step.regions.first[rows].repeat_interleave(query.shape[1])
        anchor = step.anchor_lse[rows].reshape(first.shape[0], -1)
        return kernels.pq_select(
            query.flatten(0, 1),
            self._fitted("codebooks")[rows].flatten(0, 1),
            self._fitted("codes")[rows].flatten(0, 1),
            first,
            first.maximum(step.regions.stop[rows].repeat_interleave(query.shape[1])),
            k=limit if budget.mass is None else None,
            mass=None if budget.mass is None else cautious(budget.mass, variance),
            floor=min(budget.floor, limit),
            cap=limit,
            # Relative to estimated weights, exact ones count for less: see uncertainty.py.
            anchor_lse=anchor - variance.flatten(0, 1) / 2,
            scale=step.logits.scale,
            softcap=step.logits.softcap,
        )

    def reserve(self, tokens: int) -> None:
        self._reserve(tokens)

    def place(self, storage: CapturableStorage, slot: Tensor) -> None:
        rows = self._rotated(storage.keys_at(slot).float()).flatten(0, 1)
        books = self._fitted("codebooks").flatten(0, 1)
        codes = kernels.pq_encode(rows, books)
        kernels.write_codes(self._fitted("codes").flatten(0, 1), slot, codes, bits=self.bits)

    def bytes_read(self, step: Step) -> int:
        fitted = sum(tensor[0, 0].nbytes for name, tensor in self._held.items() if name != "codes")
        return step.regions.last * (self._fitted("codes").shape[-1] // BLOCK) + fitted

    def state(self) -> dict[str, Tensor]:
        return self._held | self._drift.state()

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        self.length = self._built = length
        # Codes are written to; whoever else takes this state must not see that.
        self._held = {name: tensor.clone() for name, tensor in state.items() if name in _TENSORS}
        if self._held:
            self.subspaces = self._held["codebooks"].shape[2]
        self._drift = DriftWatch()
        self._drift.restore(state)

    def crop(self, length: int) -> None:
        super().crop(length)
        self._built = min(self._built, length)

    def reorder(self, rows: Tensor) -> None:
        self._held = {
            name: tensor.index_select(0, rows.to(tensor.device)) for name, tensor in self._held.items()
        }
        if self._queries is not None:
            self._queries = self._queries.index_select(0, rows.to(self._queries.device))
        self._drift.reorder(rows)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._held.values())

    def _fit(self, sample: Tensor) -> Quantiser:
        """Fit a quantiser to `sample [R, T, D]`."""
        codes = Codes(self.subspaces, self.bits, self.iterations)
        if not self.rotate:
            return fit(sample, codes)
        return fit_rotated(sample, codes, None if self._queries is None else self._queries.flatten(0, 1))

    def _training_rows(self, keys: Tensor, first: Tensor) -> Tensor:
        """A random sample of the real tokens of each batch row, float32 `[B, Hkv, T, D]`."""
        tokens = keys.shape[2]
        size = max(min(self.sample, tokens - int(first.min())), 2**self.bits)
        slots = sample_slots(tokens, first, size)
        return torch.stack([row[:, drawn] for row, drawn in zip(keys, slots, strict=True)]).float()

    def _encode(self, keys: Tensor) -> Tensor:
        """Write the codes of `keys [B, Hkv, T, D]` at `length`, advance it; squared errors `[B, Hkv, T]`."""
        books, errors = self._fitted("codebooks").flatten(0, 1), []
        codes_held = self._reserve(self.length + keys.shape[2]).flatten(0, 1)
        for part in keys.split(_CHUNK, dim=2):
            rows = self._rotated(part.float()).flatten(0, 1)
            codes = kernels.pq_encode(rows, books)
            kernels.write_codes(codes_held, self.length, codes, bits=self.bits)
            errors.append((rows - decode(codes, books)).square().sum(-1))
            self.length += part.shape[2]
        return torch.cat(errors, dim=1).unflatten(0, keys.shape[:2])

    def _rotated(self, vectors: Tensor) -> Tensor:
        """Vectors `[B, Hkv, ..., D]` in the axes that are quantised."""
        return vectors @ self._held["rotation"] if "rotation" in self._held else vectors

    def _reserve(self, tokens: int) -> Tensor:
        """The code buffer, grown to hold so many tokens."""
        old, books = self._held.get("codes"), self._fitted("codebooks")
        if old is not None and tokens <= old.shape[2] * BLOCK:
            return old
        capacity = tokens if old is None else max(tokens, 2 * old.shape[2] * BLOCK)
        batch, kv_heads = books.shape[:2]
        grown = kernels.allocate_codes(
            batch * kv_heads, capacity, self.subspaces, self.bits, device=books.device
        ).unflatten(0, (batch, kv_heads))
        if old is not None:
            grown[:, :, : old.shape[2]] = old
        self._held["codes"] = grown
        return grown

    def _fitted(self, name: str) -> Tensor:
        if name not in self._held:
            raise ValueError(f"the product quantiser has no {name} yet; call build first")
        return self._held[name]


def default_subspaces(head_dim: int) -> int:
    """With 4-bit codes: one bit a channel, at least 64 bits a key, about two a channel at most.

    The next number up that divides the head size.
    """
    wanted = min(max(16, head_dim // 4), head_dim // 2)
    return next(count for count in range(max(wanted, 1), head_dim + 1) if head_dim % count == 0)


def _as_wide(slots: Tensor, width: int) -> Tensor:
    """`slots [R, S]` cut, or filled with slot 0, to a width."""
    return F.pad(slots[:, :width], (0, max(0, width - slots.shape[1])))
