"""Several turns about one stored document."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from keyhole.core.closing import Closing
from keyhole.documents.answering import Asking, continued
from keyhole.documents.form import behind
from keyhole.documents.opening import Opened
from keyhole.generation.reader import Answer

_END = "\x01end\x01"  # no template and no text has it


class Conversation(Closing):
    """Questions and answers behind a document, each behind those before it.

    The document stays as it is at the beginning, also when it is removed or replaced meanwhile.

    Args:
        reopen: gives the document again as it was opened.

    Attributes:
        turns: what was asked and answered so far.
    """

    def __init__(self, opened: Opened, reopen: Callable[[Opened], Opened]) -> None:
        self._opened, self._reopen = opened, reopen
        # Ids behind the document that the cache holds; None while, and after, an answer is interrupted.
        self._held: list[int] | None = []
        self.turns: list[tuple[str, str]] = []

    def ask(
        self,
        question: str,
        *,
        exact: bool = False,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        stream: Callable[[str], object] | None = None,
    ) -> Answer:
        """The next answer; as `keyhole.Library.ask`."""
        asking = Asking.of(max_new_tokens, temperature, top_p, seed, stop, stream, exact=exact)
        wanted = behind(self._opened.tokenizer, self._opened.text, self._said(question))
        kept = self._kept(wanted)
        ids = np.concatenate([self._opened.ids, np.asarray(wanted[:kept], np.int64)])
        self._held = None
        found = continued(self._opened, ids, wanted[kept:], question, asking)
        self._held = [*wanted, *found.tokens[:-1]]
        self.turns.append((question, found.text))
        return found

    def _kept(self, wanted: list[int]) -> int:
        """How many of the ids behind the document the cache holds; it is opened again if it holds others."""
        # Read as text again, an earlier answer may have other tokens than it was made of.
        held = self._held
        if held is not None and len(held) < len(wanted) and wanted[: len(held)] == held:
            return len(held)
        self._opened = self._reopen(self._opened)
        return 0

    def _said(self, question: str) -> str:
        """All that comes behind the document, up to where the next answer begins."""
        if not self._opened.chat:
            return "".join(f"{asked}{answered}\n" for asked, answered in self.turns) + question
        messages = []
        for asked, answered in self.turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": question})
        messages[0]["content"] = _END + messages[0]["content"]
        text = self._opened.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return str(text).split(_END, 1)[1]

    def close(self) -> None:
        """Let go of the document."""
        self._opened.close()
