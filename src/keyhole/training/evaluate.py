"""Scores of a model under full attention: greedy answers to held-out samples of every task."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keyhole.evaluation.haystack import Haystack
from keyhole.evaluation.tasks import TASKS, Sample, score


@torch.inference_mode()
def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sample: Sample) -> str:
    """The greedy continuation of the sample's prompt."""
    inputs = tokenizer(sample.prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    out = model.generate(**inputs, max_new_tokens=sample.max_new_tokens, do_sample=False)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def samples(
    tokenizer: PreTrainedTokenizerBase, name: str, tokens: int, count: int, *, seed: int = 0
) -> list[Sample]:
    """`count` samples of a task on held-out text; the same seed gives the same samples."""
    haystack = Haystack.from_environment("held-out")
    task = TASKS[name]
    generators = (np.random.default_rng([seed, tokens, i]) for i in range(count))
    return [task.make(rng, haystack, tokenizer, tokens) for rng in generators]


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    count: int,
    *,
    names: Sequence[str] = tuple(TASKS),
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, float]:
    """Mean score of each task over `count` samples with prompts of `tokens` tokens."""
    scores = {}
    for name in names:
        asked = samples(tokenizer, name, tokens, count, seed=seed)
        scores[name] = float(np.mean([score(s, answer(model, tokenizer, s)) for s in asked]))
        if progress:
            progress(name, scores[name])
    return scores
