"""Records of answers that a server gives: what `keyhole.serving` calls while it decodes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keyhole.engines.transformers import KeyholeCache
from keyhole.generation.decoding import Token
from keyhole.generation.prompt import Asked
from keyhole.view.file import to_json
from keyhole.view.recorder import Recorder


class ServedRecorder:
    """The record of one answer, as the bytes of its file; of token ids alone, whose text is decoded."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._recorder = tokenizer, Recorder()

    def begin(self, model: PreTrainedModel, cache: KeyholeCache, prompt: Sequence[int]) -> None:  # noqa: ARG002
        """Decoding begins behind a prompt, whose end the first step may still have to read."""
        ids = torch.tensor([list(prompt)])
        self._recorder.begin(cache, self._tokenizer, Asked(ids[:, :-1], ids[:, -1:]), "")

    def step(self, token: int) -> None:
        """A call gave this token."""
        self._recorder.generated(Token(token, False, 0.0))

    def drop(self) -> None:
        """Nothing follows, and nobody wants the record."""
        self._recorder.drop()

    def end(self) -> bytes | None:
        """Nothing follows; None where no token came."""
        self._recorder.end()
        return to_json(self._recorder.records[-1]) if self._recorder.records else None
