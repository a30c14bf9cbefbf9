"""Cache layers that hold keys and values beside a linear-attention state (Falcon-H1, Zamba, ZAYA)."""

from __future__ import annotations

from typing import NoReturn, cast

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, LinearAttentionAndFullAttentionLayer, LinearAttentionLayer

from keyhole.cache.layer import LayerCache
from keyhole.core.errors import UnsupportedCacheError
from keyhole.feedforward import Steps


class HybridLayer(LinearAttentionAndFullAttentionLayer):
    """transformers' own layer for both; its keys and values are in the hands of another layer.

    Args:
        held: the layer in whose place this one is put; its linear state is taken over.
        attention: a Keyhole layer.
    """

    inner: LayerCache
    steps: Steps | None

    def __init__(self, held: LinearAttentionAndFullAttentionLayer, attention: DynamicLayer) -> None:
        super().__init__(number_of_states=held.number_of_states)
        vars(self).update(vars(held) | {"keys": None, "values": None})
        self.attention = attention

    def __getattr__(self, name: str) -> object:
        if name in ("inner", "steps"):
            return getattr(self.attention, name)
        raise AttributeError(name)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        self.is_initialized = True
        return self.attention.update(key_states, value_states, *args, **kwargs)

    def get_seq_length(self) -> int:
        return self.attention.get_seq_length()

    def reset(self) -> None:
        LinearAttentionLayer.reset(self)
        self.attention.reset()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest tokens.

        Raises:
            UnsupportedCacheError: the linear state holds them, and cannot be taken back.
        """
        recurrent = any(self.is_recurrent_states_initialized.values())
        if tokens_to_remove and self.get_seq_length() and (recurrent or not self.record_past):
            raise UnsupportedCacheError(
                "the linear-attention state of this model cannot be rewound by "
                f"{abs(int(tokens_to_remove))} tokens; start a new cache"
            )
        if self.record_past and not recurrent:
            LinearAttentionLayer.crop(self, tokens_to_remove)
        self.attention.crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        rows = cast(torch.LongTensor, beam_idx)
        LinearAttentionLayer.reorder_cache(self, rows)
        self.attention.reorder_cache(rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.get_seq_length():
            self.reorder_cache(torch.arange(self._batch)[indices.cpu()])

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.get_seq_length():
            self.reorder_cache(torch.arange(self._batch).repeat_interleave(repeats))

    def offload(self) -> NoReturn:
        raise UnsupportedCacheError(
            "Keyhole places keys and values itself; make the cache without offloading"
        )

    prefetch = offload

    @property
    def _batch(self) -> int:
        return self.inner.newest.shape[0]
