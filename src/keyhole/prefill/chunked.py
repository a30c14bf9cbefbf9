"""Chunked sparse prefill (TokenSelect): a chunk of queries elects what it reads beside sinks and window.

Source: "TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic
Token-Level KV Cache Selection", arXiv 2411.02886.

Legend: B batch, H query heads, Hkv KV heads, Q queries, C of them in a chunk, N tokens, S tokens read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.attention import Logits, attend_slots, dense_attention
from keyhole.core.budget import Budget
from keyhole.core.layout import Constants, Regions, regions
from keyhole.core.masks import Visible
from keyhole.core.rope import FixedDistance, Rope
from keyhole.prefill.base import Prefill
from keyhole.selection.base import Step
from keyhole.selection.distant import BareKeys
from keyhole.selection.vote import Vote
from keyhole.storage import Storage
from keyhole.storage.formats.base import at
from keyhole.storage.renumber import closing_moves, moved_keys


class _Read(NamedTuple):
    """What a chunk reads: slots `[B, Hkv, S]`, which entries are meant, how far each is moved if they are."""

    slots: Tensor
    valid: Tensor
    moves: Tensor


class ChunkedPrefill(Prefill):
    """Queries of one chunk read the sinks, what their mean query elects, and a window.

    Chunks begin at multiples of `chunk` slots, so the pieces in which a prompt arrives do not matter when
    they do, too. The window reaches `window` tokens back from the first query of a chunk. As long as the
    budget allows all that competes, attention is exact; so it is where heads see different slots.

    Args:
        vote: how a chunk's mean query elects.
        chunk: queries of a chunk.
        budget: tokens read beside sinks, window and the chunk itself.
        sinks: first tokens of a sequence that are always read.
        window: tokens before the chunk that are always read.
        scoring: elect as if the chunk began so far behind every key; None takes keys as they are.
        renumber: the layer's rotation, to move what a chunk reads to positions without gaps; None leaves it.
    """

    any_mask = False

    def __init__(
        self,
        vote: Vote,
        chunk: int,
        budget: Budget,
        sinks: int,
        window: int,
        *,
        scoring: FixedDistance | None = None,
        renumber: Rope | None = None,
    ) -> None:
        self.vote, self.chunk, self.budget, self.sinks, self.window = vote, chunk, budget, sinks, window
        self.scoring, self.renumber = scoring, renumber

    @torch.no_grad()
    def attend(self, query: Tensor, storage: Storage, logits: Logits, mask: Tensor | None) -> Tensor:
        batch, _, queries, _ = query.shape
        padding, constants = Visible(mask, batch).padding, Constants()
        begin, parts = storage.length - queries, []
        held = storage.keys(), storage.values()  # once, since some storages copy them
        scored: Storage | None = None
        for start, stop in _chunks(begin, storage.length, self.chunk):
            unused = tuple(min(slots, stop) for slots in padding)
            window = self.window + stop - start
            where = regions(stop, unused, self.sinks, window, query.device, constants=constants)
            rows = slice(start - begin, stop - begin)
            if self._reads_all(where):
                seen = None if mask is None else mask[:, :, rows, :stop]
                before = (part[:, :, :stop] for part in held)
                parts.append(dense_attention(query[:, :, rows], *before, mask=seen, **logits._asdict()))
            else:
                scored = scored or self._scored(storage, held[0], padding)
                read = self._read(query[:, :, rows], held, scored, logits, where)
                parts.append(self._attend(query[:, :, rows], held, read, logits, where))
        return torch.cat(parts, dim=2)

    def _scored(self, storage: Storage, keys: Tensor, padding: tuple[int, ...]) -> Storage:
        """The keys that votes are on."""
        if self.scoring is None:
            return storage
        bare = BareKeys(self.scoring, torch.tensor(padding, device=keys.device))
        bare.add(keys)
        return bare

    def _read(
        self, query: Tensor, held: tuple[Tensor, Tensor], scored: Storage, logits: Logits, where: Regions
    ) -> _Read:
        """What the chunk `query [B, H, C, D]` reads."""
        mean = _mean_query(query, where)
        # Not as the storage attends in decode steps: the chunk is read as one.
        anchor = attend_slots(mean, *held, where.always, where.always_counts, logits)
        step = Step(mean, scored, where, logits.with_sinks(anchor.lse), logits, self.budget)
        if self.scoring is not None:
            padding, begin = torch.tensor(where.padding, device=mean.device), where.length - query.shape[2]
            step = step._replace(query=self.scoring.query(mean, begin, padding).to(mean.dtype))
        elected = self.vote.elect(step)
        always = where.always.unsqueeze(1).expand(-1, elected.slots.shape[1], -1)
        always_counts = where.always_counts.unsqueeze(1).expand(elected.counts.shape)
        pairs = ((always, always_counts), (elected.slots, elected.counts))
        valid = [torch.arange(s.shape[-1], device=s.device) < n.unsqueeze(-1) for s, n in pairs]
        moves = [closing_moves(slots, elected.counts, where) for slots, _ in pairs]
        slots = torch.cat([always, elected.slots], -1).long()
        return _Read(slots, torch.cat(valid, -1), torch.cat(moves, -1))

    def _attend(
        self, query: Tensor, held: tuple[Tensor, Tensor], read: _Read, logits: Logits, where: Regions
    ) -> Tensor:
        """Causal attention of the newest queries `[B, H, C, D]` over what they read."""
        keys, values = (at(part, read.slots) for part in held)
        if self.renumber is not None:
            keys = moved_keys(self.renumber, keys, read.moves)
        own = torch.arange(where.length - query.shape[2], where.length, device=query.device)
        mask = read.valid.unsqueeze(2) & (read.slots.unsqueeze(2) <= own.view(-1, 1))
        return dense_attention(query, keys, values, mask=mask, **logits._asdict())

    def _reads_all(self, where: Regions) -> bool:
        candidates = [max(where.last - first, 0) for first in where.first.tolist()]
        limits = [self.budget.limit(tokens) for tokens in where.context]
        allowed = all(c <= limit for c, limit in zip(candidates, limits, strict=True))
        return allowed if self.budget.mass is None else not any(candidates)


def _chunks(begin: int, end: int, chunk: int) -> Iterator[tuple[int, int]]:
    """[begin, end) cut at multiples of `chunk`."""
    while begin < end:
        stop = min((begin // chunk + 1) * chunk, end)
        yield begin, stop
        begin = stop


def _mean_query(query: Tensor, where: Regions) -> Tensor:
    """`[B, H, D]`, over the newest queries `[B, H, C, D]` that are not padding."""
    slots = torch.arange(where.length - query.shape[2], where.length, device=query.device)
    real = (slots >= torch.tensor(where.padding, device=query.device).view(-1, 1)).float()
    total = torch.einsum("bhcd,bc->bhd", query.float(), real)
    return (total / real.sum(-1).clamp(min=1).view(-1, 1, 1)).to(query.dtype)
