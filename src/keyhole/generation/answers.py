"""Questions about a context, which is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keyhole.generation.loading import Loaded, load_model
from keyhole.generation.prompt import Asked, PromptForm, wants_chat, within_range
from keyhole.generation.reader import Answer, AnswerRecorder, Options, Progress, Reader
from keyhole.generation.sampling import check_sampling
from keyhole.generation.text import check_stop
from keyhole.methods.base import Method
from keyhole.methods.recipe import Recipe


@overload
def generate(
    model: PreTrainedModel | str | Path,
    tokenizer: PreTrainedTokenizerBase | None = ...,
    *,
    context: str,
    questions: str,
    method: str | Method | Recipe = ...,
    question_aware: bool = ...,
    beyond_range: bool = ...,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    seed: int = ...,
    stop: str | Sequence[str] = ...,
    chat: bool | None = ...,
    chunk: int | None = ...,
    stream: Callable[[str], object] | None = ...,
    progress: Progress | None = ...,
    recorder: AnswerRecorder | None = ...,
) -> Answer: ...


@overload
def generate(
    model: PreTrainedModel | str | Path,
    tokenizer: PreTrainedTokenizerBase | None = ...,
    *,
    context: str,
    questions: Sequence[str],
    method: str | Method | Recipe = ...,
    question_aware: bool = ...,
    beyond_range: bool = ...,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    seed: int = ...,
    stop: str | Sequence[str] = ...,
    chat: bool | None = ...,
    chunk: int | None = ...,
    stream: Callable[[str], object] | None = ...,
    progress: Progress | None = ...,
    recorder: AnswerRecorder | None = ...,
) -> list[Answer]: ...


def generate(
    model: PreTrainedModel | str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    context: str,
    questions: str | Sequence[str],
    method: str | Method | Recipe = "pqcache",
    question_aware: bool = False,
    beyond_range: bool = False,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    chat: bool | None = None,
    chunk: int | None = None,
    stream: Callable[[str], object] | None = None,
    progress: Progress | None = None,
    recorder: AnswerRecorder | None = None,
) -> Answer | list[Answer]:
    """Answer questions about a context that is read once.

    Each question follows the context directly, so its answer does not depend on the other questions.

    Args:
        model: a model, or what `keyhole.generation.load_model` takes: a directory, a hub name or a GGUF file.
        tokenizer: needed where `model` is a model.
        context: the document.
        questions: one question, or several; an empty one lets the model continue the context.
        method: a method string, method or recipe.
        question_aware: read the context again for each question, together with it. Methods that drop tokens
            then know the question when they select what to keep.
        beyond_range: read prompts longer than the model's range by a recipe that renumbers positions, made of
            `method` where that can, else `tokenselect`; `Answer.method` is the one that was taken. Prompts
            within the range are read by `method`.
        temperature: 0 is greedy decoding.
        top_p: sample from the smallest set of tokens that has this probability.
        seed: random seed of the sampling, applied to each question separately.
        stop: strings that end an answer; they are not part of it.
        chat: use the tokenizer's chat template; by default if there is one.
        chunk: prompt tokens computed at once; 1,024 on a CPU, 8,192 elsewhere and for methods that drop
            tokens.
        stream: called with pieces of text as they are generated.
        progress: called while the prompt is read.
        recorder: a `keyhole.view.Recorder`, which makes a record of what was read for each answer.

    Returns:
        An `Answer`, or a list of them where `questions` is a sequence.

    Raises:
        ValueError: an option is out of range, or the prompt is longer than the model's range and the method
            does not renumber positions.
        SpecError: the method cannot be read.
        UnsupportedModelError: the model cannot be served, with the reason.
    """
    recipe = Recipe.parse(method)
    options = options_of(max_new_tokens, temperature, top_p, seed, stop, chunk, stream, recorder)
    asked = [questions] if isinstance(questions, str) else list(questions)
    loaded = _loaded(model, tokenizer)
    form = PromptForm(loaded.tokenizer, context, chat=wants_chat(loaded.tokenizer, chat))
    prompts = [form.ask(question) for question in asked]
    recipes = [
        within_range(loaded.model, recipe, prompt, max_new_tokens, beyond=beyond_range) for prompt in prompts
    ]
    recipes = [r.for_text(f"{context}\n{question}") for r, question in zip(recipes, asked, strict=True)]
    answers: dict[int, Answer] = {}
    for numbers in _together(recipes, prompts, question_aware):
        reader = Reader(loaded, recipes[numbers[0]], options, chunk, progress)
        group = [(asked[number], prompts[number]) for number in numbers]
        answers |= zip(numbers, reader.answers(group, question_aware), strict=True)
    return answers[0] if isinstance(questions, str) else [answers[number] for number in range(len(asked))]


def options_of(
    limit: int,
    temperature: float,
    top_p: float,
    seed: int,
    stop: str | Sequence[str],
    chunk: int | None,
    stream: Callable[[str], object] | None,
    recorder: AnswerRecorder | None = None,
) -> Options:
    check_sampling(temperature, seed, top_p)
    if limit < 1:
        raise ValueError(f"max_new_tokens {limit} is out of range; give at least 1")
    if chunk is not None and chunk < 2:
        raise ValueError(f"chunk {chunk} is out of range; give at least 2 tokens")
    return Options(limit, temperature, top_p, seed, check_stop(stop), stream, recorder)


def _loaded(model: PreTrainedModel | str | Path, tokenizer: PreTrainedTokenizerBase | None) -> Loaded:
    if isinstance(model, (str, Path)):
        loaded = load_model(model)
        return loaded if tokenizer is None else Loaded(loaded.model, tokenizer)
    if tokenizer is None:
        raise ValueError(
            "a loaded model needs its tokenizer; give `tokenizer`, or pass the model's directory or name"
        )
    return Loaded(model, tokenizer)


def _together(recipes: list[Recipe], prompts: list[Asked], question_aware: bool) -> list[list[int]]:
    """Numbers of the questions that one reading of the context serves."""
    if question_aware:
        return [[number] for number in range(len(recipes))]
    groups: dict[tuple, list[int]] = {}
    for number, (recipe, prompt) in enumerate(zip(recipes, prompts, strict=True)):
        groups.setdefault((recipe, tuple(prompt.context[0].tolist())), []).append(number)
    return list(groups.values())
