"""Product quantiser (PQCache): each key is a few small codes, a query ranks all keys by table look-ups.

Source: "PQCache: Product Quantization-based KVCache for Long Context LLM Inference", arXiv 2407.12820.

Legend: B batch, Hkv KV heads, R = B * Hkv rows, T tokens, D head size,
M sub-spaces, C = 2 ** bits centroids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole import kernels
from keyhole.core.layout import Regions
from keyhole.core.scales import scales_of
from keyhole.kernels.backend.dispatch import at_hand
from keyhole.kernels.pq.step import PreparedScan, scan_is_native
from keyhole.kernels.pq.types import BLOCK
from keyhole.selection.base import Capturable, Estimates, Selection, Step
from keyhole.selection.mass_control import Estimate, MassControl
from keyhole.selection.picking.rank import competing, group_probabilities
from keyhole.selection.quantisers.drift import Refits
from keyhole.selection.quantisers.product import Codes, decode, fit, fit_rotated
from keyhole.selection.quantisers.sample import sample_slots
from keyhole.selection.quantisers.uncertainty import logit_variance, logit_variances
from keyhole.selection.shown import Shown
from keyhole.storage import CapturableStorage, into_huge_pages

_TENSORS = ("codebooks", "residuals", "rotation", "scales", "codes", "errors")
_CHUNK = 8192  # tokens encoded at a time, to bound temporary memory
# Logits beyond are scaled down to it: they leave one token all of the mass in any case, and kernels, which
# add them up in float32, would round off whole units of them.
_LARGEST = 2.0**16


class _Asked(NamedTuple):
    """A step's queries as the index takes them, R rows and G query heads of each.

    Attributes:
        query: float32 `[R, G, D]`, along the axes that are quantised.
        anchor: float32 `[R, G]`, log-sum-exp of the always-read tokens, relative to estimated weights.
    """

    query: Tensor
    anchor: Tensor


class ProductSelector(Capturable):
    """Codebooks fitted on the prompt's own keys, codes addressed by slot.

    Args:
        errors: hold how far each key is from its codes, for budgets of error.
    """

    by_estimates = True

    def __init__(
        self,
        *,
        subspaces: int | None,
        bits: int,
        rotate: bool,
        iterations: int,
        sample: int,
        errors: bool = False,
    ) -> None:
        self.subspaces, self.bits, self.rotate = subspaces or 0, bits, rotate
        self.iterations, self.sample, self._keeps_errors = iterations, sample, errors
        # Once built: `codebooks [B, Hkv, M, C, D / M]`, `residuals [B, Hkv, D, D]` (their second moment) and,
        # where asked for, `rotation [B, Hkv, D, D]`, all float32; `codes [B, Hkv, blocks, bytes]`, packed.
        # `errors [B, Hkv, capacity]`, squared and in bfloat16, where asked for.
        # `scales [B, Hkv]` only where keys are so large or small that their squares are out of range: what is
        # quantised is keys divided by these.
        self._held: dict[str, Tensor] = {}
        self._longest = torch.empty(0)  # bound of what codes stand for, as a length; float64 `[B, Hkv, 1]`
        self._bound = 0.0  # the largest of them
        self._fitted_bytes = 0  # that each KV head reads beside codes
        self._shown = Shown()
        self._refits = Refits(sample)
        self._mass_control = MassControl()
        self._scan: PreparedScan | None = None
        self._scan_of: Tensor | None = None  # the codes that it reads

    def __getstate__(self) -> dict[str, Any]:
        # Addresses are no part of a copy.
        return self.__dict__ | {"_scan": None, "_scan_of": None}

    @property
    def minimum(self) -> int:
        return 2**self.bits + 1

    @property
    def stale(self) -> bool:
        return bool(self._refits.due(self.length))

    def see(self, queries: Tensor, kv_heads: int, tokens: int) -> None:
        self._mass_control.see(queries, tokens)
        self._shown.see(queries, kv_heads, tokens)

    def build(self, keys: Tensor, regions: Regions) -> None:
        self.subspaces = self.subspaces or default_subspaces(keys.shape[-1])
        if keys.shape[-1] % self.subspaces:
            raise ValueError(
                f"keys of size {keys.shape[-1]} cannot be cut into {self.subspaces} equal sub-spaces; "
                "give a number of subspaces that divides the head size"
            )
        rows = range(len(keys))
        self._refits = Refits(self.sample)
        self._index(keys, regions, rows, self._fit(keys, regions, rows))

    def refit(self, keys: Tensor, regions: Regions) -> None:
        rows, held = self._refits.due(self.length), dict(self._held)
        held.setdefault("scales", held["residuals"].new_ones(held["residuals"].shape[:2]))
        for name, new in self._fit(keys, regions, rows).items():
            held[name] = held[name].clone()
            held[name][rows] = new
        del held["codes"]
        held.pop("errors", None)
        self._index(keys, regions, rows, held)

    def _index(self, keys: Tensor, regions: Regions, rows: Sequence[int], fitted: dict[str, Tensor]) -> None:
        """Encode `keys [B, Hkv, N, D]` by what was `fitted`, again for `rows`."""
        if bool((fitted["scales"] == 1).all()):
            del fitted["scales"]
        self._hold(fitted)
        indexed, self.length = self.length, 0
        errors = self._encode(keys)
        unused = torch.arange(keys.shape[2], device=keys.device) < regions.first.view(-1, 1, 1)
        self._refits.watch(errors[..., indexed:], without=rows)
        self._refits.learn(errors.masked_fill(unused, 0.0), regions.padding, rows)

    def append(self, keys: Tensor) -> None:
        self._refits.watch(self._encode(keys))

    def select(self, step: Step) -> Selection:
        return self._selected_at_once(step) or self._selected(step)

    def scan(self) -> PreparedScan | None:
        """The native choice by the codes, the same until they move; None where there is none."""
        books, codes = self._fitted("codebooks"), self._fitted("codes")
        if "scales" in self._held or not scan_is_native(books, books, codes):
            return None
        if self._scan is None or self._scan_of is not codes:
            rotation = self._held.get("rotation")
            self._scan_of = codes
            self._scan = PreparedScan(
                books.flatten(0, 1),
                codes.flatten(0, 1),
                None if rotation is None else rotation.flatten(0, 1),
                self._fitted("residuals").flatten(0, 1),
            )
        return self._scan

    def largest(self, scale: float) -> float:
        """Of the numbers of a query, the largest that `scan` takes."""
        size = self.subspaces * self._fitted("codebooks").shape[-1]
        return _LARGEST / (size**0.5 * self._bound * scale)

    def _selected_at_once(self, step: Step) -> Selection | None:
        """One native call for all rows; None where there is no such call, or rows are not of one budget."""
        limits, books, codes = step.limits(), self._fitted("codebooks"), self._fitted("codes")
        plain = step.budget.mass is None and limits.count(limits[0]) == len(limits)
        scan = self.scan() if plain and scan_is_native(step.query, books, codes) else None
        if scan is None:
            return None
        batch, heads, size = len(books), books.shape[1], step.query.shape[-1]
        first, stop = step.regions.derived(("of rows", heads), lambda: _of_rows(step.regions, heads))
        query = step.query.reshape(batch * heads, -1, size)
        picked = scan.pick(
            query,
            first,
            stop,
            step.anchor_lse.view(query.shape[:2]),
            k=limits[0],
            largest=self.largest(step.logits.scale),
            scale=step.logits.scale,
            softcap=step.logits.softcap,
        )
        if picked is None:
            return None
        return Selection(*(part.view(batch, heads, *part.shape[1:]) for part in picked))

    def _selected(self, step: Step) -> Selection:
        batch, kv_heads = self._fitted("codebooks").shape[:2]
        reach = self._mass_control.reach(step, self._estimate)
        asked = self._asked(step)
        limits = [limit for limit in step.limits() for _ in range(kv_heads)]
        if reach is None:
            # Rows of one budget are one call.
            size = len(limits) if len(set(limits)) == 1 else kv_heads
            picked = [
                self._pick(step, asked, slice(begin, begin + size), limits[begin])
                for begin in range(0, len(limits), size)
            ]
        else:
            shares = reach.share.flatten().tolist()
            picked = [
                self._pick(step, asked, slice(row, row + 1), limit, share)
                for row, (limit, share) in enumerate(zip(limits, shares, strict=True))
            ]
        # A mass budget may allow the whole context and take little of it, which only the device knows.
        by_mass = step.budget.mass is not None
        width = max(1, *(int(p.counts.max()) if by_mass else p.slots.shape[1] for p in picked))
        fields = zip(*(part._replace(slots=_as_wide(part.slots, width)) for part in picked), strict=True)
        picked = Selection(*(_joined(field).unflatten(0, (batch, kv_heads)) for field in fields))
        held = picked.mass.clamp(0, 1) if reach is None else reach.held(picked.mass)
        return picked._replace(mass=held)

    def _pick(
        self, step: Step, asked: _Asked, rows: slice, limit: int, share: float | None = None
    ) -> kernels.Picked:
        """Pick for rows `rows`: `limit` slots, or the fewest that reach a share by estimate."""
        heads = self._fitted("codebooks").shape[1]
        first, stop = step.regions.derived(("of rows", heads), lambda: _of_rows(step.regions, heads))
        return kernels.pq_select(
            asked.query[rows],
            self._fitted("codebooks").flatten(0, 1)[rows],
            self._fitted("codes").flatten(0, 1)[rows],
            first[rows],
            stop[rows],
            k=limit if share is None else None,
            mass=share,
            floor=min(step.budget.floor, limit),
            cap=limit,
            anchor_lse=asked.anchor[rows],
            scale=step.logits.scale,
            softcap=step.logits.softcap,
        )

    def _estimate(self, step: Step) -> Estimate:
        asked, last = self._asked(step), step.regions.last
        logits = self._scored(asked.query, step)
        anchor = asked.anchor.reshape(step.anchor_lse.shape)
        shares, anchored = group_probabilities(logits, step._replace(anchor_lse=anchor))
        return Estimate(
            shares.masked_fill(~competing(step.regions, last), -1.0), shares, anchored, lambda values: values
        )

    def token_logits(self, step: Step) -> Tensor:
        query = step.query.unflatten(1, (self._fitted("codebooks").shape[1], -1)).float()
        factor = None
        if not self._within_range(query, step.logits.scale):
            factor, change = self._factors(query, step.logits.scale)
            query = query * change.float().unsqueeze(-1)
        query = query if "rotation" not in self._held else query @ self._held["rotation"]
        logits = self._scored(query.flatten(0, 1), step)
        return logits if factor is None else logits / factor.float().unsqueeze(-1)

    def estimates(self, step: Step) -> Estimates:
        if "errors" not in self._held:
            raise ValueError(
                "the index was made for another kind of budget, without what budgets of error need; make a "
                "new cache with the method at a budget of error"
            )
        asked = step.query.unflatten(1, (self._fitted("codebooks").shape[1], -1)).float()
        asked = asked if "rotation" not in self._held else asked @ self._held["rotation"]
        if "scales" in self._held:
            asked = asked * self._held["scales"][..., None, None]
        errors = self._held["errors"][..., : step.regions.last].float()
        variance = logit_variances(asked, self._fitted("residuals"), errors, step.logits.scale)
        return Estimates(self.token_logits(step), variance)

    def _scored(self, query: Tensor, step: Step) -> Tensor:
        """Logits by codes `[B, Hkv, G, last]` of `query [R, G, D]`, along the axes that are quantised."""
        books = self._fitted("codebooks")
        codes, scale = self._fitted("codes").flatten(0, 1), step.logits.scale
        flat, cap = books.flatten(0, 1), step.logits.softcap
        logits = kernels.pq_scores(query, flat, codes, step.regions.last, scale=scale, softcap=cap)
        return logits.unflatten(0, books.shape[:2])

    def _asked(self, step: Step) -> _Asked:
        """The step's queries as the index takes them."""
        query = step.query.unflatten(1, (self._fitted("codebooks").shape[1], -1)).float()
        anchor = step.anchor_lse.view(query.shape[:3])
        if not self._within_range(query, step.logits.scale):
            factor, change = self._factors(query, step.logits.scale)
            query = query * change.float().unsqueeze(-1)
            # Capped logits are in range as they are.
            anchor = anchor * factor.float() if step.logits.softcap is None else anchor
        query = query if "rotation" not in self._held else query @ self._held["rotation"]
        variance = logit_variance(query, self._fitted("residuals"), step.logits.scale)
        # Relative to estimated weights, exact ones count for less: see uncertainty.py.
        return _Asked(query.flatten(0, 1), (anchor - variance / 2).flatten(0, 1))

    def _within_range(self, query: Tensor, scale: float) -> bool:
        """Whether queries `[B, Hkv, G, D]` that can be looked at need no factors."""
        if "scales" in self._held or not at_hand(query):
            return False
        least, greatest = (end.item() for end in query.aminmax())
        return max(-least, greatest) * query.shape[-1] ** 0.5 * self._bound * scale <= _LARGEST

    def _factors(self, query: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Float64 `[B, Hkv, G]`: what brings logits into range, and that for queries of scaled keys."""
        largest = query.double().norm(dim=-1) * self._longest * scale
        if "scales" not in self._held:
            factor = (_LARGEST / largest).clamp(max=1.0)
            return factor, factor
        along = self._held["scales"].double().unsqueeze(-1)
        factor = (_LARGEST / (largest * along)).clamp(max=1.0)
        return factor, factor * along

    @property
    def varying(self) -> str:
        return (
            "with budgets of error its index holds what such steps do not write" if self._keeps_errors else ""
        )

    def reserve(self, tokens: int) -> None:
        self._reserve(tokens)

    def place(self, storage: CapturableStorage, slot: Tensor) -> None:
        rows = self._quantisable(storage.keys_at(slot)).flatten(0, 1)
        books = self._fitted("codebooks").flatten(0, 1)
        codes = kernels.pq_encode(rows, books)
        kernels.write_codes(self._fitted("codes").flatten(0, 1), slot, codes, bits=self.bits)

    def bytes_read(self, step: Step) -> int:
        return self.index_bytes(step.regions.last) + self._mass_control.bytes_read(step)

    def index_bytes(self, slots: int) -> int:
        """Bytes of the index that a choice among so many slots reads, for one KV head of one batch row."""
        errors = self._held["errors"].element_size() if "errors" in self._held else 0
        return slots * (self._fitted("codes").shape[-1] // BLOCK + errors) + self._fitted_bytes

    def state(self) -> dict[str, Tensor]:
        return self._held | self._refits.state() | self._mass_control.state()

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        self.length = length
        # Codes are written to; others that take this state must not see that.
        self._hold({name: tensor.clone() for name, tensor in state.items() if name in _TENSORS})
        if self._held:
            self.subspaces = self._held["codebooks"].shape[2]
        self._refits.restore(state, length)
        self._mass_control.restore(state)

    def crop(self, length: int) -> None:
        super().crop(length)
        self._refits.crop(length)
        self._mass_control.crop(length)

    def reorder(self, rows: Tensor) -> None:
        self._hold(
            {name: tensor.index_select(0, rows.to(tensor.device)) for name, tensor in self._held.items()}
        )
        self._shown.reorder(rows)
        self._mass_control.reorder(rows)
        self._refits.reorder(rows)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._held.values()) + self._mass_control.nbytes

    def _hold(self, held: dict[str, Tensor]) -> None:
        self._held, self._scan = held, None
        if held:
            longest = held["codebooks"].double().norm(dim=-1).amax(-1)  # of each sub-space
            self._longest = longest.norm(dim=-1, keepdim=True).clamp(min=1e-30)
            self._bound = float(self._longest.max())
            self._fitted_bytes = sum(
                t[0, 0].nbytes for name, t in held.items() if name not in ("codes", "errors")
            )

    def _fit(self, keys: Tensor, regions: Regions, rows: Sequence[int]) -> dict[str, Tensor]:
        """Fit quantisers to a random sample of the real tokens of `rows` of `keys [B, Hkv, N, D]`.

        Rows of as many tokens are fitted in one call, and others apart: each gets what it would get alone.
        """
        first = regions.first.tolist()
        sizes = {row: max(min(self.sample, keys.shape[2] - first[row]), 2**self.bits) for row in rows}
        moments = self._shown.moments(regions)
        parts: dict[str, list[Tensor]] = {}
        order = []
        for size in sorted(set(sizes.values())):
            alike = [row for row, own in sizes.items() if own == size]
            order += alike
            slots = sample_slots(keys.shape[2], regions.first[alike], size)
            drawn = torch.stack([keys[row][:, at] for row, at in zip(alike, slots, strict=True)]).float()
            for name, tensor in self._fitted_to(drawn, None if moments is None else moments[alike]).items():
                parts.setdefault(name, []).append(tensor)
        back = torch.tensor(order, device=keys.device).argsort()
        return {name: torch.cat(held)[back] if len(held) > 1 else held[0] for name, held in parts.items()}

    def _fitted_to(self, sample: Tensor, moments: Tensor | None) -> dict[str, Tensor]:
        """What is held of a quantiser fitted to `sample [b, Hkv, T, D]`, float32."""
        codes, scales = Codes(self.subspaces, self.bits, self.iterations), scales_of(sample)
        points = (sample / scales[..., None, None]).flatten(0, 1)
        moments = None if moments is None else moments.flatten(0, 1)
        fitted = fit_rotated(points, codes, moments) if self.rotate else fit(points, codes)
        held = {n: t.unflatten(0, scales.shape) for n, t in fitted._asdict().items() if t is not None}
        return held | {"scales": scales}

    def _encode(self, keys: Tensor) -> Tensor:
        """Write the codes of `keys [B, Hkv, T, D]` at `length`, advance it; squared errors `[B, Hkv, T]`."""
        books, errors = self._fitted("codebooks").flatten(0, 1), []
        codes_held = self._reserve(self.length + keys.shape[2]).flatten(0, 1)
        for part in keys.split(_CHUNK, dim=2):
            rows = self._quantisable(part).flatten(0, 1)
            codes = kernels.pq_encode(rows, books)
            kernels.write_codes(codes_held, self.length, codes, bits=self.bits)
            errors.append((rows - decode(codes, books)).square().sum(-1))
            if "errors" in self._held:
                known = self._held["errors"][:, :, self.length : self.length + part.shape[2]]
                known.copy_(errors[-1].view(known.shape))
            self.length += part.shape[2]
        return torch.cat(errors, dim=1).unflatten(0, keys.shape[:2])

    def _quantisable(self, keys: Tensor) -> Tensor:
        """`keys [B, Hkv, T, D]` in the range and along the axes that are quantised, float32."""
        keys = keys.float()
        if "scales" in self._held:
            keys = keys / self._held["scales"][..., None, None]
        return keys @ self._held["rotation"] if "rotation" in self._held else keys

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
        into_huge_pages(grown)  # before anything is in it, so that nothing is copied
        if old is not None:
            grown[:, :, : old.shape[2]] = old
        self._held["codes"] = grown
        # A restored index may have been made without.
        if self._keeps_errors and (old is None or "errors" in self._held):
            room = books.new_zeros(batch, kv_heads, grown.shape[2] * BLOCK, dtype=torch.bfloat16)
            if old is not None:
                room[:, :, : self.length] = self._held["errors"][:, :, : self.length]
            self._held["errors"] = room
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
    missing = width - slots.shape[1]
    return F.pad(slots, (0, missing)) if missing > 0 else slots[:, :width]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _of_rows(regions: Regions, heads: int) -> tuple[Tensor, Tensor]:
    """Where what competes begins and ends, int32 `[B * heads]` both."""
    first = regions.first.repeat_interleave(heads)
    return first, first.maximum(regions.stop.repeat_interleave(heads))
