"""The newest queries of a text, held to know what later ones ask for.

Legend: B batch, H query heads, Q queries, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.attention import Logits
from keyhole.core.rope import Rope

_GOLDEN = 0.6180339887498949  # its multiples, modulo 1, are spread evenly however many there are


class Observations:
    """At most `most` of the newest queries of a layer, their places in the text, and how it makes logits."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.clear()

    def clear(self) -> None:
        """Hold none."""
        self._queries: list[Tensor] = []  # `[B, H, Q, D]` each, in the order of the text
        self._places: list[Tensor] = []  # int64 `[Q]` each
        self.logits = Logits(1.0)

    def __len__(self) -> int:
        return sum(map(len, self._places))

    def add(self, query: Tensor, end: int, logits: Logits) -> None:
        """Add `query [B, H, Q, D]`, the last of which is that of token `end - 1` of the text."""
        query = query[:, :, -self.most :]
        self._queries.append(query.clone())
        self._places.append(torch.arange(end - query.shape[2], end, device=query.device))
        self.logits = logits
        while len(self) - len(self._places[0]) >= self.most:
            del self._queries[0], self._places[0]

    def crop(self, tokens: int) -> None:
        """The text ends so many tokens before the end of what was added last."""
        if self._places:
            self._only(self.places < int(self._places[-1][-1]) + 1 - tokens)

    def _only(self, wanted: Tensor) -> None:
        queries, places, logits = self.queries[:, :, wanted], self.places[wanted], self.logits
        self.clear()
        if len(places):
            self._queries, self._places, self.logits = [queries], [places], logits

    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order."""
        self._queries = [queries[rows.to(queries.device)] for queries in self._queries]

    @property
    def queries(self) -> Tensor:
        """`[B, H, Q, D]`; ValueError where there are none."""
        if not self._queries:
            raise ValueError("no queries were added")
        return torch.cat(self._queries, 2)[:, :, -self.most :]

    @property
    def places(self) -> Tensor:
        """Int64 `[Q]`."""
        return torch.cat(self._places)[-self.most :]

    def moved(self, rope: Rope, end: int, future: int) -> Tensor:
        """The queries as if asked by the next `future` tokens of a text of `end`; float32 `[B, H, Q, D]`.

        The newest moves to the first of these, the others evenly over all.
        """
        places = self.places
        newest_first = torch.arange(len(places) - 1, -1, -1, dtype=torch.float64, device=places.device)
        ahead = (newest_first * _GOLDEN % 1 * future).long()
        return rope.rotate(self.queries, (end + ahead - places).unsqueeze(0))

    def state(self) -> dict[str, Tensor]:
        """What is held, as named tensors."""
        if not self._queries:
            return {}
        softcap, sinks = self.logits.softcap or 0.0, self.logits.sink_logits
        held = {
            "queries": self.queries,
            "places": self.places,
            "logits": torch.tensor([self.logits.scale, softcap], dtype=torch.float64),
        }
        return held if sinks is None else held | {"sinks": sinks}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self.clear()
        if state:
            scale, softcap = state["logits"].tolist()
            self._queries, self._places = [state["queries"]], [state["places"]]
            self.logits = Logits(scale, softcap or None, state.get("sinks"))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in (*self._queries, *self._places))
