"""From samples to token ids: chat form, cutting in the middle, and what of a prompt is shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from keyhole.evaluation.benchmarks.base import Sample, Turn
from keyhole.generation.prompt import wants_chat

_ROUNDS = 8
_PROBE = "\x01"  # a question like no other, so that no question's words count as context


class TooLongError(ValueError):
    """A prompt beyond the model's range, of a benchmark that does not cut."""


@dataclass(frozen=True)
class Encoded:
    """A sample as tokens.

    Attributes:
        turns: the whole prompt of each turn.
        shared: how many tokens all turns begin with, and are read once.
        cut: tokens that were cut out of the middle of the prompt.
    """

    turns: tuple[list[int], ...]
    shared: int
    cut: int = 0


class Encoder:
    """How a tokenizer's model is asked.

    Args:
        chat: whether prompts take the chat form; as the benchmark has it by default.
        most: positions for a prompt and its answer, None where there is no limit.
        longest: tokens of a prompt, before chat form, beyond which it is cut by benchmarks that do.

    Raises:
        ValueError: chat is asked for, and the tokenizer has no template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat: bool | None = None,
        most: int | None = None,
        longest: int | None = None,
    ) -> None:
        self._has_chat = wants_chat(tokenizer, chat or None)
        self._tokenizer, self._chat, self._most, self._longest = tokenizer, chat, most, longest

    def without_range(self) -> Encoder:
        """The same for methods that read texts beyond the model's range."""
        return Encoder(self._tokenizer, chat=self._chat, longest=self._longest)

    def encode(self, sample: Sample) -> Encoded:
        """The tokens of a sample's turns.

        Raises:
            TooLongError: it is beyond the model's range, and its benchmark does not cut prompts.
            ValueError: a prompt of fewer than 2 tokens.
        """
        ids = self._ids(sample.prompt)
        keep = min(len(ids), self._longest or len(ids)) if sample.cut else len(ids)
        for _ in range(_ROUNDS):
            keep -= keep % 2 if keep < len(ids) else 0  # two halves
            short = self._without_middle(sample, ids, keep)
            turns = [self._turn(short, turn) for turn in short.turns]
            if min(map(len, turns)) < 2:
                raise ValueError(f"{sample.task}, sample {sample.id}: a prompt needs at least 2 tokens")
            needs = (len(turn) + asked.limit for turn, asked in zip(turns, short.turns, strict=True))
            excess = 0 if self._most is None else max(needs) - self._most
            if excess <= 0:
                return Encoded(tuple(turns), self._shared(short, turns), len(ids) - keep)
            if not sample.cut or keep <= excess:
                break
            keep -= excess
        raise TooLongError(
            f"the prompt has {max(map(len, turns)):,} tokens and the answer up to "
            f"{max(turn.limit for turn in sample.turns):,}, beyond the model's range of {self._most:,}"
        )

    def text(self, sample: Sample, turn: Turn) -> str:
        """A turn's whole prompt as text."""
        first = sample.prompt + turn.tail
        if not self._uses_chat(sample):
            return first + "".join(f"{said}\n\n{asked}" for said, asked in turn.history) + sample.reply
        messages = [{"role": "user", "content": first}]
        for said, asked in turn.history:
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": asked}]
        form = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return str(form) + sample.reply

    def _uses_chat(self, sample: Sample) -> bool:
        return self._has_chat and (sample.chat if self._chat is None else self._chat)

    def _turn(self, sample: Sample, turn: Turn) -> list[int]:
        return self._ids(self.text(sample, turn), special=not self._uses_chat(sample))

    def _ids(self, text: str, *, special: bool = True) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False).input_ids)

    def _without_middle(self, sample: Sample, ids: Sequence[int], keep: int) -> Sample:
        if keep == len(ids):
            return sample
        half = keep // 2
        ends = (ids[:half], ids[len(ids) - half :])
        text = "".join(str(self._tokenizer.decode(list(end), skip_special_tokens=True)) for end in ends)
        return replace(sample, prompt=text)

    def _shared(self, sample: Sample, turns: Sequence[list[int]]) -> int:
        probed = [self._turn(sample, Turn(None, 0, tail=_PROBE))] if sample.turns[0].tail else []
        return common([*turns, *probed], most=min(map(len, turns)) - 1)


def common(sequences: Sequence[Sequence[int]], *, most: int) -> int:
    """How many tokens all sequences begin with, `most` at most."""
    first = sequences[0]
    for index in range(most):
        if any(index >= len(each) or each[index] != first[index] for each in sequences):
            return index
    return most
