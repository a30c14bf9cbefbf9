"""What an attention mask shows, and whether that is what a method takes for granted.

Legend: B batch, Q queries, N tokens. The last query of a mask is the newest token.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

_PER_BLOCK = 1 << 24  # entries of a mask that are compared at once


class Visible:
    """What the newest queries of one call may look at.

    Args:
        mask: bool `[B or 1, 1 or Hkv, Q, N]`, true where a query may look; None is causal without padding.
            Padding is that of the first head.
        batch: B.
    """

    def __init__(self, mask: Tensor | None, batch: int) -> None:
        self.mask, self.batch = mask, batch

    @cached_property
    def padding(self) -> tuple[int, ...]:
        """Slots at the start of each batch row that its newest query does not see; N where it sees none."""
        if self.mask is None:
            return (0,) * self.batch
        newest = self.mask[:, 0, -1]
        begins = torch.where(newest.any(-1), newest.int().argmax(-1), newest.shape[-1])
        return tuple(begins.expand(self.batch).tolist())

    @cached_property
    def hidden(self) -> Tensor | None:
        """Slots behind the padding that the newest query does not see, bool `[B, N]`; None without any."""
        if self.mask is None:
            return None
        newest = self.mask[:, 0, -1]
        starts = torch.tensor(self.padding[: len(newest)], device=newest.device).unsqueeze(1)
        hidden = ~newest & (torch.arange(newest.shape[-1], device=newest.device) >= starts)
        return hidden.expand(self.batch, -1) if bool(hidden.any()) else None

    @cached_property
    def causal(self) -> bool:
        """Whether each query sees the tokens from its row's padding to itself, all of them and no others.

        Queries that are padding see nothing, or, as some versions of transformers have it, everything.
        """
        if self.mask is None:
            return True
        if self.mask.shape[1] > 1:
            return False
        queries, tokens = self.mask.shape[-2:]
        block = max(1, _PER_BLOCK // max(1, len(self.mask) * tokens))
        return all(
            self._causal_rows(start, min(start + block, queries)) for start in range(0, queries, block)
        )

    @cached_property
    def plain(self) -> bool:
        """Whether no mask is needed: causal without padding, each query one of the tokens."""
        if self.mask is None:
            return True
        queries, tokens = self.mask.shape[-2:]
        return queries <= tokens and max(self.padding) == 0 and self.causal

    def _causal_rows(self, start: int, stop: int) -> bool:
        assert self.mask is not None
        queries, tokens = self.mask.shape[-2:]
        device = self.mask.device
        own = torch.arange(tokens - queries + start, tokens - queries + stop, device=device).view(-1, 1)
        starts = torch.tensor(self.padding[: len(self.mask)], device=device).view(-1, 1, 1)
        slots = torch.arange(tokens, device=device)
        expected = (slots <= own) & (slots >= starts)
        shown = self.mask[:, 0, start:stop]
        padding = own.squeeze(-1) < starts.squeeze(-1)
        return bool(((shown == expected).all(-1) | (padding & shown.all(-1))).all())


def left_padding(mask: Tensor, batch: int) -> tuple[int, ...]:
    """Unused slots at the start of each of `batch` rows, by the newest token's mask `[B or 1, 1, Q, N]`.

    Raises:
        ValueError: the newest token sees nothing, or not all tokens from the first that it sees.
    """
    seen = Visible(mask, batch)
    if seen.hidden is not None or max(seen.padding) == mask.shape[-1]:
        raise ValueError(
            "the attention mask hides tokens inside the sequence; Keyhole takes batches padded on the left, "
            "so set tokenizer.padding_side = 'left'"
        )
    return seen.padding


def boolean(mask: Tensor) -> Tensor | None:
    """A mask that is added to logits as one of true and false; None where it does more than to hide.

    Hidden is what gets minus infinity, or the least number of the mask's type.
    """
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        return None
    shown = mask == 0
    return shown if bool((shown | (mask <= torch.finfo(mask.dtype).min)).all()) else None
