"""Keyhole's attention in place of vLLM's on a CPU."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from keyhole.engines.vllm.backend import ServingBackend
from keyhole.engines.vllm.impl import ServingImpl
from keyhole.engines.vllm.metadata import BatchBuilder
from keyhole.storage import Pages, split_pages


class CPUImpl(ServingImpl, CPUAttentionBackendImpl):
    """A layer on a CPU. vLLM's kernels store keys transposed there; in these pages they lie row by row."""

    own = CPUAttentionBackendImpl

    @staticmethod
    def pages(kv_cache: Tensor, head_size: int) -> Pages:
        return split_pages(kv_cache, head_size, planar=True)

    def do_kv_cache_update(
        self,
        layer: Any,  # noqa: ARG002
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
    ) -> None:
        """Write a step's keys and values to their slots; tokens that only fill a batch up have slot -1."""
        pages, slots = self.pages(kv_cache, self.head_size), slot_mapping.long()
        size, real = pages.keys.shape[1], slots >= 0
        blocks, places = slots[real] // size, slots[real] % size
        pages.keys[blocks, places] = key[: len(slots)][real]
        pages.values[blocks, places] = value[: len(slots)][real]


class CPUBuilder(BatchBuilder, CPUAttentionMetadataBuilder):
    """Metadata of a step, for layers of both kinds."""


class CPUBackend(ServingBackend, CPUAttentionBackend):
    """vLLM's `CPU_ATTN`."""

    impl = CPUImpl
    builder = CPUBuilder
