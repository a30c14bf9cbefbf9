"""The attention mask of a decode step, as transformers makes it of what a model is given."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class OwnMaskError(Exception):
    """A mask that the model has to make itself."""


def step_mask(given: Any, length: int) -> Tensor | None:
    """What one query a row sees of `length` tokens, itself among them, bool `[B, 1, 1, N]`; None is all.

    Args:
        given: `[B, N]`, not 0 where a token may be seen.

    Raises:
        OwnMaskError: it is of another form.
    """
    if given is None:
        return None
    if not isinstance(given, Tensor) or given.dim() != 2 or given.shape[1] != length:
        raise OwnMaskError
    return None if bool(given.all()) else given.bool()[:, None, None]
