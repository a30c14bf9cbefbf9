"""What a model answers under full attention: greedy continuations of held-out samples."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keyhole.evaluation.haystack import Haystack
from keyhole.evaluation.tasks import TASKS, Sample


@torch.inference_mode()
def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: Sequence[Sample]) -> list[str]:
    """The greedy continuations of the samples' prompts, in one batch padded on the left."""
    prompts = [sample.prompt for sample in asked]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    length = max(sample.max_new_tokens for sample in asked)
    # A PreTrainedModel may or may not generate, so its type does not say.
    out = cast("Any", model).generate(**inputs, max_new_tokens=length, do_sample=False)
    return tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def samples(
    tokenizer: PreTrainedTokenizerBase, name: str, tokens: int, count: int, *, seed: int = 0
) -> list[Sample]:
    """`count` samples of a task on held-out text; the same seed gives the same samples."""
    haystack = Haystack.from_environment("held-out")
    task = TASKS[name]
    generators = (np.random.default_rng([seed, tokens, i]) for i in range(count))
    return [task.make(rng, haystack, tokenizer, tokens) for rng in generators]
