"""The blocks that a method reads, as the rule that a model is trained with."""

from __future__ import annotations

from keyhole.core.model_info import ModelInfo
from keyhole.methods.infllm_v2 import InfLLMV2
from keyhole.methods.spec import parse_stages
from keyhole.selection.block_lists import BlockRule
from keyhole.selection.compressed import CompressedSelector


def rule_of(selection: str) -> BlockRule:
    """The rule by which a decode step of that method selects.

    Raises:
        SpecError: its options cannot be read.
        ValueError: it reads no fixed number of blocks.
    """
    (method,) = parse_stages(selection)
    (selector,) = method.selectors(ModelInfo.of(1)) or [None]
    if not isinstance(method, InfLLMV2) or not isinstance(selector, CompressedSelector):
        raise ValueError(f"{method} does not select blocks as models are trained to; give infllm_v2 or nosa")
    if method.budget.tokens is None:
        raise ValueError(f"the budget of {method} is no number of tokens; give one, such as budget=3008")
    return selector.rule(method.budget.tokens)
