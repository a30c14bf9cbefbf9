"""A token scores all the attention that was ever paid to it (H2O, Keyformer).

Sources: "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models", arXiv
2306.14048; "Keyformer: KV Cache Reduction through Key Tokens Selection for Efficient Generative Inference",
arXiv 2403.09054.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, Q queries, N slots, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.attention import column_sums
from keyhole.retention.base import Scorer, ScorerInput
from keyhole.retention.kept import Kept
from keyhole.storage import ROOM, Chosen, GrowingBuffer, Storage, kept_rows


@dataclass(frozen=True)
class Schedule:
    """A temperature that moves from `begin`, at a prompt, to `end`, after `steps` generated tokens."""

    begin: float = 1.0
    end: float = 1.0
    steps: int = 1

    def at(self, step: int) -> float:
        """After so many generated tokens."""
        return self.begin + min(step / self.steps, 1.0) * (self.end - self.begin)


@dataclass(frozen=True)
class NoiseSource:
    """Noise of one layer, keyed by query head and by the positions of query and key.

    Attributes:
        kind: one of `kernels.NOISES`.
        layer: the layer's place in the model.
    """

    kind: str
    seed: int
    layer: int

    def of(self, seen: ScorerInput) -> kernels.Noise:
        """For the logits of all queries of `seen`; a row with padding gets what it would get alone."""
        kept, (batch, heads, queries, _) = seen.kept, seen.query.shape
        places, device = kept.positions, seen.query.device
        own = torch.arange(kept.seen - queries, kept.seen, dtype=torch.int32, device=device).view(1, 1, 1, -1)
        if any(kept.padding):
            padding = torch.tensor(kept.padding, dtype=torch.int32, device=device)
            places, own = places - padding.view(-1, 1, 1), own - padding.view(-1, 1, 1, 1)
        of_heads = kernels.head_words(self.seed, self.layer, heads, device).view(1, places.shape[1], -1, 1, 2)
        words = kernels.query_words(of_heads, own).expand(batch, -1, -1, -1, -1)
        return kernels.Noise(words.flatten(0, 1), places.flatten(0, 1), self.kind)


class Accumulated(Scorer):
    """The softmax weights each token got since it came, summed over queries and the heads of a group.

    Args:
        noise: added to logits before their softmax; not to those of the output.
        schedule: the temperature of that softmax.
        queries: of a prompt, or a piece of one, only the newest so many count; 0 is all.
        normalise: divide by the number of queries that could see the token, which are more for early ones.
        freeze: while generating, what leaves the window goes, so that what a prompt chose stays (the release
            of Keyformer).
        shared: sum over batch rows too, so that all choose the same slots (the release of Keyformer).
    """

    def __init__(
        self,
        noise: NoiseSource | None = None,
        schedule: Schedule = Schedule(),
        *,
        queries: int = 0,
        normalise: bool = False,
        freeze: bool = False,
        shared: bool = False,
    ) -> None:
        self.noise, self.schedule = noise, schedule
        self.queries, self.normalise, self.freeze, self.shared = queries, normalise, freeze, shared
        self.watches = self.is_attention = not freeze
        self.looks_back = queries or None
        self.clear()

    def clear(self) -> None:
        self._step = 0  # tokens generated since the last prompt
        self._sums = GrowingBuffer(ROOM)  # float32 `[B, Hkv, N, 1]`
        self._counts = GrowingBuffer(ROOM)  # alike: queries that could see a token, where asked for

    @property
    def _buffers(self) -> dict[str, GrowingBuffer]:
        return {"sums": self._sums, "counts": self._counts} if self.normalise else {"sums": self._sums}

    def append(self, batch: int, heads: int, tokens: int, device: torch.device) -> None:
        new = torch.zeros(batch, heads, tokens, 1, device=device)
        for buffer in self._buffers.values():
            buffer.append(new)

    def see(self, seen: ScorerInput) -> None:
        if not seen.generated:
            self._step = 0
            self._see_queries(seen._replace(query=seen.query[:, :, -self.queries :]))
            return
        self._step += seen.query.shape[2]
        if self.freeze:
            return
        if seen.query.shape[2] > 1:
            self._see_queries(seen)
        else:
            self._see_step(seen)

    def _see_queries(self, seen: ScorerInput) -> None:
        filling = seen.kept.filling if seen.kept.ragged else None
        noise = None if self.noise is None else self.noise.of(seen)
        keys, temperature = seen.storage.keys(), self.schedule.at(self._step)
        self._sums.view().squeeze(-1).add_(
            column_sums(seen.query, keys, seen.logits, filling=filling, noise=noise, temperature=temperature)
        )
        self._count(seen)

    def _see_step(self, seen: ScorerInput) -> None:
        sums, sinks = self._sums.view().squeeze(-1), seen.logits.sink_logits
        batch, heads, tokens = sums.shape
        assert seen.weights is not None
        kernels.add_columns(
            sums.flatten(0, 1),
            seen.weights.view(batch * heads, -1, 1, tokens),
            seen.kept.filling.flatten(),
            noise=None if self.noise is None else self.noise.of(seen),
            temperature=self.schedule.at(self._step),
            sink_logits=None if sinks is None else sinks.view(heads, -1).repeat(batch, 1),
        )
        self._count(seen)

    def _count(self, seen: ScorerInput) -> None:
        if self.normalise:
            queries, slots = seen.query.shape[2], seen.kept.slots
            before = torch.arange(slots, 0, -1, device=seen.query.device).clamp(max=queries)
            self._counts.view().squeeze(-1).add_(before)

    def scores(self, storage: Storage, kept: Kept) -> Tensor:  # noqa: ARG002
        scores = self._sums.view().squeeze(-1)
        if self.freeze and self._step:
            return -torch.arange(kept.slots, device=scores.device).float().expand_as(scores)
        if self.normalise:
            scores = scores / self._counts.view().squeeze(-1).clamp(min=1)
        if self.shared:
            scores = scores.masked_fill(~kept.valid(), 0).sum(0, keepdim=True).expand_as(scores)
        return scores

    def keep(self, kept: Chosen) -> None:
        self._sums = kept_rows(self._sums, kept, 0.0)
        if self.normalise:
            self._counts = kept_rows(self._counts, kept, 0.0)

    def crop(self, tokens: int) -> None:
        self._step = max(self._step - tokens, 0)

    def reorder(self, rows: Tensor) -> None:
        for buffer in self._buffers.values():
            buffer.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        if not self._sums.length:
            return {}
        held = {name: buffer.view() for name, buffer in self._buffers.items()}
        return held | {"step": torch.tensor(self._step)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.clear()
        if state:
            self._step = int(state["step"])
            for name, buffer in self._buffers.items():
                buffer.append(state[name])

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._buffers.values())
