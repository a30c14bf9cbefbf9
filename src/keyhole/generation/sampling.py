"""From logits to the next token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

Sampler = Callable[[Tensor], int]
MOST_SEED = 2**63 - 1
MOST_TEMPERATURE = 1e6  # float32 logits still differ
_LEAST_TEMPERATURE = 1e-30  # the likeliest token has all probability; by less, float32 logits overflow


def greedy(logits: Tensor) -> int:
    """The most likely token of `logits [V]`; the lower id of equal ones."""
    return int(logits.argmax())


def sampler(temperature: float, seed: int, top_p: float = 1.0) -> Sampler:
    """A function from logits `[V]` to a token id; `greedy` at temperature 0, and where it is as good as 0.

    Args:
        temperature: logits are divided by it.
        seed: of a generator of its own, so that other sampling in the process has no influence.
        top_p: samples from the smallest set of tokens whose probabilities add up to it.

    Raises:
        ValueError: a value is out of range.
    """
    check_sampling(temperature, seed, top_p)
    if temperature < _LEAST_TEMPERATURE:
        return greedy
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_p < 1:
        warpers.append(TopPLogitsWarper(float(top_p)))
    generator = torch.Generator().manual_seed(seed)
    no_tokens = torch.empty(1, 0, dtype=torch.long)

    def draw(logits: Tensor) -> int:
        scores = warpers(no_tokens, logits.float().cpu()[None])  # type: ignore[arg-type]
        return int(torch.multinomial(scores.softmax(-1)[0], 1, generator=generator))

    return draw


def check_sampling(temperature: float, seed: int, top_p: float) -> None:
    """Raise ValueError unless the three can be sampled with."""
    if not 0 <= temperature <= MOST_TEMPERATURE:
        raise ValueError(
            f"temperature {str(temperature)[:30]} is out of range; give 0 (greedy) to {MOST_TEMPERATURE:g}"
        )
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p {str(top_p)[:30]} is out of range; give a probability in (0, 1]")
    if not 0 <= seed <= MOST_SEED:
        raise ValueError(f"seed {str(seed)[:30]} is out of range; give a whole number from 0 to {MOST_SEED}")
