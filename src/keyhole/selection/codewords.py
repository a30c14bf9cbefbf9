"""One codeword for each key (A2ATS): tokens of a codeword rank together, by its product with the query.

Source: "A2ATS: Retrieval-Based KV Cache Reduction via Windowed Rotary Position Embedding and Query-Aware
Vector Quantization", arXiv 2502.12665.

Legend: B batch, Hkv KV heads, G query heads of each, T tokens, C codewords, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from keyhole.core.distances import Distances
from keyhole.core.errors import SavedStateError
from keyhole.core.layout import Regions
from keyhole.kernels.pq.tables import softcapped
from keyhole.selection.base import Capturable, Step
from keyhole.selection.grouped import GroupLogs, GroupSelector, RankedGroups
from keyhole.selection.picking.groups import Groups
from keyhole.selection.quantisers.codebook import Codebook, fit_codebook, rounded_out, together
from keyhole.selection.quantisers.sample import sample_slots
from keyhole.storage import CapturableStorage, GrowingBuffer

_CHUNK = 8192  # tokens encoded at a time, to bound temporary memory
_KEYS_PER_CODEWORD = 8  # of a codebook fitted on the prompt, at least
_MINIMUM = 16

UNIONS = ("share", "turns")


class CodewordSelector(GroupSelector, Capturable):
    """Ranks codewords by windowed RoPE: tokens before the window rank by their range of distances.

    So keys are compared as they are without their rotation, and a codebook need not know positions. This
    serves the ranking only; attention is over the keys as they are cached. Tokens of a codeword in one range
    rank together.

    Args:
        ranking: the layer's ranges of distances.
        union: how the query heads of a group agree, see `A2ATS`.
        book: codewords of this layer, `[1, Hkv, C, D]`; None fits some on the keys of each prompt.
        codewords: at most so many then.
        iterations: of Lloyd's algorithm then.
        sample: keys of each head that they are fitted on then.
    """

    def __init__(
        self,
        ranking: Distances,
        *,
        union: str,
        book: Codebook | None,
        codewords: int,
        iterations: int,
        sample: int,
    ) -> None:
        super().__init__()
        self.ranking, self.union = ranking, union
        self.codewords, self.iterations, self.sample = codewords, iterations, sample
        self._fits = book is None
        self._book = book
        self._codes = GrowingBuffer()  # int16 `[B, Hkv, T, 1]`
        self._padding: Tensor | None = None  # int64 `[B]`
        self._unused: tuple[int, ...] = ()  # the same, known without a look at the device
        self._built: list[int] = []  # slots there were at the last fit of each batch row

    @property
    def minimum(self) -> int:
        return _MINIMUM

    @property
    def stale(self) -> bool:
        """A codebook fitted here is for a text of about the length that it was fitted at."""
        return self._fits and bool(self._due())

    def build(self, keys: Tensor, regions: Regions) -> None:
        self._padding, self._unused = torch.tensor(regions.padding, device=keys.device), regions.padding
        self._built = [keys.shape[2]] * len(keys)
        if self._fits:
            self._book = together(list(self._fitted(keys, regions.first, range(len(keys))).values()))
        else:
            self._book = self._placed(keys.device)
        self._index(keys)

    def refit(self, keys: Tensor, regions: Regions) -> None:
        due, book = self._due(), self._known()
        new = self._fitted(keys, regions.first, due)
        self._book = together([new[row] if row in new else _of_row(book, row) for row in range(len(keys))])
        for row in due:
            self._built[row] = keys.shape[2]
        self._index(keys)

    def _due(self) -> list[int]:
        """Rows that are twice as long as when their codebook was fitted."""
        rows = enumerate(zip(self._built, self._unused, strict=True))
        return [row for row, (built, unused) in rows if self.length - unused >= 2 * (built - unused)]

    def _index(self, keys: Tensor) -> None:
        self._codes, self.length = GrowingBuffer(), 0
        self.append(keys)

    def append(self, keys: Tensor) -> None:
        for part in keys.split(_CHUNK, dim=2):
            slots = torch.arange(self.length, self.length + part.shape[2], device=keys.device)
            self._codes.append(self._encoded(part, slots))
            self.length += part.shape[2]

    def _ranked(self, step: Step) -> RankedGroups:
        groups = self._groups(step)
        logs = GroupLogs.of(self._logits(step), groups, step)
        if self.union == "share":
            return logs.ranked(groups)
        return logs.ranked(groups, _turns(logs.token, groups.sizes))

    def _groups(self, step: Step) -> Groups:
        """Group r * C + c: the tokens of codeword c in range r of the distances, of R * C."""
        codes, count = self._codes.view().squeeze(-1)[..., : step.regions.last], self._codewords
        if self.ranking.ranges == 1:
            return Groups.of(codes, count, step)
        begins = step.regions.derived(
            ("ranges", self.ranking.edges, count), lambda: self._ranges(step.regions) * count
        )
        return Groups.of(codes.long() + begins, self.ranking.ranges * count, step)

    def _ranges(self, regions: Regions) -> Tensor:
        """The range of each slot before the window, int64 `[B, 1, N]`."""
        slots = torch.arange(regions.last, device=regions.first.device)
        return self.ranking.range_of(regions.ends.view(-1, 1, 1) - 1 - slots)

    def _logits(self, step: Step) -> Tensor:
        """Those of a token of each group, float32 `[B, Hkv, G, R * C]`."""
        book, scale = self._known(), step.logits.scale
        queries = self.ranking.queries(step.query, step.regions.ends - 1, self._paddings())
        ranges, heads = queries.shape[1], book.points.shape[1]
        asked = queries.unflatten(2, (heads, -1)).transpose(1, 2).flatten(2, 3)
        found = book.products(asked, scale).unflatten(2, (ranges, -1)).transpose(2, 3).flatten(3)
        return softcapped(found, step.logits.softcap)

    def reserve(self, tokens: int) -> None:
        self._mass_control.captured = True
        self._codes.reserve(tokens)
        self._codes.extend(tokens)
        # Codes of tokens that are still to come are looked up, too.
        self._codes.view(self.length).zero_()

    def place(self, storage: CapturableStorage, slot: Tensor) -> None:
        self._codes.put(self._encoded(storage.keys_at(slot), slot), slot)

    def release(self, length: int) -> None:
        super().release(length)
        self._mass_control.captured = False
        self._codes.crop(length)

    def bytes_read(self, step: Step) -> int:
        fitted = sum(part[0, 0].nbytes for part in (self._known().points, self._known().inverse))
        codes = step.regions.last * self._codes.view().element_size()
        return codes + fitted + self._mass_control.bytes_read(step)

    def crop(self, length: int) -> None:
        super().crop(length)
        self._codes.crop(length)
        self._built = [min(built, length) for built in self._built]
        self._mass_control.crop(length)

    def reorder(self, rows: Tensor) -> None:
        if self._padding is None:
            return
        rows = rows.to(self._padding.device)
        self._padding, order = self._padding.index_select(0, rows), rows.tolist()
        self._unused = tuple(self._unused[row] for row in order)
        self._built = [self._built[row] for row in order]
        self._codes.reorder(rows)
        self._mass_control.reorder(rows)
        if self._fits:
            self._book = self._known().map(lambda tensor: tensor.index_select(0, rows))

    def state(self) -> dict[str, Tensor]:
        """Codes as `labels`, and the codebook if it was fitted here; of one that was given its digest."""
        if self.length == 0:
            return {}
        book = self._known()
        of_book = {"points": book.points, "metric": book.metric} if self._fits else {"book": book.digest}
        held = {"labels": self._codes.view(), "padding": self._paddings()} | self._mass_control.state()
        return held | of_book

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        self.length, self._codes, self._padding = length, GrowingBuffer(), state.get("padding")
        self._unused = () if self._padding is None else tuple(self._padding.tolist())
        self._built = [length] * len(self._unused)
        self._mass_control.restore(state)
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
        return self._codes.nbytes + own + self._mass_control.nbytes

    def _fitted(self, keys: Tensor, first: Tensor, rows: Sequence[int]) -> dict[int, Codebook]:
        """A codebook for each of `rows`, each as it would be alone: shorter rows are fitted apart."""
        tokens, starts = keys.shape[2], first.tolist()
        sizes = {row: min(self.sample, tokens - starts[row]) for row in rows}
        books: dict[int, Codebook] = {}
        for size in set(sizes.values()):
            alike = [row for row, own in sizes.items() if own == size]
            slots = sample_slots(tokens, first[alike], size)
            drawn = torch.stack([keys[row][:, at] for row, at in zip(alike, slots, strict=True)])
            count = max(1, min(self.codewords, size // _KEYS_PER_CODEWORD))
            bare = self.ranking.keys(drawn, slots, self._paddings()[alike])
            moment = self._moment(keys.shape[1], alike)
            book = fit_codebook(bare, moment, count, iterations=self.iterations, spread=False)
            books |= {row: _of_row(book, at) for at, row in enumerate(alike)}
        return {row: books[row] for row in rows}

    def _moment(self, heads: int, rows: list[int]) -> Tensor | None:
        """Second moment `[rows, Hkv, D, D]` of the queries shown, as they rank; None if there were none."""
        found = None
        for shown in self._mass_control.shown:
            slots = torch.arange(shown.tokens - shown.queries.shape[2], shown.tokens)
            queries = shown.queries[rows]
            moves = self._paddings()[rows].unsqueeze(1) - slots.to(queries.device)
            bare = self.ranking.rope.rotate(queries, moves)
            turned = self.ranking.turned(bare.unflatten(1, (heads, -1)).flatten(2, 3).unsqueeze(2))
            turned = turned.flatten(2, 3)
            part = turned.transpose(-1, -2) @ turned
            found = part if found is None else found + part
        return None if found is None else rounded_out(found)

    def _encoded(self, keys: Tensor, slots: Tensor) -> Tensor:
        """The codes int16 `[B, Hkv, T, 1]` of `keys [B, Hkv, T, D]` of `slots [T]`."""
        return self._known().encode(self._unrotated(keys, slots)).to(torch.int16).unsqueeze(-1)

    def _unrotated(self, keys: Tensor, slots: Tensor) -> Tensor:
        """Keys `[B, Hkv, T, D]` of `slots [T]` or `[B, T]`, without their rotation."""
        return self.ranking.keys(keys, slots, self._paddings())

    @property
    def _codewords(self) -> int:
        return self._known().points.shape[2]

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


def _of_row(book: Codebook, row: int) -> Codebook:
    return book.map(lambda part: part[row : row + 1])


def _turns(logs: Tensor, sizes: Tensor) -> Tensor:
    """A score `[B, Hkv, C]` by the tokens that the head that likes a codeword best puts before it.

    The best k of that order are the union of the best k' of each head, for some k' <= k. Where heads put
    equally many before, the larger mean share counts, which is below one.
    """
    order = logs.argsort(dim=-1, descending=True, stable=True)
    ranked = sizes.unsqueeze(2).expand(logs.shape).gather(-1, order)
    before = torch.empty_like(ranked).scatter_(-1, order, ranked.cumsum(-1) - ranked)
    return logs.exp().mean(2).double() / 2 - before.amin(2)
