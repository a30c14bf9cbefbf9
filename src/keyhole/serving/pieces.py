"""From generated tokens to the pieces of text that a client gets."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from keyhole.generation.decoding import Token
from keyhole.generation.sampling import Sampler
from keyhole.generation.text import TextWriter
from keyhole.serving.requests import Logprob, Piece


class Pieces:
    """Makes pieces of tokens that come one by one; see `Piece`.

    Args:
        logprobs: alternatives reported for each token; None for none at all.

    Attributes:
        count: tokens so far, an end-of-sequence token included.
        stopped: whether a stop string, or an end-of-sequence token, ended the answer.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], logprobs: int | None
    ) -> None:
        self.count, self.stopped = 0, False
        self._text: list[str] = []
        self._writer = TextWriter(tokenizer, stop, self._text.append)
        self._wanted = logprobs
        self._tokens: list[int] = []
        self._logprobs: list[Logprob] = []
        self._newest: Logprob | None = None

    def watching(self, pick: Sampler) -> Sampler:
        """A sampler that also notes the log probabilities, where they are wanted."""
        if self._wanted is None:
            return pick
        wanted = self._wanted

        def watched(logits: Tensor) -> int:
            token = pick(logits)
            self._newest = logprob_of(logits, token, wanted)
            return token

        return watched

    def add(self, token: Token) -> Piece | None:
        """The piece that a token completes, if it does."""
        self.count += 1
        if token.ends:
            self.stopped = True
            return None
        self._tokens.append(token.id)
        if self._newest is not None:
            self._logprobs.append(self._newest)
        self._writer.put(token.id)
        self.stopped = self._writer.stopped
        return self._piece() if self._text else None

    def end(self) -> Piece | None:
        """What was held back, if anything was."""
        self._writer.end()
        return self._piece() if self._text or self._tokens else None

    def _piece(self) -> Piece:
        piece = Piece("".join(self._text), tuple(self._tokens), tuple(self._logprobs))
        self._text.clear()
        self._tokens.clear()
        self._logprobs.clear()
        return piece


def logprob_of(logits: Tensor, token: int, alternatives: int) -> Logprob:
    """The log probability of a token by `logits [V]`, and those of the likeliest ones."""
    found = torch.log_softmax(logits.detach().float(), -1)
    values, ids = found.topk(min(alternatives, len(found)))
    return Logprob(token, float(found[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
