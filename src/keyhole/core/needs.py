"""What a scorer, selector or storage may ask for beside keys and values, and gets where it declares it.

Legend: B batch, H query heads, T tokens, E hidden size, D head size.
"""

from __future__ import annotations

from enum import Flag, auto
from typing import Any

from torch import Tensor


class Needs(Flag):
    """What is asked for. The weights of a layer are had from `ModelInfo.projections` without declaring it.

    Attributes:
        HIDDEN_STATES: the inputs of the layer's attention, of prompts and decode steps.
        ALL_QUERIES: the queries of all tokens of a prompt, in place of the newest few.
    """

    NOTHING = 0
    HIDDEN_STATES = auto()
    ALL_QUERIES = auto()


class Informed:
    """Base of scorers, selectors and storages. Nothing is recorded that no part of a layer declares."""

    needs: Needs = Needs.NOTHING

    def crops_exactly(self, length: int) -> bool:  # noqa: ARG002
        """Whether a crop to `length` tokens leaves what there was before the later ones came."""
        return True

    def see_hidden_states(self, hidden: Tensor) -> None:
        """Be shown the inputs of attention `hidden [B, T, E]` of tokens whose keys are about to come."""

    def see_queries(self, queries: Tensor, storage: Any) -> None:
        """Be shown all `queries [B, H, T, D]`, after RoPE, of a piece of a prompt.

        Their tokens are the newest ones in the layer's `storage`, a `keyhole.storage.Storage`.
        """
