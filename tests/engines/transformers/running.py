"""Run models greedily and compare what comes out."""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from keyhole.engines.transformers.compat import CACHE


class Answer(NamedTuple):
    """Token ids of prompt and answer, and the logits of each answered token, `[steps, B, vocabulary]`."""

    tokens: Tensor
    logits: Tensor


def answer(
    model: PreTrainedModel, ids: Tensor, *, steps: int = 6, mask: Tensor | None = None, **options
) -> Answer:
    """Let the model go on greedily for so many tokens."""
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids) if mask is None else mask,
        **{
            "max_new_tokens": steps,
            "do_sample": False,
            "return_dict_in_generate": True,
            "output_logits": True,
            **options,
        },
    )
    return Answer(out.sequences, torch.stack(out.logits))


def assert_same(found: Answer, wanted: Answer, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found.logits, wanted.logits, rtol=tolerance, atol=tolerance)
    assert found.tokens.tolist() == wanted.tokens.tolist()


def left_padded(*prompts: Tensor) -> tuple[Tensor, Tensor]:
    """Prompts `[1, T]` of unequal length as one batch, and its attention mask."""
    width = max(ids.shape[1] for ids in prompts)
    rows = [torch.nn.functional.pad(ids, (width - ids.shape[1], 0)) for ids in prompts]
    masks = [torch.nn.functional.pad(torch.ones_like(ids), (width - ids.shape[1], 0)) for ids in prompts]
    return torch.cat(rows), torch.cat(masks)


def attention_of(model: PreTrainedModel) -> list[str | None]:
    """The attention implementation of every configuration in a model."""
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    return [config._attn_implementation for config in configs.values()]


def given(cache: Cache | None) -> dict[str, Cache | None]:
    """A cache as an argument of a model or of `generate`, by the name that this transformers gives it."""
    return {CACHE: cache}
