"""Methods times budgets times tasks on one model: what each reads, keeps, costs, and gets right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.engines.transformers import activated, detach, footprint, served_layers, usage
from keyhole.engines.transformers.far import check_far
from keyhole.engines.transformers.sizes import position_range
from keyhole.evaluation.candidates import DENSE, Candidate, candidates
from keyhole.evaluation.fitting import count_tokens
from keyhole.evaluation.haystack import Haystack
from keyhole.evaluation.mass import MassMeter
from keyhole.evaluation.prompts import Prompt, Start
from keyhole.evaluation.rows import MEAN, Outcome, Row, summarise
from keyhole.evaluation.starts import Starts
from keyhole.evaluation.tasks import SINGLE_TURN, TASKS, Sample, Task, Turn, score
from keyhole.generation.decoding import Token, decode, prefill
from keyhole.generation.text import stop_tokens, text_of
from keyhole.methods import Method, Recipe
from keyhole.methods.beyond import check_beyond

Progress = Callable[[str, int, int], None]  # what is being done, samples done, samples in all


def compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    methods: Iterable[str | Method | Recipe] = ("oracle", "pqcache"),
    budgets: Iterable[str | float | Budget] = (0.05, 0.1, 0.2, "mass=0.95"),
    tasks: Iterable[str] = SINGLE_TURN,
    context: int,
    samples: int = 10,
    seed: int = 0,
    haystack: Haystack | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Rows for every candidate and task, in that order, and for each candidate the mean over the tasks.

    Each prompt is computed once; methods that only read it differently start from copies of its keys and
    values, one at a time. The prompt's last token is the first decode step, so no token of an answer is found
    by full attention. Full attention is always among the candidates.

    Args:
        methods: specifications; one that names a budget is taken at that budget only.
        context: tokens a prompt fills.
        haystack: text around the needles; parts of this environment's documentation where not given.

    Raises:
        ValueError: an unknown task, method or budget, or a context that is too small for a task or too long
            for the model; all found before any prompt is computed.
    """
    chosen = candidates(methods, budgets)
    named = find_tasks(tasks)
    if samples < 1:
        raise ValueError(f"samples={samples} is out of range; give at least 1")
    text = haystack or Haystack.from_environment("held-out")
    asked = _Samples(tokenizer, text, context, seed)
    growth = max(_growth(tokenizer, asked.make(task, 0)) for task in named)
    _check_range(model, chosen, context, growth)
    found: dict[tuple[str, Candidate], list[Outcome]] = {}
    try:
        for done, (task, index) in enumerate(product(named, range(samples))):
            if progress is not None:
                progress(task.name, done, len(named) * samples)
            for candidate, outcome in _answer_all(model, tokenizer, asked.make(task, index), chosen):
                found.setdefault((task.name, candidate), []).append(outcome)
    finally:
        detach(model)
    return list(_rows(chosen, [task.name for task in named], context, found))


def find_tasks(names: Iterable[str], *, beside: Iterable[str] = ()) -> list[Task]:
    """The tasks of those names, each once.

    Raises:
        ValueError: an unknown name, or none.
    """
    wanted = list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in TASKS]
    if unknown or not wanted:
        said = f"unknown task {unknown[0]!r}" if unknown else "no task is named"
        raise ValueError(f"{said}; there are: {', '.join((*beside, *TASKS))}")
    return [TASKS[name] for name in wanted]


class _Samples:
    """Samples that depend on seed, context and index only; the model card's scores use the same ones."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: Haystack, context: int, seed: int) -> None:
        self._tokenizer, self._text, self._context, self._seed = tokenizer, text, context, seed

    def make(self, task: Task, index: int) -> Sample:
        rng = np.random.default_rng([self._seed, self._context, index])
        return task.make(rng, self._text, self._tokenizer, self._context)


def _growth(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> int:
    """Tokens that answers, and a later question, may add to a prompt."""
    if sample.later is None:
        return sample.max_new_tokens
    asked = count_tokens(tokenizer, sample.later.question)
    return sample.max_new_tokens + asked + sample.later.max_new_tokens


def _check_range(model: PreTrainedModel, chosen: Sequence[Candidate], context: int, growth: int) -> None:
    """Beyond the model's range all but full attention, the measure of the others, must renumber positions."""
    limit, tokens = position_range(model), context + growth
    if limit is None or tokens <= limit:
        return
    try:
        for candidate in chosen:
            if candidate != DENSE:
                check_beyond(candidate.recipe, limit, tokens)
    except SpecError as error:
        raise SpecError(
            f"a context of {context} tokens and its answers take {tokens} positions, the model has {limit}: "
            f"{error}; or give a context of at most {limit - growth}"
        ) from error
    check_far(model, tokens)


def _answer_all(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sample: Sample, chosen: Sequence[Candidate]
) -> Iterable[tuple[Candidate, Outcome]]:
    """The candidates' answers to one sample; DENSE, which comes first, is the measure of the others."""
    tokens: Tensor = tokenizer(sample.prompt, return_tensors="pt", verbose=False).input_ids.to(model.device)
    prompt = Prompt(model, tokens)
    starts = Starts(prompt)
    full: float | None = None
    for candidate in chosen:
        with starts.begin(candidate) as begun:
            outcome = _answer(model, tokenizer, sample, prompt.last, begun, candidate, full)
        full = outcome.accuracy if candidate == DENSE else full
        yield candidate, outcome


def _answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sample: Sample,
    last: int,
    begun: Start,
    candidate: Candidate,
    full: float | None,
) -> Outcome:
    meter = MassMeter(served_layers(begun.cache), candidate.mass)
    turns = _converse(model, tokenizer, sample, last, begun, meter)
    accuracy = score(sample.later or sample, text_of(tokenizer, turns[-1]))
    return Outcome(
        accuracy=accuracy,
        accuracy_full=accuracy if full is None else full,
        usage=usage(begun.cache),
        tally=meter.tally,
        footprint=footprint(begun.cache),
        prefill_s=begun.seconds,
        decode_s=[token.seconds for turn in turns for token in turn],
        activated=activated(begun.cache),
    )


def _converse(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sample: Sample,
    last: int,
    begun: Start,
    meter: MassMeter,
) -> list[list[Token]]:
    """The answers to a sample's questions, one after the other."""
    stops = stop_tokens(model, tokenizer)

    def answer(asked: Turn, last: int) -> list[Token]:
        said = []
        for token in decode(model, last, begun.cache, limit=asked.max_new_tokens, stops=stops):
            meter.settle()
            said.append(token)
        return said

    turns = [answer(sample, last)]
    if sample.later is not None:
        last = _ask(model, tokenizer, turns[0][-1], sample.later, begun)
        turns.append(answer(sample.later, last))
    return turns


def _ask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, said: Token, asked: Turn, begun: Start
) -> int:
    """Append the last token `said`, and all of a question but its own last token, which is returned."""
    question: Tensor = tokenizer(asked.question, return_tensors="pt", add_special_tokens=False).input_ids
    rest = [] if said.ends else [said.id]
    tokens = torch.cat([torch.tensor([rest], dtype=torch.long), question], dim=1).to(model.device)
    prefill(model, tokens[:, :-1], begun.cache)
    return int(tokens[0, -1])


def _rows(
    chosen: Sequence[Candidate],
    tasks: Sequence[str],
    context: int,
    found: dict[tuple[str, Candidate], list[Outcome]],
) -> Iterable[Row]:
    for candidate in chosen:
        every = []
        for task in tasks:
            outcomes = found[task, candidate]
            every += outcomes
            yield summarise(candidate, task, context, outcomes)
        yield summarise(candidate, MEAN, context, every)
