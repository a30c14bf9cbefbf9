"""From text and messages to token ids."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.token_text import longest_token

T = TypeVar("T")


class Prompter:
    """Makes prompts as `keyhole.generate` does: by the chat template, or of text alone.

    Args:
        tokenizer: stays as it is; copies of it are used.
        most: tokens that a prompt can have; a text that has more in any case is not tokenised.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, most: int | None) -> None:
        # Tokenizers cannot be used by two threads at once: one is the event loop's, one that of the thread.
        self.tokenizer, self._own = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
        self._most = most
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keyhole-tokenise")

    async def beside(self, work: Callable[[], T]) -> T:
        """Run what tokenises in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def takes_tools(self) -> bool:
        return "tools" in str(self.tokenizer.chat_template or "")

    def text(self, text: str, param: str) -> tuple[int, ...]:
        """The ids of a text, as a prompt without a template."""
        return self._encoded(text, param, special=True)

    def chat(
        self, messages: Sequence[dict[str, Any]], tools: list[dict[str, Any]] | None, param: str
    ) -> tuple[int, ...]:
        """The ids of a conversation, up to where the next answer begins.

        A model without a chat template continues the contents, each answer on a line of its own: so does
        `keyhole.Library.chat`.

        Raises:
            ApiError: the template refuses these messages, or the prompt is longer than what is served.
        """
        if not self.tokenizer.chat_template:
            return self._encoded(_plain(messages), param, special=True)
        self._check_length(sum(len(str(message.get("content") or "")) for message in messages), param)
        try:
            text = self._own.apply_chat_template(
                list(messages), tools=tools or None, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise ApiError(
                f"the model's chat template does not take these messages: {error}", param=param
            ) from error
        return self._encoded(str(text), param, special=False)

    def _encoded(self, text: str, param: str, *, special: bool) -> tuple[int, ...]:
        self._check_length(len(text), param)
        return tuple(self._own(text, add_special_tokens=special, verbose=False).input_ids)

    @cached_property
    def _longest(self) -> int:
        return longest_token(self.tokenizer)

    def _check_length(self, characters: int, param: str) -> None:
        if self._most is not None and characters > self._most * self._longest:
            raise ApiError(
                f"the prompt has {characters:,} characters, which is more than {self._most:,} tokens, the "
                "context that is served; shorten it, or store it as a document",
                param=param,
                code="context_length_exceeded",
            )


def _plain(messages: Sequence[dict[str, Any]]) -> str:
    """The contents one after another; whatever is not the user's ends its line."""
    parts = [(str(message.get("content") or ""), message["role"] == "user") for message in messages]
    return "".join(content if of_user else f"{content}\n" for content, of_user in parts)
