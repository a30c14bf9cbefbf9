"""What is measured on, checked and named before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from keyhole.core.version import __version__
from keyhole.engines.transformers.fingerprint import fingerprint
from keyhole.engines.transformers.sizes import position_range
from keyhole.evaluation.divergence.passages import Passage
from keyhole.evaluation.divergence.rows import Settings


def check_range(model: PreTrainedModel, context: int, tokens: int) -> None:
    """Raise ValueError where context and tokens are more than the model's range, or too few to measure."""
    if context < 2 or tokens < 1:
        raise ValueError(
            f"context={context}, tokens={tokens} leave nothing to measure; give at least 2 and 1"
        )
    limit = position_range(model)
    if limit is not None and context + tokens > limit:
        raise ValueError(
            f"a context of {context} tokens and {tokens} to predict take {context + tokens} positions, the "
            f"model has {limit}; give a context of at most {limit - tokens}"
        )


def settings_of(
    model: PreTrainedModel, name: str, texts: Sequence[Passage], context: int, tokens: int
) -> Settings:
    """What the rows of a measurement share.

    Raises:
        ValueError: context and tokens are more than the model's range, or less than a measurement needs.
    """
    check_range(model, context, tokens)
    names, digests = tuple(text.name for text in texts), tuple(text.digest for text in texts)
    dtype = str(model.dtype).removeprefix("torch.")
    return Settings(name, fingerprint(model), dtype, context, tokens, names, digests, __version__)
