"""Predictions under teacher forcing, against those of full attention.

Legend: B texts at once, N predicted tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from keyhole.engines.transformers import KeyholeCache
from keyhole.engines.transformers.cache import end_prompt
from keyhole.generation.decoding import forward_of, synchronize


class Predicted(NamedTuple):
    """Log-probabilities `[B, V]` float32 of the next token, and the seconds the step took."""

    logs: Tensor
    seconds: float


@torch.no_grad()
def predict(model: PreTrainedModel, tokens: Tensor, cache: KeyholeCache, context: int) -> Iterator[Predicted]:
    """Predict the tokens behind the first `context` of `tokens [B, context + N]`, one after the other.

    The cache holds all of the first `context` but the last, which is the first decode step; so every
    prediction comes from a step that reads as the method reads.
    """
    end_prompt(cache)
    forward = forward_of(model, cache)
    for place in range(context - 1, tokens.shape[1] - 1):
        started = time.perf_counter()
        logits = forward(tokens[:, place : place + 1])[:, -1]
        synchronize(tokens.device)
        seconds = time.perf_counter() - started
        yield Predicted(logits.float().log_softmax(-1), seconds)


class Scored(NamedTuple):
    """`kl` in nats, `agreed` and `loss` of each token, `[B, N]` each, and each step's seconds."""

    kl: Tensor
    agreed: Tensor
    loss: Tensor
    seconds: list[float]


class Reference:
    """Full attention's log-probabilities `[N, B, V]` of some texts, and its losses."""

    def __init__(self, model: PreTrainedModel, tokens: Tensor, context: int, cache: KeyholeCache) -> None:
        self._model, self._tokens, self._context = model, tokens, context
        kept: Tensor | None = None
        seconds = []
        for step, predicted in enumerate(predict(model, tokens, cache, context)):
            if kept is None:
                kept = predicted.logs.new_empty(tokens.shape[1] - context, *predicted.logs.shape)
            kept[step] = predicted.logs
            seconds.append(predicted.seconds)
        assert kept is not None  # there is at least one token to predict
        self._logs = kept
        losses = torch.stack([self._losses(step, logs) for step, logs in enumerate(kept)], dim=1)
        none = torch.zeros_like(losses)
        self.scored = Scored(none, none == 0, losses, seconds)

    @property
    def loss(self) -> Tensor:
        """Negative log-likelihood of each token, `[B, N]`."""
        return self.scored.loss

    def score(self, cache: KeyholeCache, after_step: Callable[[], object]) -> Scored:
        """Predict the same tokens with another cache; `after_step` is called outside the timing."""
        found, seconds = [], []
        for step, predicted in enumerate(predict(self._model, self._tokens, cache, self._context)):
            dense, logs = self._logs[step], predicted.logs
            agreed = dense.argmax(-1) == logs.argmax(-1)
            found.append((divergence_of(dense, logs), agreed, self._losses(step, logs)))
            seconds.append(predicted.seconds)
            after_step()
        kl, agreed, loss = (torch.stack(column, dim=1) for column in zip(*found, strict=True))
        return Scored(kl, agreed, loss, seconds)

    def _losses(self, step: int, logs: Tensor) -> Tensor:
        following = self._tokens[:, self._context + step].unsqueeze(1)
        return -logs.gather(1, following).squeeze(1)


def divergence_of(dense: Tensor, other: Tensor) -> Tensor:
    """KL(dense || other) in nats of log-probabilities `[..., V]`; what dense excludes counts for nothing."""
    parts = torch.where(dense == -torch.inf, 0.0, dense.exp() * (dense - other))
    # Rounding can leave less than nothing.
    return parts.sum(-1, dtype=torch.float64).clamp(min=0)
