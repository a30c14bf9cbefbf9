"""Between tokens and text: stop tokens, stop strings, and text as it becomes complete."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keyhole.generation.decoding import Token

_INCOMPLETE = "�"  # what a tokenizer makes of the first bytes of a character


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The end-of-sequence tokens of the model's generation config and of the tokenizer."""
    named = getattr(model.generation_config, "eos_token_id", None)
    several = named if isinstance(named, list) else [named]
    return frozenset(token for token in [*several, tokenizer.eos_token_id] if isinstance(token, int))


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Token]) -> str:
    """The text of generated tokens, without the stop token."""
    ids = [token.id for token in tokens if not token.ends]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


class TextWriter:
    """Text of tokens that come one by one, passed on as soon as no later token can change it.

    Text that may be the beginning of a stop string, and characters of which bytes are missing, wait.

    Attributes:
        text: all text so far, up to a stop string.
        stopped: whether a stop string was found.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str] = (),
        emit: Callable[[str], object] | None = None,
    ) -> None:
        self.text, self.stopped = "", False
        self._tokenizer, self._stop, self._emit = tokenizer, tuple(stop), emit
        self._ids: list[int] = []
        self._context, self._read = (
            0,
            0,
        )  # tokens from `_context` on are decoded together, those before `_read` are in
        self._sent = 0

    def put(self, token: int) -> None:
        """Take the next token."""
        self._ids.append(token)
        before, now = self._decoded(self._read), self._decoded(len(self._ids))
        if len(now) > len(before) and not now.endswith(_INCOMPLETE):
            self._context, self._read = self._read, len(self._ids)
            self._extend(now[len(before) :])

    def end(self) -> None:
        """No more tokens come: pass on what waited."""
        if not self.stopped:
            self._extend(self._decoded(len(self._ids))[len(self._decoded(self._read)) :])
        self._send(len(self.text))

    def _decoded(self, stop: int) -> str:
        return str(self._tokenizer.decode(self._ids[self._context : stop], skip_special_tokens=True))

    def _extend(self, more: str) -> None:
        before = len(self.text)
        self.text += more
        # A stop string may have begun in what was there.
        found = [
            at
            for string in self._stop
            if (at := self.text.find(string, max(0, before - len(string) + 1))) >= 0
        ]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
        self._send(len(self.text) if self.stopped else len(self.text) - self._waiting())

    def _waiting(self) -> int:
        """Characters at the end that may begin a stop string."""
        return max((_overlap(self.text, string) for string in self._stop), default=0)

    def _send(self, until: int) -> None:
        if self._emit is not None and until > self._sent:
            self._emit(self.text[self._sent : until])
            self._sent = until


def check_stop(stop: str | Sequence[str]) -> tuple[str, ...]:
    """The stop strings as a tuple.

    Raises:
        ValueError: one is empty, or no text.
    """
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ValueError(f"stop string {string!r} is not usable; give text of at least one character")
    return strings


def _overlap(text: str, string: str) -> int:
    """The longest end of the text that is a proper beginning of the string."""
    most = min(len(text), len(string) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(string[:size])), 0)
