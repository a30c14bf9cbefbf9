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

_VOTING = 8  # queries of each head that vote in one pass over the keys: tiles of GPU kernels hold all heads


class _Read(NamedTuple):
    """What a chunk reads: slots `[B, Hkv, S]`, which entries are meant, how far each is moved if they are."""

    slots: Tensor
    valid: Tensor
    moves: Tensor


class ChunkedPrefill(Prefill):
    """Queries of one chunk read the sinks, what they elect together, and a window.

    Chunks begin at multiples of `chunk` slots, so the pieces in which a prompt arrives do not matter when
    they do, too. The window reaches `window` tokens back from the first query of a chunk. As long as the
    budget allows all that competes, attention is exact; so it is where heads see different slots.

    Args:
        vote: how a chunk elects.
        chunk: queries of a chunk.
        budget: tokens read beside sinks, window and the chunk itself.
        sinks: first tokens of a sequence that are always read.
        window: tokens before the chunk that are always read.
        scoring: elect as if the chunk began so far behind every key; None takes keys as they are.
        voters: so many of a chunk's newest queries vote, and those before them by the means of as many runs;
            0 is one vote by the mean of all.
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
        voters: int = 0,
        scoring: FixedDistance | None = None,
        renumber: Rope | None = None,
    ) -> None:
        self.vote, self.chunk, self.budget, self.sinks, self.window = vote, chunk, budget, sinks, window
        self.voters, self.scoring, self.renumber = voters, scoring, renumber

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
        elected = self.vote.elect(*self._steps(query, held, scored, logits, where))
        always = where.always.unsqueeze(1).expand(-1, elected.slots.shape[1], -1)
        always_counts = where.always_counts.unsqueeze(1).expand(elected.counts.shape)
        pairs = ((always, always_counts), (elected.slots, elected.counts))
        valid = [torch.arange(s.shape[-1], device=s.device) < n.unsqueeze(-1) for s, n in pairs]
        moves = [closing_moves(slots, elected.counts, where) for slots, _ in pairs]
        slots = torch.cat([always, elected.slots], -1).long()
        return _Read(slots, torch.cat(valid, -1), torch.cat(moves, -1))

    def _steps(
        self, query: Tensor, held: tuple[Tensor, Tensor], scored: Storage, logits: Logits, where: Regions
    ) -> Iterator[Step]:
        """Steps of a few of those that vote each."""
        # Not as the storage attends in decode steps: the chunk is read as one.
        padding, begin = torch.tensor(where.padding, device=query.device), where.length - query.shape[2]
        for some in _voting(query, where, self.voters).split(_VOTING, dim=2):
            queries, few = some.flatten(1, 2), some.shape[1:3]
            anchor = attend_slots(queries, *held, where.always, where.always_counts, logits)
            lse = logits.with_sinks(anchor.lse.unflatten(1, few).transpose(1, 2)).transpose(1, 2)
            if self.scoring is not None:
                queries = self.scoring.query(queries, begin, padding).to(query.dtype)
            yield Step(queries, scored, where, lse.flatten(1), logits, self.budget)

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
        return allowed if not self.budget.varies else not any(candidates)


def _chunks(begin: int, end: int, chunk: int) -> Iterator[tuple[int, int]]:
    """[begin, end) cut at multiples of `chunk`."""
    while begin < end:
        stop = min((begin // chunk + 1) * chunk, end)
        yield begin, stop
        begin = stop


def _voting(query: Tensor, where: Regions, voters: int) -> Tensor:
    """What votes for the newest queries `[B, H, C, D]`: means of runs of them, `[B, H, V, D]`.

    Padding does not count. A run of nothing else has the mean of the whole chunk.
    """
    chunk, device = query.shape[2], query.device
    early = max(chunk - voters, 0) if voters else chunk
    runs = min(max(voters, 1), early)
    places = torch.arange(chunk, device=device)
    run = torch.where(places < early, places * runs // max(early, 1), runs + places - early)
    slots = places + where.length - chunk
    real = (slots >= torch.tensor(where.padding, device=device).view(-1, 1)).unsqueeze(1)
    own = real & (run == torch.arange(runs + chunk - early, device=device).unsqueeze(1))
    counted = torch.where(own.any(-1, keepdim=True), own, real).float()
    total = torch.einsum("bhcd,bvc->bhvd", query.float(), counted)
    return (total / counted.sum(-1).clamp(min=1)[:, None, :, None]).to(query.dtype)
