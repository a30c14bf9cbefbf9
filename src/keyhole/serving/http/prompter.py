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

from keyhole.serving.http.errors import ApiError, refused
from keyhole.serving.requests import TooLongError
from keyhole.serving.tokenizing import check_characters, longest_token

T = TypeVar("T")


class Prompter:
    """Makes prompts as `keyhole.generate` does: by the chat template, or of text alone.

    Args:
        tokenizer: stays as it is; copies of it are used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        # Tokenizers cannot be used by two threads at once: one is the event loop's, one that of the thread.
        self.tokenizer, self._own = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keyhole-tokenise")

    async def beside(self, work: Callable[[], T]) -> T:
        """Run what tokenises in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def takes_tools(self) -> bool:
        return "tools" in str(self.tokenizer.chat_template or "")

    def text(self, text: str, param: str, most: int | None) -> tuple[int, ...]:
        """The ids of a text, as a prompt without a template.

        Args:
            most: tokens that a prompt can have; a text that has more in any case is not tokenised.

        Raises:
            ApiError: it is such a text.
        """
        self._check_length(len(text), param, most)
        return self._encoded(text, special=True)

    def chat(
        self,
        messages: Sequence[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        param: str,
        most: int | None,
    ) -> tuple[int, ...]:
        """The ids of a conversation, up to where the next answer begins; `most` as for a text.

        A model without a chat template continues the contents, each answer on a line of its own: so does
        `keyhole.Library.chat`.

        Raises:
            ApiError: the template refuses these messages, or the prompt is longer than what is served.
        """
        self._check_length(sum(len(str(message.get("content") or "")) for message in messages), param, most)
        if not self.tokenizer.chat_template:
            return self._encoded(_plain(messages), special=True)
        try:
            text = self._own.apply_chat_template(
                list(messages), tools=[*tools] if tools else None, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise ApiError(
                f"the model's chat template does not take these messages: {error}", param=param
            ) from error
        self._check_length(len(str(text)), param, most)
        return self._encoded(str(text), special=False)

    def _encoded(self, text: str, *, special: bool) -> tuple[int, ...]:
        return tuple(self._own(text, add_special_tokens=special, verbose=False).input_ids)

    @cached_property
    def _longest(self) -> int:
        return longest_token(self.tokenizer)

    def _check_length(self, characters: int, param: str, most: int | None) -> None:
        try:
            check_characters(characters, most, self._longest)
        except TooLongError as error:
            raise refused(error, param) from error


def _plain(messages: Sequence[dict[str, Any]]) -> str:
    """The contents one after another; whatever is not the user's ends its line."""
    parts = [(str(message.get("content") or ""), message["role"] == "user") for message in messages]
    return "".join(content if of_user else f"{content}\n" for content, of_user in parts)
