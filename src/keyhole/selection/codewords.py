"""One codeword for each key (A2ATS): tokens of a codeword rank together, by its product with the query.

Source: "A2ATS: Retrieval-Based KV Cache Reduction via Windowed Rotary Position Embedding and Query-Aware
Vector Quantization", arXiv 2502.12665.

Legend: B batch, Hkv KV heads, G query heads of each, T tokens, C codewords, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.core.errors import SavedStateError
from keyhole.core.layout import Regions
from keyhole.core.rope import FixedDistance, Rope
from keyhole.kernels.pq.tables import softcapped
from keyhole.selection.base import Capturable, Selection, Step
from keyhole.selection.calibration import Calibration, Estimate
from keyhole.selection.picking.groups import Groups, pick_groups
from keyhole.selection.quantisers.codebook import Codebook, fit_codebook, together
from keyhole.selection.quantisers.sample import sample_slots
from keyhole.storage import CapturableStorage, GrowingBuffer

_CHUNK = 8192  # tokens encoded at a time, to bound temporary memory
_KEYS_PER_CODEWORD = 8  # of a codebook fitted on the prompt, at least
_MINIMUM = 16

UNIONS = ("share", "turns")


class CodewordSelector(Capturable):
    """Ranks codewords by windowed RoPE: what lies behind the window counts as `distance` tokens away.

    So keys are compared as they are without their rotation, and a codebook need not know positions. This
    serves the ranking only; attention is over the keys as they are cached.

    Args:
        rope: the layer's rotation.
        distance: the constant relative position b.
        union: how the query heads of a group agree, see `A2ATS`.
        book: codewords of this layer, `[1, Hkv, C, D]`; None fits some on the keys of each prompt.
        codewords: at most so many then.
        iterations: of Lloyd's algorithm then.
        sample: keys of each head that they are fitted on then.
    """

    def __init__(
        self,
        rope: Rope,
        *,
        distance: int,
        union: str,
        book: Codebook | None,
        codewords: int,
        iterations: int,
        sample: int,
    ) -> None:
        self.ranking, self.union = FixedDistance(rope, distance), union
        self.codewords, self.iterations, self.sample = codewords, iterations, sample
        self._fits = book is None
        self._book = book
        self._codes = GrowingBuffer()  # int16 `[B, Hkv, T, 1]`
        self._padding: Tensor | None = None  # int64 `[B]`
        self._built = 0  # tokens there were at the last build
        self._calibration = Calibration()

    @property
    def minimum(self) -> int:
        return _MINIMUM

    @property
    def stale(self) -> bool:
        """A codebook fitted here is for a text of about this length."""
        return self._fits and self.length >= 2 * self._built

    def build(self, keys: Tensor, regions: Regions) -> None:
        self._padding = torch.tensor(regions.padding, device=keys.device)
        self._codes, self.length, self._built = GrowingBuffer(), 0, keys.shape[2]
        self._book = self._fitted(keys, regions.first) if self._fits else self._placed(keys.device)
        self.append(keys)

    def append(self, keys: Tensor) -> None:
        for part in keys.split(_CHUNK, dim=2):
            slots = torch.arange(self.length, self.length + part.shape[2], device=keys.device)
            self._codes.append(self._encoded(part, slots))
            self.length += part.shape[2]

    def see(self, queries: Tensor, kv_heads: int, tokens: int) -> None:  # noqa: ARG002
        self._calibration.see(queries, tokens)

    def select(self, step: Step) -> Selection:
        reach = self._calibration.reach(step, self._estimate)
        groups, scores, shares, anchored = self._ranked(step)
        if reach is None:
            return pick_groups(scores, shares, anchored, groups, step)
        picked = pick_groups(scores, shares, anchored, groups, step, reach.share)
        return picked._replace(mass=reach.held(picked.mass))

    def _estimate(self, step: Step) -> Estimate:
        groups, scores, shares, anchored = self._ranked(step)
        scores = scores.masked_fill(groups.sizes == 0, -torch.inf)
        return Estimate(scores, shares * groups.sizes, anchored, groups.summed)

    def _ranked(self, step: Step) -> tuple[Groups, Tensor, Tensor, Tensor]:
        """Groups, their scores and the share of a token of each `[B, Hkv, C]`, and the always-read share."""
        groups = Groups.of(self._codes.view().squeeze(-1), self._known().points.shape[2], step)
        logits = self._logits(step).masked_fill(groups.sizes.unsqueeze(2) == 0, -torch.inf)
        anchor = step.anchor_lse.view(logits.shape[:3])
        total = torch.logaddexp((logits + groups.sizes.unsqueeze(2).log()).logsumexp(-1), anchor)
        logs = logits - total.unsqueeze(-1)
        shares = logs.exp().mean(2)
        # As logarithms: shares may be too small to tell apart.
        scores = logs.logsumexp(2) if self.union == "share" else _turns(logits, shares, groups.sizes)
        return groups, scores, shares, (anchor - total).exp().mean(2)

    def _logits(self, step: Step) -> Tensor:
        """Those of a token of each codeword, at the constant distance, float32 `[B, Hkv, G, C]`."""
        book = self._known()
        query = self.ranking.query(step.query, step.regions.ends - 1, self._paddings())
        query = query.unflatten(1, (book.points.shape[1], -1))
        return softcapped(book.products(query, step.logits.scale), step.logits.softcap)

    def reserve(self, tokens: int) -> None:
        self._codes.reserve(tokens)
        self._codes.extend(tokens)
        # Codes of tokens that are still to come are looked up, too.
        self._codes.view(self.length).zero_()

    def place(self, storage: CapturableStorage, slot: Tensor) -> None:
        self._codes.put(self._encoded(storage.keys_at(slot), slot), slot)

    def release(self, length: int) -> None:
        super().release(length)
        self._codes.crop(length)

    def bytes_read(self, step: Step) -> int:
        fitted = sum(part[0, 0].nbytes for part in (self._known().points, self._known().inverse))
        codes = step.regions.last * self._codes.view().element_size()
        return codes + fitted + self._calibration.bytes_read(step)

    def crop(self, length: int) -> None:
        super().crop(length)
        self._codes.crop(length)
        self._built = min(self._built, length)
        self._calibration.crop(length)

    def reorder(self, rows: Tensor) -> None:
        if self._padding is None:
            return
        rows = rows.to(self._padding.device)
        self._padding = self._padding.index_select(0, rows)
        self._codes.reorder(rows)
        self._calibration.reorder(rows)
        if self._fits:
            self._book = self._known().map(lambda tensor: tensor.index_select(0, rows))

    def state(self) -> dict[str, Tensor]:
        """Codes as `labels`, and the codebook if it was fitted here; of one that was given its digest."""
        if self.length == 0:
            return {}
        book = self._known()
        of_book = {"points": book.points, "metric": book.metric} if self._fits else {"book": book.digest}
        held = {"labels": self._codes.view(), "padding": self._paddings()} | self._calibration.state()
        return held | of_book

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        self.length = self._built = length
        self._codes, self._padding = GrowingBuffer(), state.get("padding")
        self._calibration.restore(state)
        if state:
            self._codes.append(state["labels"])
            if self._fits:
                self._book = Codebook.of(state["points"], state["metric"])
            else:
                self._book = self._placed(state["labels"].device)
                if not torch.equal(state["book"].cpu(), self._book.digest):
                    raise SavedStateError("it was indexed with a different codebook than the method's")

    @property
    def nbytes(self) -> int:
        """A codebook that was given is one for all requests, and no part of theirs."""
        own = sum(tensor.nbytes for tensor in self._book) if self._fits and self._book else 0
        return self._codes.nbytes + own + self._calibration.nbytes

    def _fitted(self, keys: Tensor, first: Tensor) -> Codebook:
        """A codebook for each batch row, each as it would be alone: shorter rows are fitted apart."""
        tokens, sizes = keys.shape[2], [min(self.sample, keys.shape[2] - start) for start in first.tolist()]
        books: dict[int, Codebook] = {}
        for size in set(sizes):
            rows = [row for row, own in enumerate(sizes) if own == size]
            slots = sample_slots(tokens, first[rows], size)
            drawn = torch.stack([keys[row][:, at] for row, at in zip(rows, slots, strict=True)])
            count = max(1, min(self.codewords, size // _KEYS_PER_CODEWORD))
            bare = self.ranking.keys(drawn, slots, self._paddings()[rows])
            book = fit_codebook(bare, None, count, iterations=self.iterations, spread=False)
            books |= {row: book.map(lambda part, at=at: part[at : at + 1]) for at, row in enumerate(rows)}
        return together([books[row] for row in range(len(sizes))])

    def _encoded(self, keys: Tensor, slots: Tensor) -> Tensor:
        """The codes int16 `[B, Hkv, T, 1]` of `keys [B, Hkv, T, D]` of `slots [T]`."""
        return self._known().encode(self._unrotated(keys, slots)).to(torch.int16).unsqueeze(-1)

    def _unrotated(self, keys: Tensor, slots: Tensor) -> Tensor:
        """Keys `[B, Hkv, T, D]` of `slots [T]` or `[B, T]`, without their rotation."""
        return self.ranking.keys(keys, slots, self._paddings())

    def _placed(self, device: torch.device) -> Codebook:
        return self._known().map(lambda tensor: tensor.to(device))

    def _known(self) -> Codebook:
        if self._book is None:
            raise ValueError("there is no codebook yet; call build first")
        return self._book

    def _paddings(self) -> Tensor:
        if self._padding is None:
            raise ValueError("nothing is indexed yet; call build first")
        return self._padding


def _turns(logits: Tensor, shares: Tensor, sizes: Tensor) -> Tensor:
    """A score `[B, Hkv, C]` by the tokens that the head that likes a codeword best puts before it.

    The best k of that order are the union of the best k' of each head, for some k' <= k. Where heads put
    equally many before, the larger share counts, which is below one.
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)
    ranked = sizes.unsqueeze(2).expand(logits.shape).gather(-1, order)
    before = torch.empty_like(ranked).scatter_(-1, order, ranked.cumsum(-1) - ranked)
    return shares.double() / 2 - before.amin(2)
