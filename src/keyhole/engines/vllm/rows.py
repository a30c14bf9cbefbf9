"""What a step of vLLM brings for one request; imports nothing of vLLM."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One request's share of a step.

    Attributes:
        request: the scheduler's id of the request.
        begin: tokens whose keys and values were computed before this step, prefix-cache hits among them.
        count: new tokens, at least 1.
        start: place of the first new token in the step's flat tensors `[T, ...]`.
        prompt: tokens of the request's prompt; those after it are generated.
        table: int32 `[blocks]`, the page of each block of the request's tokens.
    """

    request: str
    begin: int
    count: int
    start: int
    prompt: int
    table: Tensor

    @property
    def end(self) -> int:
        """Tokens there are after this step."""
        return self.begin + self.count
