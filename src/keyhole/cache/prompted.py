"""The newest queries of a prompt, gathered from the pieces in which it comes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.attention import Logits

SHOWN = 64  # of a prompt's queries, the newest so many are shown to the selector


class Prompted(NamedTuple):
    """The newest `queries [B, H, Q, D]` of a prompt, and the way the model makes logits of them."""

    queries: Tensor
    logits: Logits


class PromptQueries:
    """What is held of a prompt's queries.

    Attributes:
        held: the newest ones, None where there are none.
        end: tokens there were when the newest of them came.
    """

    def __init__(self) -> None:
        self.held: Prompted | None = None
        self.end = 0

    def add(self, prompted: Prompted, length: int, remember: int) -> Tensor:
        """Those of a piece, after which there are `length` tokens; returns the newest `remember` of all."""
        queries = prompted.queries
        follows = self.end == length - queries.shape[2]
        if self.held is not None and follows and queries.shape[2] < remember:
            queries = torch.cat([self.held.queries, queries], dim=2)
        queries = queries[:, :, -remember:].clone()
        self.held, self.end = prompted._replace(queries=queries), length
        return queries

    def before(self, length: int | None) -> Prompted | None:
        """Those of the tokens before `length`, all of them for None; None where there are none."""
        newer = 0 if length is None else max(self.end - length, 0)
        if self.held is None or not newer:
            return self.held
        queries = self.held.queries
        left = queries[:, :, : max(queries.shape[2] - newer, 0)]
        return self.held._replace(queries=left) if left.shape[2] else None

    def crop(self, length: int) -> None:
        """Forget those of tokens from `length` on."""
        newest = max(self.end - length, 0)
        if self.held is not None and newest:
            self.held = self.before(length)
            self.end -= newest

    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order."""
        if self.held is not None:
            queries = self.held.queries
            self.held = self.held._replace(queries=queries[rows.to(queries.device)])

    def state(self) -> dict[str, Tensor]:
        """What is held, as named tensors."""
        if self.held is None:
            return {}
        scale, softcap, sinks = self.held.logits
        numbers = torch.tensor([scale, softcap or 0.0], dtype=torch.float64)
        state = {"queries": self.held.queries, "logits": numbers, "end": torch.tensor(self.end)}
        return state if sinks is None else state | {"sink_logits": sinks.detach()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        if state:
            scale, softcap = state["logits"].tolist()
            logits = Logits(scale, softcap or None, state.get("sink_logits"))
            self.held, self.end = Prompted(state["queries"], logits), int(state["end"])
